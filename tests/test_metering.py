"""Usage as reported, prompts as estimated and counted, streams as watched, and the one decision about a quota."""

import itertools
import json
from datetime import UTC, datetime

import pytest

from tokenrouter.errors import QuotaExceeded, QuotaReserved
from tokenrouter.ledger.rules import Balance, CallRequest, Grant, decide
from tokenrouter.metering.counting import count_tokens
from tokenrouter.metering.meter import StreamState
from tokenrouter.metering.prompts import read_chat_prompt
from tokenrouter.metering.streams import StreamMeter
from tokenrouter.metering.texts import answer_texts
from tokenrouter.metering.usage import Usage, read_usage

# Usage


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}, Usage(5, 3, 8)),
        ({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 20}, Usage(5, 3, 20)),
        ({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 1}, Usage(5, 3, 1)),
        ({"prompt_tokens": 5, "completion_tokens": 3}, Usage(5, 3, 8)),
        ({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": None}, Usage(5, 3, 8)),
        ({"prompt_tokens": 5, "total_tokens": 5}, Usage(5, 0, 5)),
        ({"total_tokens": 8}, Usage(0, 0, 8)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Usage(0, 0, 0)),
        ({"total_tokens": 8, "prompt_tokens_details": {"cached_tokens": -1}, "cost": "x"}, Usage(0, 0, 8)),
    ],
)
def test_usage_is_what_is_reported(usage: dict, expected: Usage):
    assert read_usage({"usage": usage}) == expected


LIES = [-1, 10**9, 10**30, "8", 8.0, 8.5, True, [8], {"total": 8}, float("inf")]


@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens", "total_tokens"])
@pytest.mark.parametrize("lie", LIES)
def test_usage_with_one_lie_in_it_is_no_usage(field: str, lie: object):
    assert read_usage({"usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, field: lie}}) is None


@pytest.mark.parametrize(
    "document",
    [None, [], "usage", 7, {}, *({"usage": usage} for usage in (None, {}, [], 8, "8", True, {"tokens": 8}))],
)
def test_document_without_usage_has_none(document: object):
    assert read_usage(document) is None


# Prompts


def chat(*contents: object, **fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content} for content in contents], **fields}


def flat(*contents: object) -> int:
    return read_chat_prompt(chat(*contents)).count() - read_chat_prompt(chat([])).count()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}},
        {"type": "input_audio", "input_audio": {"format": "wav", "data": ""}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": ""}},
    ],
)
def test_picture_sound_and_file_cost_the_same_however_long(part: dict):
    (inner,) = (part[key] for key in part if key != "type")
    long = {**part, part["type"]: {**inner, "url": "A" * 10**6, "data": "A" * 10**6, "file_data": "A" * 10**6}}
    assert flat([part]) == flat([long]) > 500
    assert flat([part, long]) == 2 * flat([part])
    assert read_chat_prompt(chat([long])).estimate() == read_chat_prompt(chat([part])).estimate()


def test_message_costs_as_openai_says():
    """Source: OpenAI's cookbook: three a message, its role, its content, and three before the answer."""
    assert read_chat_prompt(chat("Hello!")).count() == 3 + 1 + count_tokens(["Hello!"]) + 3
    assert read_chat_prompt(chat("Hello!", "Hello!")).count() == 2 * (3 + 1 + count_tokens(["Hello!"])) + 3


def test_text_parts_cost_what_their_text_costs():
    parts = [{"type": "text", "text": "Hello!"}, {"type": "refusal", "refusal": "No."}]
    assert flat(parts) == count_tokens(["Hello!", "No."])


def test_name_costs_its_text_and_one_more():
    named = {"messages": [{"role": "user", "content": "", "name": "Beatrice"}]}
    assert read_chat_prompt(named).count() - read_chat_prompt(chat("")).count() == 1 + count_tokens(["Beatrice"])


TOOL = {"type": "function", "function": {"name": "find_book", "description": "Find a book.", "parameters": {}}}


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL]},
        {"functions": [TOOL["function"]]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "a book to be found"}}}},
    ],
)
def test_tools_and_schemas_cost_at_least_their_text(fields: dict):
    assert read_chat_prompt(chat("", **fields)).count() >= read_chat_prompt(chat("")).count() + 8


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"a": "a book"}'}}]},
        {"function_call": {"name": "find", "arguments": '{"a": "a book"}'}},
    ],
)
def test_calls_of_functions_cost_their_name_and_arguments(message: dict):
    body = {"messages": [{"role": "assistant", "content": None, **message}]}
    assert read_chat_prompt(body).count() >= read_chat_prompt(chat("")).count() + count_tokens(
        ["find", '{"a": "a book"}']
    )


