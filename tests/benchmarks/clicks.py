"""Go through an administrator's week in the panel with a real browser, and count what each task takes.

    python tests/benchmarks/clicks.py [--teams 2000 --rows 5000000 | --database FILE]

Each click, each field typed into or chosen from, and each key that sends a form counts one; typed characters do not.
All is found as people find it: by what it is, and is called. 62 teams come first; `--teams` adds as many with so many
calls, and `--database` a copy of a file that logrows.py made. axe-core checks the page that each task ends on. The exit
status is 1 if a task takes more than its bar.
"""

import argparse
import csv
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from adminclient import PASSWORD
from browser import DESKTOP, Visitor, running_browser, windows
from logrows import fill
from playwright.sync_api import Browser, Download, Locator, Page, expect
from serving import Server, post, running_service
from sqlalchemy import func, select

from tokenrouter import create_app, ledger, runtime, teams
from tokenrouter.changes import Actor
from tokenrouter.config import SETTINGS
from tokenrouter.database.tables import Team, db

FEW_TEAMS, FEW_ROWS, FEW_GROUPS = 62, 50_000, 4
PATIENCE_MS = 30_000
TEACHER = Actor("cli", "teacher@school")
CALLER, REFUSED = "Robotics club", "Chess club"
RESET, DELETED, REVOKED = "filled 9", "Maths 9a", "Maths 9b"
GROUP, OTHER_GROUP = "year 2", "year 3"
HELLO = {"model": "GPT-5-nano", "messages": [{"role": "user", "content": "Hello! [[words=5]]"}]}


@dataclass
class Hand:
    """What the administrator does on a page, counted."""

    page: Page
    clicks: int = 0

    def press(self, name: str | re.Pattern[str], inside: Page | Locator | None = None) -> None:
        """Click the first button of that name."""
        self._click((inside or self.page).get_by_role("button", name=name, exact=True))

    def follow(self, name: str | re.Pattern[str], inside: Page | Locator | None = None) -> None:
        """Click the first link of that name."""
        self._click((inside or self.page).get_by_role("link", name=name, exact=True))

    def unfold(self, words: str, inside: Page | Locator | None = None) -> None:
        """Click on what unfolds a part of the page."""
        self._click((inside or self.page).get_by_text(words, exact=True))

    def tick(self, name: str) -> None:
        """Click a check box."""
        self._click(self.page.get_by_role("checkbox", name=name))

    def write(self, label: str, text: str, inside: Page | Locator | None = None, *, send: bool = False) -> None:
        """Type into a field, and press Enter where that sends it."""
        box = (inside or self.page).get_by_label(label).first
        box.fill(text)
        self.clicks += 1
        if send:
            box.press("Enter")
            self.clicks += 1

    def choose(self, label: str, option: str) -> None:
        """Choose from a list."""
        self.page.get_by_label(label, exact=True).select_option(option)
        self.clicks += 1

    def take(self, act: Callable[[], None]) -> list[list[str]]:
        """Do what downloads a table, and return its rows."""
        with self.page.expect_download() as waiting:
            act()
        download: Download = waiting.value
        text = Path(download.path()).read_text("utf-8-sig")
        return list(csv.reader(text.splitlines()))

    def sees(self, words: str | re.Pattern[str]) -> None:
        """Wait until the page says so."""
        expect(self.page.get_by_text(words).first).to_be_visible()

    def _click(self, them: Locator) -> None:
        them.first.click()
        self.clicks += 1


@dataclass(frozen=True)
class Task:
    """What somebody came for; it begins on the dashboard unless it goes on from the task before."""

    name: str
    do: Callable[[Hand], None]
    most: int
    goes_on: bool


@dataclass
class Round:
    """The tasks on one database: clicks and seconds by name."""

    title: str
    clicks: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


TASKS: list[Task] = []


def task(name: str, *, most: int, goes_on: bool = False) -> Callable[[Callable[[Hand], None]], Callable[[Hand], None]]:
    """Make the function a task that may take so many clicks."""

    def register(do: Callable[[Hand], None]) -> Callable[[Hand], None]:
        TASKS.append(Task(name, do, most, goes_on))
        return do

    return register


