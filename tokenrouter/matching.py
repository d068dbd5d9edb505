"""Match the entries of the provider's record with our calls: by id, otherwise by model and time. Pure."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from heapq import heappop, heappush

from tokenrouter.provider.history import Entry

EARLIER, LATER = timedelta(seconds=60), timedelta(seconds=120)
"""How far the provider's time may be before a call's beginning, or after its end: clocks differ."""
MOST_CANDIDATES = 16  # entries that one call is compared with, those nearest to its beginning


class Reason(Enum):
    """Why a call differs on both sides, as far as our log shows; the value completes the sentence "3 calls: "."""

    LEFT = "the caller left before the end, and what had arrived was estimated"
    BROKE_OFF = "the provider broke off, and what had arrived was estimated"
    INTERRUPTED = "the worker here ended before the answer did, and it was estimated"
    ESTIMATED = "the provider reported no usage with the answer, and it was estimated"
    TIMED_OUT = "it timed out here before an answer came, and nothing was booked"
    FAILED = "it failed here before an answer came, and nothing was booked"
    UNCOUNTED = "the answer told no tokens, as those of images and sound, and none were booked"
    IN_FLIGHT = "it is still in flight here, and not booked yet"
    OURS_ALONE = "it is not in the provider’s record"
    THEIRS_ALONE = "it is not in our log"
    PRICED = "as many tokens, at another price than ours"
    OTHERWISE = "not explained: the provider’s record has another count than its answer told"


@dataclass(frozen=True)
class OurCall:
    """A call of our log that reached the provider, whether it was charged or not."""

    id: int
    began: datetime
    ended: datetime
    model: str
    tokens: int
    cost: int | None
    provider_id: str | None = None
    caveat: Reason | None = None
    """Why our figure may differ from the provider's; None if the provider reported it to us."""
    request_id: str = ""
    team: str = ""

    @property
    def is_booked(self) -> bool:
        """Whether it was charged, so that the provider's record should have it."""
        return self.tokens > 0


@dataclass(frozen=True)
class Pair:
    """A call and its entry, or one of them alone."""

    ours: OurCall | None
    theirs: Entry | None

    @property
    def gap_tokens(self) -> int | None:
        """How many more tokens the provider counts; None if its entry has no tokens."""
        theirs = 0 if self.theirs is None else tokens_of(self.theirs)
        return None if theirs is None else theirs - (0 if self.ours is None else self.ours.tokens)

    @property
    def gap_cost(self) -> int | None:
        """How much more the provider charges; None unless both amounts are known."""
        theirs = 0 if self.theirs is None else self.theirs.cost
        ours = 0 if self.ours is None or not self.ours.is_booked else self.ours.cost
        return None if theirs is None or ours is None else theirs - ours

    @property
    def reason(self) -> Reason:
        """Why both sides differ, if they do."""
        if self.theirs is None:
            return Reason.OURS_ALONE
        if self.ours is None:
            return Reason.THEIRS_ALONE
        return (self.ours.caveat or Reason.OTHERWISE) if self.gap_tokens else Reason.PRICED

    @property
    def began(self) -> datetime:
        """When the call was made: ours tells it, else the provider's entry."""
        return self.ours.began if self.ours is not None else self._entry.at

    @property
    def model(self) -> str:
        """The model, as our log writes it where it has the call."""
        return self.ours.model if self.ours is not None else self._entry.model

    @property
    def _entry(self) -> Entry:
        if self.theirs is None:
            raise ValueError("A pair has a call, an entry or both.")
        return self.theirs


def tokens_of(entry: Entry) -> int | None:
    """Return the tokens of an entry; None if it tells neither part."""
    if entry.prompt_tokens is None and entry.completion_tokens is None:
        return None
    return (entry.prompt_tokens or 0) + (entry.completion_tokens or 0)


def match(ours: Iterable[OurCall], theirs: Iterable[Entry]) -> list[Pair]:
    """Pair each call with its entry: the one of its id, otherwise one of the same model and time, the most alike first.

    No call and no entry is in two pairs; those without a partner stand alone, except calls that were not charged, on
    which both sides then agree. These are paired last, with the entries that the charged calls leave.
    """
    entries = {entry.id: entry for entry in theirs}
    pairs: list[Pair] = []
    calls: defaultdict[str, list[OurCall]] = defaultdict(list)
    for call in ours:
        if call.provider_id in entries:
            pairs.append(Pair(call, entries.pop(call.provider_id)))
        else:
            calls[call.model.casefold()].append(call)
    left: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries.values():
        left[entry.model.casefold()].append(entry)
    for model in calls.keys() | left.keys():
        pairs += _match_one_model(calls[model], left[model])
    return pairs