ODD = [None, True, 0, -1.5, "text", [], {}, [None], [[]], [{}], {"type": "text"}, [{"type": 7, "text": 7}], [[[{}]]]]
FIELDS = ["messages", "tools", "functions", "response_format", "tool_choice"]
MESSAGE_FIELDS = ["content", "name", "role", "tool_calls", "function_call"]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_unknown_shapes_never_raise(odd: object):
    bodies = [{field: odd} for field in FIELDS]
    bodies += [{"messages": [odd, {field: odd}, {field: [odd]}]} for field in MESSAGE_FIELDS]
    bodies += [{"messages": [{"tool_calls": [{"function": odd}], "function_call": {"name": odd, "arguments": odd}}]}]
    bodies += [{"messages": [{"content": [{"type": kind, kind: odd, "text": odd}]}]} for kind in ("image_url", "text")]
    for body in bodies:
        prompt = read_chat_prompt(body)
        assert prompt.estimate() >= prompt.count() >= 0


ENGLISH = "The clerk placed the invoice on the desk and waited twenty minutes for an answer. "
CODE = "def load(path: str) -> int:\n    with open(path) as handle:\n        return len(handle.read()) + 7\n\n"
CJK = "他昨天在图书馆里看了七页书，然后和朋友一起去公园散步。"
CHATS = {
    "one long message": chat(ENGLISH * 40),
    "twenty messages": chat(*[ENGLISH] * 20),
    "a hundred short messages": chat(*["Yes, please.", "Which one?"] * 50),
    "a hundred messages of one word": chat(*["Yes", "No"] * 50),
    "code": chat(*[CODE * 4] * 5),
    "chinese": chat(*[CJK * 3] * 8),
    "text parts": chat(*[[{"type": "text", "text": ENGLISH}] * 3] * 6),
    "short text parts": chat([{"type": "text", "text": word + " "} for word in ENGLISH.split()] * 20),
    "names": {"messages": [{"role": "user", "name": "Bea", "content": "Yes, please."}] * 60},
    "tools": chat(ENGLISH, tools=[{**TOOL, "description": ENGLISH}] * 8),
    "picture": chat([{"type": "text", "text": ENGLISH * 4}, {"type": "image_url", "image_url": {"url": "A" * 10**5}}]),
}


@pytest.mark.parametrize("name", CHATS)
def test_estimate_of_a_chat_lies_between_its_count_and_twice_that(name: str):
    prompt = read_chat_prompt(CHATS[name])
    assert prompt.count() > 200
    assert prompt.count() <= prompt.estimate() <= 2 * prompt.count()


# Answers and streams


