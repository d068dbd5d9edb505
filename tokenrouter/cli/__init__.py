"""The `flask` commands: each is one call of the domain and one echo."""

from flask import Flask

from tokenrouter.cli.alerts import alert_commands
from tokenrouter.cli.backups import backup, copy_to, restore
from tokenrouter.cli.codes import code_commands
from tokenrouter.cli.doctor import doctor
from tokenrouter.cli.groups import group_commands
from tokenrouter.cli.logs import log_commands
from tokenrouter.cli.management_tokens import management_token_commands
from tokenrouter.cli.prices import price_commands
from tokenrouter.cli.provider import provider_commands
from tokenrouter.cli.setup import setup
from tokenrouter.cli.teams import team_commands
from tokenrouter.cli.tokens import token_commands
from tokenrouter.cli.usage import usage_commands


def init_app(app: Flask) -> None:
    """Register the commands."""
    for command in (
        team_commands,
        group_commands,
        token_commands,
        price_commands,
        usage_commands,
        log_commands,
        provider_commands,
        code_commands,
        alert_commands,
        management_token_commands,
        backup,
        restore,
        copy_to,
        setup,
        doctor,
    ):
        app.cli.add_command(command)
