"""Every endpoint by the official SDK, through a real gunicorn: answered, streamed, and booked as it was served."""

import base64
import io
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests
from conftest import Server
from serving import running_service

from tokenrouter.standin import StandInProvider

pytestmark = pytest.mark.slow

MODEL = "GPT-5-nano"
STILL_SERVED = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the SDK advises against them
WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@dataclass
class Service:
    """A gunicorn for all tests of this file, its provider, and a caller of it."""

    server: Server
    provider: StandInProvider
    client: Any
    database: Path

    def newest(self) -> sqlite3.Row:
        """Return the newest row of the log."""
        with closing(sqlite3.connect(self.database)) as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute("SELECT * FROM request_logs ORDER BY id DESC").fetchone()

    def assert_booked(self, endpoint: str, source: str) -> None:
        row, served = self.newest(), self.provider.finished[-1]
        assert (row["endpoint"], row["status"], row["model"]) == (endpoint, "ok", MODEL)
        assert (row["charged_tokens"], row["usage_source"]) == (served.total_tokens, source)
        assert (row["prompt_tokens"], row["completion_tokens"]) == (served.prompt_tokens, served.completion_tokens)


@pytest.fixture(scope="module")
def service(openai: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("endpoints")
    with running_service(folder, WEB_CONCURRENCY="1") as running:
        token = running.server.create_team("sdk", 1_000_000)
        with openai.OpenAI(api_key=token, base_url=f"{running.server.url}/v1", max_retries=0) as client:
            yield Service(running.server, running.provider, client, folder / "tokenrouter.db")


@pytest.fixture
def client(service: Service) -> Any:
    return service.client


def picture() -> tuple[str, bytes]:
    return "picture.png", b"\x89PNG and so on"


def recording() -> tuple[str, bytes]:
    return "recording.mp3", bytes(1000)


# Texts


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_are_each_completed_as_often_as_asked(service: Service, client: Any, stream: bool):
    answer = client.completions.create(model=MODEL, prompt=["One", "Two"], n=2, max_tokens=5, stream=stream)
    chunks = list(answer) if stream else [answer]
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1, 2, 3}
    assert "This is the" in "".join(choice.text for chunk in chunks for choice in chunk.choices if choice.index == 0)
    service.assert_booked("/v1/completions", "provider")


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_texts_become_vectors_in_either_encoding(service: Service, client: Any, encoding: str):
    answer = client.embeddings.create(model=MODEL, input=["One", "Two"], dimensions=8, encoding_format=encoding)
    assert len(answer.data) == 2
    service.assert_booked("/v1/embeddings", "provider")


def test_texts_are_moderated(service: Service, client: Any):
    assert [result.flagged for result in client.moderations.create(model=MODEL, input=["One", "Two"]).results] == [0, 0]
    service.assert_booked("/v1/moderations", "none")


# Responses


def test_response_is_answered(service: Service, client: Any):
    answer = client.responses.create(model=MODEL, input="Hello!", instructions="Be brief.")
    assert "TokenRouter demo" in answer.output_text
    assert answer.usage.total_tokens == service.provider.finished[-1].total_tokens
    service.assert_booked("/v1/responses", "provider")


def test_response_without_a_model_is_the_default_models(service: Service, client: Any):
    assert client.responses.create(input="Hello!").model == MODEL


def test_streamed_response_is_told_by_typed_events(service: Service, client: Any):
    events = list(client.responses.create(model=MODEL, input="Hello!", stream=True))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    service.assert_booked("/v1/responses", "provider")


def test_streamed_response_is_put_together_by_the_sdks_helper(client: Any):
    with client.responses.stream(model=MODEL, input="Hello!") as stream:
        assert "TokenRouter demo" in stream.get_final_response().output_text


def test_response_that_reaches_its_limit_is_incomplete(service: Service, client: Any):
    *_, last = client.responses.create(model=MODEL, input="Hello!", max_output_tokens=3, stream=True)
    assert (last.type, last.response.usage.output_tokens) == ("response.incomplete", 3)
    service.assert_booked("/v1/responses", "provider")


def test_response_calls_a_tool_and_goes_on_from_its_output(service: Service, client: Any):
    first = client.responses.create(model=MODEL, input="What is the weather?", tools=[WEATHER])
    (call,) = first.output
    assert (call.type, call.name) == ("function_call", "weather")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain"}
    second = client.responses.create(model=MODEL, input=[output], previous_response_id=first.id, tools=[WEATHER])
    assert "TokenRouter demo" in second.output_text
    assert service.provider.calls[-1].json["previous_response_id"] == first.id


def test_streamed_response_can_be_gone_on_from(client: Any):
    *_, last = client.responses.create(model=MODEL, input="Hello!", stream=True)
    assert client.responses.create(model=MODEL, input="And?", previous_response_id=last.response.id).output_text


def test_structured_response_is_parsed(client: Any):
    from pydantic import BaseModel  # it comes with the SDK

    class Answer(BaseModel):
        city: str
        degrees: float

    answer = client.responses.parse(model=MODEL, input="Hello!", text_format=Answer)
    assert isinstance(answer.output_parsed, Answer)


