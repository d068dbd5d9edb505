"""What the prompts of the endpoints beside chat count: at or above the truth, and not far above."""

import random

import pytest

from tokenrouter.metering.counting import count_tokens
from tokenrouter.metering.prompts import (
    AUDIO_TOKENS,
    FILE_TOKENS,
    IMAGE_TOKENS,
    count_inputs,
    read_inputs,
    read_response_prompt,
)

BASE64 = "QUJDREVGRw" * 50_000


def counted(**body: object) -> int:
    return read_response_prompt(body).count()


TEXT = "The quick brown fox jumps over the lazy dog. "
ENGLISH = TEXT * 30
CODE = "def answer(self, question: str) -> int:\n    return sum(map(len, question.split()))\n" * 12
CHINESE = "我们都是人类，应该互相帮助，共同建设一个更美好的世界。" * 15


@pytest.mark.parametrize("text", [ENGLISH, CODE, CHINESE], ids=["English", "code", "Chinese"])
def test_estimate_of_a_response_is_between_the_truth_and_its_double(text: str):
    truth = count_tokens([text]) + 3 + 3
    bodies = ({"input": text}, {"input": [{"role": "user", "content": [{"type": "input_text", "text": text}]}]})
    for body in bodies:
        assert truth <= read_response_prompt(body).estimate() <= 2 * truth


def test_every_text_of_a_response_counts():
    items = [
        {"type": "message", "role": "user", "content": "one"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "two"}]},
        {"type": "function_call", "name": "three", "arguments": "four", "call_id": "call_1"},
        {"type": "function_call_output", "call_id": "call_1", "output": "five"},
        {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "six"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "seven"}]},
        {"type": "unheard_of", "deep": {"within": ["eight"]}},
    ]
    prompt = read_response_prompt({"instructions": "nine", "input": items})
    assert prompt.texts == ["nine", "one", "two", "three", "four", "five", "six", "seven", "eight"]
    assert prompt.flat_tokens == 3 + 4 * 8


def test_tools_and_the_schema_of_the_answer_count():
    schema = {"type": "object", "properties": {"a very special name": {"type": "string"}}}
    tools = [{"type": "function", "name": "weather", "parameters": schema}]
    text = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    assert counted(input="x", tools=tools) > counted(input="x") + 12 + 5
    assert counted(input="x", text=text) > counted(input="x") + 5


PARTS = [
    ({"type": "input_image", "image_url": f"data:image/png;base64,{BASE64}"}, IMAGE_TOKENS),
    ({"type": "input_file", "file_data": BASE64, "filename": "a.pdf"}, FILE_TOKENS),
    ({"type": "input_audio", "input_audio": {"data": BASE64, "format": "mp3"}}, AUDIO_TOKENS),
]


@pytest.mark.parametrize(("part", "tokens"), PARTS)
def test_what_is_no_text_counts_a_flat_figure(part: dict[str, object], tokens: int):
    alone = counted(input=[{"role": "user", "content": []}])
    assert counted(input=[{"role": "user", "content": [part]}]) == alone + tokens
    screen = {"type": "computer_call_output", "output": {**part, "type": "computer_screenshot"}}
    assert counted(input=[screen]) == alone + IMAGE_TOKENS


def test_encrypted_reasoning_counts_as_what_it_may_hold():
    item = {"type": "reasoning", "encrypted_content": random.Random(1).randbytes(3000).hex()}
    assert counted(input=[item]) > 500


@pytest.mark.parametrize("value", [None, 5, 1.5, True, {}, [None], [[[]]], [{"type": 1}], {"type": ["x"]}])
def test_input_of_no_known_shape_breaks_nothing(value: object):
    assert counted(input=value, tools=None, text=value) < 100
    assert read_inputs("input")({"input": value}).count() < 100


INPUTS = [
    ("text", count_tokens(["text"])),
    (["text", "text"], 2 * count_tokens(["text"])),
    ([1, 2, 3], 3),
    ([[1, 2, 3], [4]], 4),
    ([], 0),
    ([{"type": "text", "text": "text"}, {"type": "image_url", "image_url": {"url": BASE64}}], 1 + IMAGE_TOKENS),
    ([1, "text " * 100], 100),
]


@pytest.mark.parametrize(("value", "tokens"), INPUTS)
def test_inputs_count_their_texts_and_their_tokens(value: object, tokens: int):
    assert tokens <= read_inputs("input")({"input": value}).count() <= tokens + 2


PROMPTS = [(None, 1), ("a", 1), ([], 1), (["a"], 1), (["a", "b"], 2), ([1, 2], 1), ([[1], [2], [3]], 3), ({}, 1)]


@pytest.mark.parametrize(("value", "prompts"), PROMPTS)
def test_prompts_are_those_that_are_answered_each(value: object, prompts: int):
    assert count_inputs("prompt")({"prompt": value}) == prompts
