"""What a body reaches for beyond its own texts: the account's files and the like, earlier items, other models, tools.

At the provider all of that is the whole account's, or costs beyond tokens. Sources: OpenAI's API reference (chat
completions, responses), OpenRouter's (models, plugins, :online), LiteLLM's (fallbacks), and Poe's, xAI's and Alibaba's
switches for searching the web.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenrouter.config import is_allowed
from tokenrouter.errors import InvalidRequest

Path = tuple[Any, str | int] | None
"""Where a value stands: where its holder stands, and its name or number there."""

OF_ACCOUNT = frozenset(
    (
        "file_id",
        "file_ids",
        "vector_store_id",
        "vector_store_ids",
        "container",
        "container_id",
        "container_ids",
        "conversation_id",
        "thread_id",
        "assistant_id",
        "prompt_id",
        "skill_id",
        "cached_content",
        "cachedContent",
    )
)
"""Members whose texts are ids of what belongs to the whole account."""
HOLDERS = frozenset(("container", "conversation", "file", "prompt", "vector_store", "thread", "assistant"))
"""Objects whose `id` is one."""
OF_ITEMS = frozenset(("approval_request_id",))
"""Members whose texts are ids of items that a response gave."""
OPAQUE = frozenset(
    (
        "parameters",
        "arguments",
        "metadata",
        "client_metadata",
        "schema",
        "json_schema",
        "input_schema",
        "output_schema",
        "response_schema",
        "guided_json",
        "properties",
        "attributes",
        "annotations",
        "action",
        "actions",
        "env",
        "headers",
        "logit_bias",
    )
)
"""Members in which any name means what the caller says: data, and schemas of it."""
SPECIAL = OF_ACCOUNT | HOLDERS | OF_ITEMS | OPAQUE | {"tools", "audio", "connector_id", "input", "results"}
"""Members at which to look twice; nearly all others are passed in one step."""
CONTAINERS = frozenset((dict, list))

MODEL_FIELDS = (
    "models",
    "fallbacks",
    "route",
    "fallback",
    "fallback_model",
    "fallback_models",
    "context_window_fallbacks",
    "content_policy_fallbacks",
)
SWITCHES = {
    "web_search_options": "web_search",
    "web_search": "web_search",
    "search_parameters": "web_search",
    "enable_search": "web_search",
}
"""Fields that switch a provider's tool on, and its name. An empty one asks for nothing."""
ONLINE, WEB_PLUGIN = ":online", "web"
PRIORITY = "priority"
TOP_FIELDS = frozenset((*MODEL_FIELDS, *SWITCHES, "service_tier", "plugins", "conversation", "preset"))
CLOSED_FIELDS = OF_ACCOUNT - {"container"} | {
    *MODEL_FIELDS,
    *SWITCHES,
    "plugins",
    "service_tier",
    "tools",
    "extra_body",
}
"""The parts of a form that would reach for any of this; no endpoint that takes forms knows one of them."""
CALLERS_TOOLS = frozenset(
    (
        "function",
        "custom",
        "namespace",
        "tool_search",
        "local_shell",
        "apply_patch",
        "computer",
        "computer_use_preview",
    )
)
"""Tools that the caller carries out, or that only choose among such: they cost no more than their tokens."""
TOOL_DATE = re.compile(r"[_-](\d{8}|\d{4}[_-]\d\d[_-]\d\d)$")

REFERENCE = "item_reference"
CONTENT = (
    "content",
    "arguments",
    "output",
    "outputs",
    "input",
    "action",
    "actions",
    "encrypted_content",
    "code",
    "result",
    "results",
    "queries",
    "operation",
    "tools",
    "approval_request_id",
)
CONTENT_OF = {
    "reasoning": ("encrypted_content", "content"),
    "compaction": ("encrypted_content",),
    "image_generation_call": ("result",),
}
"""What an item of these types consists of; without it the provider takes the one that it stored under the id."""


@dataclass
class Reach:
    """What a body names that only some teams may have: models, with the field of each, and items of responses."""

    models: list[tuple[str, str]] = field(default_factory=list)
    items: dict[str, str] = field(default_factory=dict)
    """The field in which each id stands."""


