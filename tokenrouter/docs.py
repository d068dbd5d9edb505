"""Blueprint "docs": the interactive documentation of the API, and its OpenAPI document."""

from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import orjson
import yaml
from flask import Blueprint, Response, render_template, send_from_directory

DOCUMENT = Path(__file__).parent / "openapi.yaml"
SWAGGER_FILES = ("swagger-ui-bundle.js", "swagger-ui.css")
ASSET_AGE_S = 365 * 24 * 3600  # their address has the version
POLICY = (  # as on other pages, but for the pictures in Swagger UI's style sheet
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'"
)

blueprint = Blueprint("docs", __name__)


@blueprint.get("/openapi.json")
def document() -> Response:
    """Return the OpenAPI document of /v1 and /api."""
    return Response(_document(), mimetype="application/json")


@blueprint.get("/docs", strict_slashes=False)
def page() -> Response:
    """Show the documentation."""
    response = Response(render_template("pages/docs.html", version=_swagger_version()))
    response.headers["Content-Security-Policy"] = POLICY
    return response


@blueprint.get(f"/docs/<any({', '.join(map(repr, SWAGGER_FILES))}):name>")
def swagger_file(name: str) -> Response:
    """Return a file of Swagger UI."""
    return send_from_directory(_swagger_folder(), name, max_age=ASSET_AGE_S)


@cache
def _document() -> bytes:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first is ten times faster, and not built everywhere
    return orjson.dumps(yaml.load(DOCUMENT.read_bytes(), loader))  # noqa: S506 - both load plain data alone


@cache
def _swagger_folder() -> Path:
    """Return the directory of Swagger UI in its package, which is not imported: only its files are needed."""
    return Path(str(distribution("flask-swagger-ui").locate_file("flask_swagger_ui/dist")))


@cache
def _swagger_version() -> str:
    return (_swagger_folder() / "VERSION").read_text().strip()
