"""A token's label and expiry, edited on the team's page: what was typed alone, asked where another was faster."""

from datetime import UTC, datetime, timedelta

import pytest
from adminclient import Panel
from conftest import TESTER, Member
from flask.testing import FlaskClient
from sqlalchemy import insert

from tokenrouter import changes, reports, teams
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import ApiToken, TokenUsageDaily, db
from tokenrouter.errors import InvalidRequest, NotFound

pytestmark = pytest.mark.both_databases

TOMORROW = datetime.now(UTC).date() + timedelta(days=1)


@pytest.fixture
def token(team: Member) -> ApiToken:
    (token,) = teams.tokens("team")
    return token


def edit(panel: Panel, token: ApiToken, **fields: object) -> object:
    shown = {"label": "", "was_label": "", "expires": "", "was_expires": ""}
    return panel.post(f"/admin/teams/{token.team_id}/tokens/{token.id}/edit", shown | fields)


def test_label_and_expiry_are_saved_and_recorded(panel: Panel, token: ApiToken):
    assert edit(panel, token, label=" laptop ", expires=TOMORROW).status_code == 302
    (saved,) = teams.tokens("team")
    assert (saved.label, saved.expires_at) == ("laptop", teams.end_of_day(TOMORROW))
    (change,) = [row for row in changes.page().rows if row.action == "token.update"]
    assert change.before == {"token": token.prefix, "label": None, "expires_at": None}
    assert change.after["label"] == "laptop"
    page = panel.get("/admin/changes/").text
    assert "Changed a token" in page
    end = teams.end_of_day(TOMORROW)
    assert f'<time datetime="{end:%Y-%m-%dT%H:%M:%S}' in page
    assert f">{end:%Y-%m-%d %H:%M:%S UTC}</time>" in page  # to read even where no script writes it in local time


def test_edit_of_one_keeps_the_other_and_nothing_typed_is_no_change(panel: Panel, token: ApiToken):
    teams.update_token("team", token.id, label="old", by=TESTER)
    edit(panel, token, expires=TOMORROW)  # the form was opened before the label was given
    assert teams.tokens("team")[0].label == "old"
    edit(panel, token, label="old", was_label="old")
    assert len([row for row in changes.page().rows if row.action == "token.update"]) == 2


def test_edit_asks_where_another_changed_the_same_meanwhile(panel: Panel, token: ApiToken):
    teams.update_token("team", token.id, label="theirs", by=TESTER)
    page = edit(panel, token, label="mine").text
    assert "Somebody changed this to “theirs” meanwhile" in page
    assert 'value="mine"' in page
    assert teams.tokens("team")[0].label == "theirs"
    edit(panel, token, label="mine", was_label="theirs")
    assert teams.tokens("team")[0].label == "mine"


def test_token_cannot_expire_in_the_past_and_one_that_did_works_again(
    client: FlaskClient, team: Member, panel: Panel, token: ApiToken
):
    assert "revoke it to end it now" in edit(panel, token, expires="2020-01-01").text
    with writing(db.engine) as connection:
        connection.execute(ApiToken.__table__.update().values(expires_at=datetime(2020, 1, 1, tzinfo=UTC)))
    assert client.get("/v1/usage", headers=team.headers).status_code == 401
    edit(panel, token, expires=TOMORROW, was_expires="2019-12-31")
    assert client.get("/v1/usage", headers=team.headers).status_code == 200


def test_revoked_or_strange_token_is_not_edited(panel: Panel, token: ApiToken):
    teams.revoke_token("team", token.id, by=TESTER)
    assert "was revoked meanwhile" in panel.messages(edit(panel, token, label="x").location)
    with pytest.raises(NotFound):
        teams.update_token("team", token.id, label="x", by=TESTER)
    with pytest.raises(InvalidRequest):
        teams.create_token("team", "a\nb", by=TESTER)


def test_team_page_tells_what_each_token_used_and_links_to_its_calls(panel: Panel, token: ApiToken):
    today = reports.day_of(datetime.now(UTC))
    sums = {"requests": 1, "errors": 0, "prompt_tokens": 1, "completion_tokens": 0, "model": "m", "token_id": token.id}
    with writing(db.engine) as connection:
        for back, tokens in ((0, 5), (6, 10), (7, 100), (29, 1000), (30, 10_000)):
            connection.execute(
                insert(TokenUsageDaily).values(**sums, day=today - timedelta(days=back), total_tokens=tokens)
            )
    (row,) = reports.team_detail(token.team_id).tokens
    assert (row.tokens_7d, row.tokens_30d) == (15, 1115)
    assert f'href="/admin/logs/?token_id={token.id}"' in panel.get(f"/admin/teams/{token.team_id}/").text
