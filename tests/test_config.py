"""Settings: where they come from, which values are refused, and what is kept secret."""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import rivals
import warm
from conftest import ROOT

from tokenrouter import config, first_start
from tokenrouter.config import SETTINGS, ConfigError, SmtpServer


def write_env(text: str, folder: Path = Path()) -> None:
    (folder / ".env").write_text(text)


def flask(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in a folder, on the repository's application."""
    return warm.run(["flask", *arguments], folder, environment_of(settings))


def environment_of(settings: dict[str, str]) -> dict[str, str]:
    return os.environ | {"FLASK_APP": str(ROOT / "wsgi.py"), **settings}


def refusal(overrides: Mapping[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(overrides)
    return str(caught.value)


def test_override_wins_over_environment_over_env_file_over_default(monkeypatch: pytest.MonkeyPatch):
    write_env("PORT=1\nTHREADS=1\nHOST=file\n")
    monkeypatch.setenv("PORT", "2")
    monkeypatch.setenv("THREADS", "2")
    settings = config.load({"PORT": "3"})
    assert (settings.port, settings.threads, settings.host, settings.web_concurrency) == (3, 2, "file", 2)


def test_origin_of_every_setting_is_known(monkeypatch: pytest.MonkeyPatch):
    write_env("HOST=::1\n")
    monkeypatch.setenv("THREADS", "2")
    origins = config.load({"PORT": "3"}).origins
    assert set(origins) == set(SETTINGS)
    assert [origins[name] for name in ("PORT", "THREADS", "HOST", "TEAM_CALLS")] == [
        "override",
        "environment",
        ".env",
        "default",
    ]


def test_empty_value_counts_as_unset(monkeypatch: pytest.MonkeyPatch):
    write_env("PORT=9000\nTHREADS=\nHOST\nMAX_OUTPUT_TOKENS=''\n")
    monkeypatch.setenv("PORT", "")
    settings = config.load()
    assert (settings.port, settings.threads, settings.host, settings.max_output_tokens) == (9000, 256, "0.0.0.0", None)


def test_empty_override_stands_for_the_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PORT", "9000")
    monkeypatch.setenv("TEAM_CALLS", "5")
    settings = config.load({"PORT": "", "TEAM_CALLS": None})
    assert (settings.port, settings.team_calls) == (8000, 128)


@pytest.mark.parametrize(("threads", "team_calls"), [("256", 128), ("9", 4), ("1", 1)])
def test_one_team_gets_half_of_the_places_unless_told_otherwise(threads: str, team_calls: int):
    assert config.load({"THREADS": threads}).team_calls == team_calls


def test_nothing_set_gives_the_contracts_defaults():
    settings = config.load()
    assert {name: getattr(settings, name.lower()) for name in SETTINGS} == {
        "PROVIDER_API_KEY": "",
        "PROVIDER_BASE_URL": "https://api.poe.com/v1",
        "DEFAULT_MODEL": "GPT-5-nano",
        "ALLOWED_MODELS": ("GPT-5-nano", "GPT-5-mini", "Gemini-2.5-flash", "Gemini-2.5-pro"),
        "ADMIN_PASSWORD": "admin123",
        "DATABASE_URL": "sqlite:///./data/tokenrouter.db",
        "HOST": "0.0.0.0",
        "PORT": 8000,
        "SECRET_KEY": "",
        "WEB_CONCURRENCY": 2,
        "THREADS": 256,
        "TEAM_CALLS": 128,
        "PROVIDER_CONNECT_TIMEOUT": 5.0,
        "PROVIDER_READ_TIMEOUT": 600.0,
        "OUTPUT_RESERVE_TOKENS": 1024,
        "MAX_OUTPUT_TOKENS": None,
        "MAX_REQUEST_BYTES": 33554432,
        "TRUSTED_PROXIES": 0,
        "CORS_ORIGINS": None,
        "PROVIDER_ACCOUNT": "auto",
        "HOSTED_TOOLS": None,
        "TIMEZONE": ZoneInfo("UTC"),
        "CURRENCY": "USD",
        "PROVIDER_REQUESTS_PER_MINUTE": None,
        "PROVIDER_TEAM_IDS": False,
        "LOG_FORMAT": "text",
        "METRICS_TOKEN": "",
        "ALERT_WEBHOOK_URL": None,
        "SMTP_URL": None,
        "ALERT_MAIL_TO": None,
        "BACKUP_FOLDER": "",
        "BACKUP_KEEP": 7,
        "LOG_RETENTION_DAYS": None,
    }


COUNTS = ("-1", "1.5", "two", "1e3", "99999999999")
SECONDS = ("0", "-1", "soon", "nan", "inf", "86401", "5s")
BAD_VALUES = {
    "PROVIDER_API_KEY": ("two words", "clé-secrète", "sk\nsecond-line", "sk\x00secret", "   "),
    "PROVIDER_BASE_URL": (
        "api.poe.com/v1",
        "ftp://host/v1",
        "http://",
        "https://host/v1?key=1",
        "https://host/v1#top",
        "http://host:port/v1",
        "http://host:99999/v1",
        "http://two words/v1",
        "   ",
    ),
    "DEFAULT_MODEL": ("GPT-*", "GPT-5-nano,GPT-5-mini", "   ", "gpt-5-nan", "Claude"),
    "CURRENCY": ("$", "DOLLAR", "E1R"),
    "TIMEZONE": ("Berlin", "Europe", "Europe/", "../etc/passwd", "/etc/localtime", "UTC+25", "   "),
    "ALLOWED_MODELS": (",", " , ", "a*b", "*a", "GPT-5-nano,*-nano", "GPT-**"),
    "DATABASE_URL": (
        "mysql://user:hunter2@host/name",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=memory&uri=true",
        "postgresql://user:hunter2@host",
        "postgresql://user:hunter2@host:port/name",
        "data/tokenrouter.db",
    ),
    "HOST": ("   ", "two words", "http://0.0.0.0", "0.0.0.0:8000"),
    "PORT": (*COUNTS, "0", "65536", "http"),
    "WEB_CONCURRENCY": (*COUNTS, "0"),
    "THREADS": (*COUNTS, "0"),
    "TEAM_CALLS": (*COUNTS, "0"),
    "PROVIDER_CONNECT_TIMEOUT": SECONDS,
    "PROVIDER_READ_TIMEOUT": SECONDS,
    "OUTPUT_RESERVE_TOKENS": (*COUNTS, "0"),
    "MAX_OUTPUT_TOKENS": (*COUNTS, "0"),
    "MAX_REQUEST_BYTES": ("-1", "0", "1023", "32MB", "1.5"),
    "TRUSTED_PROXIES": ("-1", "1.5", "yes", "17", "10.0.0.1"),
    "CORS_ORIGINS": (",", "app.example", "https://", "https://a.example/path", "https://*.example", "https://a b"),
    "PROVIDER_REQUESTS_PER_MINUTE": (*COUNTS, "0"),
    "PROVIDER_TEAM_IDS": ("maybe", "2", "   "),
    "LOG_FORMAT": ("jsonl", "text,json", "   "),
    "METRICS_TOKEN": ("two words", "schlüssel"),
    "ALERT_WEBHOOK_URL": (
        "hooks.example/hunter2",
        "ftp://host/hunter2",
        "https://me:hunter2@host/",
        "https://h/#hunter2",
    ),
    "SMTP_URL": (
        "mail.example:hunter2",
        "http://mail.example/hunter2",
        "smtp://me:hunter2@mail.example",
        "smtp://me:hunter2@mail.example?from=a@b,c@d",
        "smtp://me:hunter2@mail.example?from=a@b%0ABcc:c@d",
        "smtp://me:hunter2@mail.example:port?from=a@b",
    ),
    "ALERT_MAIL_TO": (",", "nobody", "a@b@c", "a b@c", "me@example.org,nobody", "Me <me@example.org>"),
    "BACKUP_KEEP": (*COUNTS, "0"),
    "LOG_RETENTION_DAYS": (*COUNTS, "0", "36501"),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD_VALUES.items() for value in values])
def test_bad_value_is_refused_in_one_line_with_name_and_what_is_accepted(name: str, value: str):
    message = refusal({name: value})
    assert re.fullmatch(rf"{name}: .+ is refused.*; accepted is .+", message)
    assert SETTINGS[name].metadata["secret"] or repr(value.strip()) in message or repr(value) in message


@pytest.mark.parametrize("name", [name for name in BAD_VALUES if SETTINGS[name].metadata["secret"]])
def test_refused_secret_is_not_shown(name: str):
    for value in BAD_VALUES[name]:
        told, _ = refusal({name: value}).split("accepted is")
        assert value not in told
        assert "hunter2" not in told


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        ("PROVIDER_API_KEY", " sk-1\n", "sk-1"),
        ("PROVIDER_BASE_URL", "http://localhost:9/v1/", "http://localhost:9/v1"),
        ("PROVIDER_BASE_URL", "https://[::1]/v1", "https://[::1]/v1"),
        ("ALLOWED_MODELS", " GPT-5-nano , b ,, gpt-5-NANO,c*", ("GPT-5-nano", "b", "c*")),
        ("ADMIN_PASSWORD", " spaces and ümlauts ", " spaces and ümlauts "),
        ("DATABASE_URL", "postgres://user:pass@host/name", "postgresql://user:pass@host/name"),
        ("DATABASE_URL", "sqlite:////var/lib/t.db", "sqlite:////var/lib/t.db"),
        ("HOST", "::1", "::1"),
        ("HOST", "localhost", "localhost"),
        ("PORT", " 65535 ", 65535),
        ("PROVIDER_READ_TIMEOUT", "0.5", 0.5),
        ("TRUSTED_PROXIES", "16", 16),
        ("CORS_ORIGINS", "*", ("*",)),
        ("PROVIDER_TEAM_IDS", " Yes ", True),
        ("PROVIDER_TEAM_IDS", "off", False),
        ("ALERT_WEBHOOK_URL", "https://hooks.example/a?sig=b", "https://hooks.example/a?sig=b"),
        ("SMTP_URL", "smtps://h?from=a@b", SmtpServer("h", 465, True, "", "", "a@b")),
        ("SMTP_URL", "smtp://me%40x.org:p%2Fw@h:25", SmtpServer("h", 25, False, "me@x.org", "p/w", "me@x.org")),
        ("ALERT_MAIL_TO", "a@b.org, c@d.org,a@b.org", ("a@b.org", "c@d.org")),
        (
            "CORS_ORIGINS",
            " https://A.example/, app://x,http://[::1]:80",
            ("https://a.example", "app://x", "http://[::1]:80"),
        ),
    ],
)
def test_good_value_is_read(name: str, value: str, parsed: object):
    assert getattr(config.load({name: value}), name.lower()) == parsed


