"""The service keeps to its document, whatever is sent to it that the document describes, or just does not."""

import hypothesis
import pytest
import schemathesis
import yaml
from flask import Flask
from hypothesis import HealthCheck
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tokenrouter import docs

pytestmark = pytest.mark.slow
pytest_plugins = ["schemathesis.pytest.plugin"]  # here alone: it takes seconds to load, and to make what is sent

KEPT = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

schema = schemathesis.openapi.from_dict(yaml.safe_load(docs.DOCUMENT.read_bytes()))


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    """Let every model through, so that what is generated reaches the provider."""
    return settings | {"ALLOWED_MODELS": "*"}


@schema.parametrize()
@hypothesis.settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_service_keeps_to_the_document(case: schemathesis.Case, app: Flask, bearers: dict[str, str]):
    (bearer,) = (token for prefix, token in bearers.items() if case.path.startswith(prefix))
    reply = case.call(app=app, headers={"Authorization": f"Bearer {bearer}"})
    checks = KEPT + [negative_data_rejection] * case.path.startswith("/api/")  # of /v1 the provider decides
    case.validate_response(reply, checks=checks)
    if case.method.upper() == case.operation.method.upper():  # of other methods the document says nothing
        assert str(reply.status_code) in case.operation.definition.raw["responses"]
