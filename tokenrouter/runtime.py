"""What one process runs with: its settings, ledger and provider, its slots for calls, and the clients that wait."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

from flask import Flask, current_app
from sqlalchemy.engine import Engine

from tokenrouter import account_pace, alerts, backups, call_lines, payload, provider_record
from tokenrouter.account import REFRESH_S, refresh
from tokenrouter.auth import KnownCallers
from tokenrouter.changes import CLOCK, Actor
from tokenrouter.config import Settings
from tokenrouter.database.connections import Readers
from tokenrouter.database.tables import db
from tokenrouter.ledger import SETTLE_WAIT_S, Ledger, first_day_kept, prune, sum_up
from tokenrouter.ledger.endings import Listener
from tokenrouter.monitoring import Tally
from tokenrouter.payload import RefusedAdditions
from tokenrouter.provider.account import Account
from tokenrouter.provider.catalogue import Catalogue
from tokenrouter.provider.client import Provider
from tokenrouter.provider_record import fetch_quietly
from tokenrouter.worker.disconnects import WaitingClients
from tokenrouter.worker.jobs import Every, Jobs, Nightly, Task
from tokenrouter.worker.slots import Slots


@dataclass
class Runtime:
    """What one app runs with, in one process."""

    settings: Settings
    readers: Readers
    ledger: Ledger
    provider: Provider
    slots: Slots
    catalogue: Catalogue
    account: Account
    jobs: Jobs
    clients: WaitingClients
    sender: alerts.Sender
    outage: alerts.OutageWatch
    tally: Tally | None
    """What is counted for Prometheus; None without METRICS_TOKEN."""
    callers: KnownCallers = field(default_factory=KnownCallers)
    refused_additions: RefusedAdditions = field(default_factory=RefusedAdditions)

    def patterns(self, team_models: tuple[str, ...] | None) -> tuple[str, ...]:
        """Return the names and prefixes of models that a team with this list of its own may call."""
        return payload.narrowed(self.settings.allowed_models, team_models)

    def example_model(self, team_models: tuple[str, ...] | None) -> str:
        """Return a model to show in an example to a team with this list of its own."""
        patterns = self.patterns(team_models)
        return payload.example_model(patterns, self.settings.default_model, self.catalogue.known_names(patterns))


def init_app(app: Flask, settings: Settings) -> None:
    """Give the app its runtime; no thread is started yet, since gunicorn forks its workers from this process."""
    with app.app_context():
        engine = db.engine
        readers = Readers(engine)
        pace = settings.provider_requests_per_minute
        ledger = Ledger(engine, settings.output_reserve_tokens, settings.timezone, settings.currency, pace)
    provider = Provider(settings)
    tally = Tally(engine, settings.allowed_models) if settings.metrics_token else None
    listeners: list[Listener] = [call_lines.writer()] if settings.log_format == "json" else []
    ledger.endings.listen(*listeners, *(() if tally is None else (tally,)))
    keeper = account_pace.Keeper(engine, provider.rate_limits)
    ledger.at_heartbeat = (keeper.keep, *(() if tally is None else (tally.keep,)))
    slots = Slots(settings.threads, settings.team_calls)
    catalogue = Catalogue(provider, settings.default_model)
    account = Account(provider, settings, catalogue.ask)
    tasks = list(_tasks(app, engine, settings, account))
    jobs = Jobs(engine, tasks, settings.timezone, lambda: ledger.worker_id)
    receivers = alerts.receivers_of(app, settings)
    outage = alerts.OutageWatch(engine, ledger, receivers)
    sender = alerts.Sender(engine, receivers, also=outage.look)
    app.extensions["tokenrouter"] = Runtime(
        settings,
        readers,
        ledger,
        provider,
        slots,
        catalogue,
        account,
        jobs,
        WaitingClients(),
        sender,
        outage,
        tally,
    )


def _tasks(app: Flask, engine: Engine, settings: Settings, account: Account) -> Iterator[Task]:
    """Yield the scheduled tasks, in the order in which those run that are due at the same time."""
    yield Task("provider's account", Every(REFRESH_S), partial(refresh, engine, account))
    if account.kind == "poe":  # OpenRouter's days come with its balance
        fetch = partial(fetch_quietly, engine, account)
        yield Task(provider_record.TASK, Every(provider_record.EVERY_S), fetch)
    yield Task("alerts", Every(alerts.LOOK_S), partial(alerts.look, app, account))
    yield Task("alerts ahead", Every(alerts.LOOK_AHEAD_S), partial(alerts.look_ahead, app))
    yield Task("sums of reports", Nightly(), partial(sum_up, engine, settings.timezone))
    yield Task("verify", Nightly(), partial(alerts.check_books, app))
    if settings.backup_folder:
        folder, instance = backups.folder_of(app, settings.backup_folder), Path(app.instance_path)
        run = partial(backups.take_nightly, engine, folder, instance, settings.backup_keep)
        yield Task("backup", Nightly(), run)
    if settings.log_retention_days is not None:
        yield Task("old calls", Nightly(), partial(_prune, engine, settings.log_retention_days, settings.timezone))


def _prune(engine: Engine, days: int, zone: ZoneInfo) -> None:
    prune(engine, first_day_kept(days, zone), zone, by=Actor(CLOCK, "LOG_RETENTION_DAYS"))


def close(app: Flask, timeout_s: float = SETTLE_WAIT_S) -> None:
    """Write what is still to be booked, for at most `timeout_s`, leave the workers, and close all connections.

    The last process that closes an SQLite database leaves its one file.
    """
    own = of(app)
    own.jobs.close()
    own.sender.close()
    own.outage.close()
    own.clients.close()
    own.ledger.close(timeout_s)
    own.provider.close()
    own.readers.close()
    with app.app_context():
        db.engine.dispose()


def of(app: Flask) -> Runtime:
    """Return the runtime of an app."""
    own: Runtime = app.extensions["tokenrouter"]
    return own


def current() -> Runtime:
    """Return the runtime of the current app."""
    return of(current_app)
