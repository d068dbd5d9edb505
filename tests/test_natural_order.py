"""Names stand in the order in which people look for them, wherever they are listed."""

import json
import random

import pytest
from conftest import TESTER
from flask.testing import FlaskCliRunner

from tokenrouter import reports, teams
from tokenrouter.natural_order import natural_key

pytestmark = pytest.mark.both_databases

IN_ORDER = ["2 Éclairs", "2 Farben", "5a", "5B", "10a", "école", "Ecole 2", "Ecole 10", "Zebra"]


def test_names_are_sorted_as_people_do():
    shuffled = random.sample(IN_ORDER, len(IN_ORDER))
    assert sorted(shuffled, key=natural_key) == IN_ORDER


def test_lists_of_teams_and_groups_are_in_this_order(app, runner: FlaskCliRunner):
    with app.app_context():
        for name in ("10a", "5b", "5A", "Über 9", "uber 10"):
            teams.create_group(name, by=TESTER)
            teams.create(name, group="10a", by=TESTER)
        right = ["5A", "5b", "10a", "Über 9", "uber 10"]
        assert [team.name for team in teams.living()] == right
        assert [group.name for group in teams.living_groups()] == right
        assert [group.name for group in reports.groups()] == list(reports.group_names().values()) == right
        group_id = teams.find_group("10a").id
        assert [team.name for team in reports.group_detail(group_id).members] == right
        pages = [reports.teams_page(page=page, per_page=2) for page in (1, 2, 3)]
        assert [row.name for page in pages for row in page.rows] == right
        assert [row.name for row in reports.teams_page(descending=True).rows] == right[::-1]
        assert reports.teams_page(page=10**9).rows == []
    assert json.loads(runner.invoke(args=["groups", "list", "--json"]).stdout)[2]["teams"] == right
