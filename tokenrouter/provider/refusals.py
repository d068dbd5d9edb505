"""The provider's errors, as callers may know them."""

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from tokenrouter.errors import (
    APIError,
    ModelNotFound,
    ProviderAuthFailed,
    ProviderBadResponse,
    ProviderQuotaExhausted,
    ProviderRefusal,
)
from tokenrouter.provider.replies import LONGEST_NAME, Reply
from tokenrouter.untrusted_json import parse_json

SHOWN_ERROR_CHARACTERS = 500
AUTH_CODES = ("invalid_api_key", "authentication_error")
EMPTY_ACCOUNT = "insufficient_quota"
UNKNOWN_MODEL_STATUSES = (400, 403, 404, 422)
UNKNOWN_MODEL_CODES = ("model_not_found", "invalid_model", "unknown_model", "model_not_exist")
UNKNOWN_MODEL = re.compile(  # as OpenAI, OpenRouter, DeepSeek, Mistral, Together, Ollama and vLLM word it
    rb"\b(unknown|invalid|no such|unrecogni[sz]ed) model\b"
    rb"|\bmodel\b[^{}]{0,300}?\b(not found|not exist|not available)\b"
    rb"|\bnot a valid model\b|\bno endpoints found for\b|\bunable to access model\b",
    re.IGNORECASE,
)
LONGEST_COMPLAINT = 4096


class RelayedError(APIError):
    """An error of the provider's in OpenAI's shape, which reaches the caller as it is."""

    def __init__(self, status: int, body: bytes, code: str | None, headers: Mapping[str, str]) -> None:
        super().__init__("The provider refused the call.", headers=headers)
        self.status = status
        self.code = code
        self._body = body

    def body(self) -> bytes:
        """Return the provider's own bytes."""
        return self._body

    def names(self, field: str) -> bool:
        """Tell whether the provider complains of this field of the request."""
        return field.encode() in self._body


def refuse(reply: Reply) -> NoReturn:
    """Raise what the caller may know of the provider's error, an APIError, and close the reply."""
    try:
        if reply.status < 400:
            raise ProviderBadResponse(f"The provider answered with a redirect or an odd status, {reply.status}.")
        body = reply.read_error()
    finally:
        reply.close()
    error = _openai_error(body)
    codes = (error.get("code"), error.get("type")) if error else ()
    if reply.status == 401 or (reply.status == 403 and any(code in AUTH_CODES for code in codes)):
        raise ProviderAuthFailed("The provider refuses this service's key. Its operator has to set a valid one.")
    if reply.status == 402 or EMPTY_ACCOUNT in codes:
        raise ProviderQuotaExhausted("The provider's account is used up. The operator has to top it up.")
    refusal = _relayed(reply, reply.without_key(body), error)
    if _says_unknown_model(reply.status, codes, body):
        refusal.logged_as = ModelNotFound.code
    raise refusal


def _relayed(reply: Reply, body: bytes, error: Mapping[str, Any] | None) -> APIError:
    if error is None:
        text = body.decode(errors="replace").strip()[:SHOWN_ERROR_CHARACTERS]
        return ProviderRefusal(text or f"The provider answered {reply.status}.", reply.status, _without_type(reply))
    code = error.get("code")
    is_name = isinstance(code, str) and code.isprintable() and len(code) <= LONGEST_NAME
    return RelayedError(reply.status, body, code if is_name else None, _without_type(reply))


def _says_unknown_model(status: int, codes: tuple[object, ...], body: bytes) -> bool:
    """Tell whether the provider has no model of the name, however it says so."""
    if status not in UNKNOWN_MODEL_STATUSES:
        return False
    is_told = any(code in UNKNOWN_MODEL_CODES for code in codes)
    return is_told or UNKNOWN_MODEL.search(body[:LONGEST_COMPLAINT]) is not None


def _without_type(reply: Reply) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.lower() != "content-type"}


def _openai_error(body: bytes) -> dict[str, Any] | None:
    document = parse_json(body)
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) and isinstance(error.get("message"), str) else None
