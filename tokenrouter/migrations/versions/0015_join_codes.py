"""Codes by which people make their own teams.

Revision ID: 0015
Revises: 0014
Create Date: 2026-11-27 18:15:00

"""

from alembic import op
import sqlalchemy as sa


revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade():
    op.create_table(
        "join_codes",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("code", sa.String(length=32), nullable=False),
        sa.Column("label", sa.String(length=200), nullable=True),
        sa.Column("group_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("limits", sa.JSON(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=True),
        sa.Column("used", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["group_id"], ["groups.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("code"),
    )
    op.add_column("teams", sa.Column("join_code_id", sa.BigInteger(), nullable=True))
    op.create_index("ix_teams_join_code_id", "teams", ["join_code_id"])


def downgrade():
    op.drop_index("ix_teams_join_code_id", "teams")
    op.drop_column("teams", "join_code_id")
    op.drop_table("join_codes")
