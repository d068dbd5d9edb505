"""What a request may name: nothing of the whole account's, its own team's items, allowed models, allowed tools."""

from typing import Any

import pytest
from conftest import Member
from flask.testing import FlaskClient
from sending import MODEL, body_of, fetch, send
from test_endpoints import events_of
from urllib3.filepost import encode_multipart_formdata

from tokenrouter import create_app, reports, runtime
from tokenrouter.config import ConfigError
from tokenrouter.errors import InvalidRequest
from tokenrouter.metering.given import item_ids
from tokenrouter.payload.reach import read_reach
from tokenrouter.standin import StandInProvider

BOTH = pytest.mark.both_databases
CHAT, RESPONSES, IMAGES = "chat/completions", "responses", "images/edits"


def message(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


OF_ACCOUNT = [
    (
        CHAT,
        {"messages": message({"type": "file", "file": {"file_id": "file-1"}})},
        "messages[0].content[0].file.file_id",
    ),
    (CHAT, {"messages": message({"type": "file", "file": {"id": "file-1"}})}, "messages[0].content[0].file.id"),
    (CHAT, {"container": "cntr_1"}, "container"),
    (CHAT, {"conversation": "conv_1"}, "conversation"),
    (CHAT, {"extra_body": {"preset": "mine"}}, "extra_body.preset"),
    (RESPONSES, {"conversation": {"id": "conv_1"}}, "conversation"),
    (RESPONSES, {"prompt": {"id": "pmpt_1", "version": "2"}}, "prompt.id"),
    (RESPONSES, {"input": message({"type": "input_image", "file_id": "file-1"})}, "input[0].content[0].file_id"),
    (RESPONSES, {"input": message({"type": "input_file", "file_id": "file-1"})}, "input[0].content[0].file_id"),
    (
        RESPONSES,
        {"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot", "file_id": "file-1"}}]},
        "input[0].output.file_id",
    ),
    (
        RESPONSES,
        {"input": [{"type": "function_call_output", "output": [{"type": "input_file", "file_id": "file-1"}]}]},
        "input[0].output[0].file_id",
    ),
    (
        RESPONSES,
        {"input": [{"type": "code_interpreter_call", "id": "ci_1", "code": "1", "container_id": "cntr_1"}]},
        "input[0].container_id",
    ),
    (RESPONSES, {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}, "tools[0].vector_store_ids"),
    (RESPONSES, {"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}, "tools[0].container"),
    (
        RESPONSES,
        {"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file-1"]}}]},
        "tools[0].container.file_ids",
    ),
    (
        RESPONSES,
        {"tools": [{"type": "image_generation", "input_image_mask": {"file_id": "file-1"}}]},
        "tools[0].input_image_mask.file_id",
    ),
    (RESPONSES, {"tools": [{"type": "mcp", "connector_id": "connector_gmail"}]}, "tools[0].connector_id"),
    (IMAGES, {"images": [{"file_id": "file-1"}]}, "images[0].file_id"),
    (IMAGES, {"mask": {"file_id": "file-1"}}, "mask.file_id"),
]


@pytest.mark.parametrize(("endpoint", "fields", "param"), OF_ACCOUNT)
def test_id_of_what_belongs_to_the_whole_account_is_refused(
    client: FlaskClient, team: Member, provider: StandInProvider, settings, endpoint: str, fields: dict, param: str
):
    settings["HOSTED_TOOLS"] = "*"
    with pytest.raises(InvalidRequest) as refusal:
        read_reach(fields, ("*",))
    assert refusal.value.param == param
    if "tools" not in fields:
        reply = client.post(f"/v1/{endpoint}", json=body_of(endpoint) | fields, headers=team.headers)
        assert (reply.status_code, reply.json["error"]["param"]) == (400, param)
        assert (provider.calls, reports.newest_calls(None, 1)) == ([], [])


