"""The panel in a real browser in front of a real gunicorn."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pytest
import requests
from adminclient import NASTY_NAMES, PAGES, PASSWORD
from browser import DESKTOP, SIZES, Visitor, windows
from conftest import Server, hello
from playwright.sync_api import Browser, expect
from serving import post, running_service

from tokenrouter import create_app, runtime, teams
from tokenrouter.changes import Actor
from tokenrouter.config import SETTINGS

pytestmark = pytest.mark.slow

LOOKS = [("desktop", "light"), ("phone", "dark")]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gunicorn for all tests of this file."""
    with running_service(tmp_path_factory.mktemp("service")) as service:
        yield service.server


@pytest.fixture
def visit(browser: Browser, service: Server) -> Iterator[Callable[..., Visitor]]:
    """Open a window on the panel."""
    with windows(browser, service.url, locale="en-GB", timezone_id="Asia/Kolkata") as visit:
        yield visit


@pytest.fixture
def visitor(visit) -> Visitor:
    visitor = visit(**DESKTOP)
    visitor.sign_in(PASSWORD)
    return visitor


def call(service: Server, token: str) -> requests.Response:
    return post(service, token, hello())


@pytest.mark.parametrize("size", SIZES)
def test_administrator_goes_through_the_life_of_a_team(visit, service: Server, size: str, tmp_path: Path):
    visitor: Visitor = visit(**SIZES[size])
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page, name = visitor.page, f"Class on a {size}"
    visitor.sign_in(PASSWORD)

    # create a team, and copy its token
    page.get_by_role("link", name="New team").click()
    page.get_by_label("Name").fill(name)
    page.get_by_label("Quota in tokens").fill("2.5M")
    page.get_by_role("button", name="Create team").click()
    expect(page.get_by_text(f"Created the team “{name}”.")).to_be_visible()
    page.get_by_role("button", name="Copy", exact=True).click()
    token = page.evaluate("navigator.clipboard.readText()")
    assert token == page.locator("#token").text_content()
    visitor.check_page()

    # a reload neither shows it again nor makes another
    page.reload()
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()
    assert token not in page.content()

    # make a call, and see it on the dashboard, the team's page and the log
    assert call(service, token).ok
    page.reload()
    expect(page.get_by_role("group", name="Last calls").get_by_text("answered")).to_be_visible()
    page.get_by_role("link", name="Dashboard").click()
    expect(page.get_by_role("heading", name="Running out next")).to_be_visible()
    page.get_by_role("link", name="Logs").click()
    page.get_by_label("Team").fill(name)
    page.get_by_role("button", name="Apply").click()
    rows = page.get_by_role("group", name="Table of calls").locator("tbody tr")
    expect(rows).to_have_count(1)
    rows.first.get_by_role("link", name="Call req_").click()
    expect(page.get_by_text("reported by the provider")).to_be_visible()

    # edit the quota in the list, exhaust it, and see the refusal
    page.get_by_role("link", name="Teams", exact=True).first.click()
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Apply").click()
    quota = page.get_by_label(f"Quota of {name}")
    expect(quota).to_have_value("2.5M")
    quota.fill("30")
    quota.press("Enter")
    expect(page.get_by_text(f"The quota of “{name}” is now 30.")).to_be_visible()
    assert "Quota exceeded" in call(service, token).json()["error"]["message"]
    page.get_by_role("link", name="Dashboard").click()
    failures = page.get_by_role("region", name="Failures, last 24 hours")
    expect(failures.get_by_text("The quota is used up").first).to_be_visible()

    # reset it, and call again
    page.get_by_role("link", name=name).first.click()
    page.get_by_label("Quota", exact=True).fill("5,000")
    page.get_by_role("button", name="Save quota").click()
    page.get_by_role("button", name="Reset usage").click()
    expect(page.get_by_text("What is used counts from zero again")).to_be_visible()
    visitor.check_page()
    page.get_by_role("button", name="Reset usage of this team").click()
    expect(page.get_by_text(f"Usage reset: “{name}”.")).to_be_visible()
    assert call(service, token).ok

    # rotate the token
    page.get_by_text("Rotate…").click()
    page.get_by_label("The old one still works").select_option("for 1 hour")
    page.get_by_role("button", name="Rotate", exact=True).click()
    fresh = page.locator("#token").text_content()
    assert fresh != token
    assert call(service, token).ok and call(service, fresh).ok
    page.get_by_role("link", name="Done").click()
    expect(page.get_by_text("works until it expires")).to_be_visible()
    visitor.check_page()

    # filter and export the log
    page.get_by_role("link", name="All calls of this team").click()
    page.get_by_label("Status").select_option("refused")
    page.get_by_role("button", name="Apply").click()
    expect(rows).to_have_count(1)
    with page.expect_download() as download:
        page.get_by_role("link", name="Export as CSV with commas").click()
    download.value.save_as(tmp_path / "calls.csv")
    with (tmp_path / "calls.csv").open(newline="", encoding="utf-8-sig") as file:
        assert [(row["team_name"], row["status"]) for row in csv.DictReader(file)] == [(name, "rejected")]

    # sign out
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_text("You are signed out.")).to_be_visible()
    visitor.open("/admin/")
    expect(page.get_by_label("Admin password")).to_be_visible()
    assert visitor.complaints == []


