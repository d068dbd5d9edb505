"""Keep what Flask compiles for each app anew: a run of the tests makes thousands of apps."""

from collections.abc import Mapping
from copy import copy
from dataclasses import fields
from pathlib import Path
from types import MethodType
from typing import Any

import click
import sweeper
from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from jinja2 import FileSystemBytecodeCache
from sqlalchemy import Engine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.util import LRUCache
from werkzeug.local import LocalProxy
from werkzeug.routing import Rule

import tokenrouter
from tokenrouter import errors, logs, request_body, runtime
from tokenrouter.config import Settings
from tokenrouter.database import engine

MOST_MODELS = 8
DIFFERS = ("database_url", "provider_base_url", "origins")
"""Settings of which nothing is in an app's routes, commands and pages."""
SHARED = {"admin", errors.PAGES, errors.TURNED_AWAY}
OWN = {"sqlalchemy", "tokenrouter", request_body.EXTENSION}


def remember_apps() -> None:
    """Have each app take over the routes, commands and pages of the first one that was made with the same settings.

    Where one has an extension that is not known here it is made as users make it, and so is one with proxies before it.
    """
    assemble, models = tokenrouter._assemble, LRUCache(MOST_MODELS)

    def assemble_once(settings: Settings, flask_config: Mapping[str, object]) -> Flask:
        if flask_config or settings.trusted_proxies or click.get_current_context(silent=True) is not None:
            return assemble(settings, flask_config)
        kind = repr([getattr(settings, field.name) for field in fields(settings) if field.name not in DIFFERS])
        if kind not in models:
            model = assemble(settings, flask_config)
            if model.extensions.keys() != SHARED | OWN:
                return model
            runtime.close(model)
            model.jinja_env.globals["config"] = LocalProxy(lambda: current_app.config)
            models[kind] = model
        return app_like(models[kind], settings)

    tokenrouter._assemble = assemble_once


def app_like(model: Flask, settings: Settings) -> Flask:
    """Return an app that has a configuration, a database and a runtime of its own, and all else of the model."""
    app = copy(model)
    for name, value in vars(model).items():
        if isinstance(value, dict | list):
            setattr(app, name, copy(value))
    logs.init(settings.log_format, settings.secrets())
    url = settings.database_url
    app.config.update(SQLALCHEMY_DATABASE_URI=url, SQLALCHEMY_ENGINE_OPTIONS=engine.options_for(url))
    app.extensions = {name: model.extensions[name] for name in SHARED}
    app.teardown_appcontext_funcs, app.shell_context_processors = [], []  # the database's
    engine.init_app(app)
    request_body.init_app(app, settings.max_request_bytes)
    runtime.init_app(app, settings)
    return app


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
