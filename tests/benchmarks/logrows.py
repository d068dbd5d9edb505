"""Fill an SQLite database with teams and with rows of the log that add up, for measurements at size."""

from sqlalchemy import text

from tokenrouter import create_app
from tokenrouter.models import db, writing

FIRST_SECOND = 1_770_000_000
CALLS_PER_S = 4
STATEMENTS = (
    """INSERT INTO teams (id, name, quota_tokens, active, created_at)
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :teams)
    SELECT i, 'filled ' || i, 10000000000, 1, '2026-01-01 00:00:00.000000' FROM n""",
    """INSERT INTO request_logs (id, request_id, team_id, team_name, token_id, token_prefix, worker_id, model, endpoint,
        status, status_code, stream, held_tokens, prompt_tokens, completion_tokens, total_tokens, charged_tokens,
        usage_source, latency_ms, first_byte_ms, created_at)
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rows)
    SELECT i, printf('req_%012x%020x', i, i * 7919), 1 + (i * 7919) % :teams, 'filled ' || (1 + (i * 7919) % :teams), 1,
        'tr-filled', 0, 'GPT-5-nano', '/v1/chat/completions', 'ok', 200, i % 2, 1100, i % 100, i % 300,
        i % 100 + i % 300, i % 100 + i % 300, 'provider', 1000 + i % 500, i % 300,
        datetime(:first + i / :pace, 'unixepoch') || '.000000' FROM n""",
    """INSERT INTO usage_daily (team_id, day, model, requests, errors, prompt_tokens, completion_tokens, total_tokens)
    SELECT team_id, date(created_at), model, count(*), 0, sum(prompt_tokens), sum(completion_tokens),
        sum(charged_tokens)
    FROM request_logs GROUP BY team_id + 0, date(created_at), model""",
    """UPDATE teams SET settled_tokens =
    coalesce((SELECT sum(total_tokens) FROM usage_daily WHERE team_id = teams.id), 0)""",
)


def fill(database_url: str, *, rows: int, teams: int) -> None:
    """Make the database and write the rows; ten million take some two minutes."""
    app = create_app({"DATABASE_URL": database_url, "PROVIDER_API_KEY": "unused", "SECRET_KEY": "unused"})
    values = {"rows": rows, "teams": teams, "first": FIRST_SECOND, "pace": CALLS_PER_S}
    with app.app_context():
        with writing(db.engine, durable=False) as connection:
            for statement in STATEMENTS:
                names = {name: value for name, value in values.items() if f":{name}" in statement}
                connection.execute(text(statement), names)
        db.engine.dispose()
