"""Record changes, sessions and attempts to sign in, tell which token replaced another, and find the newest failures.

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-24 10:30:00.000000

"""

from alembic import op
import sqlalchemy as sa


revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

RARE = sa.text("status = 'client_closed' OR status = 'provider_error' OR status = 'rejected' OR status = 'interrupted'")


def upgrade():
    op.create_table(
        "changes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor_kind", sa.String(length=16), nullable=False),
        sa.Column("actor_detail", sa.String(length=200), nullable=False),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("team_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("team_name", sa.String(length=200), nullable=True),
        sa.Column("before", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("after", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_changes_team_id_id", "changes", ["team_id", "id"])
    op.create_table(
        "panel_sessions",
        sa.Column("id_hash", sa.String(length=64), nullable=False),
        sa.Column("password_print", sa.String(length=128), nullable=False),
        sa.Column("signed_in_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id_hash"),
    )
    op.create_table(
        "sign_in_attempts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_sign_in_attempts_address", "sign_in_attempts", ["address"])
    op.add_column("api_tokens", sa.Column("replaced_by_id", sa.BigInteger(), nullable=True))
    op.create_index("ix_request_logs_rare", "request_logs", ["status", "id"], sqlite_where=RARE, postgresql_where=RARE)


def downgrade():
    op.drop_index("ix_request_logs_rare", "request_logs")
    with op.batch_alter_table("api_tokens") as batch_op:
        batch_op.drop_column("replaced_by_id")
    op.drop_table("sign_in_attempts")
    op.drop_table("panel_sessions")
    op.drop_table("changes")
