"""Count repeated refusals in one row, and remember the items of the responses that a team was given.

Revision ID: 0005
Revises: 0004
Create Date: 2026-11-26 13:20:00

"""

from alembic import op
import sqlalchemy as sa


revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("request_logs", sa.Column("repeats", sa.Integer(), server_default="1", nullable=False))
    op.create_table(
        "response_items",
        sa.Column("team_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("item_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"]),
        sa.PrimaryKeyConstraint("team_id", "item_hash"),
    )


def downgrade():
    op.drop_table("response_items")
    op.drop_column("request_logs", "repeats")
