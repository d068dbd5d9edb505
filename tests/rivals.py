"""What several processes do at once, each with an app of its own (see warm.at_once)."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy.engine import Engine
from sqlalchemy.ext.compiler import compiles

from tokenrouter import attempts, create_app, runtime
from tokenrouter.admin import password as passwords
from tokenrouter.alerts import Mail, Receivers, Sender, Speaker, Webhook, secret_from
from tokenrouter.config import load
from tokenrouter.database import columns, tables
from tokenrouter.errors import PaceExceeded, ProviderBusy
from tokenrouter.first_start import generated_secret_key
from tokenrouter.ledger import CallRequest, Ledger, Outcome, operations

Wait = Callable[[], Any]


def migrate(wait_for_all: Wait, database_url: str) -> None:
    """Make the tables."""
    wait_for_all()
    runtime.close(create_app(settings(database_url)))


def guess_passwords(wait_for_all: Wait, database_url: str, address: str, guesses: int) -> int:
    """Return how many of the guesses were looked at."""
    values = settings(database_url)
    app, own = create_app(values), load(values)
    looked_at = 0
    wait_for_all()
    with app.app_context():
        for _ in range(guesses):
            try:
                passwords.try_password(own, "wrong", address)
                looked_at += 1
            except attempts.TooManyGuesses:
                pass
    runtime.close(app)
    return looked_at


def reserve_calls(wait_for_all: Wait, database_url: str, name: str, calls: int, pace: int | None = None) -> int:
    """Return how many calls of team 1 were admitted, by a database whose clock stands still.

    `pace` is that of the whole service, for which none waits.
    """
    for dialect in ("sqlite", "postgresql"):
        compiles(columns.epoch_now, dialect)(lambda *_, **__: "1795000000.0")
    operations.PATIENCE_S = 0.0
    app = create_app(settings(database_url))
    admitted = 0
    wait_for_all()
    with app.app_context():
        ledger = Ledger(tables.db.engine, 100, requests_per_minute=pace)
        for number in range(calls):
            try:
                ledger.reserve(call_request(f"req_{name}_{number}"))
                admitted += 1
            except (PaceExceeded, ProviderBusy):
                pass
    return admitted


def use_tokens(wait_for_all: Wait, database_url: str, name: str, tokens: int) -> None:
    """Make a call of team 1, and of its group, that used so much."""
    app = create_app(settings(database_url))
    with app.app_context():
        ledger = Ledger(tables.db.engine, 100)
        held = ledger.reserve(call_request(f"req_{name}", group_id=1))
        wait_for_all()
        ledger.settle(held, Outcome(status="ok", status_code=200, charged_tokens=tokens, total_tokens=tokens))
        ledger.close()
    runtime.close(app)


def deliver_alerts(database_url: str, webhook_url: str) -> None:
    """Deliver what is due to a webhook that may be on this machine."""
    app = create_app(settings(database_url))
    with app.app_context():
        sender_to(webhook_url, tables.db.engine).deliver_due()


def sender_to(webhook_url: str, engine: Engine, mail: Mail | None = None, mail_to: tuple[str, ...] = ()) -> Sender:
    """Return what delivers to a webhook that may be on this machine, and to a server of mails."""
    speaker = Speaker(ZoneInfo("UTC"), "USD")
    webhook = Webhook(webhook_url, lambda: secret_from("key of the tests"), speaker, check=lambda address: True)
    return Sender(engine, Receivers(webhook, mail, mail_to))


def generate_key(wait_for_all: Wait, folder: Path) -> str:
    """Return the key that signs sessions."""
    wait_for_all()
    return generated_secret_key(folder)


def call_request(request_id: str, team_id: int = 1, **fields: Any) -> CallRequest:
    """Return what a call of a team says of itself to the ledger."""
    return CallRequest(
        request_id=request_id,
        team_id=team_id,
        team_name="t",
        token_id=team_id,
        token_prefix="tr-",
        model="m",
        endpoint="/v1/e",
        stream=False,
        created_at=datetime.now(UTC),
        prompt_tokens=1,
        **fields,
    )


def settings(database_url: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "PROVIDER_API_KEY": "unused",
        "SECRET_KEY": "unused",
        "ADMIN_PASSWORD": "right",
    }
