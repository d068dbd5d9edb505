"""Dashboard, log, export, changes and settings in the panel."""

import codecs
import csv
import io
import re
import secrets
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
from adminclient import PAGES, PASSWORD, Panel, team_path
from conftest import PROVIDER_KEY, Member, chat, stored
from flask.testing import FlaskClient
from sqlalchemy import update

from tokenrouter import teams
from tokenrouter.changes import Actor
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import ApiToken, RequestLog, db
from tokenrouter.figures import short
from tokenrouter.spreadsheet import cell
from tokenrouter.standin import StandInProvider

BY = Actor("cli", "test")


def test_dashboard_shows_used_up_quotas_failures_and_calls_in_flight(panel: Panel, new_team, client: FlaskClient):
    near = new_team("near", quota_tokens=1100)
    chat(client, near)
    failed = chat(client, near, "status=500")
    teams.update(near.team.id, quota_tokens=10, by=BY)
    page = panel.get("/admin/").text
    assert "1 team has used up its quota" in page
    assert "50.0 % of today’s calls failed" in page
    assert f'href="/admin/logs/{failed}/?back=' in page
    assert "0 calls in flight" in page
    assert f"{stored(near).settled_tokens:,} tokens" in page


def test_dashboard_does_not_wait_for_the_provider(panel: Panel, provider: StandInProvider):
    assert "Asking the provider" in panel.get("/admin/").text
    assert provider.calls == []
    assert "The provider answers" in panel.get("/admin/provider").text
    assert "The provider answers" in panel.get("/admin/provider").text
    assert len(provider.calls) == 1
    assert "The provider answers" in panel.get("/admin/").text


@pytest.mark.parametrize("path", PAGES)
def test_pages_of_an_empty_service_say_what_to_do_next(panel: Panel, path: str):
    page = panel.get(path)
    assert page.status_code == 200
    if path in ("/admin/", "/admin/teams/"):
        assert "No teams yet" in page.text and 'href="/admin/teams/new/"' in page.text
    if path == "/admin/logs/":
        assert "No calls yet" in page.text


def shown_calls(panel: Panel, query: str) -> list[int]:
    return [
        int(number)
        for number in re.findall(r'href="/admin/logs/(\d+)/\?back=', panel.get(f"/admin/logs/?{query}").text)
    ]


def test_log_is_filtered(panel: Panel, new_team, client: FlaskClient):
    one, other = new_team("one"), new_team("other")
    ok, failed = chat(client, one), chat(client, one, "status=500", model="GPT-5-mini")
    foreign = chat(client, other)
    with db.engine.connect() as connection:
        request_id = connection.execute(db.select(RequestLog.request_id).where(RequestLog.id == ok)).scalar_one()
    today = datetime.now(UTC).date()
    assert shown_calls(panel, "") == [foreign, failed, ok]
    assert shown_calls(panel, "team=one") == [failed, ok]
    assert shown_calls(panel, "team=one&status=provider_error") == [failed]
    assert shown_calls(panel, "model=GPT-5-mini") == [failed]
    assert shown_calls(panel, f"token={other.bearer_token[:8]}") == [foreign]
    assert shown_calls(panel, f"request_id={request_id}") == [ok]
    assert shown_calls(panel, "endpoint=/v1/embeddings") == []
    assert shown_calls(panel, f"since={today}&until={today}") == [foreign, failed, ok]
    assert shown_calls(panel, f"until={today - timedelta(days=1)}") == []
    assert shown_calls(panel, f"team=one&status=ok&model=GPT-5-nano&since={today}&endpoint=/v1/chat/completions") == [
        ok
    ]


def test_calls_are_found_by_their_team_whatever_its_name_is_now(panel: Panel, team: Member, client: FlaskClient):
    earlier = chat(client, team)
    teams.update(team.team.id, rename="renamed", by=BY)
    page = panel.get("/admin/logs/").text
    (link,) = set(re.findall(r'href="/admin/logs/\?(team_id=\d+)"', page))
    assert shown_calls(panel, link) == [earlier]
    assert 'name="team" value="renamed"' in panel.get(f"/admin/logs/?{link}").text
    assert shown_calls(panel, f"{link}&team=renamed") == [earlier]
    teams.create("other", by=BY)
    assert shown_calls(panel, f"{link}&team=other") == []


