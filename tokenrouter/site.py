"""Blueprint "site": the pages for teams and their programmers: `/`, `/join`, and `/usage` with its data."""

from typing import Any

from flask import Blueprint, Response, render_template, request
from flask.typing import ResponseReturnValue

from tokenrouter import attempts, reports, runtime
from tokenrouter.errors import APIError, NameTaken
from tokenrouter.origins import is_from_another_site
from tokenrouter.relay import handler
from tokenrouter.teams import codes

blueprint = Blueprint("site", __name__)

FROM_ANOTHER_SITE = "Another site sent this form, so nothing was done. Type code and name here."
JUST_JOINED = (
    "Take another name. If this team is yours, of just now: its token was shown then, and who gave you the code can "
    "give you a new one."
)


@blueprint.get("/")
def index() -> str:
    """Show what this service is, with links to the other pages."""
    return render_template("pages/index.html", **_for_snippets())


@blueprint.get("/join", strict_slashes=False)
def join() -> str:
    """Show the form for a code and a name; a code in the address is filled in."""
    return _join_form(request.args.get("code", ""))


@blueprint.post("/join", strict_slashes=False)
def join_with_code() -> ResponseReturnValue:
    """Create a team with a code, and show its token once; a resent form fails, since the name is taken."""
    if is_from_another_site(request):
        return _join_form(problem=FROM_ANOTHER_SITE), 403
    code, name = (request.form.get(field, "").strip() for field in ("code", "name"))
    try:
        team, bearer_token = codes.join(code, name, address=request.remote_addr or "unknown")
    except attempts.TooManyGuesses as error:
        problem = f"Too many wrong codes: try again in {error.wait_s} seconds."
        return _join_form(code, name, problem), 429, {"Retry-After": str(error.wait_s)}
    except APIError as error:
        problem = f"{error} {JUST_JOINED}" if isinstance(error, NameTaken) else str(error)
        return _join_form(code, name, problem, error.param), error.status
    model = runtime.current().example_model(team.model_patterns)
    words = {"base_url": f"{request.host_url}v1", "model": model}
    return render_template("pages/joined.html", team=team, bearer_token=bearer_token, **words)


def _join_form(code: str = "", name: str = "", problem: str | None = None, param: str | None = None) -> str:
    typed = {"code": code, "name": name, "pattern": codes.TYPED}
    return render_template("pages/join.html", problem=problem, param=param, **typed)


@blueprint.get("/usage", strict_slashes=False)
def usage() -> str:
    """Show the page on which a team sees its own use; its script loads that with the pasted token."""
    return render_template("pages/usage.html", **_for_snippets())


@blueprint.get("/usage/data")
def usage_data() -> dict[str, Any]:
    """Return what a team's page shows besides `GET /v1/usage`; raises the same errors."""
    caller, own = handler.authenticate(), runtime.current()
    shown = {"currency": own.settings.currency, "example_model": own.example_model(caller.models)}
    return reports.own_details(caller.team_id) | shown


@blueprint.after_request
def _keep_private(response: Response) -> Response:
    """Forbid caching of pages with an address, a team's token, or its use."""
    response.headers["Cache-Control"] = "no-store"
    return response


def _for_snippets() -> dict[str, str]:
    return {"base_url": f"{request.host_url}v1", "model": runtime.current().settings.default_model}
