"""Streamed answers on their way to the caller: metered event by event, and booked once at their end."""

import errno
import logging
from collections.abc import Iterator
from contextlib import ExitStack

from tokenrouter.database.log_status import CLIENT_CLOSED, PROVIDER_ERROR
from tokenrouter.errors import APIError, ProviderBadResponse, ProviderError
from tokenrouter.ledger import Given
from tokenrouter.metering.meter import Meter, StreamState
from tokenrouter.metering.sse import EventSplitter
from tokenrouter.metering.streams import StreamMeter
from tokenrouter.metering.typed_streams import TypedMeter
from tokenrouter.relay.booking import Booking, log_status
from tokenrouter.worker.disconnects import LEFT_CALL_S, CallEnded

logger = logging.getLogger(__name__)

MOST_EVENT_BYTES = 16 * 1024 * 1024


class Stream:
    """A streamed answer on its way to the caller, as WSGI takes it: iterated once, and closed in any case."""

    def __init__(self, booking: Booking, chunks: Iterator[bytes], finish: ExitStack) -> None:
        """Relay these chunks of a reply; `finish` gives back what the call holds."""
        self._booking = booking
        self._chunks = chunks
        self._finish = finish
        self._meter = self._new_meter()
        self._splitter = EventSplitter()
        self._wants_usage = booking.call.wants_usage
        booking.watch(self._meter)

    def _new_meter(self) -> Meter:
        return StreamMeter()

    def __iter__(self) -> Iterator[bytes]:
        """Yield complete events as they arrive; the event that ends the stream comes after the call is booked."""
        meter, splitter = self._meter, self._splitter
        try:
            for chunk in self._chunks:
                if splitter.is_empty and meter.take_plain_chunk(chunk):
                    yield chunk  # the fast path of most chunks, at half the cost
                    continue
                shown, last = self._sift(splitter.feed(chunk))
                if splitter.held_bytes > MOST_EVENT_BYTES:
                    raise ProviderBadResponse(f"The provider sent an event of more than {MOST_EVENT_BYTES:,} bytes.")
                if shown:
                    yield shown
                if last is not None:
                    self._book_end()
                    yield self._booking.reply.without_key(last) if meter.state.has_failed else last
                    yield from self._after_last()
                    return
            yield from self._last_event(splitter.rest())
        except (ProviderError, CallEnded) as error:
            yield self._error_event(error)
        except Exception:  # of whatever kind: the status is sent, so the caller learns of it by an event
            logger.exception("Relaying a stream failed")
            yield self._error_event(APIError("TokenRouter failed in the middle of this stream."))
        finally:
            self.close()

    def _sift(self, events: list[bytes]) -> tuple[bytes, bytes | None]:
        """Meter events; return those that the caller may see, joined, and separately the one that ends the stream."""
        meter = self._meter
        shown: list[bytes] = []
        for event in events:
            only_usage = meter.read(event)
            if meter.state.has_ended:
                return b"".join(shown), event
            if not only_usage or self._wants_usage:
                shown.append(event)
        return b"".join(shown), None

    def _after_last(self) -> Iterator[bytes]:
        return iter(())

    def _last_event(self, rest: bytes) -> Iterator[bytes]:
        """End a stream that closed without [DONE]: it is complete if nothing is missing, otherwise it broke off.

        An event whose empty line never came is passed on only if the stream is complete.
        """
        only_usage = self._meter.read(rest)
        if not (self._meter.state.has_failed or self._meter.is_whole(self._booking.call.answers)):
            raise ProviderBadResponse("The provider's stream broke off.")
        self._book_end()
        if rest and (self._wants_usage or not only_usage):
            yield rest

    def _error_event(self, error: APIError) -> bytes:
        self._cut(log_status(error), error)
        return b"data: " + error.body() + b"\n\n"

    def _read_on(self) -> None:
        """Read on for a short time after the caller left: the answer's end and its usage may be near.

        Otherwise a caller who leaves with the whole text would not pay for the reasoning before it.
        """
        for chunk in self._booking.reply.chunks_within(self._chunks, LEFT_CALL_S):
            self._sift(self._splitter.feed(chunk))
            if self._meter.state.has_ended:
                return
        if self._meter.is_whole(self._booking.call.answers):
            self._book_whole()

    def _book_end(self) -> None:
        if self._meter.state is StreamState.WHOLE or not self._meter.state.has_ended:
            self._book_whole()
        else:
            self._cut(PROVIDER_ERROR, self._provider_error())

    def _provider_error(self) -> ProviderError:
        """Return the error to log for a stream that the provider ended with an error, or empty."""
        if not self._meter.state.has_failed:
            return ProviderBadResponse("Nothing of an answer came.")
        named = self._booking.reply.masked(self._meter.error)
        return ProviderError("The provider's stream has an error.", reason=f"an error in the stream, {named}")

    def _book_whole(self) -> None:
        given = Given(self._meter.response_id, tuple(self._meter.item_ids))
        self._booking.answered(self._meter.report, self._meter.completion_tokens, given)

    def _cut(self, status: str, error: APIError | None) -> None:
        if error is not None and self._meter.state.has_nothing and status == PROVIDER_ERROR:
            self._booking.failed(error, self._booking.reply.status)
            return
        self._booking.cut(status, self._meter.report, self._meter.completion_tokens, error)

    def close(self) -> None:
        """Book the stream as left by its caller, if it has not ended; give back what the call holds.

        The server calls it too, which is the only end of a stream that was never iterated.
        """
        with self._finish:
            if self._booking.is_open and not self._meter.state.has_ended:
                self._read_on()
            if not self._meter.state.has_ended:
                self._cut(CLIENT_CLOSED, None)
                return
            self._book_end()
            # only the end of the body is to come; reading it lets the next call use this connection
            self._booking.reply.read_end(self._chunks)


class TypedStream(Stream):
    """A streamed answer whose events name their type, by which the last one is recognized."""

    def _new_meter(self) -> TypedMeter:
        call = self._booking.call
        return TypedMeter(call.endpoint.last_events, call.answers)

    def _sift(self, events: list[bytes]) -> tuple[bytes, bytes | None]:
        for at, event in enumerate(events):
            self._meter.read(event)
            if self._meter.state.has_ended:
                rest = b"" if self._meter.state.has_failed else b"".join(events[at + 1 :])
                return b"".join(events[:at]), event + rest
        return b"".join(events), None

    def _after_last(self) -> Iterator[bytes]:
        """Yield what the provider still sends after the last event, such as [DONE]."""
        if not self._meter.state.has_failed:
            rest = self._splitter.rest() + self._booking.reply.read_end(self._chunks)
            if rest:
                yield rest


class BinaryStream:
    """A binary answer on its way to the caller, which cannot be metered."""

    def __init__(self, booking: Booking, chunks: Iterator[bytes], finish: ExitStack) -> None:
        """Take over what is read of a reply, and what `finish` gives back at the end."""
        self._booking = booking
        self._chunks = chunks
        self._finish = finish

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes as they arrive; the end is sent after the call is booked.

        Raises ConnectionResetError if they break off, which resets the caller's connection too: a binary body has no
        other way to show it.
        """
        try:
            yield from self._chunks
            self._booking.answered(None, int)
        except (ProviderError, CallEnded) as error:
            self._booking.cut(log_status(error), None, int, error)
            raise ConnectionResetError(errno.ECONNRESET, error.message) from error
        finally:
            self.close()

    def close(self) -> None:
        """Book the answer as left by its caller, if it has not ended; give back what the call holds."""
        with self._finish:
            self._booking.cut(CLIENT_CLOSED, None, int, None)
