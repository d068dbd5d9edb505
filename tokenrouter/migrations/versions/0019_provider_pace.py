"""How fast all teams together may call the provider, who waits for that, and what the provider tells of its limits.

Revision ID: 0019
Revises: 0018
Create Date: 2026-11-27 22:20:00

"""

from alembic import op
import sqlalchemy as sa


revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade():
    op.create_table(
        "provider_pace",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("full_at", sa.BigInteger(), nullable=False),
        sa.Column("blocked_until", sa.BigInteger(), nullable=False),
        sa.Column("waiting", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "provider_queue",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("worker", sa.String(length=32), nullable=False),
        sa.Column("team_id", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("granted_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "provider_limits",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("most", sa.BigInteger(), nullable=True),
        sa.Column("remaining", sa.BigInteger(), nullable=False),
        sa.Column("resets_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("kind"),
    )


def downgrade():
    op.drop_table("provider_limits")
    op.drop_table("provider_queue")
    op.drop_table("provider_pace")
