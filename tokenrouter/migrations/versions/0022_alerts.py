"""Alerts, to whom they are delivered, and the mail address of a team.

Revision ID: 0022
Revises: 0021
Create Date: 2026-11-28 01:20:00

"""

from alembic import op
import sqlalchemy as sa


revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade():
    op.create_table(
        "alerts",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("uid", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("once", sa.String(length=200), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("team_id", sa.BigInteger(), nullable=True),
        sa.Column("group_id", sa.BigInteger(), nullable=True),
        sa.Column("percent", sa.Integer(), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("to_hand_out", sa.String(length=8), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("once"),
        sa.UniqueConstraint("uid"),
        sqlite_autoincrement=True,
    )
    for name, where in (
        ("to_hand_out", "to_hand_out IS NOT NULL"),
        ("unseen", "seen_at IS NULL"),
        ("open", "ended_at IS NULL"),
    ):
        op.create_index(
            f"ix_alerts_{name}", "alerts", ["id"], sqlite_where=sa.text(where), postgresql_where=sa.text(where)
        )
    op.create_table(
        "alert_deliveries",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("alert_id", ROW_ID, nullable=False),
        sa.Column("says", sa.String(length=8), nullable=False),
        sa.Column("channel", sa.String(length=8), nullable=False),
        sa.Column("address", sa.String(length=254), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("answer", sa.String(length=300), nullable=True),
        sa.ForeignKeyConstraint(["alert_id"], ["alerts.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("alert_id", "says", "channel", "address"),
    )
    waiting = sa.text("state = 'waiting'")
    op.create_index(
        "ix_alert_deliveries_waiting",
        "alert_deliveries",
        ["due_at"],
        sqlite_where=waiting,
        postgresql_where=waiting,
    )
    op.add_column("teams", sa.Column("mail", sa.String(length=254), nullable=True))


def downgrade():
    op.drop_column("teams", "mail")
    op.drop_table("alert_deliveries")
    op.drop_table("alerts")