def test_every_text_of_an_answer_is_counted():
    call = {"function": {"name": "find", "arguments": "{}"}}
    message = {"content": "a", "reasoning_content": "b", "refusal": "c", "tool_calls": [call], "audio": None}
    assert answer_texts({"choices": [{"message": message}, {"delta": {"content": "d"}}, {"text": "e"}, None]}) == [
        *"abc",
        "find",
        "{}",
        *"de",
    ]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_answers_of_unknown_shape_never_raise(odd: object):
    documents = [odd, {"choices": odd}, {"choices": [odd]}, {"choices": [{"delta": odd, "message": odd, "text": odd}]}]
    documents += [{"choices": [{"delta": {"content": odd, "tool_calls": odd}}], "usage": odd, "error": odd}]
    for document in documents:
        assert isinstance(answer_texts(document), list)
        StreamMeter().read(event(document))


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def delta(content: str, **fields: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": content}, **fields}]})


USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def test_meter_counts_what_arrived():
    meter = StreamMeter()
    words = ["This ", "is ", "counted ", "as ", "one ", "text."]
    for word in words:
        assert meter.read(delta(word)) is False
    assert meter.completion_tokens() == count_tokens(["".join(words)])
    assert (meter.state, meter.is_whole(1), meter.usage) == (StreamState.ANSWERING, False, None)


def test_meter_estimates_only_what_is_new_and_never_less_than_the_count():
    meter, estimates = StreamMeter(), [0]
    for _ in range(20):
        meter.read(delta(ENGLISH))
        estimates.append(meter.estimated_tokens())
    assert estimates == sorted(estimates) and meter.estimated_tokens() == estimates[-1]
    assert estimates[-1] >= meter.completion_tokens()


@pytest.mark.parametrize(
    ("document", "is_extra"),
    [
        ({"choices": [], "usage": USAGE}, True),
        ({"choices": [], "usage": {}}, True),
        ({"choices": [], "usage": None}, False),
        ({"choices": []}, False),
        ({"choices": [], "prompt_filter_results": [{}]}, False),
        ({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": USAGE}, False),
        ({"usage": USAGE}, False),
        ({"choices": None, "usage": USAGE}, False),
    ],
)
def test_only_an_event_with_no_choices_and_a_usage_is_extra(document: dict, is_extra: bool):
    assert StreamMeter().read(event(document)) is is_extra


def test_last_usage_that_can_be_believed_counts():
    meter = StreamMeter()
    for usage in (USAGE, {**USAGE, "total_tokens": 9}, {"total_tokens": -1}, None):
        meter.read(event({"choices": [{"delta": {}}], "usage": usage}))
    assert meter.usage == Usage(5, 3, 9)


@pytest.mark.parametrize("done", [b"data: [DONE]\n\n", b"data:[DONE]\r\n\r\n", b"event: x\ndata: [DONE] \n\n"])
def test_done_ends_a_stream(done: bytes):
    meter = StreamMeter()
    meter.read(done)
    assert meter.state is StreamState.WHOLE


@pytest.mark.parametrize(("before", "state"), [([], StreamState.REFUSED), ([delta("A")], StreamState.BROKEN)])
def test_error_ends_a_stream(before: list[bytes], state: StreamState):
    meter = StreamMeter()
    for each in (*before, event({"error": {"message": "No."}})):
        meter.read(each)
    assert meter.state is state and state.has_ended and state.has_failed


@pytest.mark.parametrize(
    "data", [b": ping\n\n", b"\n\n", b"data: {\n\n", b"data: 7\n\n", b"data: \xff\n\n", b"id: 1\n\n"]
)
def test_what_is_no_json_is_no_answer_and_no_end(data: bytes):
    meter = StreamMeter()
    assert meter.read(data) is False
    assert (meter.state, meter.completion_tokens()) == (StreamState.WAITING, 0)


def test_reason_why_a_choice_ended_finishes_a_stream():
    meter = StreamMeter()
    meter.read(delta("", finish_reason=None))
    assert not meter.is_whole(1)
    meter.read(delta("", finish_reason="length"))
    assert (meter.is_whole(1), meter.is_whole(2), meter.state.has_ended) == (True, False, False)


# The decision about a quota

QUOTAS = [None, 0, 1, 15, 16, 17, 31, 40, 100, 1000, 1024, 1100, 5000]
USES = [0, 1, 20, 990, 6000]
HOLDS = [0, 1, 30, 500]
PROMPTS = [0, 1, 16, 60]
OUTPUTS = [(0, 0), (1, 1), (1, 16), (1, 50), (1, 1024), (3, 3), (3, 48), (3, 3072), (128, 131072)]
RESERVES = [128, 1024]


def contract(quota: int | None, used: int, held: int, prompt: int, output: int, choices: int, reserve: int) -> object:
    """Decide by the words of the contract alone: the tokens to hold and the limit, or the code of the refusal."""
    if quota is None:
        return prompt + output, None
    left = quota - used - held
    if prompt + output <= left:
        return prompt + output, None
    # "each choice limited to": an endpoint without text output has no choice to limit
    is_worth_it = left - prompt >= reserve or (held == 0 and left - prompt >= 16 * choices)
    if choices and is_worth_it:
        return left, (left - prompt) // choices
    return "quota_reserved" if held and quota - used - prompt >= 16 * choices else "insufficient_quota"


def decided(quota: int | None, used: int, held: int, prompt: int, output: int, choices: int, reserve: int) -> object:
    call_request = CallRequest(
        request_id="r",
        team_id=1,
        team_name="t",
        token_id=1,
        token_prefix="tr-12345",
        model="m",
        endpoint="/v1/chat/completions",
        stream=False,
        created_at=datetime.now(UTC),
        prompt_tokens=prompt,
        output_tokens=output,
        choices=choices,
    )
    try:
        grant: Grant = decide(Balance(quota, used, held), call_request, reserve)
    except (QuotaExceeded, QuotaReserved) as refusal:
        return refusal.code
    return grant.held_tokens, grant.output_limit


@pytest.mark.parametrize("quota", QUOTAS)
def test_quota_is_decided_as_the_contract_says(quota: int | None):
    cases = itertools.product(USES, HOLDS, PROMPTS, OUTPUTS, RESERVES)
    for used, held, prompt, (choices, output), reserve in cases:
        case = (quota, used, held, prompt, output, choices, reserve)
        assert (case, decided(*case)) == (case, contract(*case))


@pytest.mark.parametrize("quota", QUOTAS[1:])
def test_no_grant_holds_more_than_is_left_or_limits_to_more_than_was_asked(quota: int):
    for used, held, prompt, (choices, output), reserve in itertools.product(USES, HOLDS, PROMPTS, OUTPUTS, RESERVES):
        match decided(quota, used, held, prompt, output, choices, reserve):
            case tokens, limit:
                assert tokens <= quota - used - held
                assert limit is None or 0 < limit * choices < output
