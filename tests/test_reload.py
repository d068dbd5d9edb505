"""HUP on a real gunicorn: what it takes over, what it leaves as it is, and what its workers share."""

import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dotenv
import pexpect
import pytest
import requests
from adminclient import PAGES
from conftest import ROOT, Server, eventually, running_server
from serving import copy_service

pytestmark = pytest.mark.slow

HEALTH = "tokenrouter/health.py"
SITE = "tokenrouter/templates/pages/index.html"
NAMES_ITS_MAKER = """
import os

make = init_app

def init_app(*given):
    print("made by", os.getpid(), flush=True)
    make(*given)
"""


@dataclass
class Service:
    """A gunicorn that runs a copy of the service, whose code and `.env` a test may change."""

    server: Server
    folder: Path

    def replace(self, file: str, old: str, new: str) -> None:
        """Change a file of the copy."""
        path = self.folder / file
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))

    def configure(self, **settings: str) -> None:
        """Change settings in `.env`."""
        for name, value in settings.items():
            dotenv.set_key(self.folder / ".env", name, value)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.server.url + path, timeout=5)

    def takes_body_of(self, length: int) -> bool:
        url = f"{self.server.url}/v1/chat/completions"
        return requests.post(url, data=b"x" * length, timeout=5).status_code != 413

    def hup(self) -> list[str]:
        """Send HUP, wait for new workers, and return what was said by others than gunicorn."""
        old, begin = set(self.server.worker_pids()), len(self.server.log.read_text())
        self.server.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: not old & set(self.server.worker_pids()), 30)
        assert self.get("/healthz").ok
        return [line for line in self.server.log.read_text()[begin:].splitlines() if not re.match(r"\[\d", line)]


@pytest.fixture
def service(settings: dict[str, str], tmp_path: Path) -> Iterator[Service]:
    """It has one worker, which answers: a signal that reaches a worker in its first moments is lost."""
    folder = tmp_path / "service"
    copy_service(folder)
    (folder / ".env").touch()
    service = Service(None, folder)
    service.configure(**settings, WEB_CONCURRENCY="1")
    with running_server({}, tmp_path, folder=folder) as service.server:
        yield service


def test_hup_takes_over_changed_and_new_modules(service: Service):
    (service.folder / "tokenrouter" / "novelty.py").write_text('STATUS = "fine"\n')
    service.replace(HEALTH, "from tokenrouter import runtime", "from tokenrouter import novelty, runtime")
    service.replace(HEALTH, '"ok"', "novelty.STATUS")
    assert service.hup() == []
    assert service.get("/healthz").json() == {"status": "fine"}


def test_hup_takes_over_changed_templates(service: Service):
    service.replace(SITE, "<h1>TokenRouter", "<h1>Our TokenRouter")
    assert service.hup() == []
    assert "<h1>Our TokenRouter" in service.get("/").text


def test_hup_takes_over_changed_settings(service: Service):
    service.configure(WEB_CONCURRENCY="2", MAX_REQUEST_BYTES="1024")
    assert service.hup() == []
    assert not service.takes_body_of(2000)
    assert eventually(lambda: len(service.server.worker_pids()) == 2)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("THREADS", "many", "THREADS: 'many' is refused; accepted is a whole number from 1 to 8192"),
        ("DATABASE_URL", "sqlite:////dev/null/tokenrouter.db", "DATABASE_URL: the database cannot be used: .+"),
    ],
    ids=["refused", "unusable"],
)
def test_hup_with_a_wrong_setting_says_so_and_changes_nothing(service: Service, name: str, value: str, said: str):
    service.configure(**{"MAX_REQUEST_BYTES": "1024", name: value})
    (line,) = service.hup()
    assert re.fullmatch(rf"Error: {said}\. What runs goes on as it is\.", line)
    assert service.takes_body_of(2000)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (HEALTH, "def readyz() ->", "def readyz() -->", r"SyntaxError: .+ \(health\.py, line \d+\)"),
        (HEALTH, "import runtime", "import runtimes", "ImportError: cannot import name 'runtimes' .+"),
        (SITE, "{% endblock %}\n{% block body %}", "{% block body %}", "TemplateSyntaxError: .+"),
    ],
    ids=["syntax", "import", "template"],
)
def test_hup_with_code_that_cannot_be_loaded_says_so_and_changes_nothing(
    service: Service, file: str, old: str, new: str, said: str
):
    service.replace(HEALTH, '"ok"', '"fine"')
    service.replace(file, old, new)
    (line,) = service.hup()
    assert re.fullmatch(rf"Error: {said}\. What runs goes on as it is\.", line)
    assert service.get("/healthz").json() == {"status": "ok"}


