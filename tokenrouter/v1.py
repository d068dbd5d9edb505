"""Blueprint "v1": what the callers' OpenAI SDKs talk to, a route for each endpoint in payload's table."""

from functools import partial

from flask import Blueprint

from tokenrouter import payload, reports, runtime, unpriced
from tokenrouter.errors import ModelNotFound
from tokenrouter.relay import handler

blueprint = Blueprint("v1", __name__, url_prefix="/v1")


for endpoint in payload.ENDPOINTS:
    blueprint.post(endpoint.path, endpoint=endpoint.name)(partial(handler.handle, endpoint))


@blueprint.get("/models")
def models() -> dict[str, object]:
    """List the models that the caller's team may call."""
    caller, own = handler.authenticate(), runtime.current()
    return {"object": "list", "data": own.catalogue.models(own.patterns(caller.models))}


@blueprint.get("/models/<path:model_id>")
def model(model_id: str) -> dict[str, object]:
    """Return one of the models that the caller's team may call; while the provider is asked for it, it is a call."""
    caller, own = handler.authenticate(), runtime.current()
    payload.check_model(model_id, own.settings.allowed_models, caller.models, own.catalogue.known_names)
    found = own.catalogue.listed(model_id, own.patterns(caller.models))
    if found is None:
        with own.slots.waiting(caller.team_id):
            found = own.catalogue.ask_for(model_id)
    if found is None:
        raise ModelNotFound(f"The provider has no model `{model_id}`.", param="model")
    return found


@blueprint.get("/usage")
def usage() -> tuple[dict[str, object], dict[str, str]]:
    """Tell the caller's team what it used, in all and recently."""
    caller = handler.authenticate()
    view, unpriced_tokens = reports.own_usage(caller.team_id, runtime.current().patterns(caller.models))
    unpriced.note(unpriced_tokens)
    return view, {"Cache-Control": "no-store"}
