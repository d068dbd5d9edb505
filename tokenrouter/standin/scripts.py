"""Turn answers into waits and writes."""

import itertools
import zlib
from collections.abc import Iterator
from http import HTTPStatus

from tokenrouter.standin.faults import Faults
from tokenrouter.standin.values import Answer, Ending, Script
from tokenrouter.standin.words import new_id

REASONS = {status.value: status.phrase for status in HTTPStatus}


def stage(answer: Answer, faults: Faults) -> Script:
    """Turn an answer into waits and writes, broken where the directives say so."""
    if faults.silent:
        return Script([], Ending.HANG)
    if faults.drop:
        return Script([(faults.delay, b"")], Ending.CUT)
    parts = compressed(answer.parts) if faults.gzip else answer.parts
    is_chunked = faults.framing == "chunked" or (answer.is_stream and faults.framing != "close")
    head = head_of(answer, faults, sum(map(len, parts)), is_chunked)
    frames = [chunk(part, faults) for part in parts] if is_chunked else parts
    frames, ending = broken_off(frames, answer.is_stream, faults)
    if is_chunked and ending is Ending.KEEP:
        frames = [*frames[:-1], b"".join([*frames[-1:], b"0\r\n\r\n"])]
    if ending is Ending.KEEP and (faults.framing == "close" or faults.length > 0):
        ending = Ending.CLOSE
    served = answer.served if ending in (Ending.KEEP, Ending.CLOSE) else None
    return Script(timed(head, frames, faults), ending, served)


def head_of(answer: Answer, faults: Faults, length: int, is_chunked: bool) -> bytes:
    """Write the status line and the headers, with the blank line."""
    status = answer.status if answer.status != 200 else faults.status or 200
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Unknown')}"]
    lines.append(f"content-type: {faults.content_type or answer.content_type}")
    if is_chunked:
        lines.append("transfer-encoding: chunked")
    elif faults.framing == "close":
        lines.append("connection: close")
    else:
        lines.append(f"content-length: {max(0, length + faults.length)}")
    if faults.gzip:
        lines.append("content-encoding: gzip")
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    lines += ["openai-processing-ms: 5", "openai-organization: org-demo", "set-cookie: provider=secret"]
    request_id = answer.served.request_id if answer.served else new_id("req_")
    lines += ["x-ratelimit-remaining-tokens: 150000", f"x-request-id: {request_id}", "", ""]
    return "\r\n".join(lines).encode()


def compressed(parts: list[bytes]) -> list[bytes]:
    """Compress so that each part can be read as soon as it arrives."""
    packer = zlib.compressobj(wbits=31)
    packed = [packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH) for part in parts]
    return [*packed[:-1], packed[-1] + packer.flush()]


def tiny(data: bytes) -> Iterator[bytes]:
    """Cut bytes into pieces of 1 to 7."""
    at = 0
    for size in itertools.cycle((1, 2, 5, 3, 7, 4, 6)):
        if at >= len(data):
            return
        yield data[at : at + size]
        at += size


def chunk(part: bytes, faults: Faults) -> bytes:
    """Write one part as an HTTP chunk, or as many if it is to be split."""
    # A client's HTTP library joins TCP segments within one HTTP chunk, so a split has to cut both.
    pieces = tiny(part) if faults.framing == "split" else [part] if part else []
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def broken_off(frames: list[bytes], is_stream: bool, faults: Faults) -> tuple[list[bytes], Ending]:
    """Keep what is sent before the asked break."""
    stops = ((faults.cut, Ending.CUT), (faults.reset, Ending.RESET), (faults.hang, Ending.HANG))
    for limit, ending in stops:
        if limit is not None:
            return frames[:limit] if is_stream else [b"".join(frames)[:limit]], ending
    if faults.half_chunk is None:
        return frames, Ending.KEEP
    whole_frames, half = frames[: faults.half_chunk], frames[faults.half_chunk : faults.half_chunk + 1]
    return whole_frames + [frame[: len(frame) // 2] for frame in half], Ending.CUT


def timed(head: bytes, frames: list[bytes], faults: Faults) -> list[tuple[float, bytes]]:
    """Put the waits between the writes."""
    if faults.burst:
        frames = [b"".join(frames)]
    steps = list(zip(itertools.chain([faults.first], itertools.repeat(faults.gap)), frames, strict=False))
    if faults.framing == "split":
        steps = [(0 if at else wait, piece) for wait, frame in steps for at, piece in enumerate(tiny(frame))]
    elif steps and not faults.first:
        return [(faults.delay, head + steps[0][1]), *steps[1:]]  # one system call less
    return [(faults.delay, head), *steps]
