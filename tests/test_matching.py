"""Pairs of our calls and the provider's entries."""

from datetime import UTC, datetime, timedelta
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenrouter.matching import OurCall, Reason, match
from tokenrouter.provider.history import Entry

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


def call(number: int, at_s: float = 0, tokens: int = 10, model: str = "GPT-5-nano", **values: object) -> OurCall:
    began = NOON + timedelta(seconds=at_s)
    fields = {"cost": 1, **values}
    return OurCall(number, began, began + timedelta(seconds=2), model, tokens=tokens, **fields)


def entry(id_: str, at_s: float = 0, tokens: int | None = 10, model: str = "gpt-5-nano") -> Entry:
    prompt, completion = (None, None) if tokens is None else (5, tokens - 5)
    return Entry(id_, NOON + timedelta(seconds=at_s), model, 1, 1, prompt, completion, None)


def ids(ours: list[OurCall], theirs: list[Entry]) -> set[tuple[int | None, str | None]]:
    return {(p.ours and p.ours.id, p.theirs and p.theirs.id) for p in match(ours, theirs)}


def test_entry_of_the_same_id_is_the_calls_whatever_its_time():
    assert ids([call(1, provider_id="q1"), call(2)], [entry("q1", 9_000), entry("q2")]) == {(1, "q1"), (2, "q2")}


def test_else_model_and_time_tell():
    ours = [call(1), call(2, 600), call(3, 600, model="other")]
    theirs = [entry("b", 603), entry("a", 3), entry("c", 601, model="OTHER")]
    assert ids(ours, theirs) == {(1, "a"), (2, "b"), (3, "c")}


def test_of_calls_at_once_the_tokens_tell():
    ours = [call(1, 0, 10), call(2, 0, 500), call(3, 1, 90)]
    theirs = [entry("a", 1, 92), entry("b", 1, 500), entry("c", 1, 9)]
    assert ids(ours, theirs) == {(1, "c"), (2, "b"), (3, "a")}


@pytest.mark.parametrize("at_s", [-61, 123, 9_000])
def test_what_lies_too_far_apart_stands_alone(at_s: float):
    assert ids([call(1)], [entry("a", at_s)]) == {(1, None), (None, "a")}


@pytest.mark.parametrize(
    ("ours", "theirs", "gap", "reason"),
    [
        (call(1, tokens=10), entry("a", tokens=12), 2, Reason.OTHERWISE),
        (call(1, tokens=10, caveat=Reason.LEFT), entry("a", tokens=100), 90, Reason.LEFT),
        (call(1, tokens=10), None, -10, Reason.OURS_ALONE),
        (None, entry("a", tokens=7), 7, Reason.THEIRS_ALONE),
        (call(1), entry("a", tokens=None), None, Reason.PRICED),
    ],
)
def test_pair_tells_its_gap_and_why(ours: OurCall | None, theirs: Entry | None, gap: int | None, reason: Reason):
    (pair,) = match([] if ours is None else [ours], [] if theirs is None else [theirs])
    assert (pair.gap_tokens, pair.reason) == (gap, reason)


def test_what_was_not_booked_takes_what_the_booked_calls_leave():
    ours = [call(1, tokens=0, caveat=Reason.TIMED_OUT), call(2), call(3, tokens=0, caveat=Reason.FAILED)]
    assert ids(ours, [entry("a", 1), entry("b", 1, 300)]) == {(2, "a"), (1, "b")}


def test_as_many_as_can_be_are_paired_where_nothing_but_time_tells():
    ours = [call(1, 0), call(2, 100)]
    assert all(pair.ours and pair.theirs for pair in match(ours, [entry("a", 90), entry("b", 110)]))


def test_thousands_of_like_calls_at_once_are_paired_in_a_moment():
    ours = [call(number, number % 60) for number in range(5_000)]
    began = process_time()
    assert {pair.reason for pair in match(ours, [entry(str(each.id), 1) for each in ours])} == {Reason.PRICED}
    assert process_time() - began < 3


MOMENTS = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 50), st.sampled_from("ab")), max_size=12)


@given(MOMENTS, MOMENTS)
def test_each_call_and_each_entry_is_in_one_pair(ours: list[tuple[int, int, str]], theirs: list[tuple[int, int, str]]):
    calls = [call(number, at_s, tokens, model) for number, (at_s, tokens, model) in enumerate(ours)]
    entries = [entry(str(number), at_s, tokens, model) for number, (at_s, tokens, model) in enumerate(theirs)]
    pairs = match(calls, entries)
    assert sorted(pair.ours.id for pair in pairs if pair.ours) == list(range(len(calls)))
    assert sorted(pair.theirs.id for pair in pairs if pair.theirs) == sorted(each.id for each in entries)
    for pair in pairs:
        if pair.ours and pair.theirs:
            assert pair.ours.model == pair.theirs.model
