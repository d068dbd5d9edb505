"""Requests to every endpoint, whose texts tell the stand-in provider how to behave."""

from typing import Any

from conftest import Member
from flask.testing import FlaskClient
from urllib3.filepost import encode_multipart_formdata
from werkzeug.test import TestResponse

MODEL = "GPT-5-nano"
TEXTS = {
    "chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
    "completions": lambda text: {"prompt": text},
    "responses": lambda text: {"input": text},
    "embeddings": lambda text: {"input": text},
    "moderations": lambda text: {"input": text},
    "images/generations": lambda text: {"prompt": text},
    "images/edits": lambda text: {"prompt": text},
    "images/variations": lambda text: {"prompt": text},
    "audio/speech": lambda text: {"input": text, "voice": "alloy"},
    "audio/transcriptions": lambda text: {"prompt": text},
    "audio/translations": lambda text: {"prompt": text},
}
FORMS = {
    "images/edits": "image",
    "images/variations": "image",
    "audio/transcriptions": "file",
    "audio/translations": "file",
}
"""The endpoints that take forms, and the name of the file in each."""
ENDPOINTS = tuple(TEXTS)
JSON_ENDPOINTS = tuple(name for name in ENDPOINTS if name not in FORMS)


def body_of(endpoint: str, directives: str = "", **fields: Any) -> dict[str, Any]:
    """Return the fields of a request; None leaves one out."""
    text = f"Hello! [[{directives}]]" if directives else "Hello!"
    body = {"model": MODEL, **TEXTS[endpoint](text), **fields}
    return {name: value for name, value in body.items() if value is not None}


def post(client: FlaskClient, team: Member, endpoint: str, directives: str = "", **fields: Any) -> TestResponse:
    """Call an endpoint; the answer is still to be read."""
    return send(client, team, endpoint, body_of(endpoint, directives, **fields))


def send(client: FlaskClient, team: Member, endpoint: str, body: dict[str, Any]) -> TestResponse:
    """Send fields as JSON, or as a form with a file."""
    if endpoint not in FORMS:
        return client.post(f"/v1/{endpoint}", json=body, headers=team.headers)
    data, content_type = form_of(endpoint, body)
    return client.post(f"/v1/{endpoint}", data=data, content_type=content_type, headers=team.headers)


def form_of(endpoint: str, body: dict[str, Any]) -> tuple[bytes, str]:
    """Return fields and a file as a form, and its type."""
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in body.items()}
    return encode_multipart_formdata({FORMS[endpoint]: ("a file.bin", bytes(range(256)) * 4), **texts})


def fetch(client: FlaskClient, team: Member, endpoint: str, directives: str = "", **fields: Any) -> TestResponse:
    """Call an endpoint, and read the answer to its end."""
    with post(client, team, endpoint, directives, **fields) as reply:
        reply.get_data()
    return reply
