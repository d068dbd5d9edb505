"""Read the settings: the environment, else `.env` of the working directory, else the default."""

import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import dotenv
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from tokenrouter import logs

ENV_FILE = Path(".env")
DEFAULT_ADMIN_PASSWORD = "admin123"
LIKENESS = 0.8  # names in .env that resemble a setting at least so much are taken for misspelt; 1 is equal
ACCOUNTS = ("auto", "poe", "openrouter", "deepseek", "none")
SWITCHES = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}
MOST_RETENTION_DAYS = 36500
MAIL_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_{|}~-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*")
MOST_MAIL_ADDRESS = 254
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+")


class ConfigError(ValueError):
    """A setting is wrong; says in one line which, the refused value, and what is accepted."""


class Misspelt(ValueError):
    """A value is refused; says how it should have been written."""


@dataclass(frozen=True)
class Reader:
    """A parser of one setting's text, and the words for what it accepts."""

    accepts: str
    parse: Callable[[str], Any]


def _whole(least: int, most: int = 2**31 - 1) -> Reader:
    def parse(text: str) -> int:
        number = int(text)
        if not least <= number <= most:
            raise ValueError
        return number

    return Reader(f"a whole number from {least} to {most}", parse)


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number <= 86400:
        raise ValueError
    return number


def _http_url(text: str) -> str:
    text = printable_text(text)
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError
    _ = parts.port  # raises ValueError if it is not a number
    return text.rstrip("/")


def parse_models(text: str) -> tuple[str, ...]:
    """Read names and prefixes of models separated by commas; of those that differ only in case, the first counts.

    Raises ValueError if there is none, or one with a `*` before its end or with control characters.
    """
    names: dict[str, str] = {}
    for name in filter(None, map(str.strip, text.split(","))):
        names.setdefault(name.casefold(), name)
    if not names or any("*" in name[:-1] or not name.isprintable() for name in names.values()):
        raise ValueError
    return tuple(names.values())


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(dict.fromkeys(origin.strip().lower().rstrip("/") for origin in text.split(",") if origin.strip()))
    if not origins or not all(origin == "*" or ORIGIN.fullmatch(origin) for origin in origins):
        raise ValueError
    return origins


def _database_url(text: str) -> str:
    if text.startswith("postgres://"):  # what several hosting services hand out
        text = text.replace("postgres://", "postgresql://", 1)
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise ValueError from error
    if url.drivername == "sqlite" and url.host:
        path = "/".join(filter(None, (url.host, url.database)))
        raise Misspelt(f"sqlite:///{path}, with three slashes")
    in_memory = not url.database or url.database == ":memory:" or "mode=memory" in text
    if url.drivername not in ("sqlite", "postgresql", "postgresql+psycopg") or in_memory:
        raise ValueError
    return text


def database_url(text: str) -> str:
    """Read where a database is. Raises ConfigError."""
    metadata: Mapping[str, Any] = SETTINGS["DATABASE_URL"].metadata
    url: str = _parse("DATABASE_URL", text, metadata)
    return url


def _zone(text: str) -> ZoneInfo:
    try:
        return ZoneInfo(text.strip())
    except (ZoneInfoNotFoundError, OSError) as error:  # `Europe` is a folder: IsADirectoryError
        raise ValueError from error


def _currency(text: str) -> str:
    text = text.strip().upper()
    if not re.fullmatch("[A-Z]{3}", text):
        raise ValueError
    return text


@dataclass(frozen=True)
class SmtpServer:
    """The mail server, and the sender of mails; without a user there is no login."""

    host: str
    port: int
    is_tls: bool
    """TLS from the first byte; otherwise STARTTLS if the server offers it."""
    user: str
    password: str = field(repr=False)
    sender: str


SMTP_PORTS = {"smtp": 587, "smtps": 465}


def _smtp_url(text: str) -> SmtpServer:
    parts = urlsplit(printable_text(text))
    if parts.scheme not in SMTP_PORTS or not parts.hostname or parts.path not in ("", "/") or parts.fragment:
        raise ValueError
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    sender = mail_address(parse_qs(parts.query).get("from", [user])[0])
    port = parts.port or SMTP_PORTS[parts.scheme]
    return SmtpServer(parts.hostname, port, parts.scheme == "smtps", user, password, sender)


def _webhook_url(text: str) -> str:
    text = printable_text(text)
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or parts.fragment:
        raise ValueError
    _ = parts.port  # raises ValueError if it is not a number
    return text


def mail_address(text: str) -> str:
    """Return a mail address; raises ValueError if the text is not exactly one."""
    text = text.strip()
    if len(text) > MOST_MAIL_ADDRESS or not MAIL_ADDRESS.fullmatch(text):
        raise ValueError
    return text


def _mail_addresses(text: str) -> tuple[str, ...]:
    addresses = tuple(dict.fromkeys(mail_address(each) for each in text.split(",") if each.strip()))
    if not addresses:
        raise ValueError
    return addresses


