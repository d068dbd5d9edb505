"""Make up what answers say: prose, or values that a JSON schema accepts."""

import functools
import itertools
import re
import secrets
from collections.abc import Callable
from typing import Any

import orjson

from tokenrouter.standin.faults import DIRECTIVE, Faults

SENTENCES = "This is the TokenRouter demo; no paid provider was called. {} Every word of this is one completion token."
UNICODE_WORDS = ("漢字", "👩‍💻", "e\u0301a\u0308", "한국어", "naïve", "🇺🇳")
RUN, SERIAL = secrets.token_hex(6), itertools.count(1)
STAMP = b"t0000000000000000000"


def new_id(prefix: str) -> str:
    """Return an id that no other answer of any run has."""
    return f"{prefix}{RUN}{next(SERIAL):08d}"


def pieces_of(text: str) -> list[str]:
    """Split a text into words, each with the space after it."""
    return re.findall(r"\S+\s*|\s+", text)


def prose(text: str, faults: Faults) -> list[str]:
    """Return the words of a plain answer, with a bit of the question among them."""
    if faults.big is not None:
        return ["x" * faults.big]
    if faults.stamp:
        return [STAMP.decode()] * (faults.words or 1)
    echo = " ".join(DIRECTIVE.sub(" ", text).strip()[:40].split())
    words = SENTENCES.format(f'You asked: "{echo}".' if echo else "").split()
    words = [*UNICODE_WORDS, *words] if faults.unicode else words
    length = len(words) if faults.words is None else faults.words
    words = list(itertools.islice(itertools.cycle(words), length))
    return [word + " " for word in words[:-1]] + words[-1:]


def instance(schema: Any, root: Any, entered: frozenset[str] = frozenset()) -> Any:
    """Make a small value that a JSON schema accepts; `entered` holds the references that lead here."""
    if not isinstance(schema, dict):
        return None
    if reference := schema.get("$ref"):
        target = functools.reduce(lambda at, key: at.get(key, {}), reference.split("/")[1:], root)
        return None if reference in entered else instance(target, root, entered | {reference})
    for key in ("anyOf", "oneOf", "allOf"):
        if options := schema.get(key):
            # A type that contains itself ends only by an option that does not lead back.
            fresh = [option for option in options if option.get("$ref") not in entered]
            return instance((fresh or options)[0], root, entered)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    return plain_instance(schema, lambda inner: instance(inner, root, entered))


def plain_instance(schema: dict[str, Any], inside: Callable[[Any], Any]) -> Any:
    """Make a value of the schema's `type`; `inside` makes those of its parts."""
    kind = schema.get("type") or ("object" if "properties" in schema else "null")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            return {name: inside(inner) for name, inner in schema.get("properties", {}).items()}
        case "array":
            return [inside(schema.get("items")) for _ in range(schema.get("minItems", 0))]
        case "string":
            return "demo".ljust(schema.get("minLength", 0), "o")[: schema.get("maxLength")]
        case "integer" | "number":
            low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
            return min(low, schema.get("maximum", schema.get("exclusiveMaximum", low + 1) - 1))
        case "boolean":
            return True
    return None


def dumped_pieces(value: Any) -> list[str]:
    """Serialise with line breaks: the spaces make several pieces, so a stream and a limit have where to cut."""
    return pieces_of(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
