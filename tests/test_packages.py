"""What the service is packed in: it agrees with how the service starts, answers and stops."""

import json
import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Server

README = (ROOT / "README.md").read_text()
DOCKERFILE = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())


@pytest.fixture
def grace_s() -> float:
    """For how long running answers may go on after TERM."""
    text = (ROOT / "gunicorn.conf.py").read_text()
    return float(re.search(r"^graceful_timeout = (\d+)", text, re.MULTILINE)[1])


@pytest.fixture
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


@pytest.fixture
def unit() -> ConfigParser:
    """The README's unit of systemd."""
    parser = ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str
    parser.read_string(re.search(r"```ini\n(.*?)```", README, re.DOTALL)[1])
    return parser


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


def test_image_has_all_that_serving_needs_and_nothing_else():
    copied = {word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed == {"requirements.txt", "wsgi.py", "gunicorn.conf.py", "tokenrouter"}
    assert all((ROOT / name).exists() for name in copied)


def test_container_runs_as_a_user_of_its_own():
    assert instructions("USER") == ["tokenrouter"]


@pytest.mark.slow
def test_container_is_healthy_while_calls_can_be_booked(server: Server):
    (line,) = instructions("HEALTHCHECK")
    command = json.loads(line[line.index("[") :])
    port = {"PORT": server.environment["PORT"]}
    assert subprocess.run(command, env=port).returncode == 0
    server.process.terminate()
    server.process.wait(20)
    assert subprocess.run(command, env=port, stderr=subprocess.DEVNULL).returncode != 0


def test_everybody_waits_longer_than_answers_may_go_on(grace_s: float, compose: dict[str, Any], unit: ConfigParser):
    assert int(compose["services"]["tokenrouter"]["stop_grace_period"].removesuffix("s")) > grace_s
    assert int(unit["Service"]["TimeoutStopSec"]) > grace_s
    assert int(re.search(r"docker stop --time (\d+)", README)[1]) > grace_s
    assert instructions("STOPSIGNAL") == ["SIGTERM"]


def test_service_starts_once_its_database_is_well(compose: dict[str, Any]):
    service, database = compose["services"]["tokenrouter"], compose["services"]["database"]
    assert service["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert "pg_isready" in database["healthcheck"]["test"][1]
    assert service["environment"]["DATABASE_URL"].endswith("@database/tokenrouter")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_unit_can_be_read_by_systemd_and_is_closed(unit: ConfigParser, tmp_path: Path):
    text = re.search(r"```ini\n(.*?)```", README, re.DOTALL)[1]
    path = tmp_path / "tokenrouter.service"
    path.write_text(text.replace("/opt/tokenrouter/.venv/bin/gunicorn", "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
    assert [line for line in verified.stderr.splitlines() if "tokenrouter.service" in line] == []
