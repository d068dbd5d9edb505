"""Multipart bodies: kept on disk to be sent on as they came, while the few texts that decide about a call are read.

Another parser must not find another model in the same bytes, so what could be read in two ways is refused.
"""

import re
from collections.abc import Iterable
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Self

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import NEED_DATA, Data, Epilogue, Event, Field, File, MultipartDecoder, Preamble

from tokenrouter.errors import InvalidRequest

READ_FIELDS = frozenset(("model", "prompt", "n", "stream", "response_format"))
LONGEST_FIELD = 1024 * 1024
MOST_PARTS = 1000
BUFFERED_BYTES = 256 * 1024
FORM = "multipart/form-data"

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_FILENAMES = rf"(?:\s*;\s*filename\*?\s*=\s*(?:{_QUOTED}|[^\";\s]+))*"
_DISPOSITION = re.compile(
    rf'form-data{_FILENAMES}\s*;\s*name="?(?P<name>[^"\\;\x00-\x1f\x7f]+)"?{_FILENAMES}\s*', re.IGNORECASE
)
_BOUNDARIES = re.compile(r";\s*boundary\s*[*\d]*\s*=", re.IGNORECASE)
_BOUNDARY = re.compile(r"[A-Za-z0-9'()+_,./:=? -]{0,69}[A-Za-z0-9'()+_,./:=?-]")  # RFC 2046, 5.1.1


class Upload:
    """A body on disk, and what was read of it: the texts of READ_FIELDS by name, and how many parts are files.

    It ends with its `with` block.
    """

    def __init__(self, content_type: str) -> None:
        """Receive nothing yet.

        Raises InvalidRequest where the type of the content is not that of a form.
        """
        self.content_type = content_type
        self.fields: dict[str, str] = {}
        self.files = 0
        self._decoder = MultipartDecoder(_boundary_of(content_type), BUFFERED_BYTES, max_parts=MOST_PARTS)
        self.file = SpooledTemporaryFile(max_size=BUFFERED_BYTES)  # noqa: SIM115 - it is closed with this object
        self._name: str | None = None
        self._collected: bytearray | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.file.close()

    def receive(self, chunks: Iterable[bytes]) -> None:
        """Take the whole body.

        Raises InvalidRequest where it is no form, or has a field that decides about the call twice.
        """
        for chunk in chunks:
            self.file.write(chunk)
            self._decode(chunk)
        self._decode(None)

    def _decode(self, chunk: bytes | None) -> None:
        try:
            self._decoder.receive_data(chunk)
            while (event := self._decoder.next_event()) is not NEED_DATA:
                self._take(event)
                if isinstance(event, Epilogue):
                    return
        except (ValueError, RequestEntityTooLarge):
            raise InvalidRequest("The body is not a whole and valid form.") from None

    def _take(self, event: Event) -> None:
        if isinstance(event, Field | File):
            self._begin(event)
        elif isinstance(event, Data):
            self._collect(event)
        elif isinstance(event, Preamble | Epilogue) and event.data.strip():
            raise ValueError("something before the first or after the last part")

    def _begin(self, part: Field | File) -> None:
        headers = part.headers.getlist("Content-Disposition")
        match = _DISPOSITION.fullmatch(headers[0]) if len(headers) == 1 else None
        if match is None or match["name"] != part.name:
            raise ValueError("a part whose name may be read in two ways")
        self.files += isinstance(part, File)
        self._name = part.name if part.name in READ_FIELDS else None
        if self._name is None:
            return
        if isinstance(part, File):
            raise InvalidRequest(f"{self._name} is a file, and not a text.", param=self._name)
        if self._name in self.fields:
            raise InvalidRequest(f"{self._name} is there more than once.", param=self._name)
        self._collected = bytearray()

    def _collect(self, data: Data) -> None:
        if self._name is None or self._collected is None:
            return
        self._collected += data.data
        if len(self._collected) > LONGEST_FIELD:
            raise InvalidRequest(f"{self._name} is longer than {LONGEST_FIELD:,} bytes.", param=self._name)
        if not data.more_data:
            try:
                self.fields[self._name] = self._collected.decode()
            except UnicodeDecodeError:
                raise InvalidRequest(f"{self._name} is not in UTF-8.", param=self._name) from None
            self._collected = None


def _boundary_of(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary = options.get("boundary", "")
    if kind.lower() != FORM or len(_BOUNDARIES.findall(content_type)) != 1 or not _BOUNDARY.fullmatch(boundary):
        raise InvalidRequest(f"The body is not {FORM} with a boundary.")
    return boundary.encode()
