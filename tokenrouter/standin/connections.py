"""Read requests from sockets, and play the scripts on them."""

from __future__ import annotations

import asyncio
import inspect
import socket
import struct
import time
from collections.abc import Callable, Generator, Iterator
from typing import Protocol

from tokenrouter.standin.values import Call, Ending, Script, Served
from tokenrouter.standin.words import STAMP


class Host(Protocol):
    """Who decides the answers, and keeps the records."""

    connections: set[Connection]
    finished: list[Served]
    broken: list[Served]
    aborted: int

    def respond(self, call: Call) -> Script:
        """Record a call and decide its answer."""


def read_call(buffer: bytearray, send: Callable[[bytes], None]) -> Generator[None, None, Call]:
    """Take one request out of a buffer, yielding while bytes are missing; raises ValueError if it is not HTTP."""
    head = (yield from take_until(buffer, b"\r\n\r\n")).decode("latin-1")
    first_line, *lines = head.split("\r\n")
    method, target, _ = first_line.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("expect", "").lower() == "100-continue":
        send(b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = yield from take_chunks(buffer)
    else:
        body = yield from take(buffer, int(headers.get("content-length", 0)))
    path, _, query = target.partition("?")
    return Call(method, path, headers, body, query)


def take_until(buffer: bytearray, mark: bytes) -> Generator[None, None, bytes]:
    """Take what stands before a mark, and the mark itself."""
    while (end := buffer.find(mark)) < 0:
        yield
    taken = bytes(buffer[:end])
    del buffer[: end + len(mark)]
    return taken


def take(buffer: bytearray, size: int) -> Generator[None, None, bytes]:
    """Take so many bytes."""
    while len(buffer) < size:
        yield
    taken = bytes(buffer[:size])
    del buffer[:size]
    return taken


def take_chunks(buffer: bytearray) -> Generator[None, None, bytes]:
    """Take a body in chunks, to the end of its trailers."""
    chunks_read = []
    while size := int((yield from take_until(buffer, b"\r\n")).partition(b";")[0], 16):
        chunks_read.append((yield from take(buffer, size)))
        yield from take(buffer, 2)
    while (yield from take_until(buffer, b"\r\n")):
        pass  # trailers
    return b"".join(chunks_read)


class Connection(asyncio.Protocol):
    """Read requests and play their scripts, one at a time."""

    transport: asyncio.Transport
    reading: Generator[None, None, Call]

    def __init__(self, provider: Host) -> None:
        self.provider = provider
        self.loop = asyncio.get_running_loop()
        self.buffer = bytearray()
        self.script: Script | None = None  # being played
        self.steps: Iterator[tuple[float, bytes]] = iter(())
        self.steps_left = 0
        self.timer: asyncio.TimerHandle | None = None
        self.is_full = False  # the client does not read as fast as we write
        self.closes = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP only
        """Take the transport and wait for a request."""
        self.transport = transport
        # Any byte not yet taken by the kernel halts the script: an answer counts as finished once it has left.
        transport.set_write_buffer_limits(high=0)
        self.reading = read_call(self.buffer, transport.write)
        self.provider.connections.add(self)

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing of a request has come since the last answer."""
        return self.script is None and inspect.getgeneratorstate(self.reading) == inspect.GEN_CREATED

    def data_received(self, data: bytes) -> None:
        """Collect bytes until they make a request."""
        self.buffer += data
        self.read_on()

    def read_on(self) -> None:
        """Answer the next request if it is complete and none is being answered."""
        if self.script or self.transport.is_closing():
            return
        try:
            next(self.reading)
        except StopIteration as complete:
            self.answer(complete.value)
        except ValueError:
            self.transport.abort()

    def answer(self, call: Call) -> None:
        """Start to play the answer of a call."""
        self.reading = read_call(self.buffer, self.transport.write)
        self.closes = call.headers.get("connection", "").lower() == "close"
        self.script = self.provider.respond(call)
        self.steps, self.steps_left = iter(self.script.steps), len(self.script.steps)
        self.play()

    def play(self) -> None:
        """Write until the script says to wait or the client is slow."""
        while self.script and not (self.is_full or self.timer or self.transport.is_closing()):
            if not self.steps_left:
                self.end(self.script.ending)
                return
            wait_s, data = next(self.steps)
            if wait_s:
                self.timer = self.loop.call_later(wait_s, self.wake, data)
            else:
                self.write(data)

    def wake(self, data: bytes) -> None:
        """Go on after a wait."""
        self.timer = None
        self.write(data)
        self.play()

    def write(self, data: bytes) -> None:
        """Write one step of the script."""
        self.steps_left -= 1
        # Booked before the last bytes leave: who has read them finds the record.
        if not self.steps_left and self.script and self.script.served:
            self.provider.finished.append(self.script.served)
        self.transport.write(data.replace(STAMP, b"t%019d" % time.monotonic_ns()) if STAMP in data else data)

    def end(self, ending: Ending) -> None:
        """Do with the connection what the script says."""
        if ending is Ending.HANG:
            return
        self.script = None
        if ending is Ending.RESET:
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        if ending is not Ending.KEEP or self.closes:
            self.transport.abort()  # nothing waits to be written here
        elif self.buffer:
            self.loop.call_soon(self.read_on)

    def pause_writing(self) -> None:
        """Halt the script."""
        self.is_full = True

    def resume_writing(self) -> None:
        """Go on once all is written, and asyncio is done with that: it would lose twice what is closed within."""
        self.is_full = False
        self.loop.call_soon(self.play)

    def eof_received(self) -> None:
        """Take a closed sending side for a client that has left."""
        self.forsake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up, whoever closed the connection."""
        self.forsake()
        self.provider.connections.discard(self)

    def forsake(self) -> None:
        """Stop the script, and count it as aborted: the client has gone."""
        script = self.forget()
        if script:
            self.provider.aborted += 1
            if script.served and not self.steps_left:
                self.provider.finished.remove(script.served)
            if script.served:
                self.provider.broken.append(script.served)

    def forget(self) -> Script | None:
        """Stop the script and its timer, and return it."""
        script, self.script = self.script, None
        if self.timer:
            self.timer.cancel()
            self.timer = None
        return script
