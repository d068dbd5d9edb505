"""/docs in a real browser in front of a real gunicorn."""

import json
from collections.abc import Callable, Iterator

import pytest
from browser import DESKTOP, SIZES, Visitor, windows
from conftest import Server
from playwright.sync_api import Browser, Locator, Page, expect

pytestmark = pytest.mark.slow


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Callable[..., Visitor]]:
    """Open a window on the pages."""
    with windows(browser, server.url) as visit:
        yield visit


def authorize(page: Page, kind: str, token: str) -> None:
    page.get_by_role("button", name="Authorize", exact=True).first.click()
    scheme = page.locator(".auth-container").filter(has_text=kind)
    scheme.get_by_label("auth-bearer-value").fill(token)
    scheme.get_by_role("button", name="Apply credentials").click()
    page.locator(".close-modal").click()


def try_out(page: Page, operation_id: str) -> Locator:
    operation = page.locator(f"[id$='-{operation_id}']")
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    return operation


def execute(operation: Locator) -> Locator:
    operation.get_by_role("button", name="Execute").click()
    return operation.locator(".live-responses-table .response").first


@pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_team_makes_a_streamed_call_from_the_documentation(visit, server: Server, size: str, scheme: str):
    visitor: Visitor = visit(color_scheme=scheme, **SIZES[size])
    page, token = visitor.page, server.create_team("Programmers", 5000)
    visitor.open("/docs")
    authorize(page, "teamToken", token)
    operation = try_out(page, "createChatCompletion")
    operation.locator("select.examples-select-element").first.select_option("stream")
    answer = execute(operation)
    expect(answer).to_contain_text("chat.completion.chunk")
    expect(answer).to_contain_text("[DONE]")
    expect(answer).to_contain_text("x-request-id: req_")
    (row,) = json.loads(server.flask("logs", "list", "--json").stdout)
    assert (row["status"], row["stream"], row["team"]) == ("ok", True, "Programmers")
    width, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= window
    assert visitor.complaints == []


def test_team_is_created_from_the_documentation(visit, server: Server):
    visitor: Visitor = visit(**DESKTOP)
    token = server.flask("management-tokens", "create").stdout.splitlines()[-1]
    visitor.open("/docs")
    authorize(visitor.page, "managementToken", token)
    expect(execute(try_out(visitor.page, "createTeam"))).to_contain_text('"name": "Class 9a"')
    assert [team["name"] for team in json.loads(server.flask("teams", "list", "--json").stdout)] == ["Class 9a"]
    assert visitor.complaints == []


def test_front_page_leads_to_the_documentation_and_its_errors(visit):
    visitor: Visitor = visit(**DESKTOP)
    visitor.open("/")
    visitor.page.get_by_role("link", name="API documentation").click()
    visitor.page.get_by_text("Errors by status and code").click()
    expect(visitor.page.get_by_role("cell", name="quota_reserved")).to_be_visible()
    assert visitor.complaints == []
