"""Fill an SQLite database with teams, tokens and rows of the log that add up, for measurements at size.

`python tests/benchmarks/logrows.py FILE` writes 2,000 teams and five million rows of the last 60 days.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

from sqlalchemy import text
from sqlalchemy.engine import Connection

from tokenrouter import create_app
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import IS_RARE, db

RARE_MODEL = "o-seldom"
CACHE_KIB = 512 * 1024
# The first teams make many more calls than the last: of 2,000 the first makes one in 45. Each run draws the same.
CALLS = f"""
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rows),
    drawn AS (SELECT i, (i * 2654435761) % 4294967296 / 1000 AS chance, (i * 7919) % :teams AS draw FROM n),
    call AS (SELECT *, 1 + draw * draw / :teams AS team, 50 + chance % 700 AS prompt, chance / 7 % 900 AS completion,
        CASE WHEN chance % 1000 < 940 THEN 'ok' WHEN chance % 1000 < 960 THEN 'client_closed'
            WHEN chance % 1000 < 975 THEN 'provider_error' WHEN chance % 1000 < 999 THEN 'rejected'
            ELSE 'interrupted' END AS status FROM drawn)
    INSERT INTO request_logs (id, request_id, team_id, team_name, token_id, token_prefix, worker_id, model, endpoint,
        status, status_code, error_code, stream, held_tokens, prompt_tokens, completion_tokens, total_tokens,
        charged_tokens, usage_source, latency_ms, first_byte_ms, created_at, day, group_id)
    SELECT i, printf('req_%012x%020x', i, i * 7919), team, 'filled ' || team, 2 * team - (i % 7 > 0),
        printf('tr-%05d', 2 * team - (i % 7 > 0)), 0,
        CASE WHEN i % 100000 = 0 THEN '{RARE_MODEL}' WHEN chance / 3 % 100 < 55 THEN 'GPT-5-nano'
            WHEN chance / 3 % 100 < 80 THEN 'GPT-5-mini' WHEN chance / 3 % 100 < 95 THEN 'Gemini-2.5-flash'
            ELSE 'Gemini-2.5-pro' END,
        CASE WHEN chance / 5 % 100 < 90 THEN '/v1/chat/completions' WHEN chance / 5 % 100 < 97 THEN '/v1/responses'
            ELSE '/v1/embeddings' END,
        status, CASE status WHEN 'ok' THEN 200 WHEN 'rejected' THEN 429 WHEN 'provider_error' THEN 502 END,
        CASE status WHEN 'rejected' THEN 'insufficient_quota' WHEN 'provider_error' THEN 'provider_unreachable' END,
        i % 2, prompt + 1024, prompt, completion * counts, (prompt + completion) * counts,
        (prompt + completion) * counts, CASE WHEN status = 'ok' THEN 'provider' WHEN counts THEN 'estimated'
            ELSE 'none' END,
        CASE WHEN status <> 'rejected' THEN 500 + chance % 9000 END, CASE WHEN counts THEN 200 + chance % 800 END,
        strftime('%Y-%m-%d %H:%M:%f', julianday('now') - :days + i * :days / (:rows + 0.0)) || '000',
        date(julianday('now') - :days + i * :days / (:rows + 0.0)),
        CASE WHEN team % 3 > 0 THEN 1 + team % :groups END
    FROM (SELECT *, status IN ('ok', 'client_closed', 'interrupted') AS counts FROM call)"""
STATEMENTS = (
    "DROP INDEX ix_request_logs_team_id_id",
    "DROP INDEX ix_request_logs_rare",
    "DROP INDEX ix_request_logs_group_id_id",
    """INSERT INTO groups (id, name, created_at)
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :groups)
    SELECT i, 'year ' || i, '2026-01-01 00:00:00.000000' FROM n""",
    """INSERT INTO teams (id, name, active, group_id, created_at)
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :teams)
    SELECT i, 'filled ' || i, i % 50 > 0, CASE WHEN i % 3 > 0 THEN 1 + i % :groups END, '2026-01-01 00:00:00.000000'
    FROM n""",
    """INSERT INTO api_tokens (id, team_id, label, prefix, token_hash, created_at)
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2 * :teams)
    SELECT i, (i + 1) / 2, CASE WHEN i % 2 THEN 'laptop' END, printf('tr-%05d', i), printf('%064x', i),
        '2026-01-01 00:00:00.000000' FROM n""",
    CALLS,
    "CREATE INDEX ix_request_logs_team_id_id ON request_logs (team_id, id)",
    "CREATE INDEX ix_request_logs_group_id_id ON request_logs (group_id, id) WHERE group_id IS NOT NULL",
    f"CREATE INDEX ix_request_logs_rare ON request_logs (status, id) WHERE {IS_RARE}",
    """INSERT INTO usage_daily (day, team_id, model, requests, errors, prompt_tokens, completion_tokens, total_tokens)
    SELECT day, team_id, model, count(*),
        sum(status IN ('provider_error', 'rejected', 'interrupted')), sum(prompt_tokens), sum(completion_tokens),
        sum(charged_tokens)
    FROM request_logs GROUP BY day, team_id + 0, model""",
    """INSERT INTO token_usage_daily (day, token_id, model, requests, errors, prompt_tokens, completion_tokens,
        total_tokens)
    SELECT day, token_id, model, count(*),
        sum(status IN ('provider_error', 'rejected', 'interrupted')), sum(prompt_tokens), sum(completion_tokens),
        sum(charged_tokens)
    FROM request_logs GROUP BY day, token_id + 0, model""",
    """INSERT INTO group_usage_daily (group_id, team_id, day, model, requests, errors, prompt_tokens, completion_tokens,
        total_tokens)
    SELECT group_id, team_id, day, model, requests, errors, prompt_tokens, completion_tokens, total_tokens
    FROM usage_daily JOIN teams ON teams.id = team_id WHERE group_id IS NOT NULL""",
    """UPDATE groups SET settled_tokens =
    coalesce((SELECT sum(total_tokens) FROM group_usage_daily WHERE group_id = groups.id), 0)""",
    """UPDATE teams SET settled_tokens =
    coalesce((SELECT sum(total_tokens) FROM usage_daily WHERE team_id = teams.id), 0)""",
    """UPDATE teams SET reset_mark_tokens = settled_tokens * (id % 4) / 4,
    quota_tokens = CASE WHEN id % 10 THEN settled_tokens * (80 + id % 97) / 80 END""",
    """UPDATE api_tokens SET last_used_at =
    (SELECT max(day) FROM usage_daily WHERE team_id = api_tokens.team_id) || ' 12:00:00.000000'""",
    """INSERT INTO changes (at, actor_kind, actor_detail, action, team_id, team_name, after)
    SELECT created_at, 'cli', 'filler@benchmarks', 'team.create', id, name, json_object('name', name) FROM teams""",
    """INSERT INTO changes (at, actor_kind, actor_detail, action, group_id, group_name, after)
    SELECT created_at, 'cli', 'filler@benchmarks', 'group.create', id, name, json_object('name', name) FROM groups""",
    """INSERT INTO changes (at, actor_kind, actor_detail, action, team_id, team_name, before, after)
    SELECT created_at, 'cli', 'filler@benchmarks', 'usage.reset', id, name,
        json_object('used_tokens', reset_mark_tokens), json_object('used_tokens', 0) FROM teams
    WHERE reset_mark_tokens > 0""",
)


def fill(database_url: str, *, rows: int, teams: int, groups: int = 20, days: int = 60) -> None:
    """Make the database and write the rows, the last of them of this moment; five million take about a minute."""
    app = create_app({"DATABASE_URL": database_url, "PROVIDER_API_KEY": "unused", "SECRET_KEY": "unused"})
    values = {"rows": rows, "teams": teams, "groups": groups, "days": days}
    with app.app_context():
        with writing(db.engine, durable=False) as connection:
            connection.exec_driver_sql(f"PRAGMA cache_size = -{CACHE_KIB}")
            for statement in STATEMENTS:
                _execute(connection, statement, values)
        db.engine.dispose()


def _execute(connection: Connection, statement: str, values: dict[str, int]) -> None:
    statement = statement.replace("%H:%M:%f", r"%H\:%M\:%f")  # a colon begins a value
    connection.execute(text(statement), {name: value for name, value in values.items() if f":{name}" in statement})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="the SQLite file to make")
    parser.add_argument("--teams", type=int, default=2_000)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--days", type=int, default=60)
    arguments = parser.parse_args()
    if arguments.file.exists():
        parser.error(f"{arguments.file} exists already")
    started = time.perf_counter()
    fill(f"sqlite:///{arguments.file.resolve()}", rows=arguments.rows, teams=arguments.teams, days=arguments.days)
    print(f"{arguments.rows:,} rows in {time.perf_counter() - started:.0f} s: {arguments.file}")
