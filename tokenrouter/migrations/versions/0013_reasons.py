"""Why calls were refused or failed.

Revision ID: 0013
Revises: 0012
Create Date: 2026-11-27 18:13:00

"""

from alembic import op
import sqlalchemy as sa


revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("request_logs", sa.Column("reason", sa.String(length=300), nullable=True))


def downgrade():
    op.drop_column("request_logs", "reason")
