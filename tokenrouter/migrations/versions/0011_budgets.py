"""Budgets: money that teams and groups may spend.

Revision ID: 0011
Revises: 0010
Create Date: 2026-11-27 14:50:00

"""

from alembic import op
import sqlalchemy as sa


revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

ADDED = {
    "teams": ("extra_budget", "held_cost"),
    "groups": ("extra_budget", "held_cost"),
    "renewals": ("extra_budget",),
    "group_renewals": ("extra_budget",),
    "request_logs": ("held_cost",),
}
ACCEPTED = "is a whole number of billionths of the currency, 0 to block"


def upgrade():
    for table, columns in ADDED.items():
        for name in columns:
            op.add_column(table, sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    for table in ("teams", "groups"):
        op.add_column(table, sa.Column("budget", sa.BigInteger(), nullable=True))
        for name in ("budget", "extra_budget"):
            if op.get_bind().dialect.name == "postgresql":
                op.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name}_is_accepted CHECK ({name} >= 0)")
                continue
            is_wrong = f"NEW.{name} IS NOT NULL AND (typeof(NEW.{name}) <> 'integer' OR NEW.{name} < 0)"
            for event in ("INSERT", f"UPDATE OF {name}"):
                op.execute(
                    f"CREATE TRIGGER {table}_{name}_{event[:6].lower()} BEFORE {event} ON {table} WHEN {is_wrong} "
                    f"BEGIN SELECT RAISE(ABORT, '{name} {ACCEPTED}'); END"
                )


def downgrade():
    for table in ("teams", "groups"):
        for name in ("budget", "extra_budget"):
            if op.get_bind().dialect.name == "postgresql":
                op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}_is_accepted")
                continue
            for event in ("insert", "update"):
                op.execute(f"DROP TRIGGER {table}_{name}_{event}")
        op.drop_column(table, "budget")
    for table, columns in reversed(ADDED.items()):
        for name in reversed(columns):
            op.drop_column(table, name)
