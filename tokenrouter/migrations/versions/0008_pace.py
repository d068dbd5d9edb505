"""How fast a team may call.

Revision ID: 0008
Revises: 0007
Create Date: 2026-11-27 09:10:00

"""

from alembic import op
import sqlalchemy as sa


revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

PACES = {"requests_per_minute": sa.Integer, "tokens_per_minute": sa.BigInteger, "calls_at_once": sa.Integer}
EVENTS = ("INSERT", "UPDATE OF requests_per_minute, tokens_per_minute, calls_at_once")


def upgrade():
    for name, kind in PACES.items():
        op.add_column("teams", sa.Column(name, kind(), nullable=True))
    op.add_column("teams", sa.Column("requests_full_at", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("teams", sa.Column("tokens_full_at", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("teams", sa.Column("calls_in_flight", sa.Integer(), server_default="0", nullable=False))
    op.execute(
        "UPDATE teams SET calls_in_flight = "
        "(SELECT count(*) FROM request_logs WHERE team_id = teams.id AND status = 'pending')"
    )
    for name in PACES:
        if op.get_bind().dialect.name == "postgresql":
            op.execute(f"ALTER TABLE teams ADD CONSTRAINT {name}_is_not_negative CHECK ({name} >= 0)")
            continue
        for event in EVENTS:
            op.execute(
                f"CREATE TRIGGER teams_{name}_{event[:6].lower()} BEFORE {event} ON teams "
                f"WHEN NEW.{name} IS NOT NULL AND (typeof(NEW.{name}) <> 'integer' OR NEW.{name} < 0) "
                f"BEGIN SELECT RAISE(ABORT, '{name} is a whole number, 0 to block, or NULL for no limit'); END"
            )


def downgrade():
    for name in PACES:
        if op.get_bind().dialect.name == "postgresql":
            op.execute(f"ALTER TABLE teams DROP CONSTRAINT {name}_is_not_negative")
            continue
        for event in EVENTS:
            op.execute(f"DROP TRIGGER teams_{name}_{event[:6].lower()}")
    for column in ("calls_in_flight", "tokens_full_at", "requests_full_at", *reversed(PACES)):
        op.drop_column("teams", column)
