"""gunicorn's own log, its lines as all others are."""

import importlib
from typing import Any

from gunicorn.glogging import Logger as GunicornLogger

from tokenrouter import logs


class Logger(GunicornLogger):
    """gunicorn's log, told what lines look like at the start and on each HUP."""

    def setup(self, cfg: Any) -> None:
        """Do as gunicorn does, and have lines made by our formatter; syslog's, and a file's of the operator, stay."""
        super().setup(cfg)
        handler = self._get_gunicorn_handler(self.error_log)
        if handler is not None:
            current: Any = importlib.import_module(logs.__name__)  # by name: a HUP brings another one
            handler.setFormatter(current.formatter())
