"""Lists of teams as people have them: how they are read, and what is said of what is wrong with them."""

import codecs
from collections.abc import Callable

import pytest
from conftest import TESTER, Member
from flask import Flask

from tokenrouter import changes, teams
from tokenrouter.errors import InvalidRequest
from tokenrouter.teams import imports

LIST = """\
9a,Year 9,2.5M,"GPT-5-nano, GPT-5-mini",laptop
9b,,250k
9c
"""
PLAIN = [
    ("9a", "Year 9", 2_500_000, "GPT-5-nano,GPT-5-mini", "laptop"),
    ("9b", None, 250_000, None, ""),
    ("9c", None, None, None, ""),
]


@pytest.fixture(autouse=True)
def year_9(app: Flask) -> None:
    teams.create_group("Year 9", by=TESTER)


def read(text: str) -> list[tuple[object, ...]]:
    checked = imports.check(text)
    assert checked.faults == []
    return [(new.name, new.group, new.quota_tokens, new.models, new.label) for new in checked.new]


def faults(text: str) -> list[str]:
    return list(map(str, imports.check(text).faults))


@pytest.mark.parametrize(
    "text",
    [
        LIST,
        LIST.replace("\n", "\r\n") + "\r\n,,,\r\n",
        LIST.replace("\n", "\r"),
        "\ufeff" + LIST,
        "name, group, quota, models, label\n" + LIST,
        "9a;Year 9;2,500,000;GPT-5-nano,GPT-5-mini;laptop\n9b;;250 000\n\n9c\n",
        "sep=;\n9a;Year 9;2,5;;\n".replace("2,5;;", "2.5M;GPT-5-nano|GPT-5-mini;laptop")
        + "9b;;250\u202f000;;\n9c;;;;\n",
        "9a\tYear 9\t2.5M\tGPT-5-nano GPT-5-mini\tlaptop\n9b\t\t250k\n9c",
        "9a;Year 9;2,5M;GPT-5-nano,GPT-5-mini;laptop\n9b;;0,25 M\n9c\n",
        '9a,Year 9,"2,5M",GPT-5-nano|GPT-5-mini,laptop\n9b,,250k\n9c\n',
        '9a,Year 9,2.5M,"GPT-5-nano\nGPT-5-mini",laptop\n9b,none,250k\n9c\n',
        "Label;QUOTA;Team name;;Models;Group\nlaptop;2.5M;9a;;GPT-5-nano, GPT-5-mini;Year 9\n;250k;9b\n;;9c;;;\n",
    ],
)
def test_list_is_read_however_it_is_written(text: str):
    assert read(text) == PLAIN


@pytest.mark.parametrize(
    "data",
    [
        "Größe;Year 9".encode(),
        codecs.BOM_UTF8 + "Größe;Year 9\r\n".encode(),
        "Größe;Year 9\r\n".encode("cp1252"),
        codecs.BOM_UTF16_LE + "Größe\tYear 9\r\n".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "Größe\tYear 9\r\n".encode("utf-16-be"),
    ],
)
def test_file_is_read_in_the_encodings_of_spreadsheets(data: bytes):
    assert read(imports.decode(data)) == [("Größe", "Year 9", None, None, "")]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PK\x03\x04\x14\x00", "Save it as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1", "Save it as CSV"),
        (codecs.BOM_UTF16_LE + b"\x00\xd8a", "no text that can be read"),
        ("9a".encode("utf-16-le"), "no text that can be read"),
        (b"\x81", "no text that can be read"),
    ],
)
def test_file_that_is_no_text_is_refused_with_the_cure(data: bytes, words: str):
    with pytest.raises(InvalidRequest, match=words):
        imports.decode(data)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no team"),
        (" \n;;\n", "no team"),
        ("name;quota\n", "no team"),
        ("name;qutoa\n9a;5", "'qutoa' is none of name, group"),
        ("name;quota;tokens\n9a;5;5", "'tokens' is none of .* or one too many"),
        ("\n".join(map(str, range(2001))), "more than 2,000 teams"),
        ("9" * 1_000_001, "larger than"),
    ],
)
def test_list_that_cannot_be_told_line_by_line_is_refused(text: str, words: str):
    with pytest.raises(InvalidRequest, match=words):
        imports.check(text)


def test_a_list_of_names_alone_may_have_commas_below_its_heading():
    assert [name for name, *_ in read("Name\nSmith, John\nO’Hara; Mary\n")] == ["Smith, John", "O’Hara; Mary"]


def test_each_fault_is_told_with_its_line_and_cell(team: Member):
    text = "name;group;quota;models;label\n\n9a;Year 10;many;gpt-4;x\nteam\n9b\n 9b ;;;;;more\n" + "x" * 201
    assert faults(text) == [
        "Line 3, quota 'many': 'many' is not a number of tokens such as 250000, 250k or 2.5M.",
        "Line 3, models 'gpt-4': ALLOWED_MODELS has nothing that fits gpt-4.",
        "Line 3, group 'Year 10': There is no group 'Year 10'.",
        "Line 4, name 'team': There is a team 'team' already.",
        "Line 6, 'more': Here is a cell too many: the columns are name, group, quota, models, label.",
        "Line 6, name '9b': Line 5 has the name '9b' too.",
        f"Line 7, name '{'x' * 60}…': A team's name has 1 to 200 characters that can be seen, and no control, "
        "line-separating or text-turning characters.",
    ]
    assert len(teams.living()) == 1


@pytest.mark.parametrize("text", ['9a\n"9b\n9c', '9a\n"9b" or so,5\n9c'])
def test_misplaced_quotation_mark_is_told_with_its_line(text: str):
    assert faults(text) == [
        "Line 2: A quotation mark is in the wrong place, or not closed. Nothing from here on was read."
    ]


def test_what_tells_excel_the_delimiter_is_nothing_elsewhere():
    assert [name for name, *_ in read("name\n9a\nsep=;b\n")] == ["9a", "sep=;b"]


@pytest.mark.parametrize(("quota", "spilt"), [("2,500,000", "500"), ("2,5M", "5M")])
def test_commas_within_a_quota_do_not_become_models(quota: str, spilt: str):
    assert faults(f"9a,Year 9,{quota}") == [f"Line 1, models '{spilt}': {imports.NO_MODEL}"]


@pytest.mark.parametrize("text", ["9a;;1,250M", "9a\t\t1,250M", '9a,,"1,250M"'])
def test_comma_that_may_part_decimals_or_thousands_is_asked_about(text: str):
    assert faults(text) == ["Line 1, quota '1,250M': This may mean 1.250M or 1250M: write the one that is meant."]


@pytest.mark.both_databases
def test_list_is_created_whole_and_what_another_took_meanwhile_is_told(new_team: Callable[..., Member]):
    checked = imports.check(LIST)
    new_team("9b")
    before = changes.page().rows[0].id
    with pytest.raises(imports.NotImported) as refused:
        imports.create(checked, by=TESTER)
    assert str(refused.value) == "Line 2, name '9b': There is a team '9b' already."
    assert (len(teams.living()), changes.page().rows[0].id) == (1, before)
    teams.delete("9b", by=TESTER)
    created = imports.create(checked, by=TESTER)
    assert [team.name for team, _ in created] == ["9a", "9b", "9c"]
    assert teams.tokens("9a")[0].label == "laptop"
