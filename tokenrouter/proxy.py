"""One call from body to response, told top to bottom: check, reserve, send, relay, settle."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain

from flask import Flask, Response, current_app, g, request

from tokenrouter import auth, payload
from tokenrouter.auth import Caller
from tokenrouter.catalogue import Catalogue
from tokenrouter.config import Settings
from tokenrouter.driver import Readers
from tokenrouter.errors import (
    APIError,
    ModelNotFound,
    Overloaded,
    ProviderBadResponse,
    ProviderError,
    RequestTooLarge,
    StorageUnavailable,
    TeamDisabled,
)
from tokenrouter.ledger import Ask, Ledger, Outcome, Reservation
from tokenrouter.metering import StreamMeter, Usage, answer_texts, count_tokens, parse_json, read_usage
from tokenrouter.models import BY_PROVIDER, CLIENT_CLOSED, ESTIMATED, NOT_COUNTED, OK, PROVIDER_ERROR, db
from tokenrouter.payload import Call, Endpoint
from tokenrouter.provider import Provider, RelayedError, Reply
from tokenrouter.sse import EventSplitter

logger = logging.getLogger(__name__)

LOGGED_MODEL_LENGTH = 200


class Places:
    """How many calls this worker has at the provider at once, in all and for each team."""

    def __init__(self, limit: int, team_limit: int | None) -> None:
        """Let at most `limit` calls through at once, and `team_limit` of one team."""
        self._limit = limit
        self._team_limit = limit if team_limit is None else team_limit
        self._taken: Counter[int] = Counter()
        self._lock = threading.Lock()

    def take(self, team_id: int) -> Callable[[], None]:
        """Take a place, and return what gives it back.

        Raises Overloaded.
        """
        with self._lock:
            if self._taken.total() >= self._limit:
                raise Overloaded("Too many calls are in flight here. Try again in a moment.")
            if self._taken[team_id] >= self._team_limit:
                raise Overloaded("Your team has too many calls in flight here. Try again in a moment.")
            self._taken[team_id] += 1
        return lambda: self._give_back(team_id)

    def _give_back(self, team_id: int) -> None:
        with self._lock:
            self._taken[team_id] -= 1
            if not self._taken[team_id]:
                del self._taken[team_id]


@dataclass
class Relay:
    """What one app relays with."""

    settings: Settings
    readers: Readers
    ledger: Ledger
    provider: Provider
    places: Places
    catalogue: Catalogue


def init_app(app: Flask, settings: Settings) -> None:
    """Give the app its ledger, its provider and its places."""
    with app.app_context():
        readers = Readers(db.engine)
        ledger = Ledger(db.engine, settings.output_reserve_tokens)
    provider = Provider(settings)
    places = Places(settings.threads, settings.team_calls)
    app.extensions["relay"] = Relay(settings, readers, ledger, provider, places, Catalogue(provider))


def close(app: Flask) -> None:
    """Write what is still to be booked, leave the workers, and close all connections."""
    own: Relay = app.extensions["relay"]
    own.ledger.close()
    own.provider.close()
    own.readers.close()
    with app.app_context():
        db.engine.dispose()


def relay() -> Relay:
    """Return the current app's."""
    return current_app.extensions["relay"]


def handle(endpoint: Endpoint) -> Response:
    """Answer the current request by the provider, charged to the team whose token it bears.

    Raises the APIError that the caller is to see.
    """
    own = relay()
    check_size()
    caller = authenticate(endpoint.path)
    body = payload.parse(read_body())
    model = payload.model_of(body, own.settings.default_model)
    call = payload.check(endpoint, body, model, own.settings)
    ask = new_ask(caller, endpoint.path, model, stream=call.stream)
    with _logged_refusal(own.ledger, ask):
        payload.check_model(model, own.settings.allowed_models, caller.models)
    with ExitStack() as finish:
        finish.callback(own.places.take(caller.team_id))
        reservation = own.ledger.reserve(
            replace(ask, prompt_tokens=call.prompt_tokens, output_tokens=call.output_tokens, choices=call.choices)
        )
        if reservation.output_limit is not None:
            call.limit_output(reservation.output_limit)
        booking = Booking(own.ledger, reservation, call, started=g.started)
        try:
            reply = booking.reply = _send(own.provider, call, request.headers)
            finish.callback(reply.close)
            response = _relay_stream(booking, finish) if reply.is_stream else _relay_json(booking)
        except Exception as error:  # whatever went wrong, the hold is given back
            booking.failed(error)
            raise
    if reservation.output_limit is not None:
        response.headers["x-tokenrouter-output-limit"] = str(reservation.output_limit)
    return response


def check_size() -> None:
    """Raise RequestTooLarge, before anything of the body is read, where its length is known to be too much."""
    if (request.content_length or 0) > relay().settings.max_request_bytes:
        raise _too_large()


def read_body() -> bytes:
    """Return the current request's body.

    Raises RequestTooLarge, also for a chunked body, of which no more is read than may come.
    """
    if request.content_length is not None:
        return request.get_data(cache=False)
    if "wsgi.input_terminated" not in request.environ:
        return b""  # the server does not say where the body ends, so there is none
    most = relay().settings.max_request_bytes
    body: bytes = request.environ["wsgi.input"].read(most + 1)
    if len(body) > most:
        raise _too_large()
    return body


