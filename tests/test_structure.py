"""The rules of the layout: imports point down the ladder, and every setting is explained."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import dotenv
import pytest
from conftest import ROOT

from tokenrouter import config
from tokenrouter.config import SETTINGS

PACKAGE = ROOT / "tokenrouter"
LADDER = (
    "logs version",
    "troubles addresses origins natural_order figures qr spreadsheet unpriced",
    "config errors untrusted_json periods money price_proposals docs standin",
    "database provider metering request_body first_start unknown_paths cors",
    "attempts auth changes payload reports worker matching provider_days",
    "ledger",
    "teams",
    "prices account account_pace backups call_lines",
    "runway provider_record monitoring",
    "reconciliation commitments alerts",
    "doctor",
    "runtime",
    "api cli",
    "relay admin health metrics demo door",
    "v1 site",
)
LEVELS = {name: level for level, names in enumerate(LADDER) for name in names.split()}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts)
EXAMPLE = ROOT / ".env.example"
README = ROOT / "README.md"


def module_of(path: Path) -> str:
    """Return a file's module below the package, a package within it counting as one; the root is the empty name."""
    first = path.relative_to(PACKAGE).with_suffix("").parts[0]
    return "" if first == "__init__" else first


@cache
def tree_of(path: Path) -> ast.Module:
    """Return a file's syntax tree, which several tests read."""
    return ast.parse(path.read_text())


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the full name of all that is imported, `a.b` for `from a import b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> Iterator[str]:
    """Yield the modules of the package that a file imports; the empty name is the root."""
    for name in imported(tree_of(path)):
        if name.split(".")[0] == "tokenrouter":
            below = name.removeprefix("tokenrouter").lstrip(".").split(".")[0]
            yield below if (PACKAGE / f"{below}.py").exists() or (PACKAGE / below / "__init__.py").exists() else ""


def imports_between_modules() -> set[tuple[str, str]]:
    pairs = {(module_of(path), name) for path in SOURCES for name in own_imports(path)}
    return {(module, name) for module, name in pairs if module and module != name}


def test_every_module_has_its_place_on_the_ladder():
    assert {module_of(path) for path in SOURCES} - {""} <= set(LEVELS)


def test_imports_point_down_the_ladder():
    upward = {pair for pair in imports_between_modules() if pair[1] and LEVELS[pair[0]] <= LEVELS[pair[1]]}
    assert upward == set()


def test_no_imports_run_in_a_circle():
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for path in SOURCES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for full in imported(tree_of(path)):  # of a module, or of a name in one
            graph[name] |= {full if full in names else full.rpartition(".")[0]} & names
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_nobody_imports_the_package_root():
    assert {module for module, name in imports_between_modules() if not name} == set()


def test_imports_are_absolute():
    relative = [path for path in SOURCES if any(n.startswith(".") for n in imported(tree_of(path)))]
    assert relative == []


def test_no_import_hides_in_a_function():
    functions = (
        (path.name, node.name)
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and any(imported(node))
    )
    assert list(functions) == []


@pytest.mark.parametrize("module", ["metering", "payload", "untrusted_json"])
def test_module_touches_neither_flask_nor_the_database(module: str):
    sources = [path for path in SOURCES if module_of(path) == module]
    names = {name for path in sources for name in imported(tree_of(path))}
    assert sources
    assert {name.split(".")[0] for name in names} & {"flask", "flask_sqlalchemy", "sqlalchemy", "werkzeug"} == set()


@pytest.mark.parametrize("name", SETTINGS)
def test_readme_tells_the_setting_and_its_default(name: str):
    default = re.escape(SETTINGS[name].metadata["default"])
    lines = [line for line in README.read_text().splitlines() if re.search(rf"\b{name}\b", line)]
    assert any(re.search(rf"(?<![\w.]){default}(?![\w.])", line) for line in lines)


@pytest.mark.parametrize("name", SETTINGS)
def test_example_explains_the_setting_and_shows_its_default(name: str):
    default = SETTINGS[name].metadata["default"]
    shown = f"{name}=" if name == "PROVIDER_API_KEY" else f"#{name}={default}"
    above = EXAMPLE.read_text().split(f"\n{shown}\n")[0].rsplit("\n\n", 1)[1]
    assert re.match("# [A-Z]", above)


def test_example_has_settings_only():
    assert set(re.findall(r"^#?([A-Z_]+)=", EXAMPLE.read_text(), re.MULTILINE)) == set(SETTINGS)


def test_example_with_a_key_is_the_default_settings(tmp_path: Path):
    (tmp_path / ".env").write_text(EXAMPLE.read_text().replace("PROVIDER_API_KEY=", "PROVIDER_API_KEY=sk-1"))
    from_example = config.load()
    assert {name for name, origin in from_example.origins.items() if origin != "default"} == {"PROVIDER_API_KEY"}


def test_example_with_every_line_taken_in_says_the_same(tmp_path: Path):
    (tmp_path / ".env").write_text(re.sub("(?m)^#(?=[A-Z])", "", EXAMPLE.read_text()))
    defaults = {name: setting.metadata["default"] for name, setting in SETTINGS.items()}
    assert dotenv.dotenv_values(tmp_path / ".env", interpolate=False) == defaults
