"""A load generator on asyncio: closed-loop JSON calls, and streams whose chunks are counted and timed."""

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from itertools import cycle
from urllib.parse import urlsplit

STAMP = re.compile(rb'"content":"t(\d+)')


@dataclass
class Load:
    """What one run saw; times in seconds."""

    calls: int = 0
    chunks: int = 0
    failures: int = 0
    first_failure: bytes = b""
    elapsed_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    delays_s: list[float] = field(default_factory=list)


def quantile(values: list[float], share: float) -> float:
    """Return the value below which `share` of all lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def request_bytes(url: str, token: str, text: str, *, stream: bool) -> bytes:
    """Return a whole chat request as it goes over the wire."""
    body = {"model": "GPT-5-nano", "messages": [{"role": "user", "content": text}], "max_tokens": 4000}
    if stream:
        body["stream"] = True
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


class Connection(asyncio.Protocol):
    """One keep-alive connection; `finished` is set at the end of each answer."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.finished: asyncio.Future[bool] | None = None
        self.transport: asyncio.Transport | None = None
        self.buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def send(self, data: bytes) -> "asyncio.Future[bool]":
        """Send a request; the future tells whether its answer came whole and with status 200."""
        self.buffer.clear()
        self.finished = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        return self.finished

    def data_received(self, data: bytes) -> None:
        """Count the chunks in what arrived, and look for the end."""
        now_ns = time.monotonic_ns()
        for match in STAMP.finditer(data):
            self.load.delays_s.append((now_ns - int(match[1])) / 1e9)
        self.load.chunks += data.count(b"data: {")
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.buffer[:end]).lower()
        if b"content-length: " in head:
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            whole = len(self.buffer) >= end + 4 + length
        else:
            whole = len(self.buffer) > end + 4 and self.buffer.endswith(b"0\r\n\r\n")  # a header may end like that
            if not whole:
                del self.buffer[end + 4 : -8]  # nothing of a long stream is kept but its head and its last bytes
        if whole:
            if not head.startswith(b"http/1.1 200"):
                self.load.first_failure = self.load.first_failure or bytes(self.buffer[:500])
            self._finish(head.startswith(b"http/1.1 200"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Count an answer that did not come."""
        if self.finished is not None and not self.finished.done():
            self.load.first_failure = self.load.first_failure or b"closed after " + bytes(self.buffer[:500])
        self._finish(False)

    def _finish(self, good: bool) -> None:
        if self.finished is not None and not self.finished.done():
            self.finished.set_result(good)


async def _caller(url: str, request: bytes, load: Load, deadline: float, calls: int | None) -> None:
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    transport, connection = await loop.create_connection(lambda: Connection(load), parts.hostname, parts.port)
    done = 0
    while time.monotonic() < deadline and (calls is None or done < calls):
        started = time.monotonic()
        good = await connection.send(request)
        load.latencies_s.append(time.monotonic() - started)
        load.calls += 1
        load.failures += not good
        done += 1
        if transport.is_closing() or not good:
            transport.close()
            transport, connection = await loop.create_connection(lambda: Connection(load), parts.hostname, parts.port)
    transport.close()


def run(url: str, *requests: bytes, connections: int, seconds: float, calls: int | None = None) -> Load:
    """Call from so many connections at once, by turns with one of the requests each, for so long or so many times."""
    load = Load()

    async def all_callers() -> None:
        deadline = time.monotonic() + seconds
        callers = zip(range(connections), cycle(requests), strict=False)
        await asyncio.gather(*(_caller(url, request, load, deadline, calls) for _, request in callers))

    started = time.monotonic()
    asyncio.run(all_callers())
    load.elapsed_s = time.monotonic() - started
    return load