def to_filtered_teams(hand: Hand, group: str) -> None:
    """Open the list of teams, of one group."""
    hand.follow("Teams")
    hand.choose("Group", group)
    hand.press("Apply")
    hand.page.wait_for_url("**group=*")


def to_team(hand: Hand, name: str) -> None:
    """Open a team's page by its name."""
    hand.follow("Teams")
    hand.write("Name", name, send=True)
    hand.follow(name)


@task("Thirty teams from a pasted list, and a slip for each printed", most=6)
def _thirty_teams(hand: Hand) -> None:
    hand.follow("Teams")
    hand.follow("Add many")
    hand.write("A line for each team", "\n".join(f"New {number:02}\t{GROUP}\t100k" for number in range(30)))
    hand.press("Check the list")
    hand.press("Create 30 teams")
    hand.page.evaluate("window.print = () => document.body.setAttribute('data-printed', '')")
    hand.press("Print the slips")
    expect(hand.page.locator("body[data-printed] .slip")).to_have_count(30)


@task("A code for a class, and its sheet for the wall", most=8)
def _code(hand: Hand) -> None:
    hand.follow("Teams")
    hand.follow("Codes to join")
    hand.follow("New code")
    hand.write("Label", "Year 9")
    hand.write("How many teams may join", "30")
    hand.write("Works until", f"{datetime.now(UTC) + timedelta(days=3):%Y-%m-%dT17:00}")
    hand.press("Create code")
    hand.follow("Sheet for the wall")
    hand.sees(re.compile(r"For 30 teams, until \w+day"))


@task("100k more for every team of a group", most=7)
def _more_for_a_group(hand: Hand) -> None:
    to_filtered_teams(hand, GROUP)
    if hand.page.get_by_label("that match").count():
        hand.tick("that match")
    else:
        hand.tick("Select all teams on this page")
    hand.write("Quota of the selected teams", "+100k", send=True)
    hand.press(re.compile(r"Change \d+ teams"))
    hand.sees(re.compile(r"Changed \d+ teams"))


@task("100k more for one team, in the list", most=5)
def _more_for_one(hand: Hand) -> None:
    hand.follow("Teams")
    hand.write("Name", REFUSED, send=True)
    hand.write(f"Quota of {REFUSED}", "+100k", send=True)
    hand.sees(f"The quota of “{REFUSED}” is now 100,005.")


@task("… and that undone", most=1, goes_on=True)
def _undo(hand: Hand) -> None:
    hand.press("Undo", hand.page.get_by_role("status"))
    hand.sees(f"Undone for “{REFUSED}”")


def undo_change(hand: Hand, what: str, name: str) -> None:
    """Take back what was done to a team some time ago."""
    hand.follow("Changes")
    hand.press(f"Undo: {what}, {name}")
    hand.sees(f"Undone for “{name}”")


@task("A reset of yesterday undone", most=2)
def _undo_reset(hand: Hand) -> None:
    undo_change(hand, "Reset its usage", RESET)


@task("A deletion undone", most=2)
def _undo_deletion(hand: Hand) -> None:
    undo_change(hand, "Deleted the team", DELETED)


@task("A token's revocation undone", most=2)
def _undo_revocation(hand: Hand) -> None:
    undo_change(hand, "Revoked a token", REVOKED)


@task("Last month's use by team and model, as CSV", most=5)
def _last_month(hand: Hand) -> None:
    hand.follow("Usage")
    hand.follow("Last month")
    hand.choose("and by", "model")
    hand.press("Show")
    hand.sees("Gemini-2.5-pro")
    rows = hand.take(lambda: hand.follow("CSV"))
    assert len(rows) > FEW_TEAMS


@task("Who runs out within 7 days", most=1)
def _who_runs_out(hand: Hand) -> None:
    hand.follow("All within 7 days")
    hand.sees(re.compile("^Lasts until"))


@task("Why the last refused call failed, and the form that helps", most=2)
def _why_it_failed(hand: Hand) -> None:
    failures = hand.page.get_by_role("region", name="Failures, last 24 hours")
    kind = failures.get_by_role("listitem").filter(has_text="The quota is used up")
    hand.follow("The last such call", kind)
    hand.sees(f"Call of {REFUSED}")
    hand.follow("Raise the quota")
    expect(hand.page.get_by_label("Quota", exact=True)).to_be_visible()


