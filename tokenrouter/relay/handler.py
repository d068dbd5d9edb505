"""One call, from body to response: check, reserve, send, relay, settle."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import Any

from flask import Response, current_app, g, request

from tokenrouter import auth, payload, request_body, runtime
from tokenrouter.auth import Caller
from tokenrouter.database.log_status import PROVIDER_ERROR
from tokenrouter.errors import (
    APIError,
    InvalidRequest,
    ItemNotFound,
    ModelHasNoPrice,
    ModelNotFound,
    PaceExceeded,
    ProviderBadResponse,
    ProviderBusy,
    ProviderError,
    ProviderRefusal,
    QuotaExceeded,
    QuotaReserved,
    ResponseNotFound,
    StorageUnavailable,
    TeamDisabled,
    code_and_type,
)
from tokenrouter.ledger import (
    CallerChanged,
    CallRequest,
    Given,
    Ledger,
    Reservation,
    first_unknown_item,
    tokens_of_response,
)
from tokenrouter.metering import media, sse
from tokenrouter.metering.counting import count_tokens
from tokenrouter.metering.given import item_ids
from tokenrouter.metering.streams import has_error
from tokenrouter.metering.usage import read_usage
from tokenrouter.payload import Call, Endpoint
from tokenrouter.provider.rate_limits import requested_wait_s
from tokenrouter.provider.refusals import RelayedError
from tokenrouter.provider.replies import Reply
from tokenrouter.provider.transport import ProviderLink
from tokenrouter.relay.booking import Booking, log_status
from tokenrouter.relay.streams import BinaryStream, Stream, TypedStream
from tokenrouter.relay.uploads import Upload
from tokenrouter.runtime import Runtime
from tokenrouter.untrusted_json import parse_cut_json, parse_json
from tokenrouter.worker.disconnects import CallEnded, ClientLeft

logger = logging.getLogger(__name__)

LOGGED_MODEL_LENGTH = 200
MOST_ANSWER_BYTES = 64 * 1024 * 1024


def handle(endpoint: Endpoint) -> Response:
    """Answer the current request by the provider, and charge it to the team whose token it carries.

    A token that called before is remembered; the ledger checks it in the transaction that reserves. If the call is
    refused before that, the token is read from the database and the call is checked again. Raises the APIError that the
    caller is to see.
    """
    own = runtime.current()
    request_body.check_size(own.settings.max_request_bytes)
    known = own.callers.find(request.headers.get("Authorization"))
    caller = known or authenticate(endpoint.path)
    g.token_id = caller.token_id
    with ExitStack() as finish:  # closed when the call has ended; of a stream, when it has been sent
        received = None
        try:
            finish.callback(own.slots.enter(caller.team_id))
            received = _receive(own, endpoint, caller, finish)
            call, reservation = _admit(own, endpoint, caller, received, finish)
        except (QuotaExceeded, QuotaReserved, PaceExceeded, ModelHasNoPrice, ProviderBusy):
            raise
        except (StorageUnavailable, CallEnded):
            raise
        except (APIError, CallerChanged) as error:
            if known is None and isinstance(error, APIError):
                raise
            caller = authenticate(endpoint.path)
            if received is None:
                raise
            call, reservation = _admit_anew(own, endpoint, caller, received, finish)
        return _answer(own, caller, call, reservation, received, finish)


def _admit_anew(
    own: Runtime, endpoint: Endpoint, caller: Caller, received: "Received", finish: ExitStack
) -> tuple[Call, Reservation]:
    """Do as `_admit` with the caller as the database has it now; repeat if it changes in between."""
    while True:
        try:
            return _admit(own, endpoint, caller, received, finish)
        except CallerChanged:
            caller = authenticate(endpoint.path)


@dataclass
class Received:
    """What was received: the fields of the body, and the body itself if it is a form on disk."""

    body: dict[str, Any]
    upload: Upload | None = None
    at: float = field(default_factory=time.perf_counter)


def _receive(own: Runtime, endpoint: Endpoint, caller: Caller, finish: ExitStack) -> Received:
    most_bytes = own.settings.max_request_bytes
    request_body.check_encoding()
    if endpoint.is_form and request.mimetype != "application/json":
        upload = finish.enter_context(Upload(request.headers.get("Content-Type", "")))
        upload.receive(request_body.body_pieces(most_bytes))
        return Received(payload.form_body(upload.fields), upload)
    return Received(request_body.read(most_bytes, payload.parse, caller.team_id))


def _answer(
    own: Runtime, caller: Caller, call: Call, reservation: Reservation, received: Received, finish: ExitStack
) -> Response:
    note_settlement = _note_overhead(own, received, reservation)
    booking = Booking(own.ledger, reservation, call, g.started, note_settlement)
    try:
        link = ProviderLink()
        if (client := request.environ.get("gunicorn.socket")) is not None:
            finish.callback(own.clients.watch(client, partial(_end, booking, link), booking.note_leaving))
            client.silence_s = own.settings.provider_read_timeout
        reply = booking.reply = _send(own, caller.team_id, call, received.upload, link)
        finish.callback(reply.close)
        response = _relay(booking, finish)
    except Exception as error:  # of whatever kind: the hold has to be given back
        booking.failed(error)
        if isinstance(error, APIError):
            error.is_logged = True
            _heed(own.ledger, error)
        raise
    if reservation.output_limit is not None:
        response.headers["x-tokenrouter-output-limit"] = str(reservation.output_limit)
    if reservation.headers:
        response.headers.update(reservation.headers)
    return response


def _note_overhead(own: Runtime, received: Received, reservation: Reservation) -> Callable[[float], None]:
    """Return a function that notes the overhead of the call: until now, without waiting for a place, and settling."""
    if own.tally is None:
        return lambda seconds: None
    return partial(own.tally.note_overhead, time.perf_counter() - received.at - reservation.waited_s)


def _heed(ledger: Ledger, error: APIError) -> None:
    """Block further calls for as long as the provider's 429 demands."""
    wait_s = requested_wait_s(error.headers) if error.status == 429 else None
    if wait_s is not None:
        ledger.block(wait_s)


