"""Blueprint "metrics": the page that Prometheus reads, if METRICS_TOKEN is set."""

import hmac
from typing import Any

from flask import Blueprint, Response, request
from prometheus_client.exposition import choose_encoder

from tokenrouter import runtime
from tokenrouter.auth import bearer_token_from
from tokenrouter.database.tables import db
from tokenrouter.monitoring import Families

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def metrics() -> Response:
    """Return the metrics in the format that Prometheus requests."""
    settings = runtime.current().settings
    if not _has_token(settings.metrics_token):
        return Response("Wrong or missing bearer token.\n", 401, {"WWW-Authenticate": "Bearer"}, mimetype="text/plain")
    families: Any = Families(db.engine, settings.currency, settings.provider_requests_per_minute)
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return Response(encode(families), headers={"Content-Type": content_type, "Cache-Control": "no-store"})


def _has_token(token: str) -> bool:
    """Tell whether the request carries this token, in constant time."""
    given = bearer_token_from(request.headers.get("Authorization")) or ""
    return hmac.compare_digest(given.encode(), token.encode())