@task("Why a given team's last call failed, from the log", most=4)
def _why_in_the_log(hand: Hand) -> None:
    hand.follow("Logs")
    hand.write("Team, or part of its name", REFUSED, send=True)
    hand.follow(re.compile("^Call req_"))
    hand.sees("The quota is used up.")


@task("A call by part of its team's name, at a given minute", most=5)
def _call_at_a_minute(hand: Hand) -> None:
    hand.follow("Logs")
    hand.write("Team, or part of its name", "robot")
    now = datetime.now(UTC)
    hand.write("From", f"{now - timedelta(minutes=9):%Y-%m-%dT%H:%M}")
    hand.write("To", f"{now:%Y-%m-%dT%H:%M}", send=True)
    expect(hand.page.get_by_role("group", name="Table of calls").get_by_text(CALLER)).to_have_count(1)


@task("Calls slower than 5 s", most=3)
def _slow_calls(hand: Hand) -> None:
    hand.follow("Logs")
    hand.write("Slower than", "5 s", send=True)
    hand.page.wait_for_url("**slower=5*")
    expect(hand.page.get_by_role("group", name="Table of calls").get_by_role("row").nth(1)).to_be_visible()


@task("The log of a filter as CSV", most=4)
def _log_as_csv(hand: Hand) -> None:
    hand.follow("Logs")
    hand.write("Team, or part of its name", CALLER, send=True)
    hand.sees(re.compile("1 call,"))
    rows = hand.take(lambda: hand.follow("Export as CSV with commas"))
    assert len(rows) == 2


@task("A token's use of 30 days, and its calls", most=5)
def _use_of_a_token(hand: Hand) -> None:
    to_team(hand, CALLER)
    row = hand.page.get_by_role("group", name="Tokens").get_by_role("row").nth(1)
    expect(row.get_by_role("cell").nth(3)).to_have_text(re.compile(r"^[1-9]\d*$"))
    hand.follow(re.compile("^Calls of the token"))
    hand.page.wait_for_url("**token_id=*")
    expect(hand.page.get_by_role("group", name="Table of calls").get_by_text(CALLER)).to_have_count(1)


@task("A token's label and expiry changed", most=8)
def _token_edited(hand: Hand) -> None:
    to_team(hand, CALLER)
    row = hand.page.get_by_role("group", name="Tokens").get_by_role("row").nth(1)
    hand.unfold("Edit…", row)
    hand.write("Label", "laptop of the club", row)
    hand.write("Works until the end of", f"{datetime.now(UTC) + timedelta(days=90):%Y-%m-%d}", row)
    hand.press("Save", row)
    expect(hand.page.get_by_role("cell", name="laptop of the club", exact=True)).to_be_visible()


@task("A management token made, and revoked", most=6)
def _management_token(hand: Hand) -> None:
    hand.follow("Settings")
    hand.write("What it is for", "Enrolment script", send=True)
    hand.follow("Done: to the settings")
    hand.unfold("Revoke…")
    hand.press(re.compile("^Revoke tr"))
    hand.sees("Revoked")


@task("Changes of a kind, as CSV", most=4)
def _changes_as_csv(hand: Hand) -> None:
    hand.follow("Changes")
    hand.choose("What", "Deleted the team")
    hand.press("Apply")
    rows = hand.take(lambda: hand.follow("Export these as CSV"))
    assert any(DELETED in row for row in rows)


@task("The use of all teams of a group reset", most=5)
def _reset_of_a_filter(hand: Hand) -> None:
    to_filtered_teams(hand, OTHER_GROUP)
    hand.press(re.compile(r"^Reset the \d+ that match"))
    hand.press(re.compile(r"^Reset usage of \d+ teams"))
    hand.sees(re.compile("Usage reset"))


