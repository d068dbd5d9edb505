"""What gunicorn's workers share with their master."""

import shlex
import sys
from pathlib import Path

import pexpect
from adminclient import PAGES
from conftest import ROOT


def test_workers_compile_no_template(settings: dict[str, str], tmp_path: Path):
    script = f"""
import jinja2
from adminclient import Panel
from tokenrouter import create_app
prepare()
del jinja2.Environment.compile
panel = Panel(create_app().test_client())
assert panel.sign_in().status_code == 302
for page in {("/", "/usage", "/docs", *PAGES)}:
    assert panel.get(page).status_code == 200, page
"""
    assert run_in_master(script, settings, tmp_path) == ("", 0)


def run_in_master(script: str, settings: dict[str, str], folder: Path) -> tuple[str, int]:
    """Run what calls `prepare`, as gunicorn's master does, on a terminal; return what it shows and its exit status."""
    command = shlex.join([sys.executable, "-c", f"from tokenrouter import prepare\n{script}"])
    environment = {**settings, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    said, status = pexpect.run(
        command, cwd=str(folder), env=environment, encoding="utf-8", withexitstatus=True, timeout=60
    )
    return said.strip(), status
