"""The Settings page: settings, management tokens, and slips in `.env`."""

import re
from pathlib import Path

from adminclient import Panel
from flask.testing import FlaskClient

from tokenrouter.teams import management_tokens

SETTINGS = "/admin/settings/"
TOKENS = f"{SETTINGS}management-tokens"


def test_management_token_is_made_shown_once_and_revoked(panel: Panel, client: FlaskClient):
    made = panel.post(TOKENS, {"label": "<b>enrolment</b>"}).text
    bearer_token = re.search(r">(trm-[\w-]{43})</output>", made)[1]
    headers = {"Authorization": f"Bearer {bearer_token}"}
    assert panel.get("/api/teams", headers=headers).status_code == 200
    listed = panel.get(SETTINGS).text
    assert bearer_token not in listed
    assert f"{bearer_token[:8]}…" in listed and "<bdi>&lt;b&gt;enrolment&lt;/b&gt;</bdi>" in listed
    (token,) = management_tokens.living()
    assert token.last_used_at is not None
    panel.post(f"{TOKENS}/{token.id}/revoke")
    assert "Revoked the management token" in panel.messages(SETTINGS)
    assert panel.get("/api/teams", headers=headers).status_code == 401
    panel.post(f"{TOKENS}/{token.id}/revoke")
    assert "There is no such management token" in panel.messages(SETTINGS)


def test_label_that_cannot_be_kept_is_explained_beside_it(panel: Panel):
    page = panel.post(TOKENS, {"label": "x" * 201}).text
    assert 'aria-describedby="label-problem"' in page and f'value="{"x" * 201}"' in page
    assert management_tokens.living() == []


def test_switch_is_shown_as_it_is_written(panel: Panel):
    row = re.search(r"PROVIDER_TEAM_IDS.*?</tr>", panel.get(SETTINGS).text, re.DOTALL)[0]
    assert re.search(r">no<", row) and "False" not in row


def test_slip_in_the_env_file_is_told_on_the_settings_page(panel: Panel):
    assert "is not a setting" not in panel.get(SETTINGS).text
    Path(".env").write_text("WEB_CONCURENCY=4\n")
    told = "WEB_CONCURENCY in .env is not a setting, and has no effect. Is WEB_CONCURRENCY meant?"
    assert told in panel.get(SETTINGS).text
    Path(".env").write_bytes(b"\xff\xfe=\n")
    assert ".env cannot be read" in panel.get(SETTINGS).text
