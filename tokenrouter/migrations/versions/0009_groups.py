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
        *(sa.CheckConstraint(f"{_is_whole(name)}", name=f"{name}_is_whole") for name in (*LIMITS, "extra_tokens")),
        sa.CheckConstraint("renews IN ('never', 'daily', 'weekly', 'monthly')", name="group_renews_is_known"),
        sa.CheckConstraint(
            f"renews_on IS NULL OR (renews = 'monthly' AND {_is_whole('renews_on')} AND renews_on BETWEEN 1 AND 31)",
            name="group_renews_on_is_a_day",
        ),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 200", name="group_name_is_a_text"),
    )
    op.create_index(
        "ix_groups_name_living", "groups", ["name"], unique=True, sqlite_where=is_living, postgresql_where=is_living
    )
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


def _is_whole(column):
    """SQLite takes any value in any column, and for it a text is more than every number."""
    is_number = "" if op.get_bind().dialect.name == "postgresql" else f" AND typeof({column}) = 'integer'"
    return f"{column} IS NULL OR ({column} >= 0{is_number})"


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