def _admit(
    own: Runtime, endpoint: Endpoint, caller: Caller, received: Received, finish: ExitStack
) -> tuple[Call, Reservation]:
    """Check what the caller may do, take a slot, and reserve.

    Raises an APIError, and CallerChanged if the database has other data of the caller now.
    """
    body, upload = dict(received.body), received.upload
    allowed = own.settings.allowed_models
    default = own.settings.default_model if endpoint.has_default_model else None
    model = payload.model_of(body, default)
    call = payload.check(endpoint, body, model, own.settings)
    if own.settings.provider_team_ids:
        call.name_team(payload.team_identity(current_app.secret_key or "", caller.team_id))
    if upload is not None:
        call.add_prompt(media.tokens_of_files(endpoint.file_kind, upload.files, upload.size))
    call_request = new_call_request(caller, endpoint.path, call.model, stream=call.stream)
    try:
        payload.check_model(model, allowed, caller.models, own.catalogue.known_names)
    except ModelNotFound as refusal:
        if not caller.is_remembered:
            _log_refusal(own.ledger, call_request, refusal)
        raise
    payload.check_named_models(call.reach.models, allowed, caller.models, own.catalogue.known_names)
    _check_items(own, caller, call.reach.items)
    if call.previous_response is not None:
        call.add_prompt(_tokens_of_response(own, caller, call.previous_response))
    call_request.prompt_tokens = call.prompt_tokens
    call_request.output_tokens, call_request.choices = call.output_tokens, call.choices
    give_back = own.slots.take()
    try:
        reservation = own.ledger.reserve(call_request, partial(_watch_waiting, own))
    except BaseException:
        give_back()
        raise
    finish.callback(give_back)
    if reservation.output_limit is not None:
        call.limit_output(reservation.output_limit)
    return call, reservation


@contextmanager
def _watch_waiting(own: Runtime, end: Callable[[Exception], None]) -> Iterator[None]:
    """End a call's wait for a place at the provider if its client leaves, or the worker ends."""
    client = request.environ.get("gunicorn.socket")
    if client is None:
        yield
        return
    stop = own.clients.watch(client, end, lambda: end(ClientLeft()))
    try:
        yield
    finally:
        stop()


