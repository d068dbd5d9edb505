"""What a first start asks for and makes: key and password in `.env`, and the key that signs sessions."""

import os
import secrets
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import click
import dotenv

from tokenrouter.config import API_KEY, DEFAULT_ADMIN_PASSWORD, ENV_FILE, ConfigError, Settings, load, printable_text

MISSING_KEY = (
    "PROVIDER_API_KEY is not set: put it into the environment or into .env, or run `flask setup` on a terminal"
)


@cache
def load_for_serving() -> Settings:
    """Load the settings and make sure that the provider's key is among them, asking for it on a terminal.

    gunicorn's master calls this; its workers, which begin as copies of it, are given the same settings.
    Raises ConfigError where the key is missing and nobody can be asked.
    """
    settings = load()
    if settings.provider_api_key:
        return settings
    if not _on_terminal():
        raise ConfigError(MISSING_KEY)
    ask(settings)
    return load()


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(settings: Settings) -> None:
    """Ask for the provider's key and the admin password, and save both to `.env`, mode 0600.

    Raises ConfigError where nobody can be asked, and when the questions are interrupted.
    """
    if not _on_terminal():
        raise ConfigError("There is no terminal to ask on: put PROVIDER_API_KEY and ADMIN_PASSWORD into .env by hand")
    try:
        key = _prompt_hidden("Provider API key", keep=settings.provider_api_key)
        own_password = settings.admin_password if settings.admin_password != DEFAULT_ADMIN_PASSWORD else ""
        enter = "keeps the present one" if own_password else "generates one"
        password = click.prompt(
            f"Admin password (Enter {enter})", hide_input=True, default="", show_default=False, err=True
        )
    except click.Abort:
        raise ConfigError("set-up was interrupted; nothing was saved") from None
    if not password and not own_password:
        password = secrets.token_urlsafe(12)
        click.echo(f"The admin password is {password} (shown this once, and kept in .env)", err=True)
    save({"PROVIDER_API_KEY": key, "ADMIN_PASSWORD": password or own_password})
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


def save(values: Mapping[str, str]) -> None:
    """Write the values into `.env`, mode 0600; other lines and comments stay as they are."""
    ENV_FILE.touch(mode=0o600)
    ENV_FILE.chmod(0o600)  # dotenv's writer keeps the mode that it finds
    for name, value in values.items():
        dotenv.set_key(ENV_FILE, name, value)


def generated_secret_key(folder: Path) -> str:
    """Return the key kept in the folder's `secret_key`, mode 0600, made when first asked for.

    Several workers may ask at once: a link is made whole or not at all, so all of them read the same key.
    """
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
            pass  # another worker was first: its key is the one
        finally:
            draft.unlink()
    return path.read_text()