def test_hup_after_one_that_failed_takes_over_what_was_put_right(service: Service):
    service.replace(HEALTH, '"ok"', "fine")
    assert len(service.hup()) == 1
    service.replace(HEALTH, "fine", '"fine"')
    assert service.hup() == []
    assert service.get("/healthz").json() == {"status": "fine"}


def test_worker_that_is_replaced_after_a_failed_hup_serves_what_ran(service: Service):
    service.replace(HEALTH, '"ok"', "fine")
    service.hup()
    (worker,) = service.server.worker_pids()
    os.kill(worker, signal.SIGKILL)
    assert eventually(lambda: worker not in service.server.worker_pids() and len(service.server.worker_pids()) == 1)
    assert service.get("/healthz").json() == {"status": "ok"}


def test_workers_serve_with_the_app_that_the_master_made_after_hup_too(service: Service):
    master = service.server.process.pid
    with (service.folder / "tokenrouter" / "runtime.py").open("a") as file:
        file.write(NAMES_ITS_MAKER)
    assert service.hup() == [f"made by {master}"]
    assert service.hup() == [f"made by {master}"]


def test_hup_keeps_the_address_where_nothing_can_listen_at_the_new_one(settings: dict[str, str], tmp_path: Path):
    script = """
import os, socket
running = preload()
taken = socket.create_server(("127.0.0.1", 0))
os.environ |= {"HOST": "127.0.0.1", "PORT": str(taken.getsockname()[1])}
assert preload() is running
"""
    said, status = run_in_master(script, settings, tmp_path)
    assert re.fullmatch(r"Error: HOST, PORT: .+ already in use .+\. What runs goes on as it is\.", said)
    assert status == 0


def test_hup_asks_nothing_though_there_is_a_terminal(settings: dict[str, str], tmp_path: Path):
    script = """
import os
running = preload()
del os.environ["PROVIDER_API_KEY"]
assert preload() is running
"""
    said, status = run_in_master(script, settings, tmp_path)
    assert re.fullmatch(r"Error: PROVIDER_API_KEY is not set: .+\. What runs goes on as it is\.", said)
    assert status == 0


def test_workers_compile_no_template(settings: dict[str, str], tmp_path: Path):
    script = f"""
import jinja2
from adminclient import Panel
from tokenrouter import create_app
preload()
del jinja2.Environment.compile
panel = Panel(create_app().test_client())
assert panel.sign_in().status_code == 302
for page in {("/", "/usage", "/docs", *PAGES)}:
    assert panel.get(page).status_code == 200, page
"""
    assert run_in_master(script, settings, tmp_path) == ("", 0)


def run_in_master(script: str, settings: dict[str, str], folder: Path) -> tuple[str, int]:
    """Run what calls `preload`, as gunicorn's master does, on a terminal; return what it shows and its exit status."""
    command = shlex.join([sys.executable, "-c", f"from tokenrouter.worker.preload import preload\n{script}"])
    environment = {**settings, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    said, status = pexpect.run(
        command, cwd=str(folder), env=environment, encoding="utf-8", withexitstatus=True, timeout=60
    )
    return said.strip(), status
