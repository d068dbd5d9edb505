"""Which of the provider's own entries stands for which of our calls: by its id, else by model and time. Pure."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from tokenrouter.provider.history import Entry

EARLIER, LATER = timedelta(seconds=60), timedelta(seconds=120)
"""By how much the provider's time may lie before a call's beginning or behind its end: clocks differ."""


class Reason(Enum):
    """Why a call costs something else here than there, as far as our log tells."""

    LEFT = "the caller left before its end, and what had arrived was estimated"
    BROKE_OFF = "the provider broke off, and what had arrived was estimated"
    INTERRUPTED = "its worker ended, and it was estimated"
    ESTIMATED = "the provider reported no usage, and it was estimated"
    OURS_ALONE = "it is not in the provider's record"
    THEIRS_ALONE = "it is not in our log"
    OTHERWISE = "counted otherwise"


@dataclass(frozen=True)
class OurCall:
    """A call of our log that was charged."""

    id: int
    began: datetime
    ended: datetime
    model: str
    prompt_tokens: int
    tokens: int
    cost: int | None
    provider_id: str | None
    estimated_as: Reason | None
    """Why its tokens are an estimate; None where the provider reported them."""


@dataclass(frozen=True)
class Pair:
    """A call and its entry, or one of both alone."""

    ours: OurCall | None
    theirs: Entry | None

    @property
    def gap_tokens(self) -> int | None:
        """How many tokens more the provider counts; None where it does not tell its."""
        theirs = 0 if self.theirs is None else tokens_of(self.theirs)
        return None if theirs is None else theirs - (0 if self.ours is None else self.ours.tokens)

    @property
    def reason(self) -> Reason:
        """Why both differ, if they do."""
        if self.theirs is None:
            return Reason.OURS_ALONE
        if self.ours is None:
            return Reason.THEIRS_ALONE
        return self.ours.estimated_as or Reason.OTHERWISE


def tokens_of(entry: Entry) -> int | None:
    """Return the tokens of an entry; None where it tells neither part."""
    if entry.prompt_tokens is None and entry.completion_tokens is None:
        return None
    return (entry.prompt_tokens or 0) + (entry.completion_tokens or 0)


def match(ours: Iterable[OurCall], theirs: Iterable[Entry]) -> list[Pair]:
    """Pair each call with its entry: the one of its id, else of the same model in its time, the most alike first.

    No call and no entry is in two pairs; what finds none stands alone.
    """
    entries = {entry.id: entry for entry in theirs}
    pairs: list[Pair] = []
    unmatched: defaultdict[str, list[OurCall]] = defaultdict(list)
    for call in ours:
        if call.provider_id in entries:
            pairs.append(Pair(call, entries.pop(call.provider_id)))
        else:
            unmatched[call.model.casefold()].append(call)
    left: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries.values():
        left[entry.model.casefold()].append(entry)
    for model in unmatched.keys() | left.keys():
        pairs += _match_by_time(unmatched[model], left[model])
    return pairs


def _match_by_time(calls: Sequence[OurCall], entries: Sequence[Entry]) -> list[Pair]:
    """Pair calls and entries of one model: first those of as many tokens, which nearly all are, then the most alike."""
    alike: defaultdict[int | None, tuple[list[OurCall], list[Entry]]] = defaultdict(lambda: ([], []))
    for call in calls:
        alike[call.tokens][0].append(call)
    for entry in entries:
        alike[tokens_of(entry)][1].append(entry)
    pairs: list[Pair] = []
    for some_calls, some_entries in alike.values():
        pairs += _pair_nearest(some_calls, some_entries)
    paired = {id(each) for pair in pairs for each in (pair.ours, pair.theirs)}
    left_calls = [call for call in calls if id(call) not in paired]
    left_entries = [entry for entry in entries if id(entry) not in paired]
    pairs += _pair_nearest(left_calls, left_entries)
    paired = {id(each) for pair in pairs for each in (pair.ours, pair.theirs)}
    pairs += [Pair(call, None) for call in left_calls if id(call) not in paired]
    return pairs + [Pair(None, entry) for entry in left_entries if id(entry) not in paired]


def _pair_nearest(calls: Sequence[OurCall], entries: Sequence[Entry]) -> list[Pair]:
    """Pair what lies within each other's time, the most alike first; leave out what finds none."""
    by_time = sorted(entries, key=lambda entry: entry.at)
    moments = [entry.at for entry in by_time]
    candidates = [
        (_unlikeness(call, by_time[at]), number, at)
        for number, call in enumerate(calls)
        for at in range(bisect_left(moments, call.began - EARLIER), bisect_right(moments, call.ended + LATER))
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


def _unlikeness(call: OurCall, entry: Entry) -> tuple[int, float]:
    """Say how little a call is like an entry: first by tokens, where both tell them, then by time."""
    told = tokens_of(entry)
    by_tokens = 0 if told is None else abs(told - call.tokens)
    return by_tokens, abs((entry.at - call.began).total_seconds())