SCHEMA = {
    "type": "object",
    "properties": {"file_id": {"type": "string", "default": "file-1"}, "container": {"enum": ["a"]}},
    "required": ["file_id", "vector_store_ids", "conversation"],
    "examples": [{"file_id": "file-1", "model": "x", "tools": [{"type": "web_search"}]}],
}
FUNCTION = {"name": "look", "parameters": SCHEMA}
DATA = [
    {"tools": [{"type": "function", "function": FUNCTION}]},
    {"tools": [{"type": "function", **FUNCTION}]},
    {"tools": [{"type": "custom", "name": "file_id", "format": {"type": "text"}}]},
    {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function", **FUNCTION}]}]},
    {"tools": [{"type": "local_shell"}, {"type": "apply_patch"}, {"type": "computer_use_preview"}, {"type": "shell"}]},
    {"functions": [FUNCTION]},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    {"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}},
    {"metadata": {"file_id": "file-1", "conversation": "conv_1"}},
    {"client_metadata": {"thread_id": "t1", "session_id": "s1"}},  # of Codex
    {"messages": [{"role": "user", "content": '{"file_id": "file-1", "conversation": "conv_1"}'}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": {"file_id": "f"}}}]}]},
    {"messages": message({"type": "tool_use", "id": "t", "input": {"file_id": "f", "container": "c"}})},
    {"input": [{"type": "output_text", "text": "a", "annotations": [{"type": "file_citation", "file_id": "file-1"}]}]},
    {"input": [{"type": "file_search_call", "id": "fs_1", "queries": ["q"], "results": [{"file_id": "file-1"}]}]},
    {"input": [{"type": "web_search_call", "id": "ws_1", "action": {"type": "search", "container": "c"}}]},
    {"file_ids": [], "container": None, "vector_store_ids": None, "conversation": None, "prompt": "text"},
    {"audio": {"voice": "alloy", "container": "wav"}, "service_tier": "flex", "web_search_options": {}},
    {"models": [], "fallbacks": None, "route": "", "plugins": [], "web_search": False},
]


@pytest.mark.parametrize("fields", DATA)
def test_data_and_schemas_that_only_use_such_names_pass(fields: dict[str, Any]):
    reach = read_reach(fields, ())
    assert (reach.models, reach.items) == ([], {})


def test_deepest_body_is_looked_through(client: FlaskClient, team: Member):
    deep: dict[str, Any] = {"file_id": "file-1"}
    for _ in range(200):
        deep = {"content": [deep]}
    with pytest.raises(InvalidRequest) as refusal:
        read_reach({"messages": [deep]}, ())
    assert len(refusal.value.param) <= 200


@pytest.mark.parametrize("name", ["file_id", "images[][file_id]", "mask[file_id]", "models", "service_tier"])
def test_part_of_a_form_that_reaches_further_is_refused(
    client: FlaskClient, team: Member, provider: StandInProvider, name: str
):
    fields = {"model": MODEL, "prompt": "a", name: "file-1", "image": ("a.png", b"png")}
    data, content_type = encode_multipart_formdata(fields)
    reply = client.post("/v1/images/edits", data=data, content_type=content_type, headers=team.headers)
    assert (reply.status_code, reply.json["error"]["param"]) == (400, name)
    assert provider.calls == []


# Items


def reference(item_id: str, **fields: object) -> list[dict[str, Any]]:
    return [{"type": "item_reference", "id": item_id, **fields}, {"role": "user", "content": "Go on."}]


def item_of(client: FlaskClient, team: Member, *, stream: bool) -> str:
    """Have a response made, and return the id of its item."""
    reply = fetch(client, team, RESPONSES, stream=stream)
    response = events_of(reply.data)[-1]["response"] if stream else reply.json
    return response["output"][0]["id"]


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_item_may_be_named_by_the_team_that_was_given_it_alone(
    client: FlaskClient, team: Member, new_team, provider: StandInProvider, stream: bool
):
    item_id = item_of(client, team, stream=stream)
    fetch(client, team, RESPONSES, input=reference(item_id))
    assert provider.calls[-1].json["input"] == reference(item_id)
    other = new_team("other")
    for items in (reference(item_id), [{"id": item_id}]):
        reply = fetch(client, other, RESPONSES, input=items)
        assert (reply.status_code, reply.json["error"]["code"]) == (404, "item_not_found")
    assert len(provider.calls) == 2


BARE = [
    {"id": "msg_other"},
    {"type": "item_reference", "id": "msg_other", "content": "given"},
    {"type": None, "id": "msg_other", "status": "completed"},
    {"type": "message", "role": "assistant", "id": "msg_other", "content": []},
    {"type": "reasoning", "id": "rs_other", "summary": []},
    {"type": "reasoning", "id": "rs_other", "summary": [{"type": "summary_text", "text": "a"}]},
    {"type": "image_generation_call", "id": "ig_other"},
    {"type": "mcp_approval_response", "approve": True, "approval_request_id": "mcpr_other"},
]


@pytest.mark.parametrize("item", BARE)
def test_item_without_its_content_that_nobody_was_given_is_not_found(
    client: FlaskClient, team: Member, provider: StandInProvider, item: dict[str, Any]
):
    reply = fetch(client, team, RESPONSES, input=[item])
    assert (reply.status_code, reply.json["error"]["param"].partition("[")[0]) == (404, "input")
    assert (provider.calls, reports.newest_calls(None, 1)) == ([], [])


WHOLE = [
    {"type": "message", "role": "assistant", "id": "msg_any", "content": [{"type": "output_text", "text": "a"}]},
    {"role": "assistant", "id": "msg_any", "content": ""},
    {"type": "reasoning", "id": "rs_any", "summary": [], "encrypted_content": "gAAA"},
    {"type": "function_call", "id": "fc_any", "call_id": "c", "name": "f", "arguments": ""},
    {"type": "function_call_output", "id": "fo_any", "call_id": "c", "output": ""},
    {"type": "custom_tool_call", "id": "ct_any", "call_id": "c", "name": "f", "input": "a"},
    {"type": "image_generation_call", "id": "ig_any", "result": "aGk="},
]


@pytest.mark.parametrize("item", WHOLE)
def test_item_with_its_content_passes_whatever_its_id(
    client: FlaskClient, team: Member, provider: StandInProvider, item: dict[str, Any]
):
    assert fetch(client, team, RESPONSES, input=[item]).status_code != 404
    assert provider.calls[0].json["input"] == [item]


def test_id_that_is_no_text_is_refused(client: FlaskClient, team: Member):
    reply = fetch(client, team, RESPONSES, input=[{"type": "item_reference", "id": ["msg_1"]}])
    assert (reply.status_code, reply.json["error"]["param"]) == (400, "input")


def test_spoken_answer_of_a_chat_is_given_likewise(client: FlaskClient, team: Member, provider: StandInProvider):
    messages = [{"role": "assistant", "audio": {"id": "audio_other"}}, {"role": "user", "content": "Go on."}]
    reply = fetch(client, team, CHAT, messages=messages)
    assert (reply.status_code, reply.json["error"]["param"]) == (404, "messages[0].audio.id")
    assert provider.calls == []


def test_ids_of_spoken_answers_and_of_items_are_found_in_answers():
    assert item_ids(
        {"choices": [{"message": {"audio": {"id": "audio_1"}}}, {"delta": {"audio": {"id": "audio_2"}}}]}
    ) == [
        "audio_1",
        "audio_2",
    ]
    assert item_ids({"output": [{"id": "rs_1"}, {"id": 5}, "x", {"id": "msg_1"}]}) == ["rs_1", "msg_1"]


# Models


MODELS = [
    ("models", ["GPT-5-mini", "Claude"]),
    ("models", "Claude"),
    ("models", [{"model": "Claude"}]),
    ("fallbacks", [{"model": "GPT-5-mini"}, {"model": "Claude", "messages": []}]),
    ("fallbacks", [{"GPT-5-nano": ["Claude"]}]),
    ("route", "fallback"),
    ("fallback_models", ["Claude"]),
    ("models", [5]),
]


@pytest.mark.parametrize(("field", "value"), MODELS)
def test_other_field_names_allowed_models_alone(
    client: FlaskClient, team: Member, provider: StandInProvider, field: str, value: object
):
    reply = fetch(client, team, CHAT, **{field: value})
    assert (reply.status_code, reply.json["error"]["param"], reply.json["error"]["code"]) == (400, field, None)
    assert provider.calls == []


def test_other_field_may_name_allowed_models(client: FlaskClient, team: Member, provider: StandInProvider):
    fields = {"models": ["GPT-5-mini", "GPT-5-nano"], "fallbacks": [{"model": "GPT-5-mini"}]}
    assert fetch(client, team, CHAT, **fields).status_code == 200
    assert provider.calls[0].json["models"] == fields["models"]


def test_teams_own_list_narrows_other_fields_too(client: FlaskClient, new_team):
    member = new_team("narrow", models="GPT-5-nano")
    assert fetch(client, member, CHAT, models=["GPT-5-mini"]).status_code == 400


@pytest.mark.parametrize("holder", [{"model": "Claude"}, {"parameters": {"model": "Claude"}}])
def test_tool_names_allowed_models_alone(client: FlaskClient, team: Member, settings, holder: dict):
    reach = read_reach({"tools": [{"type": "image_generation", **holder}]}, ("image_generation",))
    assert reach.models == [("tools[0].model", "Claude")]


@pytest.mark.parametrize(("allowed", "models"), [("*", None), ("GPT-5-nano,GPT-*", None), ("*", "GPT-*")])
def test_request_without_a_model_passes_where_the_team_may_call_any(
    settings: dict[str, str], request: pytest.FixtureRequest, provider: StandInProvider, allowed: str, models: str
):
    settings["ALLOWED_MODELS"] = allowed
    client, new_team = request.getfixturevalue("client"), request.getfixturevalue("new_team")
    reply = fetch(client, new_team(models=models), "moderations", model=None)
    sent = [call.json for call in provider.calls]
    assert (
        (sent == [{"input": "Hello!"}]) if (allowed, models) == ("*", None) else (sent, reply.status_code) == ([], 400)
    )


# Tools of the provider


HOSTED = [
    ({"tools": [{"type": "web_search"}]}, "web_search"),
    ({"tools": [{"type": "web_search_2025_08_26"}]}, "web_search"),
    ({"tools": [{"type": "web_search_preview"}]}, "web_search_preview"),
    ({"tools": [{"type": "function", "name": "f"}, {"type": "mcp", "server_url": "http://a"}]}, "mcp"),
    ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, "code_interpreter"),
    ({"tools": [{"type": "image_generation"}]}, "image_generation"),
    ({"tools": [{"type": "file_search"}]}, "file_search"),
    ({"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]}, "shell"),
    ({"tools": [{"type": "namespace", "tools": [{"type": "web_search"}]}]}, "web_search"),
    ({"tools": [{"google_search": {}}]}, "google_search"),
    ({"tools": ["web_search"]}, "web_search"),
    ({"input": [{"type": "tool_search_output", "tools": [{"type": "web_search"}]}]}, "web_search"),
    ({"web_search_options": {"search_context_size": "high"}}, "web_search"),
    ({"web_search": True}, "web_search"),
    ({"extra_body": {"enable_search": True}}, "web_search"),
    ({"plugins": [{"id": "web"}]}, "web"),
    ({"model": "GPT-5-nano:online"}, "web"),
    ({"models": ["GPT-5-nano:online"]}, "web"),
    ({"service_tier": "priority"}, "priority"),
    ({"service_tier": "Priority"}, "priority"),
]


@pytest.mark.parametrize(("fields", "name"), HOSTED)
def test_what_costs_beyond_tokens_has_to_be_allowed_by_name(fields: dict[str, Any], name: str):
    for others in ((), ("functions", f"{name}-2")):
        with pytest.raises(InvalidRequest, match="HOSTED_TOOLS"):
            read_reach(fields, others)
    for allowed in ((name,), ("*",), ("others", f"{name[:3]}*")):
        read_reach(fields, allowed)


@pytest.mark.parametrize("endpoint", [CHAT, RESPONSES])
def test_tool_of_the_provider_is_refused_unless_it_is_allowed(
    client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str
):
    reply = fetch(client, team, endpoint, tools=[{"type": "web_search"}])
    assert (reply.status_code, reply.json["error"]["param"], reply.json["error"]["code"]) == (
        400,
        "tools[0].type",
        None,
    )
    assert (provider.calls, reports.newest_calls(None, 1)) == ([], [])


def test_hosted_tools_are_read_as_names(settings: dict[str, str]):
    app = create_app(settings | {"HOSTED_TOOLS": "web_search, priority"})
    assert runtime.of(app).settings.hosted_tools == ("web_search", "priority")
    runtime.close(app)
    with pytest.raises(ConfigError, match="HOSTED_TOOLS"):
        create_app(settings | {"HOSTED_TOOLS": "web*search"})


def test_reach_is_checked_in_every_json_endpoint(client: FlaskClient, team: Member):
    for endpoint in ("completions", "embeddings", "moderations", "images/generations", "audio/speech"):
        assert send(client, team, endpoint, body_of(endpoint, service_tier="priority")).status_code == 400


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{"type": "web_search"}], "tools[0].type"),
        ([{"web_search": {}}], "tools[0].web_search"),
        (["web_search"], "tools[0]"),
        ({"web_search": {}}, "tools.web_search"),
    ],
)
def test_refused_tool_is_named_by_what_stands_in_the_body(tools: object, param: str):
    with pytest.raises(InvalidRequest) as caught:
        read_reach({"tools": tools}, ())
    assert caught.value.param == param