@pytest.mark.parametrize(
    "query",
    [
        "team_id=99",
        "team_id=x",
        f"team_id={10**30}",
        "team=%00",
        "request_id=%0d%0aSet-Cookie:x",
        "status=unheard-of",
        "since=9999-12-31",
        "until=0001-01-01&zone=Pacific/Kiritimati",
        f"before=-{10**30}",
        f"model={'x' * 3000}",
    ],
)
def test_filter_that_no_call_can_fit_shows_nothing(panel: Panel, team: Member, client: FlaskClient, query: str):
    chat(client, team)
    assert panel.get(f"/admin/logs/?{query}").status_code == 200
    assert shown_calls(panel, query) == []


@pytest.mark.parametrize("query", ["until=9999-12-31", "since=0001-01-01&zone=Asia/Kolkata", f"after=-{10**30}"])
def test_filter_at_the_end_of_time_leaves_nothing_out(panel: Panel, team: Member, client: FlaskClient, query: str):
    call_id = chat(client, team)
    assert shown_calls(panel, query) == [call_id]


def test_dates_are_meant_in_the_readers_time_zone(panel: Panel, team: Member, client: FlaskClient):
    call_id = chat(client, team)
    with writing(db.engine) as connection:
        late = datetime(2026, 3, 1, 23, 30, tzinfo=UTC)
        connection.execute(update(RequestLog).values(created_at=late))
    assert shown_calls(panel, "since=2026-03-01&until=2026-03-01") == [call_id]
    assert shown_calls(panel, "since=2026-03-02&until=2026-03-02&zone=Europe/Berlin") == [call_id]
    assert shown_calls(panel, "since=2026-03-01&until=2026-03-01&zone=../../etc/passwd") == [call_id]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("team=nobody", "No team has “nobody” in its name."),
        ("slower=soon", "A duration is written as"),
        ("since=yesterday", "A time is written as"),
    ],
)
def test_filter_that_is_not_understood_shows_nothing_and_says_why(panel: Panel, team, client, query: str, told: str):
    chat(client, team)
    page = panel.get(f"/admin/logs/?{query}")
    assert told in page.text and shown_calls(panel, query) == []
    assert panel.get(f"/admin/logs/export/csv/?{query}").status_code == 404


def test_log_is_paged_in_both_directions(panel: Panel, team: Member, client: FlaskClient):
    ids = [chat(client, team) for _ in range(52)][::-1]
    page = panel.get("/admin/logs/?team=team").text
    older = re.search(r'href="([^"]+)" rel="next"', page)[1].replace("&amp;", "&")
    assert shown_calls(panel, older.partition("?")[2]) == ids[50:]
    newer = re.search(r'href="([^"]+)" rel="prev"', panel.get(older).text)[1].replace("&amp;", "&")
    assert shown_calls(panel, newer.partition("?")[2]) == ids[:50]


def test_what_callers_and_the_provider_say_is_text(
    panel: Panel, team: Member, client: FlaskClient, provider: StandInProvider
):
    call_id = chat(client, team, model="<script>alert(1)</script>")
    teams.create_token(team.team.id, "<img src=x>", by=BY)
    provider.defaults = {"status": "500", "message": "<img_src=x>"}
    panel.post("/admin/settings/provider")
    shown = ("", "logs/", f"logs/{call_id}/", "settings/", "provider", "changes/", f"teams/{team.team.id}/")
    pages = [panel.get(f"/admin/{path}").text for path in shown]
    assert [path for path, page in zip(shown, pages, strict=True) if re.search("<script>alert|<img src=x", page)] == []
    assert (
        sum("&lt;script&gt;" in page for page in pages) >= 4 and sum("&lt;img src=x&gt;" in page for page in pages) >= 5
    )


def test_call_opens_in_full(panel: Panel, team: Member, client: FlaskClient):
    call_id = chat(client, team, "words=20")
    page = panel.get(f"/admin/logs/{call_id}/").text
    with db.engine.connect() as connection:
        row = connection.execute(db.select(RequestLog.__table__).where(RequestLog.id == call_id)).one()
    for value in (row.request_id, row.token_prefix, row.model, row.endpoint, f"{row.charged_tokens:,}"):
        assert value in page
    assert "reported by the provider" in page


def test_unknown_call_is_told(panel: Panel):
    assert panel.get("/admin/logs/9/").status_code == 404


