"""The provider's errors, as callers may know them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from tokenrouter.errors import (
    UNKNOWN_MODEL,
    APIError,
    ProviderAuthFailed,
    ProviderBadResponse,
    ProviderQuotaExhausted,
    ProviderRefusal,
    code_and_type,
)
from tokenrouter.provider.replies import LONGEST_NAME, Reply
from tokenrouter.untrusted_json import parse_json

SHOWN_ERROR_CHARACTERS = 500
UNKNOWN_MODEL_STATUSES = (400, 403, 404, 422)
UNKNOWN_MODEL_CODES = frozenset(("modelnotfound", "invalidmodel", "unknownmodel", "modelnotexist"))
MODEL_COMPLAINT = re.compile(  # as OpenAI, OpenRouter, DeepSeek, Mistral, Together, Ollama and vLLM word it
    rb"\b(unknown|invalid|no such|unrecogni[sz]ed) model\b"
    rb"|\bmodel\b[^{}]{0,300}?\b(not found|not exist|not available)\b"
    rb"|\bnot a valid model\b|\bno endpoints found for\b|\bunable to access model\b",
    re.IGNORECASE,
)
LONGEST_COMPLAINT = 4096
# How those that speak OpenAI's API call an empty account and a wrong key, without capitals and underscores: several
# write InsufficientBalance where others write insufficient_balance.
EMPTY_ACCOUNT = frozenset(
    (
        "insufficientquota",
        "insufficientcredits",
        "insufficientbalance",
        "insufficientuserquota",
        "billinghardlimitreached",
        "billingnotactive",
        "exceededcurrentquotaerror",
        "arrearage",
        "insufficientbalanceerror",
        "insufficientfunds",
        "notenoughbalance",
        "accountoverdueerror",
        "billingdisabled",
        "billingerror",
        "billinglimitusererror",
        "creditlimit",
        "creditlimitexceeded",
        "spendinglimitexceeded",
        "spendlimitexceeded",
        "blockedapiaccess",
        "preconsumetokenquotafailed",
    )
)
WRONG_KEY = frozenset(
    ("invalidapikey", "apikeyinvalid", "authenticationerror", "invalidauthenticationerror", "unauthenticated")
)
# Where the code says nothing, the sentence may: as xAI, Anthropic, Fireworks, OpenRouter, SiliconFlow, Google word it.
SAYS_EMPTY_ACCOUNT = re.compile(
    r"(?:credit|account) balance is (?:too low|insufficient|not enough)|(?:insufficient|not enough|overdue) balance"
    r"|used all (?:\w+ )?credits|insufficient (?:credits|funds)|\bkey limit exceeded|reached (?:its|your) spend"
    r"|^account .{1,80} is suspended|余额不足|欠费",
    re.IGNORECASE,
)
SAYS_WRONG_KEY = re.compile(
    r"^(?:incorrect|invalid|expired) api[ -]?key\b|^(?:your )?api[ -]?key (?:not valid|expired|is (?:invalid|expired)"
    r"|was reported|has been (?:disabled|revoked))|^authentication (?:error|failed)"
    r"|^the security token .{0,40}is invalid",
    re.IGNORECASE,
)
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|“[^”]*”")
MESSAGE_FIELDS = ("message", "msg", "error", "detail")
LONGEST_SENTENCE = 300
ABOUT_THE_ACCOUNT = (400, 402, 403, 412, 429)
CODE_FIELDS = ("code", "type", "status", "reason")
ECHOED = ("input", "ctx")  # where a validator repeats what the caller sent


class RelayedError(APIError):
    """A provider's error in OpenAI's shape, which is passed to the caller unchanged."""

    def __init__(
        self, status: int, body: bytes, error: Mapping[str, Any], headers: Mapping[str, str], reason: str
    ) -> None:
        super().__init__("The provider refused the call.", headers=headers, reason=reason)
        self.status = status
        self.code = _shown_name(error.get("code"))
        self.type = _shown_name(error.get("type")) or self.type
        self._body = body

    def body(self) -> bytes:
        """Return the provider's own bytes."""
        return self._body

    @property
    def provider_text(self) -> bytes:
        """The whole body of the provider's error."""
        return self._body


def words_of(error: APIError) -> str:
    """Return an error in words; for one relayed unchanged, its status and the provider's message."""
    if not isinstance(error, RelayedError):
        return error.message
    said = parse_json(error.body())["error"]["message"][:SHOWN_ERROR_CHARACTERS]
    return f"The provider answered with status {error.status}: {said}"


