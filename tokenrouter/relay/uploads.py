"""Multipart bodies: kept on disk to be sent on unchanged, while the few fields that decide about a call are read.

The provider's parser must not find another model in the same bytes, so anything ambiguous is refused.
"""

import re
from collections.abc import Iterable
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Self

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from tokenrouter.errors import InvalidRequest
from tokenrouter.payload import CLOSED_FIELDS

READ_FIELDS = frozenset(("model", "prompt", "n", "stream", "response_format"))
LONGEST_FIELD = 1024 * 1024
MOST_PARTS = 1000
BUFFERED_BYTES = 256 * 1024
FORM = "multipart/form-data"

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_FILENAMES = rf"(?:\s*;\s*filename\*?\s*=\s*(?:{_QUOTED}|[^\";\s]+))*"
_DISPOSITION = re.compile(
    rf'form-data(?P<before>{_FILENAMES})\s*;\s*name="?(?P<name>[^"%\\;\x00-\x1f\x7f]+)"?(?P<after>{_FILENAMES})\s*',
    re.IGNORECASE,
)
_BOUNDARIES = re.compile(r";\s*boundary\s*[*\d]*\s*=", re.IGNORECASE)
_BOUNDARY = re.compile(r"[A-Za-z0-9'()+_,./:=? -]{0,69}[A-Za-z0-9'()+_,./:=?-]")  # RFC 2046, 5.1.1


class Upload:
    """A body on disk, the texts of READ_FIELDS in it, and how many of its parts are files; a context manager."""

    def __init__(self, content_type: str) -> None:
        """Prepare to receive a body.

        Raises InvalidRequest if the type of the content is not that of a form.
        """
        boundary = _boundary_of(content_type)
        self.content_type = content_type
        self.fields: dict[str, str] = {}
        self.files = 0
        self.size = 0
        self._parser = PushMultipartParser(boundary, max_segment_count=MOST_PARTS)
        self._delimiters = _Count(b"--" + boundary.encode())
        self._parts = 0
        self._name: str | None = None
        self._collected = bytearray()
        self.file = SpooledTemporaryFile(max_size=BUFFERED_BYTES)  # noqa: SIM115 - it is closed with this object

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.file.close()

    def receive(self, chunks: Iterable[bytes]) -> None:
        """Receive the whole body.

        Raises InvalidRequest if it is no form, or has one of READ_FIELDS twice.
        """
        try:
            for chunk in chunks:
                self.file.write(chunk)
                self.size += len(chunk)
                self._delimiters.feed(chunk)
                for event in self._parser.parse(chunk):
                    self._take(event)
            self._parser.close()
        except MultipartError as error:
            raise InvalidRequest(f"The body is not a valid form: {error}") from None
        if self._delimiters.count != self._parts + 1:
            raise InvalidRequest("The body is not a valid form: its boundary stands within a part or after the last.")

    def _take(self, event: MultipartSegment | bytes | bytearray | None) -> None:
        if isinstance(event, MultipartSegment):
            self._begin(event)
        elif self._name is None:
            return
        elif event is None:
            self._end(self._name)
        else:
            self._collected += event
            if len(self._collected) > LONGEST_FIELD:
                raise InvalidRequest(f"{self._name} is longer than {LONGEST_FIELD:,} bytes.", param=self._name)

    def _begin(self, part: MultipartSegment) -> None:
        headers = [value for name, value in part.headerlist if name == "Content-Disposition"]
        match = _DISPOSITION.fullmatch(headers[0]) if len(headers) == 1 else None
        if match is None or match["name"] != part.name:
            raise InvalidRequest("The body is not a valid form: a part's name could be read in two ways.")
        if CLOSED_FIELDS.intersection(part.name.replace("]", "").split("[")):
            raise InvalidRequest(f"{part.name[:100]} is not served in a form.", param=part.name[:100])
        is_file = match["before"] or match["after"]
        self._parts += 1
        self.files += bool(is_file)
        self._name = part.name if part.name in READ_FIELDS else None
        if self._name is None:
            return
        if is_file:
            raise InvalidRequest(f"{self._name} is a file, and not a text.", param=self._name)
        if self._name in self.fields:
            raise InvalidRequest(f"{self._name} is there more than once.", param=self._name)
        self._collected = bytearray()

    def _end(self, name: str) -> None:
        try:
            self.fields[name] = self._collected.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"{name} is not in UTF-8.", param=name) from None


class _Count:
    """Counts how often a mark occurs in bytes that come in pieces."""

    def __init__(self, mark: bytes) -> None:
        self.count = 0
        self._mark = mark
        self._tail = b""

    def feed(self, data: bytes) -> None:
        data = self._tail + data
        end = 0
        while (at := data.find(self._mark, end)) >= 0:
            self.count += 1
            end = at + len(self._mark)
        self._tail = data[max(end, len(data) - len(self._mark) + 1) :]


def _boundary_of(content_type: str) -> str:
    kind, options = parse_options_header(content_type)
    boundary: str = options.get("boundary", "")
    if kind != FORM or len(_BOUNDARIES.findall(content_type)) != 1 or not _BOUNDARY.fullmatch(boundary):
        raise InvalidRequest(f"The body is not {FORM} with a boundary.")
    return boundary