def read_reach(body: Mapping[str, Any], hosted_tools: tuple[str, ...]) -> Reach:
    """Return what a body names beside its model.

    Raises InvalidRequest if it names what belongs to the whole account, or a tool that may not be used.
    """
    reach = Reach()
    extra = body.get("extra_body")
    _read_fields(body, "", reach, hosted_tools)
    if isinstance(extra, dict):  # which some gateways take for more of the body
        _read_fields(extra, "extra_body.", reach, hosted_tools)
        reach.models += [("extra_body.model", name) for name in _names_in(extra.get("model"))]
    for where, named in (("model", body.get("model")), *reach.models):
        if isinstance(named, str) and named.endswith(ONLINE):
            _check_tool(WEB_PLUGIN, hosted_tools, where)
    _walk(body, reach, hosted_tools)
    return reach


def named_items(items: object) -> dict[str, str]:
    """Return the ids of items that the input of a response names and does not bring, each with its field.

    Raises InvalidRequest if one is no text.
    """
    named: dict[str, str] = {}
    for item in items if isinstance(items, list) else (items,):
        if isinstance(item, dict) and item.get("id") is not None and not _brings_content(item):
            if not isinstance(item["id"], str):
                raise InvalidRequest("input has an item whose id is not a string.", param="input")
            named[item["id"]] = "input"
    return named


def _brings_content(item: Mapping[str, Any]) -> bool:
    kind = item.get("type")
    if kind == REFERENCE:
        return False
    if isinstance(kind, str) and kind in CONTENT_OF:
        return any(item.get(name) for name in CONTENT_OF[kind])
    return any(item.get(name) not in (None, [], {}) for name in CONTENT)  # an empty text is one


def _read_fields(body: Mapping[str, Any], where: str, reach: Reach, hosted_tools: tuple[str, ...]) -> None:
    """Read the fields that mean something at the top of a body alone."""
    if TOP_FIELDS.isdisjoint(body):
        return
    for name, tool in SWITCHES.items():
        if body.get(name):
            _check_tool(tool, hosted_tools, where + name)
    tier = body.get("service_tier")
    if isinstance(tier, str) and tier.lower() == PRIORITY:
        _check_tool(PRIORITY, hosted_tools, f"{where}service_tier")
    if plugins := body.get("plugins"):
        for plugin in plugins if isinstance(plugins, list) else (plugins,):
            plugin_id = plugin.get("id") if isinstance(plugin, dict) else plugin
            _check_tool(plugin_id if isinstance(plugin_id, str) else "", hosted_tools, f"{where}plugins")
    for name in ("conversation", "preset"):
        if body.get(name) is not None:
            raise _of_account(where + name)
    for name in MODEL_FIELDS:
        if body.get(name):
            reach.models += [(where + name, model) for model in _names_in(body[name])]


def _names_in(value: object) -> list[str]:
    """Return the models that a field names, in whatever shape; an empty name where it does so in none that is known."""
    names: list[str] = []
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            names.append(each)
        elif isinstance(each, list):
            waiting += each
        elif isinstance(each, dict):
            named = [each[key] for key in ("model", "id", "name") if key in each]
            waiting += named or list(each.values())
        elif each is not None:
            names.append("")
    return names


def _walk(body: Mapping[str, Any], reach: Reach, hosted_tools: tuple[str, ...]) -> None:
    waiting: list[tuple[Any, Path]] = [(body, None)]
    is_plain, has_no_containers = SPECIAL.isdisjoint, CONTAINERS.isdisjoint
    while waiting:
        node, path = waiting.pop()
        if type(node) is dict:
            for name, value in node.items():
                if name in SPECIAL and not _is_to_walk(node, name, value, path, reach):
                    continue
                if type(value) in CONTAINERS:
                    waiting.append((value, (path, name)))
                    if name == "tools":
                        waiting += _check_tools(value, (path, name), reach, hosted_tools)
        else:
            # nearly all messages have nothing to look at: they are passed here, at a third of the cost
            waiting += [
                (item, (path, at))
                for at, item in enumerate(node)
                if type(item) is list
                or (type(item) is dict and not (is_plain(item) and has_no_containers(map(type, item.values()))))
            ]


