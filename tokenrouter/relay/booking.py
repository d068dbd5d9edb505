"""The one settlement of a call."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from tokenrouter.database.log_status import CLIENT_CLOSED, OK, PROVIDER_ERROR
from tokenrouter.database.tables import BY_PROVIDER, ESTIMATED, NOT_COUNTED
from tokenrouter.errors import APIError, ProviderTimeout
from tokenrouter.ledger import Given, Ledger, Outcome, Reservation
from tokenrouter.metering.meter import Meter
from tokenrouter.metering.usage import Report, Usage
from tokenrouter.money import billionths
from tokenrouter.payload import Call
from tokenrouter.provider.replies import Reply
from tokenrouter.worker.disconnects import CallEnded, ClientLeft

logger = logging.getLogger(__name__)


class Booking:
    """Settles a call exactly once, by whichever of its possible endings comes first."""

    reply: Reply

    def __init__(
        self,
        ledger: Ledger,
        reservation: Reservation,
        call: Call,
        started: float,
        note_settlement: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Take over a reservation; `started` is when the request came, by time.perf_counter.

        `note_settlement` gets the seconds that settling took.
        """
        self.call = call
        self._ledger = ledger
        self._reservation = reservation
        self._started = started
        self._note_settlement = note_settlement
        self._first_byte_ms: int | None = None
        self._open = True
        self._client_has_left = False
        self._lock = threading.Lock()

    def note_leaving(self) -> None:
        """Note that the client has left: a silence of the provider after that is not why the call ended."""
        self._client_has_left = True

    def first_byte(self) -> None:
        """Note the time of the answer's first byte."""
        self._first_byte_ms = self._elapsed_ms()

    def watch(self, meter: Meter) -> None:
        """Let the heartbeats save how much has arrived, in case this worker dies."""
        ceiling = self.call.output_ceiling()
        self._reservation.progress = lambda: _within(meter.running_tokens(), ceiling)

    def answered(self, report: Report | None, count_completion: Callable[[], int], given: Given | None = None) -> None:
        """Book a complete answer, by the provider's report, otherwise by a count of its texts.

        `given` is what later calls may name.
        """
        if not self._claim():
            return
        if given is not None and not self.call.can_be_continued:
            given = replace(given, response_id=None)
        if report is not None:
            self._settle(OK, self._reported(report, count_completion), BY_PROVIDER, given=given)
        elif self.call.endpoint.is_free_without_usage:
            self._settle(OK, Usage(0, 0, 0), NOT_COUNTED)
        else:
            self._settle(OK, self._counted(count_completion), ESTIMATED, given=given)

    def cut(
        self,
        status: str,
        report: Report | None,
        count_completion: Callable[[], int],
        error: APIError | None,
        status_code: int | None = None,
    ) -> None:
        """Book an answer that was cut short: what arrived is charged, or what was reported if that is more.

        `error` is what cut it, None if the client left; `status_code` is what the caller got, if not the provider's.
        """
        if not self._claim():
            return
        if self._client_has_left and status == PROVIDER_ERROR:
            status, error = CLIENT_CLOSED, None
        usage = self._counted(count_completion)
        if report is not None:
            reported = self._reported(report, count_completion)
            known = replace(usage, cached_tokens=reported.cached_tokens, cost=reported.cost)
            usage = max(reported, known, key=lambda usage: usage.total_tokens)
        source = ESTIMATED if report is None else BY_PROVIDER
        code = None if error is None else error.code
        self._settle(status, usage, source, status_code=status_code, error_code=code, reason=reason_of(error))

    def failed(self, error: Exception, status_code: int | None = None) -> None:
        """Book a call without any answer: it costs nothing, or its prompt if it was ended from our side.

        `status_code` is what the caller got, if not that of the error.
        """
        if not self._claim():
            return
        if self._client_has_left and isinstance(error, ProviderTimeout):
            error = ClientLeft()
        api_error = error if isinstance(error, APIError) else APIError(str(error))
        status, usage, source = PROVIDER_ERROR, Usage(0, 0, 0), NOT_COUNTED
        if isinstance(error, CallEnded):
            status, usage, source = error.log_status, self._counted(int), ESTIMATED
        code, seen = api_error.code or api_error.type, status_code or api_error.status
        self._settle(status, usage, source, status_code=seen, error_code=code, reason=reason_of(error))

    def _claim(self) -> bool:
        """Return True to the first ending, and False to all later ones."""
        with self._lock:
            first, self._open = self._open, False
        return first

    @property
    def is_open(self) -> bool:
        """Whether no ending has come yet."""
        return self._open

    def _counted(self, count_completion: Callable[[], int]) -> Usage:
        prompt, completion = self.call.prompt_tokens, self._completion(count_completion)
        return Usage(prompt, completion, prompt + completion)

    def _reported(self, report: Report, count_completion: Callable[[], int]) -> Usage:
        return report.usage(lambda: self.call.prompt_tokens, lambda: self._completion(count_completion))

    def _completion(self, count_completion: Callable[[], int]) -> int:
        """Count the answer, without the prompt if it repeats that.

        If counting fails, whatever the provider sent, the call is settled all the same: its hold must not stay.
        """
        echoed_tokens = self.call.echoes * self.call.prompt_tokens
        try:
            tokens = count_completion()
        except Exception:
            logger.exception("An answer could not be counted, so that its prompt alone is charged")
            tokens = 0
        return _within(max(0, tokens - echoed_tokens), self.call.output_ceiling())

    def _settle(
        self,
        status: str,
        usage: Usage,
        source: str,
        *,
        status_code: int | None = None,
        error_code: str | None = None,
        reason: str | None = None,
        given: Given | None = None,
    ) -> None:
        reply = getattr(self, "reply", None)
        outcome = Outcome(
            status=status,
            status_code=status_code or (200 if reply is None else reply.status),
            charged_tokens=usage.total_tokens,
            usage_source=source,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            cached_tokens=usage.cached_tokens,
            reported_cost=None if usage.cost is None else billionths(usage.cost),
            latency_ms=self._elapsed_ms(),
            first_byte_ms=self._first_byte_ms,
            error_code=error_code,
            reason=reason,
            provider_request_id=None if reply is None else reply.request_id,
        )
        began = time.perf_counter()
        self._ledger.settle(self._reservation, outcome, given or None)
        self._note_settlement(time.perf_counter() - began)

    def _elapsed_ms(self) -> int:
        return round((time.perf_counter() - self._started) * 1000)


def log_status(error: APIError) -> str:
    """Return the log's status of a call that this error ended."""
    return error.log_status if isinstance(error, CallEnded) else PROVIDER_ERROR


def reason_of(error: Exception | None) -> str | None:
    """Return the log's reason for a call that failed; None if the client left."""
    if error is None or isinstance(error, ClientLeft):
        return None
    if not isinstance(error, APIError):
        return f"TokenRouter failed on it: {type(error).__name__}"
    return error.reason or error.message


def _within(tokens: int, ceiling: int | None) -> int:
    """Limit our own count to the request's output limit, unless the provider clearly ignored that."""
    return tokens if ceiling is None or tokens > 2 * ceiling else min(tokens, ceiling)