def test_call_in_flight_is_shown_with_its_progress(panel: Panel, team: Member, client: FlaskClient):
    call_id = chat(client, team)
    with writing(db.engine) as connection:
        pending = {"status": "pending", "completion_tokens": 1234, "held_tokens": 5000, "latency_ms": None}
        connection.execute(update(RequestLog).values(**pending))
    assert "1.2k so far" in panel.get("/admin/logs/").text
    assert "1,234 output tokens arrived so far; it holds 5,000 tokens" in panel.get(f"/admin/logs/{call_id}/").text


def exported(panel: Panel, query: str = "", delimiter: str = ",") -> list[dict[str, str]]:
    reply = panel.get(f"/admin/logs/export/csv/?{query}")
    assert reply.mimetype == "text/csv"
    assert re.fullmatch(r'attachment; filename="tokenrouter-calls-[\d-]+\.csv"', reply.headers["Content-Disposition"])
    assert reply.data.startswith(codecs.BOM_UTF8)  # by which Excel knows how it is encoded
    return list(csv.DictReader(io.StringIO(reply.text.removeprefix("\ufeff")), delimiter=delimiter))


def test_export_has_what_the_filter_shows(panel: Panel, new_team, client: FlaskClient):
    one, other = new_team("one"), new_team("other, with a comma")
    for member in (one, other, other):
        chat(client, member)
    assert len(exported(panel)) == 3
    query = "team=one&endpoint=/v1/chat/completions"
    page = panel.get(f"/admin/logs/?{query}").text
    commas, semicolons = re.findall(r'href="/admin/logs/export/csv/\?([^"]*)"', page)
    assert [row["team_name"] for row in exported(panel, unescape(commas))] == ["one"]
    assert [row["team_name"] for row in exported(panel, unescape(semicolons), delimiter=";")] == ["one"]
    rows = exported(panel, "team=other, with a comma")
    assert [row["team_name"] for row in rows] == ["other, with a comma"] * 2
    assert {row["charged_tokens"] for row in rows} == {str(stored(other).settled_tokens // 2)}
    assert datetime.fromisoformat(rows[0]["created_at"]).tzinfo is not None


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r", "\n", "＝"])
def test_no_cell_of_an_export_is_a_formula(begin: str):
    assert cell(f"{begin}1+1") == f"'{begin}1+1"


@pytest.mark.parametrize("delimiter", [";", ","])
def test_no_cell_that_another_delimiter_would_begin_is_a_formula(delimiter: str):
    assert cell(f"model{delimiter}=1+1") == f"model{delimiter}'=1+1"
    assert cell(f"GPT-5-nano{delimiter} a+b") == f"GPT-5-nano{delimiter} a+b"


def test_names_in_an_export_are_no_formulas(panel: Panel, new_team, client: FlaskClient):
    chat(client, new_team("=cmd|' /C calc'!A0"))
    assert exported(panel)[0]["team_name"] == "'=cmd|' /C calc'!A0"


def test_export_of_more_rows_than_a_chunk_is_whole(panel: Panel, team: Member, client: FlaskClient):
    chat(client, team)
    with writing(db.engine) as connection:
        row = dict(connection.execute(db.select(RequestLog.__table__)).one()._mapping)
        copies = [row | {"id": None, "request_id": f"req_{secrets.token_hex(16)}"} for _ in range(2500)]
        connection.execute(db.insert(RequestLog), [{k: v for k, v in copy.items() if k != "id"} for copy in copies])
    assert len({row["request_id"] for row in exported(panel)}) == 2501


def test_changes_tell_who_did_what_before_and_after(panel: Panel, team: Member):
    panel.post(team_path(team.team.id, "quota"), {"quota": "1M"})
    teams.update(team.team.id, rename="renamed", by=Actor("cli", "ann@school"))
    page = re.sub(r"<[^>]+>|\s+", " ", panel.get("/admin/changes/").text)
    page = re.sub(r"\s+", " ", page)
    assert "panel 127.0.0.1 team Changed the team quota 100,000 → 1,000,000" in page
    assert "command line ann@school team Changed the team name team → renamed" in page


def test_change_that_made_a_team_tells_only_what_is_not_as_usual(panel: Panel, new_team):
    new_team("plain", quota_tokens=None)
    row = re.search("Created the team</td>.*?</tr>", panel.get("/admin/changes/").text, re.DOTALL)[0]
    told = re.sub(r"<[^>]+>|\s+", " ", row)
    assert "unlimited" in told and "a minute" not in told and "renews" not in told


def test_changes_of_one_team_are_shown_alone(panel: Panel, new_team):
    one, _ = new_team("one"), new_team("other")
    page = panel.get(f"/admin/changes/?team={one.team.id}").text
    assert "<bdi>one</bdi>" in page and "<bdi>other</bdi>" not in page


def test_settings_tell_values_and_origins_and_no_secret(panel: Panel, settings: dict[str, str]):
    page = panel.get("/admin/settings/").text
    row = {
        re.sub("<[^>]+>", "", cells[0]): re.sub("<[^>]+>", "", cells[1])
        for cells in re.findall(r"<tr><th[^>]*>(.*?)</th><td>(.*?)</td>", page)
    }
    assert row["PROVIDER_API_KEY"] == f"…{PROVIDER_KEY[-4:]}"
    assert (row["ADMIN_PASSWORD"], row["SECRET_KEY"], row["THREADS"]) == ("set", "set", "256")
    for secret in (PROVIDER_KEY, PASSWORD, settings["SECRET_KEY"]):
        assert secret not in page


def test_no_page_holds_a_secret(panel: Panel, team: Member, client: FlaskClient, settings: dict[str, str]):
    call_id = chat(client, team)
    with db.engine.connect() as connection:
        token_hash = connection.execute(db.select(ApiToken.token_hash)).scalar_one()
    panel.post("/admin/settings/provider")
    paths = (
        *PAGES,
        team_path(team.team.id),
        team_path(team.team.id, "edit/"),
        f"/admin/logs/{call_id}/",
        "/admin/logs/export/csv/",
    )
    everything = "".join(panel.get(path).text for path in paths)
    for secret in (PROVIDER_KEY, PASSWORD, settings["SECRET_KEY"], team.bearer_token, token_hash):
        assert secret not in everything


def test_database_password_is_not_shown(settings: dict[str, str]):
    from tokenrouter.admin.settings import SHOWN

    shown, _ = SHOWN["DATABASE_URL"]("postgresql://user:hidden@db.example/name?password=hidden")
    assert "hidden" not in shown and "db.example/name" in shown


def test_provider_is_asked_for_its_models(panel: Panel):
    page = panel.post("/admin/settings/provider").text
    assert "The provider answers, accepts the key, and lists" in page
    assert "All allowed models are in the provider" in page


def test_allowed_models_that_the_provider_lacks_are_named(panel: Panel, provider: StandInProvider):
    provider.models = ("gpt-5-nano", "GPT-5-min")
    page = panel.post("/admin/settings/provider").text
    told = page.partition("not in the provider")[2].partition("</div>")[0]
    assert re.findall("<code>(.*?)</code>", told) == ["GPT-5-mini", "Gemini-2.5-flash", "Gemini-2.5-pro"]


@pytest.mark.parametrize(
    ("faults", "told", "advice"),
    [
        ({"status": "402"}, "account is used up", "Top up the account"),
        ({"drop": "1"}, "the connection was closed without an answer", "Check PROVIDER_BASE_URL"),
        ({"redirect": "/elsewhere"}, "answered with a redirect", "OpenAI-compatible"),
        ({"status": "500", "message": "down_for_now"}, "status 500: down for now", ""),
    ],
)
def test_what_is_wrong_with_the_provider_is_told_in_words(
    panel: Panel, provider: StandInProvider, faults: dict[str, str], told: str, advice: str
):
    provider.defaults = faults
    page = panel.post("/admin/settings/provider").text
    assert told in page and advice in page
    assert told in panel.get("/admin/").text


def test_refused_key_is_told_in_words_and_not_shown(panel: Panel, provider: StandInProvider):
    provider.api_key = "another"
    page = panel.post("/admin/settings/provider").text
    assert "The provider refuses this service" in page and "Check PROVIDER_API_KEY" in page
    assert PROVIDER_KEY not in page


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (950, "950"),
        (999_950, "1M"),
        (12_345, "12.3k"),
        (2_500_000, "2.5M"),
        (107_000, "107k"),
        (1_250, "1.3k"),
        (10**15, "1,000T"),
        (-1_500, "-1.5k"),
    ],
)
def test_numbers_are_shortened(number: int, text: str):
    assert short(number) == text


def test_chart_tells_its_figures_on_hover_and_in_a_table(panel: Panel, new_team, client: FlaskClient):
    member = new_team("<drawn>")
    chat(client, member)
    page = panel.get("/admin/").text
    used = stored(member).settled_tokens
    assert re.search(rf"<title>\d+ \w+, &lt;drawn&gt;: {used:,} tokens</title>", page)
    assert re.search(rf'<td class="num">{used:,}</td>', page)
