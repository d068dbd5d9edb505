"""Who a call is for, as the provider learns it: nobody, unless PROVIDER_TEAM_IDS is set."""

from collections.abc import Callable

import pytest
from conftest import Member, hello
from flask.testing import FlaskClient

from tokenrouter.payload import team_identity
from tokenrouter.standin import StandInProvider

CHAT = "/v1/chat/completions"
BODIES = {
    CHAT: hello(),
    "/v1/completions": {"model": "GPT-5-nano", "prompt": "Hello!"},
    "/v1/responses": {"model": "GPT-5-nano", "input": "Hello!"},
    "/v1/embeddings": {"model": "GPT-5-nano", "input": "Hello!"},
    "/v1/images/generations": {"model": "GPT-5-nano", "prompt": "Hello!"},
}
OTHERS = {
    "/v1/moderations": {"model": "GPT-5-nano", "input": "Hello!"},
    "/v1/audio/speech": {"model": "GPT-5-nano", "input": "Hello!", "voice": "alloy"},
}


@pytest.fixture
def named(settings: dict[str, str]) -> None:
    settings |= {"PROVIDER_TEAM_IDS": "yes", "SECRET_KEY": "the same on all machines"}


def test_provider_learns_nothing_of_the_team(
    client: FlaskClient, new_team: Callable[..., Member], provider: StandInProvider
):
    member = new_team("secret name")
    for path, body in {**BODIES, **OTHERS}.items():
        assert client.post(path, json=body, headers=member.headers).status_code == 200
    sent = [str(sorted(call.headers.items())) + str(call.json) for call in provider.calls]
    for told in ("secret name", member.bearer_token, "'user':", "team"):
        assert not [text for text in sent if told in text], told


def test_what_the_caller_says_of_its_user_is_its_own_affair(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    body = hello(user="pupil 7", safety_identifier="7", metadata={"class": "9a"})
    client.post(CHAT, json=body, headers=team.headers)
    assert provider.calls[0].json == body


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("path", BODIES)
def test_provider_learns_a_name_that_tells_teams_apart_and_nothing_else(
    client: FlaskClient, new_team: Callable[..., Member], provider: StandInProvider, path: str
):
    blue, red = new_team("blue"), new_team("red")
    for member in (blue, blue, red):
        assert client.post(path, json=BODIES[path], headers=member.headers).status_code == 200
    first, again, other = (call.json.pop("user") for call in provider.calls)
    assert first == again == team_identity("the same on all machines", blue.team.id)
    assert first != other
    assert len(first) == 64
    assert [call.json for call in provider.calls] == [BODIES[path]] * 3


@pytest.mark.usefixtures("named")
def test_caller_cannot_pose_as_another(client: FlaskClient, team: Member, provider: StandInProvider):
    body = hello(stream=True, user="another", safety_identifier="another", stream_options={"include_usage": True})
    assert client.post(CHAT, json=body, headers=team.headers, buffered=True).data.endswith(b"data: [DONE]\n\n")
    name = team_identity("the same on all machines", team.team.id)
    assert provider.calls[0].json == {**body, "user": name, "safety_identifier": name}


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("path", OTHERS)
def test_endpoints_without_such_a_field_get_none(
    client: FlaskClient, team: Member, provider: StandInProvider, path: str
):
    assert client.post(path, json=OTHERS[path], headers=team.headers).status_code == 200
    assert provider.calls[0].json == OTHERS[path]


def test_name_is_another_with_another_secret_key():
    assert team_identity("one", 1) != team_identity("two", 1)