def _too_large() -> RequestTooLarge:
    most = relay().settings.max_request_bytes
    return RequestTooLarge(f"The body is larger than {most:,} bytes, the most taken here.")


def authenticate(endpoint_path: str) -> Caller:
    """Return the team of the current request's token.

    Raises InvalidAPIKey, TeamDisabled, which the log keeps, and StorageUnavailable.
    """
    own = relay()
    caller = auth.authenticate(own.readers, request.headers.get("Authorization"))
    if not caller.active:
        with _logged_refusal(own.ledger, new_ask(caller, endpoint_path, model="", stream=False)):
            raise TeamDisabled("This team is disabled. Who administers this service can enable it again.")
    return caller


def new_ask(caller: Caller, endpoint_path: str, model: str, *, stream: bool) -> Ask:
    """Return what the log says of the current request, before it is known what it may cost."""
    return Ask(
        request_id=g.request_id,
        team_id=caller.team_id,
        team_name=caller.team_name,
        token_id=caller.token_id,
        token_prefix=caller.token_prefix,
        model=model[:LOGGED_MODEL_LENGTH],
        endpoint=f"/v1{endpoint_path}",
        stream=stream,
        created_at=datetime.now(UTC),
    )


@contextmanager
def _logged_refusal(ledger: Ledger, ask: Ask) -> Iterator[None]:
    """Write the row of a refusal. Where it cannot be written the refusal stands all the same."""
    try:
        yield
    except (ModelNotFound, TeamDisabled) as refusal:
        try:
            ledger.reject(ask, refusal.status, refusal.code)
        except StorageUnavailable:
            logger.warning("The refusal of request %s could not be logged", ask.request_id)
        raise


class Booking:
    """The one settlement of a call, whichever of its endings comes first."""

    reply: Reply

    def __init__(self, ledger: Ledger, reservation: Reservation, call: Call, started: float) -> None:
        """Take over a reservation; `started` is when the request came, by time.perf_counter."""
        self.call = call
        self._ledger = ledger
        self._reservation = reservation
        self._started = started
        self._first_byte_ms: int | None = None
        self._open = True
        self._lock = threading.Lock()

    def first_byte(self) -> None:
        """Note when the answer began."""
        self._first_byte_ms = self._elapsed_ms()

    def watch(self, meter: StreamMeter) -> None:
        """Have the meter's estimate saved from time to time, for the case that this worker dies."""
        ceiling = self.call.output_ceiling()
        self._reservation.progress = lambda: _within(meter.estimated_tokens(), ceiling)

    def answered(self, usage: Usage | None, count_completion: Callable[[], int]) -> None:
        """Book a whole answer, by what the provider reported, else by a count of its texts."""
        if not self._claim():
            return
        if usage is not None:
            self._settle(OK, usage, BY_PROVIDER)
        else:
            self._settle(OK, self._counted(count_completion), ESTIMATED)

    def cut(self, status: str, reported: Usage | None, count_completion: Callable[[], int], code: str | None) -> None:
        """Book an answer that was cut short: what arrived is charged, or what was reported where that is more."""
        if not self._claim():
            return
        usage = self._counted(count_completion)
        if reported is not None:
            usage = max(reported, usage, key=lambda usage: usage.total_tokens)
        self._settle(status, usage, ESTIMATED if reported is None else BY_PROVIDER, error_code=code)

    def failed(self, error: Exception) -> None:
        """Book a call that brought nothing of an answer: it costs nothing."""
        if not self._claim():
            return
        api_error = error if isinstance(error, APIError) else APIError(str(error))
        code = api_error.code or api_error.type
        self._settle(PROVIDER_ERROR, Usage(0, 0, 0), NOT_COUNTED, status_code=api_error.status, error_code=code)

    def _claim(self) -> bool:
        """Return True once: to the ending that came first."""
        with self._lock:
            first, self._open = self._open, False
        return first

    def _counted(self, count_completion: Callable[[], int]) -> Usage:
        prompt, completion = self.call.prompt.count(), _within(count_completion(), self.call.output_ceiling())
        return Usage(prompt, completion, prompt + completion)

    def _settle(
        self, status: str, usage: Usage, source: str, *, status_code: int = 200, error_code: str | None = None
    ) -> None:
        outcome = Outcome(
            status=status,
            status_code=status_code,
            charged_tokens=usage.total_tokens,
            usage_source=source,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            latency_ms=self._elapsed_ms(),
            first_byte_ms=self._first_byte_ms,
            error_code=error_code,
            provider_request_id=self.reply.request_id if hasattr(self, "reply") else None,
        )
        self._ledger.settle(self._reservation, outcome)

    def _elapsed_ms(self) -> int:
        return round((time.perf_counter() - self._started) * 1000)


def _within(tokens: int, ceiling: int | None) -> int:
    """Keep a count of ours within the request's output limit, which the provider's own count cannot exceed."""
    return tokens if ceiling is None else min(tokens, ceiling)