def refuse(reply: Reply) -> NoReturn:
    """Raise the APIError that the caller may see for a provider's error, and close the reply."""
    try:
        if reply.status < 400:
            raise ProviderBadResponse(f"The provider answered with a redirect or an odd status, {reply.status}.")
        body = reply.read_error()
    finally:
        reply.close()
    document = parse_json(body)
    is_empty, is_wrong_key = _says_of_account(reply.status, document, body)
    masked = reply.without_key(body)
    shown = parse_json(masked)
    reason = f"HTTP {reply.status}, {code_and_type(shown)}"
    if is_empty:
        raise ProviderQuotaExhausted("The provider's account is used up. The operator has to top it up.", reason=reason)
    if is_wrong_key:
        raise ProviderAuthFailed(
            "The provider refuses this service's key. Its operator has to set a valid one.", reason=reason
        )
    if _says_unknown_model(reply.status, document, body):
        reason = UNKNOWN_MODEL + reason
    raise _relayed(reply, masked, _openai_error(shown), reason)


def _says_of_account(status: int, document: object, body: bytes) -> tuple[bool, bool]:
    """Tell whether an error says that the account is empty, and whether it says that the key is wrong."""
    if status in (401, 402) or status not in ABOUT_THE_ACCOUNT:
        return status == 402, status == 401
    names = set(_names(document))
    # a complaint of the caller's model repeats its name, which may be any sentence
    sentences = [] if _says_unknown_model(status, document, body) else list(_sentences(document))
    is_empty = bool(names & EMPTY_ACCOUNT) or any(map(SAYS_EMPTY_ACCOUNT.search, sentences))
    is_wrong_key = bool(names & WRONG_KEY) or any(map(SAYS_WRONG_KEY.search, sentences))
    return is_empty, is_wrong_key and status in (400, 403)


def _relayed(reply: Reply, body: bytes, error: Mapping[str, Any] | None, reason: str) -> APIError:
    if error is None:
        text = body.decode(errors="replace").strip()[:SHOWN_ERROR_CHARACTERS]
        message = text or f"The provider answered {reply.status}."
        return ProviderRefusal(message, reply.status, _without_type(reply), body, reason)
    return RelayedError(reply.status, body, error, _without_type(reply), reason)


def _shown_name(name: object) -> str | None:
    """Return a code or type as the log keeps it; None if it is unusable."""
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    return name if isinstance(name, str) and name.isprintable() and 0 < len(name) <= LONGEST_NAME else None


def _says_unknown_model(status: int, document: object, body: bytes) -> bool:
    """Tell whether the provider says, in whatever way, that it does not have the model."""
    if status not in UNKNOWN_MODEL_STATUSES:
        return False
    return (
        not UNKNOWN_MODEL_CODES.isdisjoint(_names(document))
        or MODEL_COMPLAINT.search(body[:LONGEST_COMPLAINT]) is not None
    )


def _without_type(reply: Reply) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name != "Content-Type"}


def _openai_error(document: object) -> dict[str, Any] | None:
    """Return an error in OpenAI's shape, `error` with a message; `{"object": "error", "message"}` is another shape."""
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) and isinstance(error.get("message"), str) else None


def _names(document: object) -> Iterator[str]:
    """Yield the error names anywhere in an error document, spelled as in EMPTY_ACCOUNT."""
    values = [document]
    for value in values:
        if isinstance(value, list):
            values += value
        elif isinstance(value, dict):
            values += [part for name, part in value.items() if name not in ECHOED]
            yield from (_plain(part) for name in CODE_FIELDS if isinstance(part := value.get(name), str))
            if isinstance(text := value.get("error"), str):  # it may be a name, or a sentence with one
                yield from (_plain(word) for word in re.findall(r"\w+", text))


def _sentences(document: object) -> Iterator[str]:
    """Yield the beginnings of what an error document says, save of a caller's field, and without what it quotes."""
    values = [document]
    for value in values:
        if isinstance(value, list):
            values += value
        elif isinstance(value, dict) and not value.get("param"):
            values += [part for name, part in value.items() if name not in ECHOED]
            yield from (
                QUOTED.sub("", part[:LONGEST_SENTENCE]).strip()
                for name in MESSAGE_FIELDS
                if isinstance(part := value.get(name), str)
            )


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()
