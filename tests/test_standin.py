"""Check the stand-in provider: the other tests rely on its answers, its exact counts and its faults."""

import base64
import http.client
import json
import socket
import struct
import time
import zlib
from typing import Any

import pytest
from conftest import eventually
from rawhttp import chat_request, connect, read_all, read_until

from tokenrouter.standin import StandInProvider


@pytest.fixture
def provider():
    with StandInProvider() as running:
        yield running


@pytest.fixture
def sdk(provider, openai):
    with openai.OpenAI(api_key="any", base_url=provider.base_url, max_retries=0) as client:
        yield client


class Reply:
    """Hold a reply read to its end, and `broken` if the end never came."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.broken = response.status, response.headers, None
        try:
            self.body = response.read()
        except (http.client.IncompleteRead, ConnectionError) as error:
            self.body, self.broken = getattr(error, "partial", b""), type(error)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def datas(self) -> list[str]:
        return [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(data) for data in self.datas if data != "[DONE]"]


def asked(text: str = "Hello!", **more: Any) -> dict[str, Any]:
    return {"model": "GPT-5-nano", "messages": [{"role": "user", "content": text}], **more}


def call(provider: StandInProvider, body: Any = None, path: str = "chat/completions", method: str = "POST") -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", provider.port, timeout=5)
    try:
        headers = {"Content-Type": "application/json", "Authorization": "Bearer any"}
        connection.request(method, f"/v1/{path}", json.dumps(body) if body else None, headers)
        return Reply(connection.getresponse())
    finally:
        connection.close()


def stream(provider: StandInProvider, text: str = "Hello!", **more: Any) -> Reply:
    return call(provider, asked(text, stream=True, **more))


def open_call(provider: StandInProvider, body: dict[str, Any]) -> socket.socket:
    opened = connect(provider, 5)
    opened.sendall(chat_request("any", body))
    return opened


def raw(provider: StandInProvider, body: dict[str, Any]) -> bytes:
    """Return every byte of the answer until the provider closes; fail where it resets the connection."""
    with open_call(provider, body) as opened:
        return b"".join(iter(lambda: opened.recv(65536), b""))


# Answers


def test_stamped_pieces_tell_when_they_were_sent(provider: StandInProvider):
    before = time.monotonic_ns()
    reply = stream(provider, "[[stamp=1 words=2]]")
    stamps = [int(text[1:]) for event in reply.events if (text := event["choices"][0]["delta"].get("content"))]
    assert len(stamps) == 2
    assert before < stamps[0] <= stamps[1] < time.monotonic_ns()


def test_chat_answers_with_the_question_and_what_it_cost(provider, sdk):
    reply = sdk.chat.completions.create(**asked("Hello!"))
    assert "TokenRouter demo" in reply.choices[0].message.content
    assert "Hello!" in reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.prompt_tokens == 1 + 3 + 3
    assert reply.usage.completion_tokens == len(reply.choices[0].message.content.split())


def test_finished_holds_the_true_cost(provider, sdk):
    reply = sdk.chat.completions.create(**asked("[[words=7 prompt_tokens=100 usage=zero]]"))
    (served,) = provider.finished
    assert (served.response_id, served.model) == (reply.id, "GPT-5-nano")
    assert (served.prompt_tokens, served.completion_tokens, served.total_tokens) == (100, 7, 107)
    assert provider.tokens_served == 107


def test_calls_record_what_was_received(provider):
    call(provider, asked("[[words=1]]"))
    (recorded,) = provider.calls
    assert (recorded.method, recorded.path) == ("POST", "/v1/chat/completions")
    assert recorded.headers["authorization"] == "Bearer any"
    assert recorded.json == json.loads(recorded.body) == asked("[[words=1]]")


def test_a_stream_is_one_word_a_chunk_and_starts_with_the_role(provider):
    reply = stream(provider, "[[words=3]]")
    deltas = [event["choices"][0]["delta"] for event in reply.events]
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert deltas[0]["role"] == "assistant"
    assert [delta["content"] for delta in deltas[1:-1]] == ["This ", "is ", "the"]
    assert reply.events[-1]["choices"][0]["finish_reason"] == "stop"
    assert reply.datas[-1] == "[DONE]"


def test_a_stream_tells_usage_only_if_asked(provider, sdk):
    options = {"include_usage": True}
    asked_for = list(sdk.chat.completions.create(**asked("[[words=4]]", stream=True, stream_options=options)))
    assert asked_for[-1].choices == []
    assert asked_for[-1].usage.completion_tokens == 4
    assert not any("usage" in event for event in stream(provider, "[[words=4]]").events)


@pytest.mark.parametrize(
    ("limits", "length"), [({"max_tokens": 5}, 5), ({"max_tokens": 9, "max_completion_tokens": 4}, 4)]
)
def test_the_smaller_limit_ends_an_answer(provider, limits, length):
    reply = call(provider, asked("[[words=50]]", **limits)).json
    assert reply["usage"]["completion_tokens"] == length
    assert reply["choices"][0]["finish_reason"] == "length"


def test_choices_are_counted_together(provider):
    assert call(provider, asked("[[words=4]]", n=3)).json["usage"]["completion_tokens"] == 12
    indexes = {event["choices"][0]["index"] for event in stream(provider, "[[words=4]]", n=3).events}
    assert indexes == {0, 1, 2}


TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def test_a_tool_is_called(provider, sdk):
    reply = sdk.chat.completions.create(**asked(tools=[TOOL])).choices[0]
    (made,) = reply.message.tool_calls
    assert (made.function.name, json.loads(made.function.arguments)) == ("weather", {"city": "demo"})
    assert (reply.finish_reason, reply.message.content) == ("tool_calls", None)


def test_a_tool_call_is_streamed_in_pieces(provider):
    events = stream(provider, tools=[TOOL]).events
    calls = [event["choices"][0]["delta"]["tool_calls"][0] for event in events[:-1]]
    assert calls[0]["function"]["name"] == "weather"
    assert len(calls) > 2
    assert json.loads("".join(each["function"]["arguments"] for each in calls)) == {"city": "demo"}
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("more", [{"tool_choice": "none"}, {"messages": [{"role": "tool", "content": "sunny"}]}])
def test_no_tool_is_called_unasked(provider, more):
    assert call(provider, asked(tools=[TOOL]) | more).json["choices"][0]["message"]["content"]


def test_a_schema_is_met(provider):
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 6},
            "kind": {"enum": ["a", "b"]},
            "count": {"type": "integer", "minimum": 3},
            "is_good": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "number"}, "minItems": 2},
            "parent": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
        },
        "$defs": {
            "Node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}}}
        },
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}
    content = call(provider, asked(response_format=wanted)).json["choices"][0]["message"]["content"]
    met = {"name": "demooo", "kind": "a", "count": 3, "is_good": True, "tags": [0, 0], "parent": {"next": None}}
    assert json.loads(content) == met


def test_a_json_object_is_given(provider):
    reply = call(provider, asked(response_format={"type": "json_object"})).json
    assert "TokenRouter" in json.loads(reply["choices"][0]["message"]["content"])["answer"]


def test_legacy_completions_answer_each_prompt(provider, sdk):
    reply = sdk.completions.create(model="m", prompt=["Hi [[words=2]]", "you"])
    assert [choice.text for choice in reply.choices] == ["This is"] * 2
    events = list(sdk.completions.create(model="m", prompt=[1, 2, 3], stream=True, max_tokens=2))
    assert "".join(event.choices[0].text for event in events) == "This is "
    assert provider.finished[-1].prompt_tokens == 3


@pytest.mark.parametrize(
    ("given", "rows", "tokens"),
    [("four four four", 1, 3), (["some text", "more"], 2, 3), ([1, 2], 1, 2), ([[1, 2], [3]], 2, 3)],
)
def test_embeddings_take_text_and_tokens(provider, sdk, given, rows, tokens):
    reply = sdk.embeddings.create(model="m", input=given, dimensions=8)
    assert [len(row.embedding) for row in reply.data] == [8] * rows
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (tokens, tokens)


def test_embeddings_are_the_same_in_base64(provider):
    body = {"model": "m", "input": "x", "dimensions": 4}
    floats = call(provider, body, "embeddings").json["data"][0]["embedding"]
    packed = call(provider, body | {"encoding_format": "base64"}, "embeddings").json["data"][0]["embedding"]
    assert list(struct.unpack("<4f", base64.b64decode(packed))) == floats == [0.5] * 4


def test_models_are_listed(sdk, openai):
    assert "GPT-5-nano" in [model.id for model in sdk.models.list()]
    assert sdk.models.retrieve("Gemini-2.5-pro").id == "Gemini-2.5-pro"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        sdk.models.retrieve("unheard-of")


def test_headers_are_those_of_a_provider(provider):
    first, second = call(provider, asked()).headers, call(provider, asked()).headers
    assert first["x-request-id"] != second["x-request-id"]
    assert (first["openai-organization"], first["set-cookie"]) == ("org-demo", "provider=secret")
    assert first["x-ratelimit-remaining-tokens"] and first["openai-processing-ms"]


# Refusals


def test_a_wrong_key_is_refused_and_masked():
    with StandInProvider(api_key="sk-right-key") as provider:
        reply = call(provider, asked())
        assert (reply.status, reply.json["error"]["code"]) == (401, "invalid_api_key")
        assert b"any" not in reply.body
        provider.api_key = "any"
        assert call(provider, asked()).status == 200


def test_an_unknown_path_is_refused(provider):
    reply = call(provider, path="nowhere", method="GET")
    assert (reply.status, reply.json["error"]["code"]) == (404, "unknown_url")


@pytest.mark.parametrize("body", [{"model": "m"}, {"messages": []}, [1], asked(max_tokens="5"), asked(tools="t")])
def test_nonsense_is_refused(provider, body):
    assert call(provider, body).status == 400


@pytest.mark.parametrize("text", ["[[wrods=5]]", "[[words=five]]", "[[usage=funny]]", "[[delay=-1]]"])
def test_an_unknown_directive_is_refused(provider, text):
    reply = call(provider, asked(text))
    assert (reply.status, reply.json["error"]["code"]) == (400, "unknown_directive")


def test_other_double_brackets_are_text(provider):
    assert call(provider, asked("[[1, 2], [3]] and [[a link]]")).status == 200


# Directives


def test_a_directive_in_the_text_wins_over_the_defaults(provider):
    provider.defaults = {"words": "3", "status": "500"}
    reply = call(provider, asked("[[status=200]]")).json
    assert reply["usage"]["completion_tokens"] == 3
    assert call(provider, path="models", method="GET").status == 500


def test_directives_are_not_echoed(provider):
    content = call(provider, asked("Hi [[gap=0]] there")).json["choices"][0]["message"]["content"]
    assert '"Hi there"' in content


def test_an_answer_waits_as_asked(provider):
    started = time.monotonic()
    stream(provider, "[[words=1 delay=0.05 first=0.05 gap=0.05]]")
    assert 0.24 < time.monotonic() - started < 5


def test_an_error_is_worded_as_asked(provider):
    reply = call(provider, asked("[[status=429 code=slow type=limit message=Not_so_fast retry_after=7]]"))
    assert (reply.status, reply.headers["retry-after"]) == (429, "7")
    assert reply.json == {"error": {"message": "Not so fast", "type": "limit", "param": None, "code": "slow"}}


@pytest.mark.parametrize(
    ("kind", "start"), [("html", b"<!DOCTYPE"), ("text", b"upstream"), ("empty", b""), ("json", b'{"detail"')]
)
def test_an_error_may_have_a_strange_body(provider, kind, start):
    assert call(provider, asked(f"[[status=503 body={kind}]]")).status == 503
    reply = call(provider, asked(f"[[status=200 body={kind}]]"))
    assert reply.status == 200
    assert reply.body.startswith(start) and bool(reply.body) == bool(start)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("zero", {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}),
        ("negative", {"prompt_tokens": -9, "completion_tokens": -2, "total_tokens": -11}),
        ("absurd", {"prompt_tokens": 675947905, "completion_tokens": 2, "total_tokens": 675947907}),
        ("string", {"prompt_tokens": "9", "completion_tokens": "2", "total_tokens": "11"}),
        ("float", {"prompt_tokens": 9.5, "completion_tokens": 2.5, "total_tokens": 11.5}),
        ("null", None),
        ("total_only", {"total_tokens": 11}),
        ("no_total", {"prompt_tokens": 9, "completion_tokens": 2}),
        ("mismatch", {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 18}),
    ],
)
def test_usage_is_wrong_as_directed(provider, kind, told):
    text = f"[[words=2 prompt_tokens=9 usage={kind}]]"
    assert call(provider, asked(text)).json["usage"] == told
    assert stream(provider, text, stream_options={"include_usage": True}).events[-1]["usage"] == told
    assert {served.total_tokens for served in provider.finished} == {11}


def test_usage_none_is_absent_even_where_asked(provider):
    assert "usage" not in call(provider, asked("[[usage=none]]")).json
    events = stream(provider, "[[usage=none]]", stream_options={"include_usage": True}).events
    assert not any("usage" in event for event in events)


def test_usage_every_grows_to_the_truth(provider):
    events = stream(provider, "[[words=3 usage=every]]").events
    assert [event["usage"]["completion_tokens"] for event in events] == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("how", ["cut=2", "half_chunk=2", "reset=2"])
def test_a_stream_breaks_off(provider, how):
    reply = stream(provider, f"[[{how} gap=0.02]]")
    assert reply.broken in (http.client.IncompleteRead, ConnectionResetError)
    assert provider.finished == []
    assert provider.aborted == 0


def test_a_cut_stream_sent_the_events_before_the_cut(provider):
    assert raw(provider, asked("[[cut=2]]", stream=True)).count(b"data: ") == 2
    half = raw(provider, asked("[[half_chunk=2]]", stream=True))
    assert half.count(b"data: ") == 3
    assert not half.endswith(b"\n")


def test_a_cut_json_answer_promised_all(provider):
    reply = call(provider, asked("[[cut=10]]"))
    assert reply.broken is http.client.IncompleteRead
    assert len(reply.body) == 10 < int(reply.headers["content-length"])


def test_a_reset_reaches_the_client(provider):
    with pytest.raises(ConnectionResetError):
        raw(provider, asked("[[reset=1]]", stream=True))


@pytest.mark.parametrize("how", ["silent=1", "hang=1"])
def test_silence_lasts_until_the_client_leaves(provider, how):
    with open_call(provider, asked(f"[[{how}]]", stream=True)) as opened:
        opened.settimeout(0.1)
        with pytest.raises(TimeoutError):
            while True:
                assert opened.recv(65536)
        assert provider.open_connections == 1
    assert eventually(lambda: provider.open_connections == 0)
    assert provider.aborted == 1


def test_a_dropped_call_gets_no_byte(provider):
    assert raw(provider, asked("[[drop=1]]")) == b""


def test_an_error_event_ends_a_stream(provider):
    reply = stream(provider, "[[error_event=2]]")
    assert len(reply.datas) == 3
    assert reply.events[-1]["error"]["type"] == "server_error"
    assert provider.finished == []


def test_stream_may_end_without_done(provider):
    assert "[DONE]" not in stream(provider, "[[done=no]]").datas
    assert len(provider.finished) == 1


@pytest.mark.parametrize(("name", "newline"), [("lf", b"\n"), ("crlf", b"\r\n"), ("cr", b"\r")])
def test_line_ends_of_a_stream_are_as_directed(provider, name, newline):
    assert stream(provider, f"[[newline={name}]]").body.endswith(b"data: [DONE]" + newline * 2)


def test_optional_parts_of_events_are_as_directed(provider):
    body = stream(provider, "[[space=no comments=1 event_names=1]]").body
    assert body.endswith(b": ping\n\nevent:message\ndata:[DONE]\n\n")


def test_close_framing_ends_with_the_connection(provider):
    for body in (asked("[[framing=close]]"), asked("[[framing=close]]", stream=True)):
        head, _, sent = raw(provider, body).partition(b"\r\n\r\n")
        assert b"content-length" not in head and b"transfer-encoding" not in head
        assert sent.startswith((b"data: {", b'{"id"'))
    assert len(provider.finished) == 2


def test_close_framing_ends_once_with_a_client_that_reads_late(provider, caplog):
    with connect(provider) as connection:
        connection.sendall(chat_request(provider.api_key, {"model": "x", **asked("[[big=9000000 framing=close]]")}))
        time.sleep(0.2)
        assert len(read_all(connection)) > 9_000_000
    assert eventually(lambda: not provider.connections)
    assert caplog.messages == []


def test_a_json_answer_may_be_chunked(provider):
    reply = call(provider, asked("[[framing=chunked]]"))
    assert reply.headers["transfer-encoding"] == "chunked"
    assert reply.json["choices"]


def http_chunks(body: bytes) -> list[bytes]:
    found = []
    while size := int(body[: body.index(b"\r\n")], 16):
        start = body.index(b"\r\n") + 2
        found.append(body[start : start + size])
        body = body[start + size + 2 :]
    return found


def test_split_framing_cuts_inside_characters(provider):
    text = "[[framing=split unicode=1]]"
    with open_call(provider, asked(text, stream=True)) as opened:
        received = b""
        while not received.endswith(b"\r\n0\r\n\r\n"):
            received += opened.recv(65536)
    chunks = http_chunks(received.partition(b"\r\n\r\n")[2])
    assert {len(chunk) for chunk in chunks} == {1, 2, 3, 4, 5, 6, 7}
    assert any("\ufffd" in chunk.decode(errors="replace") for chunk in chunks)
    assert "漢字" in b"".join(chunks).decode()
    assert call(provider, asked(text)).json["choices"][0]["message"]["content"].startswith("漢字")


def test_an_event_may_be_big(provider):
    assert max(map(len, stream(provider, "[[big=300000]]").datas)) > 300000


def test_a_burst_holds_all_events(provider):
    reply = stream(provider, "[[burst=1 gap=5]]")
    assert reply.datas[-1] == "[DONE]"


def test_the_content_type_is_as_asked(provider):
    assert call(provider, asked("[[content_type=text/html]]")).headers["content-type"] == "text/html"


def test_a_stream_request_may_get_plain_json(provider):
    assert stream(provider, "[[json_for_stream=1]]").json["object"] == "chat.completion"


def test_answer_may_be_compressed_and_says_so(provider):
    for more in ({}, {"stream": True}):
        reply = call(provider, asked("[[gzip=1]]", **more))
        assert reply.headers["content-encoding"] == "gzip"
        assert b"TokenRouter" in zlib.decompress(reply.body, wbits=31)


def test_a_redirect_names_its_target(provider):
    reply = call(provider, asked("[[redirect=http://127.0.0.1:1/x?a=b]]"))
    assert (reply.status, reply.headers["location"]) == (307, "http://127.0.0.1:1/x?a=b")


def test_the_length_may_be_wrong(provider):
    assert call(provider, asked("[[length=+5]]")).broken is http.client.IncompleteRead
    with pytest.raises(ValueError):
        call(provider, asked("[[length=-5]]")).json  # noqa: B018


def test_stream_options_may_be_refused(provider):
    reply = stream(provider, "[[refuse_stream_options=1]]", stream_options={"include_usage": True})
    assert (reply.status, reply.json["error"]["param"]) == (400, "stream_options")
    assert stream(provider, "[[refuse_stream_options=1]]").status == 200


def test_embeddings_have_faults_too(provider):
    body = {"model": "m", "input": "[[usage=none]]"}
    assert "usage" not in call(provider, body, "embeddings").json
    assert call(provider, body | {"input": ["a", "[[status=503]]"]}, "embeddings").status == 503


# Connections


def test_a_connection_is_kept_and_pipelined(provider):
    with connect(provider, 5) as opened:
        opened.sendall(chat_request("any", asked("[[words=1]]")) * 3)
        read_until(opened, b"finish_reason", times=3)
        assert provider.open_connections == 1
    assert len(provider.finished) == 3


def test_a_chunked_request_is_read(provider):
    data = json.dumps(asked("[[words=1]]")).encode()
    connection = http.client.HTTPConnection("127.0.0.1", provider.port, timeout=5)
    connection.request("POST", "/v1/chat/completions", iter([data[:9], data[9:]]), encode_chunked=True)
    assert Reply(connection.getresponse()).json["usage"]["completion_tokens"] == 1
    connection.close()
    assert provider.calls[0].body == data


def test_a_request_may_arrive_byte_by_byte(provider):
    with connect(provider, 5) as opened:
        for byte in chat_request("any", asked("[[words=1 framing=close]]")):
            opened.sendall(bytes([byte]))
        assert b"200 OK" in opened.recv(65536)


def test_idle_connections_are_closed_on_demand(provider):
    with open_call(provider, asked()) as idle, open_call(provider, asked("[[silent=1]]")) as busy:
        assert idle.recv(65536)
        assert eventually(lambda: len(provider.calls) == 2)
        provider.close_idle()
        assert idle.recv(1) == b""
        assert provider.open_connections == 1
        assert busy.fileno() >= 0


def test_a_client_that_leaves_is_counted(provider):
    with open_call(provider, asked("[[words=50 gap=0.05]]", stream=True)) as opened:
        assert opened.recv(10)
    assert eventually(lambda: provider.aborted == 1)
    assert provider.finished == []


def test_an_answer_that_nobody_reads_is_not_finished(provider):
    with open_call(provider, asked("[[big=50000000]]")) as opened:
        assert opened.recv(10)
    assert eventually(lambda: provider.aborted == 1)
    assert provider.finished == []


def test_stop_closes_everything_and_start_reuses_the_port(provider):
    opened = open_call(provider, asked("[[words=500 gap=0.05]]", stream=True))
    assert opened.recv(10)
    provider.stop()
    with opened, pytest.raises(ConnectionRefusedError):
        connect(provider, 5)
    assert (provider.open_connections, provider.aborted) == (0, 0)
    provider.start()
    assert call(provider, asked()).status == 200


def test_many_streams_run_at_once(provider):
    started = time.monotonic()
    opened = [open_call(provider, asked("[[words=10 gap=0.05 framing=close]]", stream=True)) for _ in range(200)]
    for each in opened:
        with each:
            while each.recv(65536):
                pass
    assert time.monotonic() - started < 30  # of a hundred
    assert len(provider.finished) == 200


# The other endpoints


def respond(provider: StandInProvider, text: str = "Hello!", **more: Any) -> Reply:
    return call(provider, {"model": "GPT-5-nano", "input": text, **more}, "responses")


def test_events_of_a_response_name_their_type_twice_and_no_done_ends_them(provider):
    reply = respond(provider, stream=True)
    names = [line[7:] for line in reply.body.decode().split("\n") if line.startswith("event: ")]
    assert names == [event["type"] for event in reply.events]
    assert (names[0], names[-1]) == ("response.created", "response.completed")
    assert b"[DONE]" not in reply.body


@pytest.mark.parametrize(("directive", "last"), [("failed=3", "response.failed"), ("error_event=3", "error")])
def test_a_response_may_fail_after_some_events(provider, directive: str, last: str):
    reply = respond(provider, f"[[{directive}]]", stream=True)
    assert [event["type"] for event in reply.events][3:] == [last]
    assert provider.finished == []


def test_a_response_is_counted_by_input_and_output(provider):
    usage = respond(provider, "[[words=3 prompt_tokens=5]]").json["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (5, 3, 8)
    assert provider.tokens_served == 8


@pytest.mark.parametrize("usage", ["none", "null"])
def test_usage_of_a_response_may_be_missing(provider, usage: str):
    assert respond(provider, f"[[usage={usage}]]").json.get("usage") is None


def test_a_form_without_a_file_is_refused(sdk, openai):
    with pytest.raises(openai.APIStatusError) as caught:
        sdk.post("/audio/transcriptions", body={"model": "GPT-5-nano"}, cast_to=object)
    assert caught.value.status_code == 400


def test_a_transcription_may_report_its_duration(sdk):
    file = ("a.mp3", b"sound")
    answer = sdk.audio.transcriptions.create(model="GPT-5-nano", file=file, prompt="[[usage=duration]]")
    assert (answer.usage.type, answer.usage.seconds) == ("duration", 9)


def test_speech_has_a_piece_for_each_word_and_its_faults(provider):
    body = {"model": "GPT-5-nano", "voice": "alloy"}
    assert len(call(provider, {**body, "input": "[[words=3]]"}, "audio/speech").body) == 3 * 1024
    broken = call(provider, {**body, "input": "[[words=3 cut=2]]"}, "audio/speech")
    assert (len(broken.body), broken.broken) == (2 * 1024, http.client.IncompleteRead)
