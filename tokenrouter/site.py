"""Blueprint "site": the pages for teams and their programmers: `/`, and `/usage` with its data."""

from typing import Any

from flask import Blueprint, Response, render_template, request

from tokenrouter import payload, reports, runtime
from tokenrouter.relay import handler

blueprint = Blueprint("site", __name__)


@blueprint.get("/")
def index() -> str:
    """Say what this is, and lead on."""
    return render_template("pages/index.html", **_for_snippets())


@blueprint.get("/usage", strict_slashes=False)
def usage() -> str:
    """Show the page on which a team sees its own use; what it shows comes by the token that is pasted there."""
    return render_template("pages/usage.html", **_for_snippets())


@blueprint.get("/usage/data")
def usage_data() -> dict[str, Any]:
    """Tell the caller's team what its page shows beside `GET /v1/usage`; raises what that does."""
    caller, own = handler.authenticate(), runtime.current()
    patterns = payload.narrowed(own.settings.allowed_models, caller.models)
    example = payload.example_model(patterns, own.settings.default_model, own.catalogue.known_names(patterns))
    currency = {"currency": own.settings.currency}
    return {**reports.own_details(caller.team_id), **currency, "example_model": example}


@blueprint.after_request
def _keep_private(response: Response) -> Response:
    """Let no one keep a page that tells an address, or a team's use."""
    response.headers["Cache-Control"] = "no-store"
    return response


def _for_snippets() -> dict[str, str]:
    return {"base_url": f"{request.host_url}v1", "model": runtime.current().settings.default_model}
