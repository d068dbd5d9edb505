"""An older version goes on serving while this one migrates its database and serves beside it: both as they are."""

import io
import subprocess
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, eventually, hello, running_server
from serving import Server, post, run_flask

from tokenrouter.database import schema

pytestmark = [pytest.mark.slow, pytest.mark.both_databases]


@pytest.fixture
def database_url(empty_database_url: str) -> str:
    """The database that the older version makes."""
    return empty_database_url


def git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)
    if done.returncode:
        pytest.skip(f"There is no history to take an older version from: {done.stderr.decode().strip()}")
    return done.stdout


@pytest.fixture
def older_version(tmp_path: Path) -> Path:
    """The last version whose newest migration is not the newest one now."""
    (newest,) = schema.MIGRATIONS.glob(f"versions/{schema.HEAD}_*.py")
    added = git("log", "--diff-filter=A", "--format=%H", "--", str(newest)).decode().split()
    if not added:
        pytest.skip("There is no history to take an older version from: the newest migration is not in it yet.")
    folder = tmp_path / "older"
    with tarfile.open(fileobj=io.BytesIO(git("archive", f"{added[-1]}^"))) as archive:
        archive.extractall(folder, filter="data")
    return folder


def create_team(server: Server, folder: Path) -> str:
    """Have the older version create a team, and return its token."""
    return run_flask(["teams", "create", "team", "--quota", "1M"], server.environment, folder).stdout.split()[-1]


def used_tokens(server: Server) -> str:
    shown = server.flask("teams", "show", "team").stdout
    return next(line.split()[1] for line in shown.splitlines() if line.startswith("used_tokens"))


def test_older_version_serves_on_beside_the_one_that_migrated(settings, older_version: Path, tmp_path: Path):
    prompt, output, calls = 23, 100, 30
    body = hello(f"prompt_tokens={prompt} words={output} delay=0.1", max_tokens=output)
    with running_server(settings, tmp_path, folder=older_version) as old:
        token = create_team(old, older_version)
        assert post(old, token, body).status_code == 200
        stream = post(old, token, hello("words=100 gap=0.1", stream=True), stream=True)
        with running_server(settings, tmp_path) as new:
            assert "[DONE]" in stream.text
            new.flask("usage", "reset", "team", "--yes")
            new.flask("teams", "update", "team", "--quota", str(calls * (prompt + output)))
            with ThreadPoolExecutor(20) as pool:
                codes = Counter(
                    pool.map(lambda at: post((old, new)[at % 2], token, body).status_code, range(2 * calls))
                )
            assert codes == {200: calls, 429: calls}
            assert used_tokens(new) == f"{calls * (prompt + output):,}"
            new.flask("groups", "create", "year 9", "--calls-at-once", "5")
            new.flask("teams", "update", "team", "--quota", "unlimited", "--group", "year 9")
            assert [post(each, token, body).status_code for each in (old, new, old, new)] == [200] * 4
            assert eventually(lambda: new.flask("usage", "verify").returncode == 0)
