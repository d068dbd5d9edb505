"""What the prompts of the endpoints beside chat count, and what is not text."""

import base64
import random

import pytest

from tokenrouter.metering.counting import count_tokens
from tokenrouter.metering.prompts import count_inputs, read_inputs, read_response_prompt


def counted(**body: object) -> int:
    return read_response_prompt(body).count()


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
    assert sorted(prompt.texts) == sorted(["nine", "one", "two", "three", "four", "five", "six", "seven", "eight"])
    assert prompt.flat_tokens == 3 + 4 * 8


def test_tools_and_the_schema_of_the_answer_count():
    schema = {"type": "object", "properties": {"a very special name": {"type": "string"}}}
    tools = [{"type": "function", "name": "weather", "parameters": schema}]
    text = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    assert counted(input="x", tools=tools) > counted(input="x") + 12 + 5
    assert counted(input="x", text=text) > counted(input="x") + 5


def png(width: int, height: int, padding: int = 0) -> str:
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x06\0\0\0"
    return base64.b64encode(header + bytes(padding)).decode()


def encoded(size: int) -> str:
    return base64.b64encode(random.Random(1).randbytes(size)).decode()


MOST_OF_A_PICTURE = 3779
PARTS = {
    "picture of unknown size": ({"type": "input_image", "image_url": "https://x/y.png"}, MOST_OF_A_PICTURE),
    "picture by its id": ({"type": "input_image", "detail": "high"}, MOST_OF_A_PICTURE),
    "large picture": (
        {"type": "input_image", "image_url": f"data:image/png;base64,{png(4000, 4000)}"},
        MOST_OF_A_PICTURE,
    ),
    "small picture": ({"type": "input_image", "image_url": f"data:image/png;base64,{png(64, 64)}"}, 10),
    "picture in a chat": ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png(64, 64)}"}}, 10),
    "picture with its source": (
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": png(64, 64, 90_000)}},
        10,
    ),
    "pictures in bare base64": ({"images": [png(64, 64, 900), png(64, 64, 900)]}, 20),
    "base64 in lines": ({"file_data": "\r\n".join([encoded(57)] * 100)}, 3000),
    "sound": ({"type": "input_audio", "input_audio": {"data": encoded(80_000), "format": "mp3"}}, 320),
    "plain sound": ({"type": "input_audio", "input_audio": {"data": encoded(480_000), "format": "wav"}}, 320),
    "sound elsewhere": ({"type": "audio_url", "audio_url": {"url": "https://x/y.mp3"}}, 1920),
    "video": ({"type": "input_video", "video": f"data:video/mp4;base64,{encoded(250_000)}"}, 600),
    "video elsewhere": ({"type": "video_url", "video_url": {"url": "https://x/y.mp4"}}, 9000),
    "file": ({"type": "input_file", "file_data": encoded(120_000), "filename": "a.pdf"}, 9000),
    "file in a chat": ({"type": "file", "file": {"filename": "a.pdf", "file_data": encoded(1000)}}, 3000),
    "file of text": ({"type": "input_file", "file_data": f"data:text/plain;base64,{encoded(4000)}"}, 1001),
}


@pytest.mark.parametrize("name", PARTS)
def test_what_is_no_text_counts_by_its_kind_and_size(name: str):
    part, tokens = PARTS[name]
    alone = counted(input=[{"role": "user", "content": []}])
    assert counted(input=[{"role": "user", "content": [part]}]) == pytest.approx(alone + tokens, abs=2)


def test_data_url_counts_by_its_kind_wherever_it_stands():
    url = f"data:image/png;base64,{png(64, 64, 300_000)}"
    plain = counted(input=[{"type": "code_interpreter_call", "code": "", "outputs": [{"type": "logs", "logs": ""}]}])
    for outputs in ([{"type": "image", "url": url}], [{"type": "unheard_of", "within": {"deep": url}}], url):
        assert counted(input=[{"type": "code_interpreter_call", "code": "", "outputs": outputs}]) == plain + 10


def test_document_that_is_sent_as_text_counts_its_text():
    source = {"type": "text", "media_type": "text/plain", "data": "one two three"}
    empty = {"type": "text", "media_type": "text/plain", "data": ""}
    without = counted(input=[{"role": "user", "content": [{"type": "document", "source": empty}]}])
    assert counted(input=[{"role": "user", "content": [{"type": "document", "source": source}]}]) == without + 3


def test_encrypted_reasoning_counts_a_token_for_eight_characters():
    item = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "encrypted_content": random.Random(1).randbytes(3000).hex(),
    }
    assert counted(input=[item]) == 3 + 4 + 6000 // 8


@pytest.mark.parametrize("value", [None, 5, 1.5, True, {}, [None], [[[]]], [{"type": 1}], {"type": ["x"]}])
def test_input_of_no_known_shape_breaks_nothing(value: object):
    assert counted(input=value, tools=None, text=value) < 100
    assert read_inputs("input")({"input": value}).count() < 100


INPUTS = [
    ("text", count_tokens("text")),
    (["text", "text"], 2 * count_tokens("text")),
    ([1, 2, 3], 3),
    ([[1, 2, 3], [4]], 4),
    ([], 0),
    (
        [{"type": "text", "text": "text"}, {"type": "image_url", "image_url": {"url": "https://x/y"}}],
        1 + MOST_OF_A_PICTURE,
    ),
    ([1, "text " * 100], 100),
]


@pytest.mark.parametrize(("value", "tokens"), INPUTS)
def test_inputs_count_their_texts_and_their_tokens(value: object, tokens: int):
    assert tokens <= read_inputs("input")({"input": value}).count() <= tokens + 2


PROMPTS = [(None, 1), ("a", 1), ([], 1), (["a"], 1), (["a", "b"], 2), ([1, 2], 1), ([[1], [2], [3]], 3), ({}, 1)]


@pytest.mark.parametrize(("value", "prompts"), PROMPTS)
def test_each_text_or_list_of_tokens_is_one_prompt(value: object, prompts: int):
    assert count_inputs("prompt")({"prompt": value}) == prompts
