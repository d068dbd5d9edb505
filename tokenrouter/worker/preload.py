"""Prepare the app in gunicorn's master: workers are forks of it, and share its memory until they write to it.

A HUP is handled by the old code, so that broken new code stops nothing.
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
    """Create the app for all workers in gunicorn's master, and return its settings.

    gunicorn calls this when it reads its configuration, at the start and on each HUP. A failure at the start ends the
    master, with one line if a setting is wrong; if workers did this, they would be restarted for ever. On HUP our code
    and the settings are loaded anew; if that fails, one line says so, and the old app goes on.
    """
    gc.unfreeze()
    app = _start() if _app is None else _reload(_app)
    # The collector writes to objects that it visits. Frozen ones stay shared, which saves each worker 14 MB.
    gc.collect()
    gc.freeze()
    return _settings(app)


def prepared_app() -> Flask | None:
    """Return the app created in gunicorn's master, of which this process is a fork; None elsewhere."""
    return _app


def finish() -> None:
    """Close the database in gunicorn's master, after its workers have ended."""
    if _app is not None:
        package: Any = importlib.import_module(PACKAGE)
        package.finish(_app)


def _start() -> Flask:
    try:
        return _prepare(may_ask=True)
    except ValueError as error:  # a ConfigError, or a library's complaint about a setting
        sys.exit(f"Error: {error}")


def _reload(running: Flask) -> Flask:
    """Create an app from the code and settings as they are now; if that fails, return the running one."""
    modules = _forget_modules()
    try:
        app = _prepare(may_ask=False)
        _check_address(_settings(app), _settings(running))
    except Exception as error:  # whatever the new code or settings raise, the running app has to go on
        logs.say(f"Error: {_in_one_line(error)}. What runs goes on as it is.")
        _forget_modules()
        sys.modules.update(modules)
        logs.init(_settings(running).log_format, _settings(running).secrets())
        return running
    return app


def _prepare(*, may_ask: bool) -> Flask:
    # Imported by name: on HUP this module belongs to the old code. The package's root has to be the new one, and so
    # has this module's successor, from which the workers get the app.
    package: Any = importlib.import_module(PACKAGE)
    successor: Any = importlib.import_module(__name__)
    successor._app = app = package.prepare(may_ask=may_ask)
    return cast(Flask, app)


def _settings(app: Flask) -> Settings:
    settings: Settings = app.extensions[PACKAGE].settings
    return settings


def _forget_modules() -> dict[str, ModuleType]:
    """Remove our modules from `sys.modules`, so that they are imported anew, and return the removed ones."""
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == PACKAGE}
    for name in ours:
        del sys.modules[name]
    return ours


def _check_address(new: Settings, running: Settings) -> None:
    """Raise ValueError if a changed address cannot be bound: gunicorn would end, with all workers."""
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