@pytest.mark.parametrize("allowed", ["Claude,Gemini-*", "GPT-5-mini", "gpt-5-nan", "GPT-5-nano-2"])
def test_default_model_must_be_allowed(allowed: str):
    message = refusal({"ALLOWED_MODELS": allowed})
    assert message.startswith("DEFAULT_MODEL: 'GPT-5-nano' is refused")
    assert all(name in message for name in allowed.split(","))


@pytest.mark.parametrize("allowed", ["*", "gpt-*", "GPT-5-nano*", "Claude,gpt-5-NANO"])
def test_default_model_may_be_allowed_by_name_or_prefix(allowed: str):
    assert config.load({"ALLOWED_MODELS": allowed}).default_model == "GPT-5-nano"


@pytest.mark.parametrize(
    ("pattern", "model", "allowed"),
    [
        ("*", "anything", True),
        ("GPT-5*", "GPT-5", True),
        ("GPT-5*", "GPT-5-nano", True),
        ("GPT-5*", "gpt-5-nano", True),
        ("GPT-5*", "xGPT-5", False),
        ("GPT-5", "GPT-5", True),
        ("GPT-5", "GPT-5-nano", False),
        ("GPT-5", "GPT-5 ", False),
        ("GPT.5", "GPT-5", False),
    ],
)
def test_pattern_matches_exactly_or_as_a_prefix(pattern: str, model: str, allowed: bool):
    assert config.is_allowed(model, (pattern,)) is allowed


