"""Groups of teams that share limits; and the day to which a call counts.

Revision ID: 0009
Revises: 0008
Create Date: 2026-11-27 13:40:00

"""

from alembic import op
import sqlalchemy as sa


revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
COUNTERS = (
    *((name, sa.BigInteger) for name in ("extra_tokens", "requests_full_at", "tokens_full_at", "settled_tokens")),
    *((name, sa.BigInteger) for name in ("reset_mark_tokens", "held_tokens")),
    ("calls_in_flight", sa.Integer),
)
LIMITS = {
    "quota_tokens": sa.BigInteger,
    "requests_per_minute": sa.Integer,
    "tokens_per_minute": sa.BigInteger,
    "calls_at_once": sa.Integer,
}
WHOLE = "{{0}}{0} IS NULL OR ({{0}}{0} >= 0 AND {{1}})"  # what a name is read of, and whether it is a number
ACCEPTED = {
    **{
        name: (WHOLE.format(name), f"{name} is a whole number, 0 to block, or NULL for no limit")
        for name in ("quota_tokens", "requests_per_minute", "tokens_per_minute", "calls_at_once")
    },
    "extra_tokens": (WHOLE.format("extra_tokens"), "extra_tokens is a whole number of tokens, 0 for none"),
    "renews": (
        "{0}renews IN ('never', 'daily', 'weekly', 'monthly')",
        "renews is never, daily, weekly or monthly",
    ),
    "renews_on": (
        "{0}renews_on IS NULL OR ({0}renews = 'monthly' AND {1} AND {0}renews_on BETWEEN 1 AND 31)",
        "renews_on is the day of the month, from 1 to 31, of what renews monthly, or NULL",
    ),
    "name": ("length({0}name) BETWEEN 1 AND 200", "name is a text of 1 to 200 characters"),
}
SUMS = ("requests", "errors", "prompt_tokens", "completion_tokens", "total_tokens")
INDEX_OF_GROUPS = "ix_request_logs_group_id_id"


def upgrade():
    is_living = sa.text("deleted_at IS NULL")
    op.create_table(
        "groups",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        *(sa.Column(name, kind(), nullable=True) for name, kind in LIMITS.items()),
        sa.Column("renews", sa.String(8), server_default="never", nullable=False),
        sa.Column("renews_on", sa.Integer(), nullable=True),
        sa.Column("renews_at", sa.BigInteger(), nullable=True),
        sa.Column("renewal_basis", sa.String(), nullable=True),
        *(sa.Column(name, kind(), server_default="0", nullable=False) for name, kind in COUNTERS),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "ix_groups_name_living", "groups", ["name"], unique=True, sqlite_where=is_living, postgresql_where=is_living
    )
    _refuse_what_cannot_be_read()
    id_type = "BIGINT" if op.get_bind().dialect.name == "postgresql" else "INTEGER"
    op.execute(f"ALTER TABLE teams ADD COLUMN group_id {id_type} REFERENCES groups (id)")
    op.create_index("ix_teams_group_id", "teams", ["group_id"])
    op.add_column("request_logs", sa.Column("group_id", sa.BigInteger(), nullable=True))
    op.add_column("request_logs", sa.Column("day", sa.Date(), nullable=True))
    is_in_one = sa.text("group_id IS NOT NULL")
    op.create_index(
        INDEX_OF_GROUPS, "request_logs", ["group_id", "id"], sqlite_where=is_in_one, postgresql_where=is_in_one
    )
    op.add_column("changes", sa.Column("group_id", sa.BigInteger(), nullable=True))
    op.add_column("changes", sa.Column("group_name", sa.String(200), nullable=True))
    op.create_table(
        "group_usage_daily",
        sa.Column("group_id", ROW_ID, sa.ForeignKey("groups.id"), nullable=False),
        sa.Column("team_id", ROW_ID, sa.ForeignKey("teams.id"), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in SUMS),
        sa.PrimaryKeyConstraint("group_id", "team_id", "day", "model"),
    )
    op.create_index("ix_group_usage_daily_day", "group_usage_daily", ["day"])
    op.create_table(
        "group_renewals",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("group_id", ROW_ID, sa.ForeignKey("groups.id"), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("renewed_at", sa.Double(), nullable=False),
        sa.Column("used_tokens", sa.BigInteger(), nullable=False),
        sa.Column("extra_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_group_renewals_group_id", "group_renewals", ["group_id"])


def _refuse_what_cannot_be_read():
    """Say what is accepted, by triggers on SQLite as for teams: a file whose CHECK fails is called damaged there."""
    for name, (is_right, accepted) in ACCEPTED.items():
        if op.get_bind().dialect.name == "postgresql":
            op.execute(f"ALTER TABLE groups ADD CONSTRAINT {name}_is_accepted CHECK ({is_right.format('', 'true')})")
            continue
        is_number = f"typeof(NEW.{name}) = 'integer'"
        for event in ("INSERT", f"UPDATE OF {', '.join(ACCEPTED)}"):
            op.execute(
                f"CREATE TRIGGER groups_{name}_{event[:6].lower()} BEFORE {event} ON groups "
                f"WHEN NOT ({is_right.format('NEW.', is_number)}) BEGIN SELECT RAISE(ABORT, '{accepted}'); END"
            )


def downgrade():
    op.drop_table("group_renewals")
    op.drop_table("group_usage_daily")
    op.drop_column("changes", "group_name")
    op.drop_column("changes", "group_id")
    op.drop_index(INDEX_OF_GROUPS, "request_logs")
    op.drop_column("request_logs", "day")
    op.drop_column("request_logs", "group_id")
    op.drop_index("ix_teams_group_id", "teams")
    op.drop_column("teams", "group_id")
    op.drop_table("groups")
