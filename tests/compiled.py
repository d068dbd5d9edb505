"""Keep what Flask compiles for each app anew: a run of the tests makes thousands of apps."""

from collections.abc import Callable
from pathlib import Path

import sweeper
from flask import Flask
from jinja2 import FileSystemBytecodeCache
from werkzeug.routing import Rule


def remember_rules() -> None:
    """Have werkzeug compile each URL rule once: of making an app that was half of the time."""
    compile_builder, compiled = Rule._compile_builder, {}

    def compile_once(rule: Rule, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:
        key = rule.rule, tuple(rule._trace), repr(rule.defaults), append_unknown
        if key not in compiled:
            compiled[key] = compile_builder(rule, append_unknown)
        return compiled[key]

    Rule._compile_builder = compile_once


def remember_templates() -> None:
    """Have Jinja compile each template once a run: of a panel's test that was half of the time."""
    folder = Path(sweeper.run_folder()) / "templates"
    folder.mkdir(exist_ok=True)
    Flask.jinja_options = {**Flask.jinja_options, "bytecode_cache": FileSystemBytecodeCache(str(folder))}
