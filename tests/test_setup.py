"""The first start: what is asked on a terminal, what is saved, and the one line where a start cannot be."""

import io
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import dotenv
import pexpect
import pytest
import requests
import warm
from conftest import eventually, free_port
from serving import copy_service

from tokenrouter.config import SETTINGS

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
GUNICORN = ("gunicorn", "wsgi:app")
KEY = "sk-typed-on-the-terminal"
PASSWORD = "it's # my ${own}"
NOTES = "# Our notes: keep them\nTHREADS=8   # few\n\nexport OTHER='of someone else'\nPROVIDER_API_KEY=\n# the end\n"
ERROR = re.compile(r"Error: .+\n")  # in one line


@dataclass
class Checkout:
    """A copy of the service in a folder of its own, where `.env` and `instance/` may be written."""

    folder: Path
    port: int

    @property
    def env_file(self) -> Path:
        """Where the answers are saved."""
        return self.folder / ".env"

    def saved(self) -> dict[str, str | None]:
        """Return what `.env` says."""
        return dotenv.dotenv_values(self.env_file, interpolate=False)

    def environment(self, settings: dict[str, str]) -> dict[str, str]:
        """Return this process's environment with these settings alone, on loopback."""
        ours = {name: text for name, text in os.environ.items() if name not in SETTINGS}
        return ours | {"HOST": "127.0.0.1", "PORT": str(self.port), **settings}

    def run(self, *command: str, folder: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, without a terminal; one that comes to none is told to stop."""
        return warm.run(
            list(command),
            folder or self.folder,
            self.environment(settings),
            30,
            code=self.folder,
            prepare=warm.obey_file_modes,
        )

    def answers(self) -> bool:
        """Tell whether the service can be reached."""
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/v1/models", timeout=5).status_code == 401
        except requests.ConnectionError:
            return False

    @contextmanager
    def terminal(self, *command: str, **settings: str) -> Iterator["Terminal"]:
        """Run a command on a terminal; it ends with the block."""
        environment = self.environment(settings)
        program = str(BIN / command[0])
        child = pexpect.spawn(
            program,
            list(command[1:]),
            cwd=str(self.folder),
            env=environment,
            encoding="utf-8",
            timeout=60,
            preexec_fn=warm.obey_file_modes,
        )
        terminal = Terminal(child)
        try:
            yield terminal
        finally:
            child.kill(signal.SIGTERM)  # what close() would send first, SIGHUP, only reloads gunicorn
            child.expect(pexpect.EOF)
            child.close(force=True)


class Terminal:
    """What a person sees and types."""

    def __init__(self, child: pexpect.spawn) -> None:
        self.child = child
        self._shown = child.logfile_read = io.StringIO()

    @property
    def shown(self) -> str:
        """All that stood on the screen so far."""
        return self._shown.getvalue()

    def answer(self, question: str, text: str) -> None:
        """Wait for a question that hides its answer, and type."""
        self.child.expect_exact(question)
        assert self.child.waitnoecho()
        self.child.sendline(text)

    def wait_until_serving(self, checkout: Checkout) -> None:
        """Wait for both workers: gunicorn loses a signal that reaches a worker in its first moments."""
        for _ in range(2):
            self.child.expect("Booting worker")
        assert eventually(checkout.answers)

    def end(self, key: str = "") -> int:
        """Press Ctrl and a key, if any, and return the exit status."""
        if key:
            self.child.sendcontrol(key)
        self.child.expect(pexpect.EOF)
        self.child.wait()
        return self.child.exitstatus

    def end_question(self, key: str) -> int:
        """Press Ctrl and a key at a question; again if need be: Python hears none just before it waits for input."""
        for _ in range(5):
            self.child.sendcontrol(key)
            if self.child.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=10) == 0:
                break
        return self.end()


def checkout_at(folder: Path) -> Checkout:
    copy_service(folder)
    return Checkout(folder, free_port())


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return checkout_at(tmp_path / "service")


@dataclass
class FirstStart:
    """What was left of a first start on a terminal, where the key was typed and a password generated."""

    checkout: Checkout
    shown: str
    served: bool
    exit_status: int

    @property
    def generated_password(self) -> str:
        """The admin password that was shown."""
        return re.search(r"The admin password is (\S+)", self.shown)[1]


@pytest.fixture(scope="module")
def first_start(tmp_path_factory: pytest.TempPathFactory) -> FirstStart:
    checkout = checkout_at(tmp_path_factory.mktemp("first") / "service")
    checkout.env_file.write_text(NOTES)
    checkout.env_file.chmod(0o644)
    with checkout.terminal(*GUNICORN) as terminal:
        terminal.answer("Provider API key", KEY)
        terminal.answer("Admin password", "")
        terminal.child.expect("Booting worker.*Booting worker")
        served = eventually(checkout.answers)
        return FirstStart(checkout, terminal.shown, served, terminal.end("c"))


def test_first_start_serves_and_ctrl_c_ends_it(first_start: FirstStart):
    assert first_start.served
    assert first_start.exit_status == 0


def test_key_is_asked_for_once_though_two_workers_start(first_start: FirstStart):
    assert first_start.shown.count("Booting worker") == 2
    assert first_start.shown.count("Provider API key") == 1
    assert first_start.shown.count("Admin password") == 1


def test_typed_key_is_not_echoed(first_start: FirstStart):
    assert KEY not in first_start.shown


def test_enter_generates_a_password_and_prints_it_once(first_start: FirstStart):
    password = first_start.generated_password
    assert len(password) >= 12
    assert first_start.shown.count(password) == 1
    assert first_start.checkout.saved()["ADMIN_PASSWORD"] == password


def test_answers_are_saved_for_the_owner_alone(first_start: FirstStart):
    assert first_start.checkout.saved()["PROVIDER_API_KEY"] == KEY
    assert stat.S_IMODE(first_start.checkout.env_file.stat().st_mode) == 0o600


def test_other_lines_and_comments_are_kept(first_start: FirstStart):
    kept = [line for line in NOTES.splitlines() if not line.startswith("PROVIDER_API_KEY")]
    now = first_start.checkout.env_file.read_text().splitlines()
    assert [line for line in now if not re.match("PROVIDER_API_KEY|ADMIN_PASSWORD", line)] == kept
    assert len(now) == len(kept) + 2


def test_second_start_asks_nothing(first_start: FirstStart):
    with first_start.checkout.terminal(*GUNICORN) as terminal:
        terminal.wait_until_serving(first_start.checkout)
        assert "Provider API key" not in terminal.shown


def test_no_trace_of_an_error_is_shown(first_start: FirstStart):
    assert not re.search("traceback|error|warning", first_start.shown, re.IGNORECASE)


def test_typed_password_is_saved_and_not_shown(checkout: Checkout):
    with checkout.terminal(*GUNICORN) as terminal:
        terminal.answer("Provider API key", KEY)
        terminal.answer("Admin password", PASSWORD)
        terminal.wait_until_serving(checkout)
    assert checkout.saved()["ADMIN_PASSWORD"] == PASSWORD
    assert PASSWORD not in terminal.shown


def test_key_that_cannot_be_sent_is_asked_again(checkout: Checkout):
    with checkout.terminal("flask", "setup") as terminal:
        terminal.answer("Provider API key", "two words")
        terminal.answer("Provider API key", KEY)
        terminal.answer("Admin password", "")
        assert terminal.end() == 0
    assert checkout.saved()["PROVIDER_API_KEY"] == KEY


def test_empty_answer_to_the_first_question_asks_again(checkout: Checkout):
    with checkout.terminal("flask", "setup") as terminal:
        terminal.answer("Provider API key", "")
        terminal.answer("Provider API key", KEY)
        terminal.answer("Admin password", "")
        assert terminal.end() == 0
    assert checkout.saved()["PROVIDER_API_KEY"] == KEY


def test_question_says_whose_key_is_wanted_and_that_it_stays_unseen(first_start: FirstStart):
    before = first_start.shown.partition("Provider API key")[0]
    assert "https://api.poe.com/v1" in before
    assert "PROVIDER_BASE_URL" in before and "not shown" in before


def test_question_names_the_provider_that_is_set_without_its_password(checkout: Checkout):
    url = "https://user:hunter2@provider.example/v1"
    with checkout.terminal("flask", "setup", PROVIDER_BASE_URL=url) as terminal:
        terminal.child.expect_exact("Provider API key")
    assert "https://provider.example/v1" in terminal.shown
    assert "hunter2" not in terminal.shown


@pytest.mark.parametrize("key", ["c", "d"])
@pytest.mark.parametrize("command", [GUNICORN, ("flask", "run"), ("flask", "setup")], ids=" ".join)
def test_interrupted_questions_leave_nothing_saved(checkout: Checkout, command: tuple[str, ...], key: str):
    with checkout.terminal(*command) as terminal:
        terminal.answer("Provider API key", KEY)
        terminal.child.expect("Admin password")
        assert terminal.child.waitnoecho()
        assert terminal.end_question(key) != 0
    assert not checkout.env_file.exists()
    assert "Traceback" not in terminal.shown


def test_interrupt_at_the_first_question_ends_the_start(checkout: Checkout):
    with checkout.terminal(*GUNICORN) as terminal:
        terminal.child.expect("Provider API key")
        assert terminal.child.waitnoecho()
        assert terminal.end_question("c") != 0
    assert not checkout.env_file.exists()
    assert "Booting" not in terminal.shown


@pytest.mark.parametrize("command", [GUNICORN, ("flask", "run")], ids=" ".join)
def test_start_without_key_and_terminal_fails_in_one_line(checkout: Checkout, command: tuple[str, ...]):
    done = checkout.run(*command)
    assert done.returncode != 0
    assert ERROR.fullmatch(done.stderr)
    assert "PROVIDER_API_KEY" in done.stderr
    assert done.stdout == ""


def test_failed_start_leaves_nothing_behind(checkout: Checkout):
    before = {path.relative_to(checkout.folder) for path in checkout.folder.rglob("*") if path.suffix != ".pyc"}
    checkout.run(*GUNICORN)
    after = {path.relative_to(checkout.folder) for path in checkout.folder.rglob("*") if path.suffix != ".pyc"}
    assert {path for path in after - before if path.name != "__pycache__"} == set()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WEB_CONCURRENCY", "0"),
        ("HOST", "two words"),
        ("DEFAULT_MODEL", "Claude"),
        ("DATABASE_URL", "mysql://user:hunter2@host/name"),
        ("DATABASE_URL", "sqlite://data/tokenrouter.db"),
    ],
)
def test_bad_setting_stops_gunicorn_in_one_line(checkout: Checkout, name: str, value: str):
    done = checkout.run(*GUNICORN, **{"PROVIDER_API_KEY": KEY, name: value})
    assert done.returncode == 1
    assert re.fullmatch(rf"Error: {name}: .+ is refused.+\n", done.stderr)
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("command", [GUNICORN, ("flask", "run"), ("flask", "teams", "list")], ids=" ".join)
def test_bad_setting_in_the_file_stops_every_command_in_one_line(checkout: Checkout, command: tuple[str, ...]):
    checkout.env_file.write_text("THREADS=many\n")
    done = checkout.run(*command, PROVIDER_API_KEY=KEY)
    assert done.returncode == 1
    assert re.fullmatch(r"Error: THREADS: 'many' is refused.+\n", done.stderr)


@pytest.mark.parametrize("command", [GUNICORN, ("flask", "run"), ("flask", "teams", "list")], ids=" ".join)
def test_database_that_cannot_be_made_stops_every_command_in_one_line(checkout: Checkout, command: tuple[str, ...]):
    (checkout.folder / "file").touch()
    url = f"sqlite:///{checkout.folder}/file/tokenrouter.db"
    done = checkout.run(*command, PROVIDER_API_KEY=KEY, DATABASE_URL=url)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert len(re.findall("(?i)error", done.stderr)) == 1


@pytest.mark.parametrize("command", [GUNICORN, ("flask", "run"), ("flask", "teams", "list")], ids=" ".join)
def test_database_of_a_later_version_stops_every_command_in_one_line(checkout: Checkout, command: tuple[str, ...]):
    checkout.run("flask", "teams", "create", "first")
    with closing(sqlite3.connect(checkout.folder / "instance" / "data" / "tokenrouter.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    done = checkout.run(*command, PROVIDER_API_KEY=KEY)
    assert done.returncode != 0
    assert len(re.findall("9999", done.stderr)) == 1
    assert "Traceback" not in done.stderr


@contextmanager
def closed(path: Path, mode: int) -> Iterator[None]:
    """Take rights on a file or folder away, and give them back, so that it can be cleared away."""
    before = stat.S_IMODE(path.stat().st_mode)
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


@pytest.mark.parametrize("command", [GUNICORN, ("flask", "setup")], ids=" ".join)
def test_nothing_is_asked_where_no_answer_can_be_saved(checkout: Checkout, command: tuple[str, ...]):
    (checkout.folder / "instance").mkdir()
    with closed(checkout.folder, 0o500), checkout.terminal(*command) as terminal:
        assert terminal.end() == 1
    assert re.fullmatch(r"Error: \S+/\.env cannot be written.+\r\n", terminal.shown)


@pytest.mark.parametrize("command", [GUNICORN, ("flask", "run"), ("flask", "teams", "list")], ids=" ".join)
def test_folder_that_cannot_be_written_stops_every_command_in_one_line(checkout: Checkout, command: tuple[str, ...]):
    with closed(checkout.folder, 0o500):
        done = checkout.run(*command, PROVIDER_API_KEY=KEY)
    assert done.returncode == 1
    assert done.stderr == f"Error: {checkout.folder}/instance cannot be made: Permission denied\n"


def test_key_that_was_not_saved_is_told_with_the_place(checkout: Checkout):
    with checkout.terminal("flask", "setup") as terminal:
        terminal.answer("Provider API key", KEY)
        terminal.child.expect_exact("Admin password")
        assert terminal.child.waitnoecho()
        with closed(checkout.folder, 0o500):
            terminal.child.sendline("my-own")
            assert terminal.end() == 1
    assert f"PROVIDER_API_KEY and ADMIN_PASSWORD could not be saved to {checkout.env_file}:" in terminal.shown
    assert "Traceback" not in terminal.shown
    assert not checkout.env_file.exists()


def test_unreadable_env_file_stops_the_start_in_one_line(checkout: Checkout):
    checkout.env_file.write_text(f"PROVIDER_API_KEY={KEY}\n")
    with closed(checkout.env_file, 0):
        done = checkout.run(*GUNICORN)
    assert done.returncode == 1
    assert re.fullmatch(r"Error: \.env cannot be read: .+\n", done.stderr)


@pytest.mark.parametrize("command", [GUNICORN, ("flask", "run")], ids=" ".join)
def test_folder_that_is_anothers_stops_the_start_in_one_line(checkout: Checkout, command: tuple[str, ...]):
    (checkout.folder / "instance").mkdir()
    if os.geteuid() == 0:
        os.chown(checkout.folder / "instance", 65534, 65534)
    with closed(checkout.folder / "instance", 0o500):
        done = checkout.run(*command, PROVIDER_API_KEY=KEY)
    assert done.returncode == 1
    assert ERROR.fullmatch(done.stderr)
    assert f"{checkout.folder}/instance" in done.stderr


@pytest.mark.parametrize("command", [GUNICORN, ("flask", "run"), ("flask", "teams", "list")], ids=" ".join)
@pytest.mark.parametrize("path", ["tokenrouter.db", "."])
def test_database_that_cannot_be_written_stops_every_command_in_one_line(
    checkout: Checkout, command: tuple[str, ...], path: str
):
    checkout.run("flask", "teams", "create", "first")
    data = checkout.folder / "instance" / "data"
    with closed(data / path, 0o500):
        done = checkout.run(*command, PROVIDER_API_KEY=KEY, SECRET_KEY="set")
    assert done.returncode == 1
    assert re.fullmatch(r"Error: DATABASE_URL: .+\n", done.stderr)
    assert str(data) in done.stderr


@pytest.mark.parametrize("how", ["--chdir", "--config none"])
def test_start_without_our_configuration_fails_and_is_not_tried_again(checkout: Checkout, how: str):
    (checkout.folder / "elsewhere").mkdir()
    if how == "--chdir":
        arguments, folder = ("--chdir", str(checkout.folder)), checkout.folder / "elsewhere"
    else:
        (checkout.folder / "empty.py").touch()
        arguments, folder = ("--config", "empty.py"), checkout.folder
    bind = ("--bind", f"127.0.0.1:{checkout.port}")
    done = checkout.run("gunicorn", *arguments, *bind, "wsgi:app", folder=folder, PROVIDER_API_KEY=KEY)
    assert done.returncode == 4
    assert len(re.findall("^Error: gunicorn.conf.py was not read.+", done.stderr, re.MULTILINE)) == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Booting worker") == 1


def test_configuration_may_be_named_from_another_folder(checkout: Checkout):
    (checkout.folder / "elsewhere").mkdir()
    command = ("gunicorn", "--config", "../gunicorn.conf.py", "--check-config", "wsgi:app")
    done = checkout.run(*command, folder=checkout.folder / "elsewhere", PROVIDER_API_KEY=KEY)
    assert (done.returncode, done.stderr) == (0, "")


def test_names_in_the_file_that_resemble_settings_are_warned_of(checkout: Checkout):
    names = ("ALOWED_MODELS", "PROVIDER_API_KY", "port", "HTTP_PROXY", "COMPOSE_PROJECT_NAME")
    lines = [f"PROVIDER_API_KEY={KEY}", "ADMIN_PASSWORD=my-own", *(f"{name}=x" for name in names)]
    checkout.env_file.write_text("\n".join(lines))
    with checkout.terminal(*GUNICORN) as terminal:
        terminal.wait_until_serving(checkout)
    warnings = re.findall(r"\[WARNING\] (\w+) in .env .+ Is (\w+) meant\?", terminal.shown)
    assert warnings == [
        ("ALOWED_MODELS", "ALLOWED_MODELS"),
        ("PROVIDER_API_KY", "PROVIDER_API_KEY"),
        ("port", "PORT"),
    ]
    assert terminal.shown.count("[WARNING]") == 3


def test_flask_run_warns_too(checkout: Checkout):
    checkout.env_file.write_text("ALOWED_MODELS=x\n")
    with checkout.terminal("flask", "run", "--port", str(checkout.port), PROVIDER_API_KEY=KEY) as terminal:
        terminal.child.expect("Running on")
    assert re.search("Warning: The admin password is still the default", terminal.shown)
    assert re.search("Warning: ALOWED_MODELS .+ ALLOWED_MODELS", terminal.shown)


def test_taken_port_ends_the_start(checkout: Checkout):
    with socket.create_server(("127.0.0.1", checkout.port)):
        done = checkout.run(*GUNICORN, PROVIDER_API_KEY=KEY)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"127.0.0.1', {checkout.port}" in done.stderr


def test_setup_keeps_what_is_there_on_enter(checkout: Checkout):
    checkout.env_file.write_text("PROVIDER_API_KEY=sk-present\nADMIN_PASSWORD=my-own\n")
    with checkout.terminal("flask", "setup") as terminal:
        terminal.answer("Provider API key (Enter keeps the present one)", "")
        terminal.answer("Admin password (Enter keeps the present one)", "")
        assert terminal.end() == 0
    assert checkout.saved() == {"PROVIDER_API_KEY": "sk-present", "ADMIN_PASSWORD": "my-own"}
    assert "sk-present" not in terminal.shown
    assert "my-own" not in terminal.shown


def test_setup_replaces_what_is_typed(checkout: Checkout):
    checkout.env_file.write_text("PROVIDER_API_KEY=sk-present\nADMIN_PASSWORD=my-own\n")
    checkout.env_file.chmod(0o644)
    with checkout.terminal("flask", "setup") as terminal:
        terminal.answer("Provider API key", KEY)
        terminal.answer("Admin password", "another")
        assert terminal.end() == 0
    assert checkout.saved() == {"PROVIDER_API_KEY": KEY, "ADMIN_PASSWORD": "another"}
    assert stat.S_IMODE(checkout.env_file.stat().st_mode) == 0o600


def test_link_to_the_file_is_kept(checkout: Checkout):
    kept = checkout.folder / "kept-elsewhere"
    kept.write_text("THREADS=8\n")
    checkout.env_file.symlink_to(kept)
    with checkout.terminal("flask", "setup") as terminal:
        terminal.answer("Provider API key", KEY)
        terminal.answer("Admin password", "another")
        assert terminal.end() == 0
    assert checkout.env_file.is_symlink()
    assert dotenv.dotenv_values(kept)["PROVIDER_API_KEY"] == KEY


def test_setup_without_terminal_fails_in_one_line(checkout: Checkout):
    done = checkout.run("flask", "setup")
    assert done.returncode == 1
    assert ERROR.fullmatch(done.stderr)
    assert not checkout.env_file.exists()


def test_flask_run_serves_with_a_key(checkout: Checkout):
    with checkout.terminal("flask", "run", "--port", str(checkout.port), PROVIDER_API_KEY=KEY) as terminal:
        assert eventually(checkout.answers)
        terminal.child.expect("Running on")
        assert terminal.end("c") == 0


def test_flask_run_asks_on_a_terminal(checkout: Checkout):
    with checkout.terminal("flask", "run", "--port", str(checkout.port)) as terminal:
        terminal.answer("Provider API key", KEY)
        terminal.answer("Admin password", "")
        assert eventually(checkout.answers)
    assert checkout.saved()["PROVIDER_API_KEY"] == KEY


@pytest.mark.parametrize("command", ["teams list", "usage verify", "--help", "teams --help"])
def test_other_commands_work_without_a_key(checkout: Checkout, command: str):
    checkout.run("flask", "teams", "create", "first")
    done = checkout.run("flask", *command.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize("command", ["--help", "teams --help", "nonsense"])
def test_help_with_a_bad_setting_shows_one_line(checkout: Checkout, command: str):
    done = checkout.run("flask", *command.split(), PORT="nonsense")
    assert re.match("Error: PORT: 'nonsense' is refused", done.stderr)
    assert done.stderr.count("PORT") == 1
    assert "Traceback" not in done.stderr


@pytest.fixture
def started(checkout: Checkout) -> Iterator[Checkout]:
    with checkout.terminal(*GUNICORN, PROVIDER_API_KEY=KEY) as terminal:
        terminal.wait_until_serving(checkout)
        yield checkout


def test_first_start_makes_database_and_secret_key_for_the_owner_alone(started: Checkout):
    assert stat.S_IMODE((started.folder / "instance").stat().st_mode) == 0o700
    made = [path for path in (started.folder / "instance").rglob("*") if path.is_file()]
    assert {path.name for path in made} >= {"secret_key", "tokenrouter.db"}
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in made} == {"0o600"}
