"""/openapi.json and /docs: the document is valid, tells of what is served and of nothing else, and is kept to."""

import html
import re
import tomllib
from collections.abc import Iterator

import pytest
import yaml
from conftest import ROOT
from flask import Flask
from flask.testing import FlaskClient

from tokenrouter import docs, payload
from tokenrouter.database import log_status
from tokenrouter.errors import APIError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, and not built everywhere
DOCUMENT = yaml.load(docs.DOCUMENT.read_bytes(), LOADER)
DOCUMENTED = sorted(
    (method.upper(), path)
    for path, operations in DOCUMENT["paths"].items()
    for method in operations
    if method != "parameters"
)
NO_CODE_OF_OURS = {None, "provider_error"}


def served(app: Flask) -> Iterator[tuple[str, str]]:
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith(("/v1/", "/api/")):
            path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
            yield from ((method, path) for method in rule.methods - {"HEAD", "OPTIONS"})


def kinds(kind: type[APIError]) -> Iterator[type[APIError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


def request_schema(path: str) -> dict:
    body = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]
    (_, first), *_ = body.items()
    return DOCUMENT["components"]["schemas"][first["schema"]["$ref"].rpartition("/")[2]]


def test_document_is_valid():
    from openapi_spec_validator import OpenAPIV31SpecValidator  # it takes a second to load

    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_document_tells_of_what_is_served_and_of_nothing_else(app: Flask):
    assert sorted(served(app)) == DOCUMENTED


def test_document_is_served_as_json(client: FlaskClient):
    reply = client.get("/openapi.json")
    assert (reply.mimetype, reply.json) == ("application/json", DOCUMENT)


def test_document_has_the_version_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert DOCUMENT["info"]["version"] == project["version"]


def test_document_explains_every_error_of_ours():
    told = set(re.findall(r"^\| (\d+) \| `?(\w+)`? \|", DOCUMENT["info"]["description"], re.MULTILINE))
    ours = {(str(kind.status), kind.code) for kind in kinds(APIError) if kind.code not in NO_CODE_OF_OURS}
    assert told - {("400", "null")} == ours


def test_document_knows_every_way_in_which_a_call_can_end():
    assert sorted(DOCUMENT["components"]["schemas"]["Status"]["enum"]) == sorted(log_status.STATUSES)


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_documentation_is_for_everybody_and_sets_no_cookie(client: FlaskClient, path: str):
    reply = client.get(path)
    assert reply.status_code == 200
    assert "Set-Cookie" not in reply.headers


def test_page_runs_nothing_but_files_of_this_service(client: FlaskClient):
    page = client.get("/docs")
    assert re.findall(r'<script(?![^>]*\bsrc=)|<style|\s(?:style|on\w+)=|(?:src|href)="(?![/#])', page.text) == []
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    files = re.findall(r'(?:src|href)="(/(?:docs|static)/[^"]+)"', page.text)
    assert {client.get(html.unescape(file), buffered=True).status_code for file in files} == {200}


@pytest.mark.parametrize(("prefix", "name"), [("/v1/", "teamToken"), ("/api/", "managementToken")])
def test_every_operation_asks_for_its_kind_of_token(prefix: str, name: str):
    operations = [(method.lower(), path) for method, path in DOCUMENTED if path.startswith(prefix)]
    asked = [DOCUMENT["paths"][path][method]["security"] for method, path in operations]
    assert asked == [[{name: []}]] * len(asked) != []


@pytest.mark.parametrize("endpoint", payload.ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_document_tells_the_fields_that_decide_about_a_call(endpoint: payload.Endpoint):
    operation = DOCUMENT["paths"][f"/v1{endpoint.path}"]["post"]
    fields = request_schema(f"/v1{endpoint.path}")
    assert ("multipart/form-data" in operation["requestBody"]["content"]) == endpoint.is_form
    assert ("model" in fields["required"]) != endpoint.has_default_model
    assert {*endpoint.limits, *endpoint.choices, *endpoint.lists} <= set(fields["properties"])
    assert ("text/event-stream" in operation["responses"]["200"]["content"]) == endpoint.may_stream


@pytest.mark.parametrize(("method", "path"), DOCUMENTED)
def test_every_operation_refuses_a_token_of_the_other_kind(
    client: FlaskClient, bearers: dict[str, str], method: str, path: str
):
    (other,) = (token for prefix, token in bearers.items() if not path.startswith(prefix))
    reply = client.open(re.sub(r"{\w+}", "1", path), method=method, headers={"Authorization": f"Bearer {other}"})
    assert (reply.status_code, reply.json["error"]["code"]) == (401, "invalid_api_key")
