"""Quotas that begin anew, and what is added to a running period.

Revision ID: 0007
Revises: 0006
Create Date: 2026-11-27 08:50:00

"""

from alembic import op
import sqlalchemy as sa


revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

ACCEPTED = {
    "renews": (
        "NEW.renews NOT IN ('never', 'daily', 'weekly', 'monthly')",
        "renews is never, daily, weekly or monthly",
    ),
    "renews_on": (
        "NEW.renews_on IS NOT NULL AND (NEW.renews <> 'monthly' OR typeof(NEW.renews_on) <> 'integer' "
        "OR NEW.renews_on NOT BETWEEN 1 AND 31)",
        "renews_on is the day of the month, from 1 to 31, of what renews monthly, or NULL",
    ),
    "extra": (
        "typeof(NEW.extra_tokens) <> 'integer' OR NEW.extra_tokens < 0",
        "extra_tokens is a whole number of tokens, 0 for none",
    ),
}
EVENTS = {"insert": "INSERT", "update": "UPDATE OF renews, renews_on, extra_tokens"}
ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade():
    op.add_column("teams", sa.Column("renews", sa.String(8), server_default="never", nullable=False))
    op.add_column("teams", sa.Column("renews_on", sa.Integer(), nullable=True))
    op.add_column("teams", sa.Column("renews_at", sa.BigInteger(), nullable=True))
    op.add_column("teams", sa.Column("renewal_basis", sa.String(), nullable=True))
    op.add_column("teams", sa.Column("extra_tokens", sa.BigInteger(), server_default="0", nullable=False))
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "ALTER TABLE teams ADD CONSTRAINT renews_is_known CHECK (renews IN ('never', 'daily', 'weekly', 'monthly'))"
        )
        op.execute(
            "ALTER TABLE teams ADD CONSTRAINT renews_on_is_a_day "
            "CHECK (renews_on IS NULL OR (renews = 'monthly' AND renews_on BETWEEN 1 AND 31))"
        )
        op.execute("ALTER TABLE teams ADD CONSTRAINT extra_is_not_negative CHECK (extra_tokens >= 0)")
    else:
        for name, (is_wrong, accepted) in ACCEPTED.items():
            for event, when in EVENTS.items():
                op.execute(
                    f"CREATE TRIGGER teams_{name}_{event} BEFORE {when} ON teams WHEN {is_wrong} "
                    f"BEGIN SELECT RAISE(ABORT, '{accepted}'); END"
                )
    op.create_table(
        "renewals",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("team_id", ROW_ID, nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("renewed_at", sa.Double(), nullable=False),
        sa.Column("used_tokens", sa.BigInteger(), nullable=False),
        sa.Column("extra_tokens", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"]),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_renewals_team_id", "renewals", ["team_id"])


def downgrade():
    op.drop_table("renewals")
    if op.get_bind().dialect.name == "postgresql":
        for name in ("renews_is_known", "renews_on_is_a_day", "extra_is_not_negative"):
            op.execute(f"ALTER TABLE teams DROP CONSTRAINT {name}")
    else:
        for name in ACCEPTED:
            for event in EVENTS:
                op.execute(f"DROP TRIGGER teams_{name}_{event}")
    for column in ("extra_tokens", "renewal_basis", "renews_at", "renews_on", "renews"):
        op.drop_column("teams", column)
