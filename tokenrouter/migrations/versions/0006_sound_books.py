"""Save which calls a worker runs, and refuse values of teams that cannot be read.

SQLite takes any value in any column, and would need the table made anew for a CHECK; triggers say what is accepted too.

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

ACCEPTED = {
    "quota": (
        "NEW.quota_tokens IS NOT NULL AND (typeof(NEW.quota_tokens) <> 'integer' OR NEW.quota_tokens < 0)",
        "quota_tokens is a whole number of tokens, such as 2500000, 0 to block, or NULL for no limit",
    ),
    "active": (
        "typeof(NEW.active) <> 'integer' OR NEW.active NOT IN (0, 1)",
        "active is 1 to let the calls of the team through, or 0 to refuse them",
    ),
    "models": (
        "NEW.models IS NOT NULL AND typeof(NEW.models) <> 'text'",
        "models is a list of names separated by commas, or NULL for ALLOWED_MODELS",
    ),
    "name": (
        "typeof(NEW.name) <> 'text' OR length(NEW.name) NOT BETWEEN 1 AND 200",
        "name is a text of 1 to 200 characters",
    ),
}
EVENTS = {"insert": "INSERT", "update": "UPDATE OF name, quota_tokens, active, models"}


def upgrade():
    if op.get_bind().dialect.name == "postgresql":  # NOT VALID: what is there already is named by verify
        op.execute("ALTER TABLE teams ADD CONSTRAINT quota_is_not_negative CHECK (quota_tokens >= 0) NOT VALID")
    else:
        for name, (is_wrong, accepted) in ACCEPTED.items():
            for event, when in EVENTS.items():
                op.execute(
                    f"CREATE TRIGGER teams_{name}_{event} BEFORE {when} ON teams WHEN {is_wrong} "
                    f"BEGIN SELECT RAISE(ABORT, '{accepted}'); END"
                )
    op.add_column("workers", sa.Column("running_calls", sa.String(), nullable=True))
    op.add_column("workers", sa.Column("running_upto", sa.BigInteger(), nullable=True))


def downgrade():
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE teams DROP CONSTRAINT quota_is_not_negative")
    else:
        for name in ACCEPTED:
            for event in EVENTS:
                op.execute(f"DROP TRIGGER teams_{name}_{event}")
    op.drop_column("workers", "running_upto")
    op.drop_column("workers", "running_calls")