def _send(provider: Provider, call: Call, headers: Mapping[str, str]) -> Reply:
    """Call the provider; once more, without our request for usage, where it refuses that."""
    try:
        return provider.post(call.endpoint.path, call.encode(), headers)
    except RelayedError as error:
        if call.asks_for_usage_unasked and error.names("stream_options"):
            return provider.post(call.endpoint.path, call.encode_as_asked(), headers)
        raise


def _relay_json(booking: Booking) -> Response:
    """Read the whole answer, book it, and only then let it go."""
    reply = booking.reply
    body = bytearray()
    try:
        for chunk in reply.chunks():
            if not body:
                booking.first_byte()
            body += chunk
    except ProviderError as error:
        if body:
            booking.cut(PROVIDER_ERROR, None, lambda: count_tokens([body.decode(errors="replace")]), error.code)
        raise
    document = parse_json(body)
    if not isinstance(document, dict):
        raise ProviderBadResponse("The provider's answer is not a JSON object.")
    if document.get("error") and not document.get("choices"):
        booking.failed(ProviderError("The provider answered with an error under status 200."))
    else:
        booking.answered(read_usage(document), lambda: count_tokens(answer_texts(document)))
    return Response(bytes(body), reply.status, reply.headers)


def _relay_stream(booking: Booking, finish: ExitStack) -> Response:
    """Wait for the first bytes, so that a failure before them still has its own status; then relay event by event."""
    reply = booking.reply
    chunks = reply.chunks()
    first = next(chunks, None)
    if first is None:
        raise ProviderBadResponse("The provider's stream ended before its first event.")
    booking.first_byte()
    stream = Stream(booking, chain((first,), chunks), finish.pop_all())
    response = Response(stream, reply.status, reply.headers, direct_passthrough=True)
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"  # nginx would hold events back
    return response


class Stream:
    """A streamed answer on its way to the caller, as WSGI takes it: iterated once, and closed in any case."""

    def __init__(self, booking: Booking, chunks: Iterator[bytes], finish: ExitStack) -> None:
        """Take over what is read of a reply, and what `finish` gives back at the end."""
        self._booking = booking
        self._chunks = chunks
        self._finish = finish
        self._meter = StreamMeter()
        self._splitter = EventSplitter()
        self._wants_usage = booking.call.wants_usage
        booking.watch(self._meter)

    def __iter__(self) -> Iterator[bytes]:
        """Yield whole events as they arrive; what ends the stream comes once the call is booked."""
        meter, splitter = self._meter, self._splitter
        try:
            for chunk in self._chunks:
                if splitter.is_empty and meter.read_like_last(chunk):
                    yield chunk  # the short way of most chunks, at half the cost
                    continue
                shown, last = self._sift(splitter.feed(chunk))
                if shown:
                    yield shown
                if last is not None:
                    self._book_end()
                    yield last
                    return
            yield from self._last_event(splitter.rest())
        except ProviderError as error:
            yield self._error_event(error)
        except Exception:
            logger.exception("Relaying a stream failed")
            yield self._error_event(APIError("TokenRouter failed in the middle of this stream."))
        finally:
            self.close()

    def _sift(self, events: list[bytes]) -> tuple[bytes, bytes | None]:
        """Meter events; return those that the caller may see, in one piece, and apart the one that ends the stream."""
        meter = self._meter
        shown = []
        for event in events:
            only_usage = meter.read(event)
            if meter.ended:
                return b"".join(shown), event
            if not only_usage or self._wants_usage:
                shown.append(event)
        return b"".join(shown), None

    def _last_event(self, rest: bytes) -> Iterator[bytes]:
        """End a stream that closed without [DONE]: it is whole if nothing is missing, else it broke off.

        An event whose empty line never came is passed on only if the stream is whole.
        """
        only_usage = self._meter.read(rest)
        if not (self._meter.failed or self._meter.is_whole(self._booking.call.choices)):
            raise ProviderBadResponse("The provider's stream broke off.")
        self._book_end()
        if rest and (self._wants_usage or not only_usage):
            yield rest

    def _error_event(self, error: APIError) -> bytes:
        self._cut(PROVIDER_ERROR, error.code)
        return b"data: " + error.body() + b"\n\n"

    def _book_end(self) -> None:
        if self._meter.failed:
            self._cut(PROVIDER_ERROR, "provider_error")
        else:
            self._booking.answered(self._meter.usage, self._meter.completion_tokens)

    def _cut(self, status: str, code: str | None) -> None:
        if not self._meter.began and status == PROVIDER_ERROR:
            self._booking.failed(ProviderBadResponse("Nothing of an answer came."))
            return
        self._booking.cut(status, self._meter.usage, self._meter.completion_tokens, code)

    def close(self) -> None:
        """Book the stream as left by its caller, if it has not ended; give the connection and the place back.

        The server calls it too, since a stream that was never iterated ends nowhere else.
        """
        with self._finish:
            if not self._meter.ended:
                self._cut(CLIENT_CLOSED, None)
                return
            self._book_end()
            # the end of the body alone is to come; read, it lets the next call use this connection
            self._booking.reply.read_end(self._chunks)