def create_teams(service: Server, names: Sequence[str], quota_tokens: int) -> list[str]:
    """Create teams in the service's database, and return their tokens."""
    app = create_app({name: text for name, text in service.environment.items() if name in SETTINGS})
    with app.app_context():
        tokens = [teams.create(name, quota_tokens, by=Actor("cli", "test"))[1] for name in names]
    runtime.close(app)
    return tokens


@pytest.fixture(scope="module")
def furnished(service: Server) -> Iterator[Server]:
    """A service with teams of every kind of name, calls of every ending, and one in flight."""
    tokens = create_teams(service, NASTY_NAMES, 3000)
    for token, directives in zip(tokens, ("words=5", "status=500", "status=429", "cut=3", "words=9"), strict=False):
        _send(service, token, directives)
    _send(service, tokens[0], "words=5", model="unknown")
    with post(service, tokens[0], hello("words=3000 gap=0.1", stream=True), stream=True):
        yield service


def _send(service: Server, token: str, directives: str, **fields: object) -> None:
    assert post(service, token, hello(directives, stream=True, **fields)).headers["x-request-id"]


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_every_page_can_be_used_by_everyone(visit, furnished: Server, size: str, scheme: str):
    visitor: Visitor = visit(**SIZES[size], color_scheme=scheme)
    visitor.open("/admin/login")
    visitor.check_page()
    visitor.sign_in(PASSWORD)
    ids = re.findall(r"/admin/teams/(\d+)/\"", visitor.page.content())
    for path in (
        *PAGES,
        f"/admin/teams/{ids[0]}/",
        f"/admin/teams/{ids[0]}/edit/",
        "/admin/logs/1/",
        "/admin/nowhere/",
        "/nowhere",
    ):
        visitor.open(path)
        visitor.page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
        visitor.check_page()
        visitor.check_width(zoom=2)
    visitor.open("/admin/settings/")
    visitor.page.get_by_role("button", name="Ask the provider").click()
    expect(visitor.page.get_by_text("The provider answers, accepts the key")).to_be_visible()
    visitor.check_page()


def test_names_run_nothing_and_are_shown_whole(visitor: Visitor, furnished: Server):
    dialogs = []
    visitor.page.on("dialog", lambda dialog: dialogs.append(dialog.dismiss()))
    for name in NASTY_NAMES:
        visitor.open(f"/admin/teams/?search={quote(name)}")
        expect(visitor.page.get_by_role("link", name=name, exact=True)).to_be_visible()
    assert dialogs == [] and visitor.complaints == []


def test_times_are_the_readers_own_with_utc_on_hover(visitor: Visitor, furnished: Server):
    visitor.open("/admin/logs/")
    shown = visitor.page.locator("tbody time").first
    utc = shown.get_attribute("title")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", utc)
    moment = datetime.fromisoformat(shown.get_attribute("datetime")).astimezone(ZoneInfo("Asia/Kolkata"))
    assert shown.text_content() == f"{moment:%H:%M:%S}"


def test_times_of_another_day_tell_the_day(visitor: Visitor, furnished: Server):
    moment = datetime.now(UTC)
    for later, form in (
        (timedelta(days=2), "{m.day} {m:%b}, {m:%H:%M:%S}"),
        (timedelta(days=800), "{m.day} {m:%b %Y}, {m:%H:%M:%S}"),
    ):
        visitor.page.clock.set_fixed_time(moment + later)
        visitor.open("/admin/logs/")
        shown = visitor.page.locator("tbody time").first
        local = datetime.fromisoformat(shown.get_attribute("datetime")).astimezone(ZoneInfo("Asia/Kolkata"))
        year_is_over = (moment + later).astimezone(local.tzinfo).year > local.year
        assert shown.text_content() == (form if not year_is_over else "{m.day} {m:%b %Y}, {m:%H:%M:%S}").format(m=local)


