"""gunicorn's own log, in the format of all other lines."""

import importlib
from typing import Any

from gunicorn.glogging import Logger as GunicornLogger

from tokenrouter import logs


class Logger(GunicornLogger):
    """gunicorn's log, which gets the format of lines at the start and on each HUP."""

    def setup(self, cfg: Any) -> None:
        """Set up as gunicorn does, but with our formatter; syslog and files of the operator keep theirs."""
        super().setup(cfg)
        handler = self._get_gunicorn_handler(self.error_log)
        if handler is not None:
            current: Any = importlib.import_module(logs.__name__)  # by name: a HUP brings another one
            handler.setFormatter(current.formatter())
