"""Check the fields that decide what a call costs, and set what the settings and the quota demand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from tokenrouter.config import Settings
from tokenrouter.errors import InvalidRequest
from tokenrouter.payload.endpoints import Endpoint
from tokenrouter.payload.reach import Reach, named_items, read_reach

STREAM_OPTIONS = "stream_options"
SAFETY_IDENTIFIER = "safety_identifier"  # which wins over `user` at OpenAI, and is not known everywhere
WIDELY_KNOWN_LIMIT = "max_tokens"
MOST_CHOICES = 128  # OpenAI's own limit for n
MOST_OUTPUT_TOKENS = 2**31 - 1


@dataclass
class Call:
    """A checked request: what will be sent, and the most it may cost."""

    endpoint: Endpoint
    body: dict[str, Any]
    model: str
    """Empty where none is named, and the provider chooses."""
    stream: bool
    wants_usage: bool
    """Whether the caller requested the event that reports usage."""
    prompt_tokens: int
    output_tokens: int
    choices: int
    """How many outputs count, each of which a limit may hold back; none where the answer is no text."""
    answers: int
    """How many of them the caller will see."""
    reach: Reach
    """What it names beside its model."""
    own_limit: str | None = None
    """The field of a limit that only we wrote."""
    echoes: int = 0
    """How many of them begin with the prompt, for each of the prompts."""

    def limit_output(self, tokens: int) -> None:
        """Limit each choice, in the field or fields that the caller used."""
        used = [name for name in self.endpoint.limits if self.body.get(name) is not None]
        if not used:
            self.own_limit = self.endpoint.limits[-1]
            used = [self.own_limit]
        for name in used:
            self.body[name] = tokens

    def name_team(self, identity: str) -> None:
        """Say for which team the call is, in the caller's stead: he may not pose as another."""
        if self.endpoint.names_user:
            self.body["user"] = identity
            if SAFETY_IDENTIFIER in self.body:
                self.body[SAFETY_IDENTIFIER] = identity

    def output_ceiling(self) -> int | None:
        """Return the most tokens that an answer within the request's limit can have; None if it has none."""
        limits = [limit for name in self.endpoint.limits if (limit := self.body.get(name)) is not None]
        return self.choices * max(limits) if limits else None

    def add_prompt(self, tokens: int) -> None:
        """Count more to the prompt than the body says."""
        self.prompt_tokens += tokens

    @property
    def previous_response(self) -> Any:
        """The response that this call goes on from, as the body names it."""
        return self.body.get(self.endpoint.continued_by) if self.endpoint.continued_by else None

    @property
    def can_be_continued(self) -> bool:
        """Whether a later call may name the answer to this one."""
        return bool(self.endpoint.continued_by) and self.body.get("store") is not False

    @property
    def takes_plain_text(self) -> bool:
        """Whether the answer may be a text as well as JSON."""
        return self.body.get("response_format") in self.endpoint.text_formats if self.endpoint.text_formats else False

    @property
    def injects_usage(self) -> bool:
        """Whether what is sent asks for the usage of a stream though the caller did not."""
        return self.stream and not self.wants_usage and self.endpoint.usage_must_be_requested

    @property
    def additions(self) -> frozenset[str]:
        """The fields that only we wrote, and without which the call can be sent as well."""
        own = {STREAM_OPTIONS} if self.injects_usage else set()
        if self.own_limit not in (None, WIDELY_KNOWN_LIMIT):
            own.add(self.own_limit)
        return frozenset(own)

    def encode(self, refused: frozenset[str] = frozenset()) -> bytes:
        """Return the body to send: usage is requested of every stream.

        What is refused of our additions is left out, and a limit written as most providers know it.
        """
        body = self.body
        if self.injects_usage and STREAM_OPTIONS not in refused:
            body = {**body, STREAM_OPTIONS: {**(body.get(STREAM_OPTIONS) or {}), "include_usage": True}}
        elif STREAM_OPTIONS in refused and not body.get(STREAM_OPTIONS):
            body = {name: value for name, value in body.items() if name != STREAM_OPTIONS}
        if self.own_limit in refused:
            limit = body[self.own_limit]
            body = {name: value for name, value in body.items() if name != self.own_limit} | {WIDELY_KNOWN_LIMIT: limit}
        return orjson.dumps(body)


def check(endpoint: Endpoint, body: dict[str, Any], model: str | None, settings: Settings) -> Call:
    """Check the fields that decide what a call costs, set what the settings demand, and leave all others alone.

    Raises InvalidRequest, naming the field.
    """
    reach = read_reach(body, settings.hosted_tools or ())
    if endpoint.continued_by:
        reach.items |= named_items(body.get("input"))
    if model is not None:
        body["model"] = model
    stream = endpoint.may_stream and bool(_of_type(body, "stream", bool, "a boolean"))
    options = _of_type(body, "stream_options", dict, "an object") or {}
    for name in endpoint.lists:
        _of_type(body, name, list, "an array")
    for refuse in endpoint.refusals:
        refuse(body)
    counts = {name: _whole_number(body, name, 0, MOST_CHOICES) or 1 for name in endpoint.choices}
    limits = [_whole_number(body, name, 0, MOST_OUTPUT_TOKENS) for name in endpoint.limits]
    given = [limit for limit in limits if limit is not None]
    prompts = endpoint.count_prompts(body) if endpoint.count_prompts else 1
    choices = prompts * max(counts.values(), default=1) if endpoint.limits else 0
    limit = max(given, default=settings.output_reserve_tokens)
    prompt = endpoint.read_prompt(body)
    call = Call(
        endpoint=endpoint,
        body=body,
        model=model or "",
        stream=stream,
        wants_usage=options.get("include_usage") is True,
        prompt_tokens=max(1, prompt.count()),  # so that a quota of 0 blocks what asks for nothing, too
        output_tokens=choices * limit,
        choices=choices,
        answers=prompts * counts.get("n", 1),
        reach=reach,
        echoes=counts.get("n", 1) if body.get("echo") is True else 0,
    )
    if endpoint.limits:
        _set_ceiling(call, given, settings.max_output_tokens)
    return call


def _set_ceiling(call: Call, given: list[int], ceiling: int | None) -> None:
    if ceiling is None or (given and max(given) <= ceiling):
        return
    call.limit_output(ceiling)
    call.output_tokens = call.choices * ceiling


def _of_type(body: Mapping[str, Any], name: str, kind: type, words: str) -> Any:
    value = body.get(name)
    if value is not None and not isinstance(value, kind):
        raise InvalidRequest(f"{name} is not {words}.", param=name)
    return value


def _whole_number(body: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = body.get(name)
    if value is not None and (type(value) is not int or not least <= value <= most):
        raise InvalidRequest(f"{name} is not a whole number from {least} to {most:,}.", param=name)
    return value
