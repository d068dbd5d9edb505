"""The pages for teams in a real browser in front of a real gunicorn."""

from collections.abc import Callable, Iterator

import pytest
from adminclient import PASSWORD
from browser import DESKTOP, PHONE, Visitor, windows
from conftest import Server, hello
from playwright.sync_api import Browser, expect
from serving import post, running_service

from tokenrouter.figures import short

pytestmark = pytest.mark.slow

LOOKS = [({**DESKTOP, "color_scheme": "light"}, "desktop"), ({**PHONE, "color_scheme": "dark"}, "phone")]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gunicorn for all tests of this file."""
    with running_service(tmp_path_factory.mktemp("service")) as service:
        yield service.server


@pytest.fixture
def visit(browser: Browser, service: Server) -> Iterator[Callable[..., Visitor]]:
    """Open a window on the pages."""
    with windows(browser, service.url, locale="en-GB") as visit:
        yield visit


def show_usage(visitor: Visitor, token: str) -> None:
    visitor.open("/usage")
    visitor.page.get_by_label("Your team’s API token").fill(token)
    visitor.page.get_by_role("button", name="Show usage").click()
    visitor.page.wait_for_load_state("networkidle")


@pytest.mark.parametrize(("options", "name"), LOOKS, ids=["desktop", "phone"])
def test_team_sees_its_use_and_its_token_stays_in_the_tab(visit, service: Server, options: dict, name: str):
    token = service.create_team(f"Class on a {name}", 5000)
    post(service, token, hello())
    visitor: Visitor = visit(**options)
    page, addresses = visitor.page, []
    page.on("request", lambda request: addresses.append(request.url))
    visitor.open("/usage")
    visitor.check_page()
    show_usage(visitor, token)
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Usage of Class on a {name}")
    expect(page.get_by_text("it lasts until")).to_be_visible()
    expect(page.get_by_role("group", name="Use by model").get_by_text("GPT-5-nano")).to_be_visible()
    expect(page.get_by_role("group", name="Last calls").get_by_text("answered")).to_be_visible()
    page.get_by_text("Show as a table").click()
    expect(page.get_by_role("group", name="Table of tokens a day").locator("tbody tr")).to_have_count(30)
    visitor.check_page()

    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Usage of Class on a {name}")
    page.get_by_role("button", name="Forget the token").click()
    assert page.evaluate("sessionStorage.length + localStorage.length + document.cookie.length") == 0
    expect(page.get_by_label("Your team’s API token")).to_be_focused()
    assert [address for address in addresses if token in address] == []


@pytest.mark.parametrize(("options", "name"), LOOKS, ids=["desktop", "phone"])
def test_front_page_can_be_used_by_everyone(visit, options: dict, name: str):
    visitor: Visitor = visit(**options)
    visitor.open("/")
    visitor.check_page()
    visitor.page.get_by_role("link", name="Your usage").click()
    expect(visitor.page.get_by_label("Your team’s API token")).to_be_visible()


def test_exhausted_quota_is_told(visit, service: Server):
    visitor: Visitor = visit(**PHONE)
    show_usage(visitor, service.create_team("Exhausted", 0))
    expect(visitor.page.get_by_text("Nothing is left: calls are refused")).to_be_visible()
    visitor.check_page()


def test_numbers_are_shortened_as_in_the_panel(visit):
    visitor: Visitor = visit()
    visitor.open("/usage")
    numbers = [0, 950, 1_249, 1_250, -1_500, 107_000, 999_499, 999_950, 2_550_000, 10**9, 10**15]
    assert visitor.page.evaluate("numbers => numbers.map(brief)", numbers) == [short(number) for number in numbers]


def test_unknown_token_is_told_and_not_kept(visit):
    visitor: Visitor = visit(**DESKTOP)
    show_usage(visitor, "tr-unknown")
    expect(visitor.page.get_by_role("alert")).to_contain_text("This token is not known here")
    assert visitor.page.evaluate("sessionStorage.length") == 0
    visitor.check_page()


def test_disabled_team_is_told(visit, service: Server):
    token = service.create_team("Disabled")
    assert service.flask("teams", "update", "Disabled", "--disable").returncode == 0
    visitor: Visitor = visit(**DESKTOP)
    show_usage(visitor, token)
    expect(visitor.page.get_by_role("alert")).to_contain_text("This team is disabled")


def test_server_that_is_away_is_told(visit):
    visitor: Visitor = visit(**DESKTOP)
    visitor.open("/usage")
    visitor.context.set_offline(True)
    visitor.page.get_by_label("Your team’s API token").fill("tr-any")
    visitor.page.get_by_role("button", name="Show usage").click()
    expect(visitor.page.get_by_role("alert")).to_contain_text("TokenRouter does not answer")


def test_class_joins_by_a_code_from_the_wall(visit, service: Server):
    admin: Visitor = visit(**DESKTOP)
    admin.sign_in(PASSWORD)
    admin.page.get_by_role("link", name="Teams", exact=True).click()
    admin.page.get_by_role("link", name="Codes to join").click()
    admin.page.get_by_role("link", name="New code").click()
    admin.page.get_by_label("Label").fill("Year 9")
    admin.page.get_by_label("How many teams may join").fill("30")
    admin.page.get_by_label("Works until").fill("2099-12-04T17:00")
    admin.page.get_by_label("Quota in tokens").fill("250k")
    admin.page.get_by_role("button", name="Create code").click()
    admin.page.get_by_role("link", name="Sheet for the wall").click()
    admin.check_page()
    code = admin.page.locator(".code").text_content()

    pupil: Visitor = visit(**PHONE, color_scheme="dark")
    pupil.open(f"/join?code={code}")
    pupil.check_page()
    pupil.page.get_by_label("Name of your team").fill("blue")
    pupil.page.get_by_role("button", name="Join").dblclick()  # the second press is not sent
    expect(pupil.page.get_by_role("heading", level=1)).to_have_text("blue has joined")
    token = pupil.page.locator("#token").text_content()
    pupil.check_page()
    assert post(service, token, hello()).status_code == 200
    pupil.page.reload()  # makes no other team
    expect(pupil.page.get_by_label("Your team’s API token")).to_be_visible()

    admin.page.get_by_role("link", name="Back to the code").click()
    expect(admin.page.get_by_role("row", name="blue")).to_be_visible()
    admin.check_page()
    admin.page.get_by_text("Revoke…").click()
    admin.page.get_by_role("button", name=f"Revoke {code}").click()
    expect(admin.page.get_by_text("nobody joins with it any more")).to_be_visible()
    assert post(service, token, hello()).status_code == 200
