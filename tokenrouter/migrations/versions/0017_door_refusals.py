"""Requests that were turned away at the door.

Revision ID: 0017
Revises: 0016
Create Date: 2026-11-27 18:17:00

"""

from alembic import op
import sqlalchemy as sa


revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade():
    op.create_table(
        "door_refusals",
        sa.Column("minute", sa.BigInteger(), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=False),
        sa.Column("token_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("minute", "address", "reason", "token_id"),
    )


def downgrade():
    op.drop_table("door_refusals")