@pytest.mark.parametrize(
    ("line", "password"),
    [
        ("ADMIN_PASSWORD=a${HOME}b", "a${HOME}b"),
        ("ADMIN_PASSWORD='a${HOME}b'", "a${HOME}b"),
        ('ADMIN_PASSWORD="it\'s"', "it's"),
        ("ADMIN_PASSWORD='say \"hi\"'", 'say "hi"'),
        ("ADMIN_PASSWORD='a # b'", "a # b"),
        ("ADMIN_PASSWORD=a#b", "a#b"),
        ("ADMIN_PASSWORD=plain  # for the panel", "plain"),
        ("  export ADMIN_PASSWORD = spaced  ", "spaced"),
        ("# ADMIN_PASSWORD=old\n\nADMIN_PASSWORD=new\n# end", "new"),
        ("ADMIN_PASSWORD=first\r\nADMIN_PASSWORD=pässwörd\r\n", "pässwörd"),
    ],
)
def test_env_file_is_read_as_written(line: str, password: str):
    write_env(line)
    assert config.load().admin_password == password


@pytest.mark.parametrize(
    "password",
    [
        "it's",
        'say "hi"',
        "a # b",
        "a${HOME}b",
        "$HOME",
        " spaces ",
        "pässwörd 密码",
        "a\\b",
        "a\\\\b",
        "ends in \\",
        "\\'",
    ],
)
def test_what_is_saved_is_read_again(password: str):
    first_start.save({"ADMIN_PASSWORD": password, "SECRET_KEY": password})
    settings = config.load()
    assert (settings.admin_password, settings.secret_key) == (password, password)


def test_unreadable_env_file_is_named():
    Path(".env").write_bytes(b"ADMIN_PASSWORD=\xff\xfe\n")
    assert refusal({}).startswith(".env cannot be read")


def test_parents_env_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_env("PORT=9999\n")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert config.load().port == 8000


