"""The official SDK against a real gunicorn with two workers: what callers see is what they know from OpenAI."""

import asyncio
import json
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from conftest import HELLO, Server, hello
from serving import Service, running_service

pytestmark = pytest.mark.slow

MESSAGES = HELLO["messages"]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture
def server(service: Service) -> Server:
    return service.server


@pytest.fixture
def team(request: pytest.FixtureRequest) -> str:
    """The name of a team of the test's own."""
    return request.node.name


@pytest.fixture
def connect(openai: ModuleType, server: Server, team: str) -> Iterator[Callable[..., Any]]:
    """Connect with a token, by default one of a new team with a quota."""
    clients = []

    def connect(api_key: str | None = None, quota: int = 1_000_000) -> Any:
        key = api_key or server.create_team(team, quota)
        clients.append(openai.OpenAI(api_key=key, base_url=f"{server.url}/v1"))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Callable[..., Any]) -> Any:
    return connect()


def test_chat_is_answered_and_metered(server: Server, client: Any, team: str):
    answer = client.chat.completions.create(model="GPT-5-nano", messages=MESSAGES)
    assert "TokenRouter demo" in answer.choices[0].message.content
    shown = json.loads(server.flask("teams", "show", team, "--json").stdout)
    assert shown["used_tokens"] == answer.usage.total_tokens
    assert shown["held_tokens"] == 0


def test_stream_without_include_usage_has_no_usage_event(client: Any):
    chunks = list(client.chat.completions.create(model="GPT-5-nano", messages=MESSAGES, stream=True))
    assert "TokenRouter demo" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert all(chunk.choices for chunk in chunks)


def test_stream_with_include_usage_ends_with_it(client: Any, service: Service):
    served = service.provider.tokens_served
    options = {"include_usage": True}
    stream = client.chat.completions.create(model="GPT-5-nano", messages=MESSAGES, stream=True, stream_options=options)
    *_, last = stream
    assert last.choices == []
    assert last.usage.total_tokens == service.provider.tokens_served - served


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called(client: Any, stream: bool):
    answer = client.chat.completions.create(model="GPT-5-nano", messages=MESSAGES, tools=[WEATHER], stream=stream)
    if stream:
        deltas = [call for chunk in answer for call in chunk.choices[0].delta.tool_calls or ()]
        name = deltas[0].function.name
        arguments = "".join(delta.function.arguments or "" for delta in deltas)
    else:
        call = answer.choices[0].message.tool_calls[0]
        name, arguments = call.function.name, call.function.arguments
    assert name == "weather"
    assert isinstance(json.loads(arguments)["city"], str)


def test_structured_output_is_parsed(client: Any):
    from pydantic import BaseModel  # it comes with the SDK

    class Answer(BaseModel):
        city: str
        degrees: float

    completion = client.chat.completions.parse(model="GPT-5-nano", messages=MESSAGES, response_format=Answer)
    assert isinstance(completion.choices[0].message.parsed, Answer)


def test_models_are_listed(client: Any):
    assert [model.id for model in client.models.list()] == [
        "GPT-5-nano",
        "GPT-5-mini",
        "Gemini-2.5-flash",
        "Gemini-2.5-pro",
    ]


def test_fifty_parallel_calls_are_answered(openai: ModuleType, service: Service, client: Any, team: str):
    served = service.provider.tokens_served

    async def call_all() -> list[str]:
        async with openai.AsyncOpenAI(api_key=client.api_key, base_url=client.base_url) as parallel:
            calls = [parallel.chat.completions.create(model="GPT-5-nano", messages=MESSAGES) for _ in range(50)]
            return [answer.id for answer in await asyncio.gather(*calls)]

    assert len(set(asyncio.run(call_all()))) == 50
    shown = json.loads(service.server.flask("teams", "show", team, "--json").stdout)
    assert shown["used_tokens"] == service.provider.tokens_served - served


def test_wrong_token_is_an_authentication_error(openai: ModuleType, connect: Callable[..., Any]):
    with pytest.raises(openai.AuthenticationError) as caught:
        connect("tr-" + "x" * 43).models.list()
    assert caught.value.code == "invalid_api_key"


def test_model_that_is_not_allowed_is_not_found(openai: ModuleType, client: Any):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert "GPT-5-mini" in str(caught.value)


def test_exhausted_quota_is_one_call_and_a_rate_limit_error(
    openai: ModuleType, connect: Callable[..., Any], server: Server, team: str
):
    client = connect(quota=5)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="GPT-5-nano", messages=MESSAGES)
    assert caught.value.code == "insufficient_quota"
    assert caught.value.body["message"].startswith("Quota exceeded")
    assert len(json.loads(server.flask("logs", "list", "--team", team, "--json").stdout)) == 1


def test_failure_inside_a_stream_is_an_api_error(openai: ModuleType, client: Any):
    messages = hello("cut=5 words=20")["messages"]
    with pytest.raises(openai.APIError) as caught:
        list(client.chat.completions.create(model="GPT-5-nano", messages=messages, stream=True))
    assert caught.value.code == "provider_bad_response"
