"""Ask for what a first start asks for, at any time."""

import click

from tokenrouter import config, first_start


@click.command("setup")
def setup() -> None:
    """Ask for the provider's key and the admin password, and save them to .env."""
    try:
        first_start.ask(config.load())
    except config.ConfigError as error:
        raise click.ClickException(str(error)) from error
