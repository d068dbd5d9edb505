"""What the calls came to that are no longer in the log, and what corrections need of them.

Revision ID: 0020
Revises: 0019
Create Date: 2026-11-28 01:10:00

"""

from alembic import op
import sqlalchemy as sa


revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

OF_THE_CALL = (("token_id", sa.BigInteger()), ("began_at", sa.DateTime(timezone=True)), ("latency_ms", sa.Integer()))


def upgrade():
    op.create_table(
        "pruned_usage",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("team_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("group_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("token_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("total_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("priced_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("day", "team_id", "group_id", "token_id", "model"),
        sqlite_with_rowid=False,
    )
    for name, kind in OF_THE_CALL:
        op.add_column("cost_corrections", sa.Column(name, kind, nullable=True))


def downgrade():
    for name, _ in OF_THE_CALL:
        op.drop_column("cost_corrections", name)
    op.drop_table("pruned_usage")
