"""What gunicorn's master prepares for its workers: they are copies of it and share its memory until they write to it.

A HUP is handled by the code that ran before it, so that what is new and broken ends nothing.
"""

import gc
import importlib
import socket
import sys
from types import ModuleType
from typing import Any, cast

from flask import Flask

from tokenrouter import logs
from tokenrouter.config import Settings

PACKAGE = __name__.partition(".")[0]

_app: Flask | None = None


def preload() -> Settings:
    """Make the app that all workers are to serve with, in gunicorn's master, and return its settings.

    gunicorn reads its configuration, and so calls this, at the start and on each HUP. What fails at the start ends it,
    in one line where a setting is wrong; in a worker it would not: one that exits is started again for ever. On HUP our
    code is imported anew and the settings are read anew; where that fails, one line says so, and what ran goes on.
    """
    gc.unfreeze()
    app = _start() if _app is None else _reload(_app)
    # The collector marks what it looks at. It is kept off what is loaded, which saves each worker 14 MB.
    gc.collect()
    gc.freeze()
    return _settings(app)


def prepared_app() -> Flask | None:
    """Return the app that was made in gunicorn's master, of which this process is a copy; None elsewhere."""
    return _app


def finish() -> None:
    """Close the database in gunicorn's master too, once its workers have ended."""
    if _app is not None:
        package: Any = importlib.import_module(PACKAGE)
        package.finish(_app)


def _start() -> Flask:
    try:
        return _prepare(may_ask=True)
    except ValueError as error:  # a ConfigError, or what a library says of a setting
        sys.exit(f"Error: {error}")


def _reload(running: Flask) -> Flask:
    """Make an app of the code and the settings as they are now; where that fails, return the one that there is."""
    modules = _forget_modules()
    try:
        app = _prepare(may_ask=False)
        _check_address(_settings(app), _settings(running))
    except Exception as error:
        logs.say(f"Error: {_in_one_line(error)}. What runs goes on as it is.")
        _forget_modules()
        sys.modules.update(modules)
        logs.init(_settings(running).log_format, _settings(running).secrets())
        return running
    return app


def _prepare(*, may_ask: bool) -> Flask:
    # By name: on HUP this module and all that it imported belong to the code that ran. Its successor, whom the workers
    # ask for the app, and the package's root, which stands above it, have to be those of now.
    package: Any = importlib.import_module(PACKAGE)
    successor: Any = importlib.import_module(__name__)
    successor._app = app = package.prepare(may_ask=may_ask)
    return cast(Flask, app)


def _settings(app: Flask) -> Settings:
    settings: Settings = app.extensions[PACKAGE].settings
    return settings


def _forget_modules() -> dict[str, ModuleType]:
    """Have our modules imported anew by whoever asks for them next, and return those that there were."""
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == PACKAGE}
    for name in ours:
        del sys.modules[name]
    return ours


def _check_address(new: Settings, running: Settings) -> None:
    """Raise ValueError if nothing can listen at a changed address: gunicorn would end, and all workers with it."""
    if (new.host, new.port) == (running.host, running.port):
        return
    family = socket.AF_INET6 if ":" in new.host else socket.AF_INET
    try:
        socket.create_server((new.host, new.port), family=family).close()
    except OSError as error:
        raise ValueError(f"HOST, PORT: {error}") from error


def _in_one_line(error: Exception) -> str:
    said = " ".join(str(error).split()).removesuffix(".")
    return said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"
