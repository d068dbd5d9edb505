"""Blueprint "v1": what the callers' OpenAI SDKs talk to, one line of work a route."""

from flask import Blueprint, Response

from tokenrouter import payload, proxy

blueprint = Blueprint("v1", __name__, url_prefix="/v1")


@blueprint.post("/chat/completions")
def chat_completions() -> Response:
    """Answer a chat, whole or as a stream."""
    return proxy.handle(payload.CHAT)


@blueprint.get("/models")
def models() -> dict[str, object]:
    """List the models that the caller's team may call."""
    caller = proxy.authenticate("/models")
    own = proxy.relay()
    names = payload.narrowed(own.settings.allowed_models, caller.models)
    return {"object": "list", "data": own.catalogue.models(names)}