def _end(booking: Booking, link: ProviderLink, error: CallEnded) -> None:
    """End a call from outside: its thread books it, woken by the end of its connection.

    While there is no connection, nothing can wake that thread, so another one books the call at its prompt; the request
    will not be sent.
    """
    if not link.cut(error):
        threading.Thread(target=booking.failed, args=(error,), name="ending").start()


def authenticate(endpoint_path: str | None = None) -> Caller:
    """Return the team of the current request's token, as the database has it now.

    If the path of a call is given, the refusal of a disabled team is logged; requests for models or usage are no calls.
    Raises InvalidAPIKey, TeamDisabled and StorageUnavailable.
    """
    own, authorization = runtime.current(), request.headers.get("Authorization")
    caller = auth.authenticate(own.readers, authorization)
    g.token_id = caller.token_id
    if not caller.active:
        message = "This team is disabled. Who administers this service can enable it again."
        refusal = TeamDisabled(message, reason="the team is disabled")
        if endpoint_path is not None:
            _log_refusal(own.ledger, new_call_request(caller, endpoint_path, model="", stream=False), refusal)
        raise refusal
    own.callers.remember(authorization, caller)
    return caller


def new_call_request(caller: Caller, endpoint_path: str, model: str, *, stream: bool) -> CallRequest:
    """Return the current request for the log, before it is known what it may cost."""
    return CallRequest(
        request_id=g.request_id,
        team_id=caller.team_id,
        team_name=caller.team_name,
        token_id=caller.token_id,
        token_prefix=caller.token_prefix,
        model=model[:LOGGED_MODEL_LENGTH],
        endpoint=f"/v1{endpoint_path}",
        stream=stream,
        created_at=datetime.now(UTC),
        group_id=caller.group_id,
        caller_row=caller.row,
    )


def _log_refusal(ledger: Ledger, call_request: CallRequest, refusal: ModelNotFound | TeamDisabled) -> None:
    """Write the row of a refusal, or count it to the row of the same one, and give the refusal the id of the row.

    If that fails the call is refused all the same.
    """
    try:
        refusal.request_id = ledger.reject(call_request, refusal.status, refusal.code, refusal.reason)
        refusal.is_logged = True
    except StorageUnavailable:
        logger.warning("The refusal of request %s could not be logged", call_request.request_id)


def _check_items(own: Runtime, caller: Caller, items: Mapping[str, str]) -> None:
    """Raise ItemNotFound unless the team was given all of these items; the values are the fields that name them."""
    unknown = first_unknown_item(own.readers, caller.team_id, items) if items else None
    if unknown is not None:
        raise ItemNotFound("Your team was given no item of this id. Send the item itself.", param=items[unknown])


def _tokens_of_response(own: Runtime, caller: Caller, response_id: object) -> int:
    """Return how many tokens an earlier response of the team adds to the prompt.

    Raises InvalidRequest, ResponseNotFound and StorageUnavailable.
    """
    if not isinstance(response_id, str):
        raise InvalidRequest("previous_response_id is not a string.", param="previous_response_id")
    tokens = tokens_of_response(own.readers, caller.team_id, response_id)
    if tokens is None:
        raise ResponseNotFound("Your team was given no response of this id.", param="previous_response_id")
    return tokens


def _send(own: Runtime, team_id: int, call: Call, upload: Upload | None, link: ProviderLink) -> Reply:
    """Call the provider; if it refuses a field that only we added, call it once more without these fields."""
    path, headers, post = call.endpoint.path, request.headers, own.provider.post
    if upload is not None:
        return own.provider.post_file(path, upload.file, upload.content_type, headers, link)
    refused = own.refused_additions.of(team_id, call)
    try:
        return post(path, call.encode(refused), headers, link)
    except (RelayedError, ProviderRefusal) as error:
        blamed = payload.blamed(call, error.status, error.provider_text) - refused
        if not blamed:
            raise
    own.ledger.count_request()
    reply = post(path, call.encode(call.additions), headers, link)
    own.refused_additions.learn(team_id, call, blamed)
    return reply


