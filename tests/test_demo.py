"""`flask demo`: the whole product in one command, which leaves nothing behind."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from conftest import ROOT, eventually

from tokenrouter.config import SETTINGS

pytestmark = pytest.mark.slow

FLASK = Path(sys.executable).with_name("flask")


@dataclass
class Demo:
    """A running demo of a copy of the service, started in an empty folder."""

    process: subprocess.Popen[str]
    guide: str
    folder: Path

    def told(self, pattern: str) -> str:
        """Return what the guide says."""
        return re.search(pattern, self.guide, re.DOTALL)[1]

    @property
    def url(self) -> str:
        """Where it says that it is."""
        return self.told(r"(http://[\d.:]+)/v1\n")

    @property
    def bearer_token(self) -> str:
        """The team's token."""
        return self.told(r"(tr-[\w-]{43})\n")

    def interrupt(self, by: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Press Ctrl-C, or send another signal, and return the exit status and what was printed since."""
        self.process.send_signal(by)
        rest, _ = self.process.communicate(timeout=20)
        return self.process.returncode, rest


def flask_demo(folder: Path, *arguments: str, **settings: str) -> subprocess.Popen[str]:
    """Start it on a copy of the service, whose `instance/` then shows what it wrote."""
    shutil.copytree(ROOT / "tokenrouter", folder / "copy" / "tokenrouter")
    shutil.copy(ROOT / "wsgi.py", folder / "copy")
    (folder / "empty").mkdir()
    (folder / "temp").mkdir()
    environment = {name: text for name, text in os.environ.items() if name not in SETTINGS} | settings
    environment |= {"FLASK_APP": str(folder / "copy" / "wsgi.py"), "TMPDIR": str(folder / "temp")}
    return subprocess.Popen(
        [FLASK, "demo", *arguments],
        cwd=folder / "empty",
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_guide(process: subprocess.Popen[str]) -> str:
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C"):
            break
    return "".join(lines)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("demo")
    with flask_demo(folder, "--port", "0") as process:
        yield Demo(process, read_guide(process), folder)
        process.kill()


def test_guide_names_url_token_and_panel(demo: Demo):
    assert demo.guide.count(f"{demo.url}/v1") >= 3
    assert demo.guide.count(demo.bearer_token) == 3
    assert f"{demo.url}/admin " in demo.guide
    assert not re.search("traceback|warning|error", demo.guide, re.IGNORECASE)


def test_printed_curl_command_works(demo: Demo):
    command = shlex.split(demo.told(r"\n  (curl .+?)\n\nOr").replace("\\\n", ""))
    url, flags = command[1], list(zip(command[2::2], command[3::2], strict=True))
    headers = dict(value.split(": ", 1) for flag, value in flags if flag == "-H")
    (body,) = [value for flag, value in flags if flag == "-d"]
    answer = requests.post(url, data=body, headers=headers, timeout=20)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"]


def test_printed_sdk_snippet_works(demo: Demo):
    snippet = textwrap.dedent(demo.told(r"\n(  from openai .+?)\n\nCtrl-C"))
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "TokenRouter" in done.stdout


def test_printed_password_opens_the_panel(demo: Demo):
    url, password = re.search(r"Admin panel +(\S+) +\(password: (\S+)\)", demo.guide).groups()
    with requests.Session() as browser:
        form = browser.get(url, timeout=20)
        csrf_token = re.search(r'name="csrf_token" value="([^"]+)"', form.text)[1]
        page = browser.post(form.url, data={"csrf_token": csrf_token, "password": password}, timeout=20)
    assert "<h1>Dashboard</h1>" in page.text


def test_demo_listens_on_loopback_only(demo: Demo):
    assert demo.url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_it_and_leaves_nothing_behind(tmp_path: Path, by: signal.Signals):
    with flask_demo(tmp_path, "--port", "0") as process:
        demo = Demo(process, read_guide(process), tmp_path)
        requests.get(f"{demo.url}/v1/models", headers={"Authorization": f"Bearer {demo.bearer_token}"}, timeout=20)
        assert any((tmp_path / "temp").iterdir())
        status, rest = demo.interrupt(by)
    assert status == 0
    assert "Traceback" not in rest
    assert list((tmp_path / "temp").iterdir()) == list((tmp_path / "empty").iterdir()) == []
    assert list((tmp_path / "copy" / "instance").rglob("*")) == []


def test_end_before_it_serves_leaves_nothing_behind(tmp_path: Path):
    with flask_demo(tmp_path, "--port", "0") as process:
        assert eventually(lambda: any((tmp_path / "temp").iterdir()), 30)
        process.terminate()
        process.communicate(timeout=30)
    assert list((tmp_path / "temp").iterdir()) == []


def test_end_that_is_asked_for_twice_leaves_nothing_behind(tmp_path: Path):
    """As when a terminal is closed: HUP, then TERM."""
    with flask_demo(tmp_path, "--port", "0") as process:
        read_guide(process)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert list((tmp_path / "temp").iterdir()) == []


def test_no_setting_of_the_service_reaches_the_demo(tmp_path: Path):
    settings = {"PROVIDER_BASE_URL": "http://127.0.0.1:9/v1", "ALLOWED_MODELS": "*", "MAX_OUTPUT_TOKENS": "1"}
    with flask_demo(tmp_path, "--port", "0", **settings) as process:
        demo = Demo(process, read_guide(process), tmp_path)
        headers = {"Authorization": f"Bearer {demo.bearer_token}"}
        body = {"messages": [{"role": "user", "content": "Hello!"}]}
        answer = requests.post(f"{demo.url}/v1/chat/completions", json=body, headers=headers, timeout=20).json()
        demo.interrupt()
    assert answer["usage"]["completion_tokens"] > 1


def test_taken_port_is_told_in_one_line(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with flask_demo(tmp_path, "--port", str(port)) as process:
            shown, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert re.fullmatch(rf"Error: Port {port} .+\n", shown)
    assert list((tmp_path / "temp").iterdir()) == []
