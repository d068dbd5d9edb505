"""Prices, and what calls cost.

Revision ID: 0010
Revises: 0009
Create Date: 2026-11-27 14:30:00

"""

from alembic import op
import sqlalchemy as sa


revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
COUNTERS = ("settled_cost", "reset_mark_cost", "settled_priced_tokens", "reset_mark_priced_tokens")
ADDED = {
    "teams": COUNTERS,
    "groups": COUNTERS,
    "usage_daily": ("cost", "priced_tokens"),
    "group_usage_daily": ("cost", "priced_tokens"),
    "renewals": ("used_cost", "priced_tokens"),
    "group_renewals": ("used_cost", "priced_tokens"),
    "request_logs": ("cached_tokens",),
}


def upgrade():
    for table, columns in ADDED.items():
        for name in columns:
            op.add_column(table, sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("request_logs", sa.Column("cost", sa.BigInteger(), nullable=True))
    op.add_column("request_logs", sa.Column("cost_source", sa.String(16), server_default="none", nullable=False))
    op.create_table(
        "prices",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("shown_model", sa.String(200), nullable=False),
        sa.Column("is_of_provider", sa.Boolean(), nullable=False),
        *(
            sa.Column(f"{kind}_price", sa.BigInteger(), nullable=kind != "request")
            for kind in ("input", "output", "cached_input", "request")
        ),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_prices_model", "prices", ["is_of_provider", "model", "id"])


def downgrade():
    op.drop_table("prices")
    op.drop_column("request_logs", "cost_source")
    op.drop_column("request_logs", "cost")
    for table, columns in reversed(ADDED.items()):
        for name in reversed(columns):
            op.drop_column(table, name)