def _relay(booking: Booking, finish: ExitStack) -> Response:
    endpoint, reply = booking.call.endpoint, booking.reply
    chunks = reply.chunks()
    if endpoint.is_binary and not reply.is_stream:
        return _relay_stream(booking, finish, BinaryStream, chunks)
    is_text = booking.call.takes_plain_text and not (reply.is_stream or booking.call.stream)
    if endpoint.may_stream and not is_text:
        first, is_stream = sse.first_bytes(chunks, is_stream=reply.is_stream)
        chunks = chain(first, chunks)
        if is_stream:
            reply.label_as_stream()
            return _relay_stream(booking, finish, TypedStream if endpoint.last_events else Stream, chunks)
    return _relay_json(booking, chunks)


def _relay_json(booking: Booking, chunks: Iterator[bytes]) -> Response:
    """Read the whole answer, book it, and only then return it."""
    reply = booking.reply
    body = bytearray()
    try:
        for chunk in chunks:
            if not body:
                booking.first_byte()
            body += chunk
            if len(body) > MOST_ANSWER_BYTES:
                break
    except (ProviderError, CallEnded) as error:
        if body:
            _book_cut(booking, bytes(body), error)
        raise
    if len(body) > MOST_ANSWER_BYTES:
        too_large = ProviderBadResponse(f"The provider's answer has more than {MOST_ANSWER_BYTES:,} bytes.")
        booking.cut(PROVIDER_ERROR, None, int, too_large, too_large.status)  # counting such an answer would take long
        raise too_large
    document = parse_json(body)
    if not (isinstance(document, dict) or booking.call.takes_plain_text):
        raise ProviderBadResponse("The provider's answer is not a JSON object.")
    _book_document(booking, document if isinstance(document, dict) else {})
    is_error = isinstance(document, dict) and document.get("error")
    return Response(reply.without_key(body) if is_error else bytes(body), reply.status, reply.headers)


def _book_cut(booking: Booking, body: bytes, error: ProviderError | CallEnded) -> None:
    """Book a JSON answer that broke off, by its texts as far as they came; where they are not known, all is text."""
    endpoint, document = booking.call.endpoint, parse_cut_json(body)
    report = read_usage(document)
    if isinstance(document, dict) and endpoint.limits:
        count = endpoint.read_answer(document).tokens
    else:
        count = partial(count_tokens, body.decode(errors="replace") if endpoint.answers_in_text else "")
    booking.cut(log_status(error), report, count, error, error.status)


def _book_document(booking: Booking, document: dict[str, Any]) -> None:
    report, texts = read_usage(document), booking.call.endpoint.read_answer(document)
    has_answer = bool(report) or texts.additions > 0
    has_failed = has_error(document)
    if has_failed:
        named = booking.reply.masked(code_and_type(document))
        reason = f"an error under HTTP {booking.reply.status}, {named}"
        error = ProviderError("The provider answered with an error.", reason=reason)
        if has_answer:
            booking.cut(PROVIDER_ERROR, report, texts.tokens, error)
        else:
            booking.failed(error, booking.reply.status)
    elif not (has_answer or booking.call.takes_plain_text or _brings_other(booking.call.endpoint, document)):
        booking.failed(ProviderError("The provider answered with nothing."), booking.reply.status)
    else:
        response_id = document.get("id")
        given = Given(response_id if isinstance(response_id, str) else None, tuple(item_ids(document)))
        booking.answered(report, texts.tokens, given)


def _brings_other(endpoint: Endpoint, document: dict[str, Any]) -> bool:
    """Tell whether an answer that is none in text brings vectors, pictures, judgements, or a transcript of silence."""
    lists = (value for name, value in document.items() if name != "usage" and isinstance(value, list | dict))
    return not endpoint.limits and (any(lists) or "text" in document)


def _relay_stream(
    booking: Booking, finish: ExitStack, kind: "type[Stream | BinaryStream]", chunks: Iterator[bytes]
) -> Response:
    """Wait for the first bytes, so that an earlier failure still gets its own status; then relay event by event."""
    reply = booking.reply
    first = next(chunks, None)
    if first is None:
        raise ProviderBadResponse("The provider's stream ended before its first event.")
    booking.first_byte()
    if (client := request.environ.get("gunicorn.socket")) is not None:
        client.is_stream = True
    stream = kind(booking, chain((first,), chunks), finish.pop_all())
    response = Response(stream, reply.status, reply.headers, direct_passthrough=True)
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"  # nginx would hold events back
    return response