def test_dashboard_that_stays_open_shows_what_is_so_now(visitor: Visitor):
    page = visitor.page
    page.clock.install()
    visitor.open("/admin/")
    as_of = page.get_by_text("as of").locator("time")
    shown = as_of.get_attribute("datetime")
    page.clock.run_for(61_000)
    expect(as_of).not_to_have_attribute("datetime", shown)
    expect(page.locator("li[data-fill] a")).to_be_visible()
    assert visitor.complaints == []


def test_banner_of_the_account_comes_to_a_page_that_stays_open_once_a_minute(visitor: Visitor, furnished: Server):
    page, asked = visitor.page, []
    page.clock.install()
    visitor.open("/admin/teams/")
    told = '<div class="banner banner-bad" role="alert">The account is empty</div>'
    page.route("**/admin/banner", lambda route: route.fulfill(body=asked.append(1) or told, content_type="text/html"))
    page.clock.run_for(61_000)
    expect(page.get_by_role("alert")).to_have_text("The account is empty")
    page.clock.run_for(120_000)
    assert len(asked) <= 3
    visitor.check_page()


def test_page_that_cannot_be_renewed_says_since_when_until_it_can(visitor: Visitor, furnished: Server):
    page = visitor.page
    page.clock.install()
    visitor.open("/admin/")
    page.route("**/admin/", lambda route: route.abort())
    page.clock.run_for(61_000)
    banner = page.locator(".no-contact")
    expect(banner).to_contain_text(re.compile(r"No contact since \d\d:\d\d\."))
    assert (
        page.locator(".dot-good").first.evaluate("dot => getComputedStyle(dot).backgroundColor") == "rgb(138, 147, 165)"
    )
    page.unroute("**/admin/")
    page.clock.run_for(61_000)
    expect(banner).to_have_count(0)
    assert (
        page.locator(".dot-good").first.evaluate("dot => getComputedStyle(dot).backgroundColor") == "rgb(47, 158, 95)"
    )


def test_dashboard_is_not_renewed_under_the_fingers_of_whoever_types(visitor: Visitor, furnished: Server):
    page = visitor.page
    page.clock.install()
    visitor.open("/admin/")
    quota = page.get_by_label("Quota of").first
    quota.fill("123k")
    page.clock.run_for(61_000)
    expect(quota).to_have_value("123k")


def test_nothing_is_shown_again_by_the_back_button_after_sign_out(visitor: Visitor, furnished: Server):
    page = visitor.page
    visitor.open("/admin/teams/")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_text("You are signed out.")).to_be_visible()
    page.go_back()
    expect(page.get_by_label("Admin password")).to_be_visible()
    assert NASTY_NAMES[0] not in page.content()


def test_panel_works_without_scripts(visit, furnished: Server):
    visitor: Visitor = visit(**DESKTOP, java_script_enabled=False)
    visitor.sign_in(PASSWORD)
    page = visitor.page
    page.get_by_role("link", name="Teams", exact=True).first.click()
    page.locator("input[name=rowid]").first.check()
    page.get_by_role("button", name="Disable").first.click()
    expect(page.get_by_text("Calls are refused with status 403")).to_be_visible()
    page.get_by_role("link", name="Cancel").click()
    expect(page.locator("tbody time").first).to_contain_text("UTC")


def test_panel_is_used_by_the_keyboard(visit, furnished: Server):
    visitor: Visitor = visit(**DESKTOP)
    page = visitor.page
    visitor.open("/admin/")
    page.keyboard.type(PASSWORD)  # the field has the focus
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Dashboard", level=1).wait_for()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#content$"))
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="New team")).to_be_focused()


def test_phone_shows_the_usual_filters_of_the_log_and_the_others_when_asked(visit, furnished: Server):
    visitor: Visitor = visit(**SIZES["phone"])
    visitor.sign_in(PASSWORD)
    visitor.open("/admin/logs/")
    visitor.page.get_by_label("Slower than").wait_for(state="hidden")
    visitor.page.get_by_role("button", name="More filters").click()
    expect(visitor.page.get_by_label("Error")).to_be_focused()
    visitor.page.get_by_label("Slower than").fill("1 h")
    visitor.page.get_by_role("button", name="Apply").click()
    expect(visitor.page.get_by_label("Slower than")).to_have_value("1 h")
    visitor.check_page()


