"""A first start asks for the provider's key and the admin password, and creates the key that signs sessions."""

import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import dotenv

from tokenrouter.config import (
    API_KEY,
    DEFAULT_ADMIN_PASSWORD,
    ENV_FILE,
    ConfigError,
    Settings,
    load,
    printable_text,
    slips,
    without_password,
)

MISSING_KEY = (
    "PROVIDER_API_KEY is not set: put it into the environment or into .env, or run `flask setup` on a terminal"
)

WHICH_KEY = (
    "The key is that of your account at {url}. For another provider press Ctrl-C, put its PROVIDER_BASE_URL, and its "
    "models as ALLOWED_MODELS and DEFAULT_MODEL, into .env, and start again. What you type is not shown."
)
DEFAULT_PASSWORD = (
    "The admin password is still the default: it opens the panel from this machine only. Set ADMIN_PASSWORD, or run "
    "`flask setup`, and restart."
)


def load_for_serving(*, may_ask: bool = True) -> Settings:
    """Load the settings; if the provider's key is missing, ask for it on a terminal.

    Raises ConfigError if the key is missing and nobody can be asked, or `may_ask` is false.
    """
    settings = load()
    if settings.provider_api_key:
        return settings
    if not (may_ask and _on_terminal()):
        raise ConfigError(MISSING_KEY)
    ask(settings)
    return load()


def warnings(settings: Settings) -> Iterator[str]:
    """Yield the warnings of the start, a line each."""
    if settings.admin_password == DEFAULT_ADMIN_PASSWORD:
        yield DEFAULT_PASSWORD
    yield from slips()


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(settings: Settings) -> None:
    """Ask for the provider's key and the admin password, and save both to `.env`, mode 0600.

    Raises ConfigError if nobody can be asked, nothing can be saved, or the questions are interrupted.
    """
    if not _on_terminal():
        raise ConfigError("There is no terminal to ask on: put PROVIDER_API_KEY and ADMIN_PASSWORD into .env by hand")
    _check_writable()
    click.echo(WHICH_KEY.format(url=without_password(settings.provider_base_url)), err=True)
    try:
        key = _prompt_hidden("Provider API key", keep=settings.provider_api_key)
        own_password = settings.admin_password if settings.admin_password != DEFAULT_ADMIN_PASSWORD else ""
        enter = "keeps the present one" if own_password else "generates one"
        password = click.prompt(
            f"Admin password (Enter {enter})", hide_input=True, default="", show_default=False, err=True
        )
    except click.Abort:
        raise ConfigError("set-up was interrupted; nothing was saved") from None
    generated = "" if password or own_password else secrets.token_urlsafe(12)
    save({"PROVIDER_API_KEY": key, "ADMIN_PASSWORD": password or own_password or generated})
    if generated:
        click.echo(f"The admin password is {generated} (shown this once, and kept in .env)", err=True)
    click.echo(f"Saved to {ENV_FILE.resolve()}", err=True)


def _prompt_hidden(question: str, keep: str) -> str:
    hint = " (Enter keeps the present one)" if keep else ""
    while True:
        text = click.prompt(question + hint, hide_input=True, default=keep, show_default=False, err=True).strip()
        try:
            if text:
                return printable_text(text)
        except ValueError:
            click.echo(f"Accepted is {API_KEY.accepts}.", err=True)


def _check_writable() -> None:
    """Raise ConfigError, before any question is asked, if the answers could not be saved."""
    path = ENV_FILE.resolve()
    if path.exists() and not os.access(path, os.R_OK):
        raise ConfigError(f"{path} cannot be read")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{path} cannot be written, so no answer could be saved: set PROVIDER_API_KEY and ADMIN_PASSWORD in the "
            "environment, or make the folder writable"
        )


def save(values: Mapping[str, str]) -> None:
    """Write values into `.env`, mode 0600, all or none; other lines and comments stay.

    Raises ConfigError, naming the file and what was to be saved.
    """
    path = ENV_FILE.resolve()  # a link is not replaced, but its target
    draft = path.with_name(f".env.{secrets.token_hex(4)}")
    try:
        draft.touch(mode=0o600, exist_ok=False)
        if path.exists():
            draft.write_bytes(path.read_bytes())
        for name, value in values.items():
            dotenv.set_key(draft, name, value)  # which keeps the mode
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"{' and '.join(values)} could not be saved to {path}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def generated_secret_key(folder: Path) -> str:
    """Return the key in the folder's file `secret_key`, mode 0600, which is created when first needed.

    Several workers may do so at once: the file is created by a link, which is atomic, so all read the same key.
    Raises ConfigError.
    """
    try:
        return _kept_secret_key(folder)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{folder / 'secret_key'}, the key that signs sessions, cannot be read or made: {error}; "
            "make the folder this user's, or set SECRET_KEY"
        ) from error


def _kept_secret_key(folder: Path) -> str:
    path = folder / "secret_key"
    if path.exists() and not path.stat().st_size:  # a power cut can leave an empty file
        path.unlink(missing_ok=True)
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = folder / f".secret_key.{os.getpid()}.{secrets.token_hex(4)}"
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_hex(32))
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # another worker was first: its key counts
        finally:
            draft.unlink()
    return path.read_text()
