"""`flask demo`: the whole product on loopback, with a stand-in provider and a throw-away database."""

import secrets
import signal
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import click
from flask import Flask
from werkzeug.serving import make_server

from tokenrouter import changes, runtime, teams
from tokenrouter.changes import Actor
from tokenrouter.config import default_settings
from tokenrouter.database import schema
from tokenrouter.standin import StandInProvider

HOST = "127.0.0.1"
TEAM = "demo"
QUOTA_TOKENS = 100_000
ENDINGS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
GUIDE = """
TokenRouter runs with a stand-in provider: no account is needed, and nothing is kept.

  URL            {url}/v1
  Team token     {token}
  Admin panel    {url}/admin   (password: {password})

Try it with curl:

  curl {url}/v1/chat/completions \\
    -H "Authorization: Bearer {token}" \\
    -H "Content-Type: application/json" \\
    -d '{{"model": "GPT-5-nano", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

Or with the OpenAI SDK (pip install openai):

  from openai import OpenAI

  client = OpenAI(api_key="{token}", base_url="{url}/v1")
  answer = client.chat.completions.create(
      model="GPT-5-nano", messages=[{{"role": "user", "content": "Hello!"}}]
  )
  print(answer.choices[0].message.content)

Ctrl-C ends it and leaves nothing behind.
"""


def command(create_app: Callable[[dict[str, str]], Flask]) -> click.Command:
    """Make the `demo` command; it gets the application factory, which this module must not import."""

    @click.command("demo")
    @click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes any.")
    def demo(port: int) -> None:
        """Show the whole product on this machine, without a paid account."""
        for ending in ENDINGS:
            if signal.getsignal(ending) != signal.SIG_IGN:  # as nohup has it
                signal.signal(ending, _end)
        with tempfile.TemporaryDirectory(prefix="tokenrouter-demo-") as folder, StandInProvider() as provider:
            settings = default_settings() | {
                "PROVIDER_API_KEY": "demo",
                "PROVIDER_BASE_URL": provider.base_url,
                "DATABASE_URL": f"sqlite:///{Path(folder) / 'demo.db'}",
                "ADMIN_PASSWORD": secrets.token_urlsafe(9),
                "SECRET_KEY": secrets.token_hex(32),
            }
            _serve(create_app(settings), port, settings["ADMIN_PASSWORD"])

    return demo


def _end(number: int, frame: FrameType | None) -> None:
    """End as Ctrl-C does, and ignore further signals, so that cleaning up is not interrupted."""
    for ending in ENDINGS:
        signal.signal(ending, lambda *_: None)  # not SIG_IGN: a pending signal would then raise an OSError
    raise KeyboardInterrupt


def _serve(app: Flask, port: int, password: str) -> None:
    schema.ensure(app)
    with app.app_context():
        _, bearer_token = teams.create(TEAM, QUOTA_TOKENS, by=Actor(changes.CLI, "flask demo"))
    with _listener(port) as listener:
        port = listener.getsockname()[1]
        server = make_server(HOST, port, app, threaded=True, fd=listener.fileno())
        try:
            with suppress(KeyboardInterrupt):
                click.echo(GUIDE.format(url=f"http://{HOST}:{port}", token=bearer_token, password=password))
                server.serve_forever()
        finally:
            server.server_close()
            runtime.close(app)


def _listener(port: int) -> socket.socket:
    """Listen on the port; werkzeug would end the program with its own explanation if it is taken."""
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise click.ClickException(f"Port {port} cannot be had: {error.strerror}. Take another by --port.") from error