def test_bulk_buttons_wait_for_a_selection(visitor: Visitor, furnished: Server):
    page = visitor.page
    visitor.open("/admin/teams/")
    reset = page.get_by_role("button", name="Reset usage", exact=True)
    expect(reset).to_be_disabled()
    page.get_by_label("Select all teams on this page").check()
    expect(page.get_by_text("selected")).to_be_visible()
    reset.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Reset usage of")


@pytest.mark.parametrize("size", SIZES)
def test_administrator_adds_many_teams_and_prints_a_slip_for_each(visit, size: str):
    visitor: Visitor = visit(**SIZES[size])
    page, names = visitor.page, [f"{size}: {name}"[:200] for name in NASTY_NAMES]
    visitor.sign_in(PASSWORD)
    page.get_by_role("link", name="Teams", exact=True).click()
    page.get_by_role("link", name="Add many").click()

    # paste a list with a fault, and mend it
    quoted = ['"{}"\t\t5k'.format(name.replace('"', '""')) for name in names]
    lines = page.get_by_label("A line for each team")
    lines.fill("\n".join([*quoted, "more\t\tmany"]))
    page.get_by_role("button", name="Check the list").click()
    expect(page.get_by_role("heading", name="1 line has faults")).to_be_visible()
    visitor.check_page()
    lines.fill("\n".join(quoted))
    page.get_by_role("button", name="Check again").click()
    expect(page.get_by_role("heading", name=f"{len(names)} teams can be created")).to_be_visible()
    visitor.check_page()
    page.get_by_role("button", name=f"Create {len(names)} teams").click()
    expect(page.get_by_text(f"Created {len(names)} teams.")).to_be_visible()
    visitor.check_page()

    # take the tokens as a file
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV with commas").click()
    rows = list(csv.reader(Path(download.value.path()).read_text("utf-8-sig").splitlines()))
    assert [token for _, token in rows[1:]] == page.locator("td[id^=token-]").all_text_contents()

    # in print there are the slips alone, each with the code of the page that shows the use
    page.emulate_media(media="print")
    assert page.locator("main > :visible").count() == 1 == page.locator("body > :visible").count()
    slips = page.locator(".slip")
    assert slips.count() == len(names) == page.locator(".slip svg:visible").count()
    assert all(slip.evaluate("e => e.scrollWidth <= e.clientWidth") for slip in slips.all())
    assert min(box["width"] for box in (slip.bounding_box() for slip in slips.all())) > 50

    # a reload shows no token again
    page.emulate_media(media="screen")
    page.reload()
    expect(page.get_by_role("heading", name="Teams", level=1)).to_be_visible()
    assert rows[1][1] not in page.content()


def test_quota_saved_in_the_list_leaves_place_and_focus_where_they_were(visitor: Visitor, service: Server):
    create_teams(service, [f"Inline {number:02}" for number in range(60)], 1000)
    page = visitor.page
    visitor.open("/admin/teams/?search=Inline")
    quota = page.get_by_label("Quota of Inline 40")
    quota.scroll_into_view_if_needed()
    quota.fill("+100k")
    top = quota.bounding_box()["y"]
    quota.press("Enter")
    expect(page.get_by_text("The quota of “Inline 40” is now 101k.")).to_be_in_viewport()
    expect(quota).to_be_focused()
    assert page.evaluate("scrollY") > 0 and quota.bounding_box()["y"] == pytest.approx(top, abs=2)

    # all that match, over both pages, and back
    page.get_by_label("all 60 that match").check()
    expect(page.get_by_text("60 selected")).to_be_visible()
    page.get_by_label("Quota of the selected teams").fill("x2")
    page.get_by_label("Quota of the selected teams").press("Enter")
    expect(page.get_by_role("heading", name="Change 60 teams?")).to_be_visible()
    visitor.check_page()
    page.get_by_role("button", name="Change 60 teams").click()
    page.get_by_role("status").get_by_role("button", name="Undo").click()
    expect(page.get_by_text("Undone for 60 teams: Changed the team.")).to_be_visible()
    visitor.check_page()
    page.get_by_role("link", name="Changes").click()
    page.get_by_text("Changed 60 teams").first.click()
    visitor.check_page()