@pytest.mark.slow
@pytest.mark.parametrize("name", [".env", ".flaskenv"])
def test_flask_command_does_not_read_a_parents_file(tmp_path: Path, database_url: str, name: str):
    (tmp_path / name).write_text("PORT=nonsense\n")
    (tmp_path / "below").mkdir()
    done = flask(tmp_path / "below", "teams", "list", DATABASE_URL=database_url)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_flask_command_reads_the_working_directorys_file_as_written(tmp_path: Path):
    write_env(f"DATABASE_URL='sqlite:///{tmp_path}/${{HOME}}.db'\n", tmp_path)
    assert flask(tmp_path, "teams", "create", "first").returncode == 0
    assert (tmp_path / "${HOME}.db").is_file()


@pytest.mark.slow
def test_flask_command_takes_the_environment_before_the_file(tmp_path: Path, database_url: str):
    write_env("DATABASE_URL=nonsense\nPORT=nonsense\n", tmp_path)
    done = flask(tmp_path, "teams", "list", DATABASE_URL=database_url, PORT="9000")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_environment_holds_although_a_parents_file_says_the_same(tmp_path: Path, database_url: str):
    write_env("PORT=nonsense\n", tmp_path)
    (tmp_path / "below").mkdir()
    environment = environment_of({"DATABASE_URL": database_url, "PORT": "nonsense"})
    command = [sys.executable, "-m", "flask", "teams", "list"]  # of the system is asked what it was started with
    done = subprocess.run(command, cwd=tmp_path / "below", env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: PORT: 'nonsense' is refused")


def test_defaults_are_told_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch):
    write_env("MAX_OUTPUT_TOKENS=5\n")
    monkeypatch.setenv("TEAM_CALLS", "1")
    monkeypatch.setenv("PORT", "9000")
    settings = config.load(config.default_settings())
    assert (settings.port, settings.team_calls, settings.max_output_tokens) == (8000, 128, None)


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("sqlite://data/x.db", "sqlite:///data/x.db"),
        ("sqlite://x.db", "sqlite:///x.db"),
    ],
)
def test_sqlite_url_with_two_slashes_is_refused_with_the_right_spelling(url: str, meant: str):
    assert f"accepted is {meant}, " in refusal({"DATABASE_URL": url})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ALOWED_MODELS", "ALLOWED_MODELS"),
        ("PROVIDER_API_KY", "PROVIDER_API_KEY"),
        ("PROVIDER_KEY", "PROVIDER_API_KEY"),
        ("WEB_CONCURENCY", "WEB_CONCURRENCY"),
        ("threads", "THREADS"),
        ("ADMIN_PASSWORT", "ADMIN_PASSWORD"),
        ("PORT", None),
        ("HTTPS_PROXY", None),
        ("POSTGRES_PASSWORD", None),
        ("OPENAI_API_KEY", None),
        ("FLASK_DEBUG", None),
        ("SSL_CERT_FILE", None),
    ],
)
def test_slips_in_the_env_file_are_found(name: str, meant: str | None):
    write_env(f"{name}=1\n")
    lines = list(config.slips())
    assert [(line.split()[0], meant in line) for line in lines] == ([(name, True)] if meant else [])


def test_generated_secret_key_is_kept_for_its_owner_alone(tmp_path: Path):
    key = first_start.generated_secret_key(tmp_path / "instance")
    kept = tmp_path / "instance" / "secret_key"
    assert re.fullmatch("[0-9a-f]{64}", key)
    assert kept.read_text() == first_start.generated_secret_key(tmp_path / "instance") == key
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [path.name for path in kept.parent.iterdir()] == ["secret_key"]


@pytest.mark.slow
def test_processes_that_start_at_once_share_one_secret_key(tmp_path: Path):
    keys = warm.at_once(rivals.generate_key, *[(tmp_path / "instance",)] * 6)
    assert {*keys} == {(tmp_path / "instance" / "secret_key").read_text()}


def test_secret_key_that_cannot_be_made_is_told_with_its_place(tmp_path: Path):
    (tmp_path / "instance").touch()
    with pytest.raises(ConfigError, match=f"{tmp_path}/instance/secret_key, .+ SECRET_KEY"):
        first_start.generated_secret_key(tmp_path / "instance")


def test_empty_secret_key_of_a_start_cut_short_is_replaced(tmp_path: Path):
    (tmp_path / "secret_key").touch(mode=0o600)
    assert len(first_start.generated_secret_key(tmp_path)) == 64


@pytest.mark.parametrize("show", [repr, str, "{0!r} {0}".format, lambda settings: f"{[settings]}"])
def test_settings_do_not_show_a_secret(show):
    secrets = {
        "PROVIDER_API_KEY": "sk-hidden",
        "ADMIN_PASSWORD": "pw-hidden",
        "SECRET_KEY": "key-hidden",
        "DATABASE_URL": "postgresql://user:db-hidden@host/name",
    }
    assert "hidden" not in show(config.load(secrets))