def _model(text: str) -> str:
    text = text.strip()
    if not text or "*" in text or "," in text:
        raise ValueError
    return text


def printable_text(text: str) -> str:
    """Return a text that can stand in an HTTP header; raises ValueError for any other."""
    text = text.strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError
    return text


def _host(text: str) -> str:
    text = text.strip()
    if not re.fullmatch(r"[A-Za-z0-9.-]+", text):
        ipaddress.IPv6Address(text)  # raises a ValueError
    return text


def _switch(text: str) -> bool:
    if (value := SWITCHES.get(text.strip().lower())) is None:
        raise ValueError
    return value


def _account(text: str) -> str:
    if (text := text.strip().lower()) not in ACCOUNTS:
        raise ValueError
    return text


def _log_format(text: str) -> str:
    if (text := text.strip().lower()) not in logs.FORMATS:
        raise ValueError
    return text


_ANY_TEXT = Reader("a text", str)
LOG_FORMAT = Reader(" or ".join(logs.FORMATS), _log_format)
API_KEY = Reader("printable ASCII characters without spaces", printable_text)


def _setting(default: str, reader: Reader, *, secret: bool = False) -> Any:
    return field(metadata={"default": default, "reader": reader, "secret": secret})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting, parsed. A field's name in capitals is its name in the environment; unset numbers are None."""

    provider_api_key: str = _setting("", API_KEY, secret=True)
    provider_base_url: str = _setting(
        "https://api.poe.com/v1", Reader("an http:// or https:// URL without query", _http_url)
    )
    default_model: str = _setting("GPT-5-nano", Reader("one model's name", _model))
    allowed_models: tuple[str, ...] = _setting(
        "GPT-5-nano,GPT-5-mini,Gemini-2.5-flash,Gemini-2.5-pro",
        Reader("names separated by commas, each with at most a trailing *", parse_models),
    )
    admin_password: str = _setting(DEFAULT_ADMIN_PASSWORD, _ANY_TEXT, secret=True)
    database_url: str = _setting(
        "sqlite:///./data/tokenrouter.db",
        Reader("sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME", _database_url),
        secret=True,  # it may carry the database's password
    )
    host: str = _setting("0.0.0.0", Reader("an IP address or a host's name, without a port", _host))
    port: int = _setting("8000", _whole(1, 65535))
    secret_key: str = _setting("", _ANY_TEXT, secret=True)
    web_concurrency: int = _setting("2", _whole(1, 256))
    threads: int = _setting("256", _whole(1, 8192))
    team_calls: int = _setting("", _whole(1, 8192))
    provider_connect_timeout: float = _setting("5", Reader("seconds, above 0 and up to 86400", _seconds))
    provider_read_timeout: float = _setting("600", Reader("seconds, above 0 and up to 86400", _seconds))
    output_reserve_tokens: int = _setting("1024", _whole(1))
    max_output_tokens: int | None = _setting("", _whole(1))
    max_request_bytes: int = _setting("33554432", _whole(1024, 2**40))
    trusted_proxies: int = _setting("0", _whole(0, 16))
    timezone: ZoneInfo = _setting(  # noqa: RUF009 - as of all others, what is called is a field
        "UTC", Reader("an IANA name such as Europe/Berlin", _zone)
    )
    currency: str = _setting("USD", Reader("the three letters of a currency, such as EUR", _currency))
    hosted_tools: tuple[str, ...] | None = _setting(
        "", Reader("names separated by commas, each with at most a trailing *", parse_models)
    )
    cors_origins: tuple[str, ...] | None = _setting(
        "", Reader("origins such as https://app.example separated by commas, or *", _origins)
    )
    provider_account: Literal["auto", "poe", "openrouter", "deepseek", "none"] = _setting(
        "auto", Reader(f"one of {', '.join(ACCOUNTS)}", _account)
    )
    provider_requests_per_minute: int | None = _setting("", _whole(1, 10**6))
    provider_team_ids: bool = _setting("no", Reader("yes or no", _switch))
    backup_folder: str = _setting("", _ANY_TEXT)
    backup_keep: int = _setting("7", _whole(1, 1000))
    log_retention_days: int | None = _setting("", _whole(1, MOST_RETENTION_DAYS))
    log_format: Literal["text", "json"] = _setting("text", LOG_FORMAT)
    metrics_token: str = _setting("", API_KEY, secret=True)
    alert_webhook_url: str | None = _setting(
        "", Reader("an http:// or https:// URL without user and fragment", _webhook_url), secret=True
    )
    smtp_url: SmtpServer | None = _setting(  # noqa: RUF009 - likewise
        "", Reader("smtp://USER:PASSWORD@HOST:PORT?from=ADDRESS, or smtps://…", _smtp_url), secret=True
    )
    alert_mail_to: tuple[str, ...] | None = _setting("", Reader("mail addresses separated by commas", _mail_addresses))
    origins: Mapping[str, str] = field(repr=False)

    def secrets(self) -> set[str]:
        """Return what no log line may contain: the secret settings, and the passwords in URLs."""
        values = {name: getattr(self, setting.name) for name, setting in SETTINGS.items()}
        secret = [values[name] for name, setting in SETTINGS.items() if setting.metadata["secret"]]
        urls = [url for name, url in values.items() if name.endswith("_URL") and isinstance(url, str)]
        passwords = [urlsplit(url).password or "" for url in urls]
        if self.smtp_url is not None:
            passwords.append(self.smtp_url.password)
        texts = [each for each in secret if isinstance(each, str)]
        return {each for each in (*texts, *passwords, *map(unquote, passwords)) if each}

    def __repr__(self) -> str:
        """Return only the class: a traceback or a debug line must not print a secret."""
        return "<Settings>"


