"""Save which calls a worker runs.

Revision ID: 0006
Revises: 0005
Create Date: 2026-11-26 13:40:00

"""

from alembic import op
import sqlalchemy as sa


revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("workers", sa.Column("running_calls", sa.String(), nullable=True))
    op.add_column("workers", sa.Column("running_upto", sa.BigInteger(), nullable=True))


def downgrade():
    op.drop_column("workers", "running_upto")
    op.drop_column("workers", "running_calls")
