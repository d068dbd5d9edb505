"""Keep what Flask compiles for each app anew: a run of the tests makes thousands of apps."""

from pathlib import Path
from types import MethodType
from typing import Any

import sweeper
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from jinja2 import FileSystemBytecodeCache
from sqlalchemy import Engine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.util import LRUCache
from werkzeug.routing import Rule


def remember_rules() -> None:
    """Have werkzeug compile each URL rule once: of making an app that was most of the time."""
    compile_rule, compiled = Rule.compile, {}

    def compile_once(rule: Rule) -> None:
        key = rule.rule, rule.subdomain, repr(rule.defaults), rule.merge_slashes, tuple(rule.map.converters.items())
        same = compiled.get(key)
        if same is None:
            compile_rule(rule)
            compiled[key] = rule  # once it is whole: apps are made in threads too
            return
        rule._parts, rule._trace, rule._converters = same._parts, same._trace, same._converters
        rule.arguments |= same.arguments
        rule._build = MethodType(same._build.__func__, rule)
        rule._build_unknown = MethodType(same._build_unknown.__func__, rule)

    Rule.compile = compile_once


def remember_statements() -> None:
    """Have SQLAlchemy compile each statement once, whichever app's engine asks: the dialects of a kind are alike."""
    make_engine, compiled = SQLAlchemy._make_engine, LRUCache(5000)

    def make_sharing_engine(*arguments: Any) -> Engine:
        engine = make_engine(*arguments)
        engine._compiled_cache = compiled
        return engine

    SQLAlchemy._make_engine = make_sharing_engine
    DefaultDialect.__eq__ = lambda self, other: type(self) is type(other)
    DefaultDialect.__hash__ = lambda self: hash(type(self))


def remember_templates() -> None:
    """Have Jinja compile each template once a run: of a panel's test that was half of the time."""
    folder = Path(sweeper.run_folder()) / "templates"
    folder.mkdir(exist_ok=True)
    Flask.jinja_options = {**Flask.jinja_options, "bytecode_cache": FileSystemBytecodeCache(str(folder))}