SETTINGS = MappingProxyType({f.name.upper(): f for f in fields(Settings) if f.metadata})


def load(overrides: Mapping[str, object] | None = None) -> Settings:
    """Parse every setting; `overrides` win over the environment, which wins over `.env`.

    An empty value counts as unset; an empty override stands for the default.
    Raises ConfigError for the first value that is refused.
    """
    sources = (("environment", _environment()), (".env", read_env_file()))
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, setting in SETTINGS.items():
        found = [(origin, source[name]) for origin, source in sources if source.get(name)]
        if overrides and name in overrides:
            value = overrides[name]
            found = [("override", str(value))] if value not in (None, "") else []
        origins[name], text = next(iter(found), ("default", setting.metadata["default"]))
        values[setting.name] = _parse(name, text, setting.metadata) if text else _unset(setting.type)
    values["team_calls"] = values["team_calls"] or max(1, values["threads"] // 2)
    settings = Settings(**values, origins=MappingProxyType(origins))
    if not is_allowed(settings.default_model, settings.allowed_models):
        raise ConfigError(
            f"DEFAULT_MODEL: {settings.default_model!r} is refused, since ALLOWED_MODELS does not have it; "
            f"accepted is one of {', '.join(settings.allowed_models)}"
        )
    return settings


def _parse(name: str, text: str, metadata: Mapping[str, Any]) -> Any:
    reader: Reader = metadata["reader"]
    try:
        return reader.parse(text)
    except ValueError as error:
        shown = "the value given" if metadata["secret"] else repr(text)
        accepts = error if isinstance(error, Misspelt) else reader.accepts
        raise ConfigError(f"{name}: {shown} is refused; accepted is {accepts}") from None


def _unset(kind: Any) -> str | None:
    return "" if kind is str else None


def is_allowed(model: str, patterns: tuple[str, ...]) -> bool:
    """Tell whether a pattern matches the model, as a prefix if it ends in `*`; case does not matter."""
    name = model.casefold()
    return any(
        name.startswith(pattern[:-1].casefold()) if pattern.endswith("*") else name == pattern.casefold()
        for pattern in patterns
    )


def read_env_file() -> dict[str, str]:
    """Return the values in `.env` of the working directory; nothing is interpolated, since a password may have `${`."""
    try:
        values = dotenv.dotenv_values(ENV_FILE, interpolate=False) if ENV_FILE.is_file() else {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f".env cannot be read: {error}") from error
    return {name: value for name, value in values.items() if value is not None}


def _environment() -> dict[str, str]:
    """Return the environment without the values that the `flask` command copied from `.env` and `.flaskenv` files.

    It searches every parent folder for them, expands `${...}`, and copies values that are not set into the environment
    before any of our code runs.
    """
    environment = dict(os.environ)
    if environment.get("FLASK_RUN_FROM_CLI") != "true":
        return environment
    copied: dict[str, str | None] = {}
    for name in (".flaskenv", ".env"):
        path = dotenv.find_dotenv(name, usecwd=True)
        copied |= dotenv.dotenv_values(path) if path else {}
    set_before = _names_at_start()
    return {name: text for name, text in environment.items() if name in set_before or copied.get(name) != text}


def _names_at_start() -> set[str]:
    """Return the variables that this process was started with; none if the system does not reveal them.

    The reloader of `flask run` starts its process with the copied values, so there they are not known either.
    """
    block = Path("/proc/self/environ")
    if "WERKZEUG_RUN_MAIN" in os.environ or not block.exists():
        return set()
    return {os.fsdecode(entry.partition(b"=")[0]) for entry in block.read_bytes().split(b"\0")}


def slips() -> Iterator[str]:
    """Yield a line for each name in `.env` that is no setting but resembles one."""
    for name in read_env_file():
        meant = difflib.get_close_matches(name.upper(), SETTINGS, n=1, cutoff=LIKENESS)
        if meant and name not in SETTINGS:
            yield f"{name} in .env is not a setting, and has no effect. Is {meant[0]} meant?"


def without_password(url: str) -> str:
    """Return a URL without name and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def default_settings() -> dict[str, str]:
    """Return every default as text, for overrides that shut out the environment and `.env`."""
    return {name: setting.metadata["default"] for name, setting in SETTINGS.items()}
