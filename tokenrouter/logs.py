"""Lines of the log, as text or as JSON: each record stays on one line, and none has a secret.

Problems are written to standard error, by Python's `logging`. The lines about calls, for programs, are written directly
to standard output: no lock is held, and each write(2) has whole lines and is short enough not to be mixed with those of
other processes, even in a pipe.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

Format = Literal["text", "json"]
FORMATS: tuple[Format, ...] = ("text", "json")
TEXT, DATE_FORMAT = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s", "[%Y-%m-%d %H:%M:%S %z]"  # gunicorn's
STANDARD_OUTPUT = 1
MOST_BYTES_AT_ONCE = 4096  # PIPE_BUF: a longer write to a pipe may be mixed with others
MOST_CHARACTERS = 80  # of a text, in a line that is too long
SHORTEST_SECRET = 8  # a shorter one would also match ordinary words
BEARER_TOKEN = re.compile(r"\b(trm?-[\w-]{5})[\w-]{38}")
HANDLER = "tokenrouter"


class _Style:
    """The format of lines in this process."""

    format: Format = "text"
    secrets: tuple[str, ...] = ()


def init(format_: Format = "text", secrets: Iterable[str] = ()) -> None:
    """Set the format of our loggers, and the secrets that are masked in it.

    A logging configuration that somebody else has set up stays as it is.
    """
    _Style.format = format_
    _Style.secrets = tuple(sorted({each for each in secrets if len(each) >= SHORTEST_SECRET}, key=len, reverse=True))
    ours = logging.getLogger(__name__.partition(".")[0])
    if not ours.hasHandlers():
        ours.addHandler(added := logging.StreamHandler())
        added.set_name(HANDLER)
    for handler in ours.handlers:
        if handler.name == HANDLER:
            handler.setFormatter(formatter())
    if logging.lastResort is not None:  # for libraries
        logging.lastResort.setFormatter(formatter())


def formatter() -> logging.Formatter:
    """Return the formatter of records."""
    return JsonFormatter() if _Style.format == "json" else TextFormatter(TEXT, DATE_FORMAT)


class TextFormatter(logging.Formatter):
    """A line with time, process and level; lines of a traceback are indented, so that none can look like a record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback's, if there is one."""
        traceback = without_secrets(_traceback_of(self, record))
        record.message = on_one_line(without_secrets(record.getMessage()))
        record.asctime = self.formatTime(record, self.datefmt)
        return "\n".join([self.formatMessage(record), *(f"  {on_one_line(line)}" for line in traceback.splitlines())])


class JsonFormatter(logging.Formatter):
    """A JSON document a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the document."""
        document = _head(record.levelname, record.name, datetime.fromtimestamp(record.created, UTC))
        document["message"] = without_secrets(record.getMessage())
        if traceback := _traceback_of(self, record):
            document["traceback"] = without_secrets(traceback)
        return as_json(document).decode()


def _traceback_of(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info else []
    return "\n".join([*parts, formatter.formatStack(record.stack_info)] if record.stack_info else parts)


def _head(level: str, logger: str, at: datetime) -> dict[str, Any]:
    return {"time": at, "level": level, "process": os.getpid(), "logger": logger}


def without_secrets(text: str) -> str:
    """Return a text with our secrets masked, and callers' tokens cut short."""
    for secret in _Style.secrets:
        text = text.replace(secret, "[secret]")
    return BEARER_TOKEN.sub(r"\1…", text)


def on_one_line(text: str) -> str:
    """Return a text with invisible characters, such as line separators, escaped as in Python's literals."""
    return text if text.isprintable() else "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def as_json(document: Mapping[str, Any]) -> bytes:
    """Return a document in ASCII on one line; Unicode's line separators are escaped too."""
    try:
        line = orjson.dumps(document, option=orjson.OPT_UTC_Z)
    except TypeError:  # half of a surrogate pair
        line = json.dumps(document, default=_in_rfc3339).encode()
    if not line.isascii():
        line = json.dumps(orjson.loads(line), separators=(",", ":")).encode()
    return line.replace(b"\x7f", b"\\u007f")


def _in_rfc3339(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def write_lines(logger: str, documents: Iterable[Mapping[str, Any]]) -> None:
    """Write documents to standard output, a line each, in writes that are not mixed with those of other processes.

    Raises OSError.
    """
    head = _head("INFO", logger, datetime.now(UTC))
    piece = b""
    for document in documents:
        line = _line({**head, **document})
        if len(piece) + len(line) > MOST_BYTES_AT_ONCE:
            _write(piece)
            piece = b""
        piece += line
    _write(piece)


def _line(document: dict[str, Any]) -> bytes:
    """Return a document's line; if it is too long, with its texts cut short."""
    line = as_json(document) + b"\n"
    if len(line) <= MOST_BYTES_AT_ONCE:
        return line
    cut = {name: each[:MOST_CHARACTERS] if isinstance(each, str) else each for name, each in document.items()}
    return as_json(cut) + b"\n"


def _write(lines: bytes) -> None:
    while lines:
        lines = lines[os.write(STANDARD_OUTPUT, lines) :]


def say(error: str) -> None:
    """Print an error of a process that goes on to standard error, in the format of all lines."""
    if _Style.format == "json":
        document = _head("ERROR", HANDLER, datetime.now(UTC)) | {"message": without_secrets(error)}
        error = as_json(document).decode()
    print(error, file=sys.stderr, flush=True)