def _match_one_model(calls: Sequence[OurCall], entries: Sequence[Entry]) -> list[Pair]:
    booked, unbooked = [each for each in calls if each.is_booked], [each for each in calls if not each.is_booked]
    found = _match_by_time(booked, entries)
    booked, entries = _left_by(found, booked, entries)
    late = _in_order(unbooked, entries)
    _, entries = _left_by(late, unbooked, entries)
    return [*found, *late, *(Pair(call, None) for call in booked), *(Pair(None, entry) for entry in entries)]


def _match_by_time(calls: Sequence[OurCall], entries: Sequence[Entry]) -> list[Pair]:
    """Pair calls and entries of one model: first those with equal tokens, nearly all of them, then the most alike."""
    alike: defaultdict[int | None, tuple[list[OurCall], list[Entry]]] = defaultdict(lambda: ([], []))
    for call in calls:
        alike[call.tokens][0].append(call)
    for entry in entries:
        alike[tokens_of(entry)][1].append(entry)
    pairs = [pair for some in alike.values() for pair in _by_likeness_and_order(*some)]
    return pairs + _by_likeness_and_order(*_left_by(pairs, calls, entries))


def _by_likeness_and_order(calls: Sequence[OurCall], entries: Sequence[Entry]) -> list[Pair]:
    pairs = _by_likeness(calls, entries)
    return pairs + _in_order(*_left_by(pairs, calls, entries))


def _left_by(
    pairs: Sequence[Pair], calls: Sequence[OurCall], entries: Sequence[Entry]
) -> tuple[list[OurCall], list[Entry]]:
    """Return the calls and entries that are not in these pairs."""
    paired = {id(each) for pair in pairs for each in (pair.ours, pair.theirs)}
    return [call for call in calls if id(call) not in paired], [each for each in entries if id(each) not in paired]


def _in_order(calls: Sequence[OurCall], entries: Sequence[Entry]) -> list[Pair]:
    """Pair as many as possible: each entry goes to that of its possible calls whose time is over first."""
    waiting = sorted(calls, key=lambda call: call.began)[::-1]
    open_calls: list[tuple[datetime, int]] = []
    by_number: dict[int, OurCall] = {}
    pairs: list[Pair] = []
    for entry in sorted(entries, key=lambda entry: entry.at):
        while waiting and waiting[-1].began - EARLIER <= entry.at:
            call = waiting.pop()
            by_number[len(by_number)] = call
            heappush(open_calls, (call.ended + LATER, len(by_number) - 1))
        while open_calls and open_calls[0][0] < entry.at:
            heappop(open_calls)
        if open_calls:
            pairs.append(Pair(by_number[heappop(open_calls)[1]], entry))
    return pairs


def _by_likeness(calls: Sequence[OurCall], entries: Sequence[Entry]) -> list[Pair]:
    """Pair calls and entries that fit by time, the most alike by tokens first; leave the others out."""
    by_time = sorted(entries, key=lambda entry: entry.at)
    moments = [entry.at for entry in by_time]
    candidates = [
        (_unlikeness(call, by_time[at]), number, at)
        for number, call in enumerate(calls)
        for at in _nearest(call, moments)
    ]
    pairs: list[Pair] = []
    used_calls: set[int] = set()
    used_entries: set[int] = set()
    for _, number, at in sorted(candidates):
        if number not in used_calls and at not in used_entries:
            used_calls.add(number)
            used_entries.add(at)
            pairs.append(Pair(calls[number], by_time[at]))
    return pairs


def _nearest(call: OurCall, moments: Sequence[datetime]) -> range:
    """Return the positions of the entries that fit a call by time; of many, those around its beginning."""
    first, last = bisect_left(moments, call.began - EARLIER), bisect_right(moments, call.ended + LATER)
    middle = bisect_left(moments, call.began)
    half = MOST_CANDIDATES // 2
    return range(max(first, middle - half), min(last, middle + half))


def _unlikeness(call: OurCall, entry: Entry) -> tuple[int, float]:
    """Return how much a call and an entry differ: by tokens, if the entry has them, then by time."""
    theirs = tokens_of(entry)
    by_tokens = 0 if theirs is None else abs(theirs - call.tokens)
    return by_tokens, abs((entry.at - call.began).total_seconds())