@task("A form sent after the session ended: signed in, and what was typed is saved", most=6)
def _session_ended(hand: Hand) -> None:
    hand.follow("New team")
    hand.write("Name", "Typed before the bell")
    hand.page.context.clear_cookies()
    hand.press("Create team and first token")
    hand.write("Admin password", PASSWORD, send=True)
    hand.sees("Typed before the bell")
    hand.press("Send again")
    hand.sees("Created the team “Typed before the bell”.")


@contextmanager
def domain_of(server: Server) -> Iterator[None]:
    """Work on the service's database, past the panel."""
    app = create_app({name: text for name, text in server.environment.items() if name in SETTINGS})
    try:
        with app.app_context():
            yield
    finally:
        runtime.close(app)


def prepare(server: Server) -> int:
    """Do what came before this week; return how many teams there were already."""
    with domain_of(server):
        before = db.session.scalar(select(func.count()).select_from(Team))
        tokens = {name: teams.create(name, quota, by=TEACHER)[1] for name, quota in ((CALLER, None), (REFUSED, 5))}
        for name in (DELETED, REVOKED):
            teams.create(name, 100_000, by=TEACHER)
        ledger.reset(db.engine, [teams.find(RESET).id], by=TEACHER)
        teams.revoke_token(REVOKED, teams.tokens(REVOKED)[0].id, by=TEACHER)
        teams.delete(DELETED, by=TEACHER)
    assert post(server, tokens[CALLER], HELLO).status_code == 200
    assert post(server, tokens[REFUSED], HELLO).status_code == 429
    return before


@contextmanager
def filled_service(folder: Path, given: Path | None, size: dict[str, int]) -> Iterator[Server]:
    """Run the service on a copy of the given file, or on one that is filled so."""
    database = folder / "tokenrouter.db"
    if given:
        shutil.copy(given, database)
    else:
        fill(f"sqlite:///{database}", **size)
    with running_service(folder) as service:
        yield service.server


def go_through(browser: Browser, server: Server) -> Round:
    """Do all tasks, and tell of each as it is done."""
    round_ = Round(f"{prepare(server):,} teams")
    with windows(browser, server.url, locale="en-GB", timezone_id="UTC") as open_window:
        visitor: Visitor = open_window(**DESKTOP)
        visitor.page.set_default_timeout(PATIENCE_MS)
        visitor.sign_in(PASSWORD)
        for task in TASKS:
            if not task.goes_on:
                visitor.open("/admin/")
            hand, started = Hand(visitor.page), time.perf_counter()
            task.do(hand)
            round_.clicks[task.name], round_.seconds[task.name] = hand.clicks, time.perf_counter() - started
            visitor.check_page()
            print(f"{round_.title}: {task.name}: {hand.clicks}", file=sys.stderr, flush=True)
    return round_


def print_table(rounds: list[Round]) -> bool:
    """Print the clicks of each task, and return whether none takes more than its bar."""
    print("| task | at most |", " | ".join(f"clicks ({each.title}) | seconds" for each in rounds), "|")
    print("| --- | --- |", " | ".join("--- | ---" for _ in rounds), "|")
    for task in TASKS:
        cells = [f"{each.clicks[task.name]} | {each.seconds[task.name]:.1f}" for each in rounds]
        print(f"| {task.name} | {task.most} |", " | ".join(cells), "|")
    return all(each.clicks[task.name] <= task.most for task in TASKS for each in rounds)


def main() -> int:
    """Go through the tasks, on one database or two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teams", type=int, help="go through the tasks with so many teams, too")
    parser.add_argument("--rows", type=int, default=5_000_000, help="the calls of these teams")
    parser.add_argument("--database", type=Path, help="a file that logrows.py made, in place of --teams; it is copied")
    given = parser.parse_args()
    databases = [(None, {"rows": FEW_ROWS, "teams": FEW_TEAMS, "groups": FEW_GROUPS})]
    if given.database or given.teams:
        databases.append((given.database, {"rows": given.rows, "teams": given.teams}))
    expect.set_options(timeout=PATIENCE_MS)
    rounds = []
    with running_browser() as browser:
        for file, size in databases:
            with (
                tempfile.TemporaryDirectory(prefix="clicks-") as folder,
                filled_service(Path(folder), file, size) as server,
            ):
                rounds.append(go_through(browser, server))
    return 0 if print_table(rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
