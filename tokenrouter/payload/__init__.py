"""Check and normalise a request's body, and work out what the call may cost. Knows neither Flask nor the database."""

from tokenrouter.payload.additions import RefusedAdditions, blamed
from tokenrouter.payload.allowlist import check_model, check_named_models, example_model, model_of, narrowed
from tokenrouter.payload.calls import Call, check
from tokenrouter.payload.documents import form_body, parse
from tokenrouter.payload.endpoints import CHAT, ENDPOINTS, Endpoint
from tokenrouter.payload.identity import team_identity
from tokenrouter.payload.reach import CLOSED_FIELDS

__all__ = [
    "CHAT",
    "CLOSED_FIELDS",
    "ENDPOINTS",
    "Call",
    "Endpoint",
    "RefusedAdditions",
    "blamed",
    "check",
    "check_model",
    "check_named_models",
    "example_model",
    "form_body",
    "model_of",
    "narrowed",
    "parse",
    "team_identity",
]
