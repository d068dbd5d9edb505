"""Blueprint "v1": what the callers' OpenAI SDKs talk to, a route for each endpoint in payload's table."""

from functools import partial

from flask import Blueprint

from tokenrouter import payload, reports, runtime
from tokenrouter.auth import Caller
from tokenrouter.errors import ModelNotFound
from tokenrouter.relay import handler

blueprint = Blueprint("v1", __name__, url_prefix="/v1")


for endpoint in payload.ENDPOINTS:
    blueprint.post(endpoint.path, endpoint=endpoint.name)(partial(handler.handle, endpoint))


@blueprint.get("/models")
def models() -> dict[str, object]:
    """List the models that the caller's team may call."""
    return {"object": "list", "data": _models_of(handler.authenticate("/models"))}


@blueprint.get("/models/<path:model_id>")
def model(model_id: str) -> dict[str, object]:
    """Return one of the models that the caller's team may call."""
    caller = handler.authenticate("/models")
    payload.check_model(model_id, runtime.current().settings.allowed_models, caller.models)
    for model_object in _models_of(caller):
        if model_object["id"] == model_id:
            return model_object
    raise ModelNotFound(f"The model `{model_id}` is not one that the provider has.", param="model")


def _models_of(caller: Caller) -> list[dict[str, object]]:
    own = runtime.current()
    return own.catalogue.models(payload.narrowed(own.settings.allowed_models, caller.models))


@blueprint.get("/usage")
def usage() -> tuple[dict[str, object], dict[str, str]]:
    """Tell the caller's team what it used, in all and of late."""
    caller = handler.authenticate("/usage")
    models = payload.narrowed(runtime.current().settings.allowed_models, caller.models)
    return reports.own_usage(caller.team_id, models), {"Cache-Control": "no-store"}