def test_response_that_fails_on_its_way_tells_so(service: Service, client: Any):
    *_, last = client.responses.create(model=MODEL, input="[[failed=6 code=server_error]]", stream=True)
    assert (last.type, last.response.error.code) == ("response.failed", "server_error")
    assert service.newest()["status"] == "provider_error"


# Images


@pytest.mark.parametrize("usage", ["", "[[usage=none]]"])
def test_images_are_made(service: Service, client: Any, usage: str):
    answer = client.images.generate(model=MODEL, prompt=f"A cat {usage}", n=2)
    assert [base64.b64decode(image.b64_json)[1:4] for image in answer.data] == [b"PNG", b"PNG"]
    service.assert_booked("/v1/images/generations", "none" if usage else "provider")


def test_images_are_streamed_bit_by_bit(service: Service, client: Any):
    events = list(client.images.generate(model=MODEL, prompt="A cat", stream=True, partial_images=2))
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image", "partial_image", "completed"]
    service.assert_booked("/v1/images/generations", "provider")


def test_images_are_edited(service: Service, client: Any):
    answer = client.images.edit(model=MODEL, image=[picture(), picture()], prompt="More cats", n=1)
    assert len(answer.data) == 1
    service.assert_booked("/v1/images/edits", "provider")


def test_edited_images_are_streamed(service: Service, client: Any):
    events = list(client.images.edit(model=MODEL, image=picture(), prompt="More", stream=True, partial_images=1))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    service.assert_booked("/v1/images/edits", "provider")


@STILL_SERVED
def test_images_are_varied(service: Service, client: Any):
    assert len(client.images.create_variation(model=MODEL, image=picture(), n=3).data) == 3
    service.assert_booked("/v1/images/variations", "none")


# Sound


def test_speech_is_streamed(service: Service, client: Any):
    with client.audio.speech.with_streaming_response.create(model=MODEL, voice="alloy", input="[[words=5]]") as reply:
        assert reply.headers["content-type"] == "audio/mpeg"
        assert sum(map(len, reply.iter_bytes())) == 5 * 1024
    service.assert_booked("/v1/audio/speech", "none")


def test_speech_comes_piece_by_piece(service: Service, client: Any):
    said, before = "[[words=4 gap=0.2]]", len(service.provider.finished)
    with client.audio.speech.with_streaming_response.create(model=MODEL, voice="alloy", input=said) as reply:
        pieces = reply.iter_bytes()
        assert len(next(pieces)) == 1024
        assert len(service.provider.finished) == before
        assert sum(map(len, pieces)) == 3 * 1024


def test_speech_that_breaks_off_breaks_the_callers_connection(service: Service, client: Any):
    body = {"model": MODEL, "voice": "alloy", "input": "[[cut=2]]"}
    bearer = {"Authorization": f"Bearer {client.api_key}"}
    with requests.post(f"{service.server.url}/v1/audio/speech", json=body, headers=bearer, stream=True) as reply:
        assert reply.status_code == 200
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            list(reply.iter_content(None))
    assert service.newest()["status"] == "provider_error"
    assert "Traceback" not in service.server.log.read_text()


def test_speech_is_streamed_as_events(service: Service, client: Any):
    call = client.audio.speech.with_streaming_response.create(
        model=MODEL, voice="alloy", input="Hello!", stream_format="sse"
    )
    with call as reply:
        events = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: ")]
    assert events[-1]["type"] == "speech.audio.done"
    service.assert_booked("/v1/audio/speech", "provider")


FORMATS = {"json": "provider", "text": "none", "srt": "none", "vtt": "none"}


@pytest.mark.parametrize("response_format", FORMATS)
def test_recording_is_transcribed_in_every_format(service: Service, client: Any, response_format: str):
    answer = client.audio.transcriptions.create(model=MODEL, file=recording(), response_format=response_format)
    assert "This is" in (answer.text if response_format == "json" else answer)
    service.assert_booked("/v1/audio/transcriptions", FORMATS[response_format])


def test_transcription_that_reports_its_duration_costs_no_tokens(service: Service, client: Any):
    answer = client.audio.transcriptions.create(model=MODEL, file=recording(), prompt="[[usage=duration]]")
    assert answer.usage.seconds == 9
    service.assert_booked("/v1/audio/transcriptions", "none")


def test_transcription_is_streamed(service: Service, client: Any):
    events = list(client.audio.transcriptions.create(model=MODEL, file=recording(), stream=True))
    assert events[-1].type == "transcript.text.done"
    assert "".join(event.delta for event in events[:-1]) == events[-1].text
    service.assert_booked("/v1/audio/transcriptions", "provider")


@STILL_SERVED
def test_recording_is_translated(service: Service, client: Any):
    file = io.BytesIO(bytes(10))
    file.name = "recording.wav"
    assert "This is" in client.audio.translations.create(model=MODEL, file=file).text
    service.assert_booked("/v1/audio/translations", "none")


# Models, and what is closed


def test_one_model_is_told(client: Any):
    assert client.models.retrieve("GPT-5-mini").id == "GPT-5-mini"


def test_model_that_is_not_allowed_is_not_told(openai: ModuleType, client: Any):
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


def test_stored_responses_are_closed(openai: ModuleType, client: Any):
    answer = client.responses.create(model=MODEL, input="Hello!")
    for reach in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError) as caught:
            reach(answer.id)
        assert caught.value.code == "unknown_url"
