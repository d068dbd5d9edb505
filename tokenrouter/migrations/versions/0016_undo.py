"""Changes that were made at once, and changes that take others back.

Revision ID: 0016
Revises: 0015
Create Date: 2026-11-27 18:16:00

"""

from alembic import op
import sqlalchemy as sa


revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("changes", sa.Column("batch", sa.String(length=32), nullable=True))
    op.add_column("changes", sa.Column("undoes_id", sa.BigInteger(), nullable=True))
    is_one = sa.text("batch IS NOT NULL")
    op.create_index("ix_changes_batch", "changes", ["batch"], sqlite_where=is_one, postgresql_where=is_one)
    op.create_index("ix_changes_undoes_id", "changes", ["undoes_id"], unique=True)


def downgrade():
    op.drop_index("ix_changes_undoes_id", "changes")
    op.drop_index("ix_changes_batch", "changes")
    op.drop_column("changes", "undoes_id")
    op.drop_column("changes", "batch")