def _is_to_walk(node: Mapping[str, Any], name: str, value: Any, path: Path, reach: Reach) -> bool:
    """Check a member that may be a reference, and tell whether what it holds is to be looked at, too."""
    if name in OPAQUE:
        return False
    is_format = name == "container" and path is not None and "type" not in node  # of a file, not a tool's
    if name in OF_ACCOUNT and _has_text(value) and not is_format:
        raise _of_account(_written(path, name))
    if name in HOLDERS and isinstance(value, dict) and _has_text(value.get("id")):
        raise _of_account(f"{_written(path, name)}.id")
    if name == "connector_id" and _has_text(value) and not node.get("authorization"):
        raise _of_account(_written(path, name))  # without the caller's own right it would be used with the account's
    if name in OF_ITEMS and _has_text(value):
        reach.items.setdefault(str(value), _written(path, name))
    if name == "audio" and isinstance(value, dict) and _has_text(value.get("id")):
        reach.items.setdefault(str(value["id"]), f"{_written(path, name)}.id")
    if name == "input":
        return path is None  # elsewhere it is what a tool is given
    return name != "results" or node.get("type") != "file_search_call"


def _has_text(value: object) -> bool:
    return bool(value) and (isinstance(value, str) or (isinstance(value, list) and any(map(_is_text, value))))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _check_tools(
    tools: dict[str, Any] | list[Any], path: Path, reach: Reach, hosted_tools: tuple[str, ...]
) -> Iterator[tuple[Any, Path]]:
    """Check each tool; yield the parameters of those that are not the caller's, which are no schemas."""
    for at, tool in enumerate(tools) if isinstance(tools, list) else ((None, tools),):
        where = path if at is None else (path, at)
        name = _hosted_name(tool)
        if not isinstance(tool, dict):
            if name is not None:
                _check_tool(name, hosted_tools, _written(where))
            continue
        if name is not None:
            _check_tool(name, hosted_tools, _written(where, "type" if "type" in tool else name))
        parameters = tool.get("parameters") if name is not None else None
        for holder in (tool, parameters):
            if isinstance(holder, dict) and holder.get("model"):
                reach.models += [(_written(where, "model"), model) for model in _names_in(holder["model"])]
        if isinstance(parameters, dict):
            yield parameters, (where, "parameters")


def _hosted_name(tool: object) -> str | None:
    """Return the name of a tool that the provider carries out; None if the caller does."""
    if not isinstance(tool, dict):
        return tool if isinstance(tool, str) else None
    kind = tool.get("type")
    if kind is None:
        return None if not tool or "name" in tool or "function" in tool else str(next(iter(tool)))
    if not isinstance(kind, str):
        return ""
    if kind == "shell":
        environment = tool.get("environment")
        is_here = environment is None or (isinstance(environment, dict) and environment.get("type") == "local")
        return None if is_here else kind
    return None if kind in CALLERS_TOOLS else kind


def _check_tool(name: str, hosted_tools: tuple[str, ...], param: str) -> None:
    if is_allowed(name, hosted_tools) or is_allowed(TOOL_DATE.sub("", name), hosted_tools):
        return
    raise InvalidRequest(
        f"{param}: {name[:100] or 'this'} costs beyond tokens, and is not allowed here; functions and custom tools "
        "are. Who administers this service can allow it by HOSTED_TOOLS.",
        param=param,
    )


def _of_account(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"{param} is not served here: files, containers, vector stores, stored prompts and conversations belong to the "
        "whole account. Send the content itself; for earlier answers use previous_response_id.",
        param=param,
    )


def _written(path: Path, name: str = "") -> str:
    """Write where a member stands, or the value itself: `input[0].content[1].file_id`, `tools[0]`."""
    steps: list[str | int] = [name] if name else []
    while path is not None:
        path, step = path
        steps.append(step)
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step[:40]}" for step in reversed(steps))
    return text.removeprefix(".")[-200:]
