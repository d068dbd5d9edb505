"""The service keeps to its document, whatever is sent to it that the document describes, or just does not."""

import importlib
from types import ModuleType
from typing import Any

import hypothesis
import pytest
from flask import Flask
from hypothesis import HealthCheck
from test_documentation import DOCUMENT, DOCUMENTED

pytestmark = pytest.mark.slow

KEPT = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
]


@pytest.fixture(scope="module")
def schemathesis() -> ModuleType:
    """What makes the requests. It takes seconds to load, and to make them: no other process of a run has to."""
    importlib.import_module("schemathesis.pytest.lazy")
    schemathesis = importlib.import_module("schemathesis")
    schemathesis.checks.load_all_checks()
    return schemathesis


@pytest.fixture(scope="module")
def document(schemathesis: ModuleType) -> Any:
    return schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    """Let every model through, so that what is generated reaches the provider."""
    return settings | {"ALLOWED_MODELS": "*"}


@pytest.mark.parametrize(("method", "path"), DOCUMENTED)
def test_service_keeps_to_the_document(
    schemathesis: ModuleType, document: Any, method: str, path: str, app: Flask, bearers: dict[str, str]
):
    @hypothesis.settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    def send(case: Any) -> None:
        (bearer,) = (token for prefix, token in bearers.items() if case.path.startswith(prefix))
        reply = case.call(app=app, headers={"Authorization": f"Bearer {bearer}"})
        checks = KEPT + ["negative_data_rejection"] * case.path.startswith("/api/")  # of /v1 the provider decides
        case.validate_response(reply, checks=schemathesis.checks.CHECKS.get_by_names(checks))
        if case.method.upper() == case.operation.method.upper():  # of other methods the document says nothing
            assert str(reply.status_code) in case.operation.definition.raw["responses"]

    operation = document.include(path=path, method=method)
    (test,) = schemathesis.pytest.lazy.get_all_tests(schema=operation, test_func=send, settings=None, given_kwargs=None)
    test.ok()[1]()
