"""What each token used by day.

Revision ID: 0014
Revises: 0013
Create Date: 2026-11-27 18:14:00

"""

from alembic import op
import sqlalchemy as sa


revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# what the log still has, with corrections, as the ledger counts: what callers invent is no model, repeats are calls,
# and what is pending is counted at its end; led by a sum, so that SQLite reads the log from end to end
FILL = """
    INSERT INTO token_usage_daily (token_id, day, model, requests, errors, prompt_tokens, completion_tokens,
        total_tokens, cost, priced_tokens)
    SELECT token_id + 0, day, model, sum(requests), sum(errors), sum(prompt_tokens), sum(completion_tokens),
        sum(total_tokens), sum(cost), sum(priced_tokens)
    FROM (
        SELECT token_id, {day} AS day,
            CASE WHEN status = 'rejected' AND error_code IN ('model_not_found', 'team_disabled') THEN ''
                WHEN status = 'provider_error' AND error_code = 'model_not_found' AND charged_tokens = 0 THEN ''
                ELSE model END AS model,
            repeats AS requests,
            CASE WHEN status IN ('provider_error', 'rejected', 'interrupted') THEN repeats ELSE 0 END AS errors,
            prompt_tokens, completion_tokens, charged_tokens AS total_tokens, coalesce(cost, 0) AS cost,
            CASE WHEN cost IS NULL THEN 0 ELSE charged_tokens END AS priced_tokens
        FROM request_logs WHERE status <> 'pending'
        UNION ALL
        SELECT token_id, cost_corrections.day, cost_corrections.model, 0, 0, 0, 0, 0, cost_corrections.cost,
            cost_corrections.priced_tokens
        FROM cost_corrections JOIN request_logs ON request_logs.id = call_id
    ) AS counted
    GROUP BY 1, 2, 3"""


def upgrade():
    op.create_table(
        "token_usage_daily",
        sa.Column("token_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("total_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("priced_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("token_id", "day", "model"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_token_usage_daily_day", "token_usage_daily", ["day"])
    day_in_utc = "CAST(created_at AT TIME ZONE 'UTC' AS date)"
    if op.get_bind().dialect.name == "sqlite":
        day_in_utc = "substr(created_at, 1, 10)"
    op.execute(FILL.format(day=f"coalesce(day, {day_in_utc})"))


def downgrade():
    op.drop_table("token_usage_daily")
