"""Read multipart bodies."""

import re
from typing import Any

from tokenrouter.standin.values import Call, Refusal

BOUNDARY = re.compile(r'boundary="?([^";]+)"?')
NAME = re.compile(rb'[; ]name="([^"]*)"')
IS_FILE = re.compile(rb"[; ]filename\*?=")


def read_form(call: Call) -> dict[str, Any]:
    """Return the texts of a form by name, and the sizes of its files as `files`; raises Refusal."""
    match = BOUNDARY.search(call.headers.get("content-type", ""))
    if match is None:
        raise Refusal(400, "Missing boundary in multipart/form-data.")
    _, *parts, end = (b"\r\n" + call.body).split(b"\r\n--" + match[1].encode())
    if not end.startswith(b"--"):
        raise Refusal(400, "The form has no end.")
    fields: dict[str, Any] = {"files": []}
    for part in parts:
        head, _, value = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = NAME.search(head)
        if IS_FILE.search(head):
            fields["files"].append(len(value))
        elif name is not None:
            fields[name[1].decode()] = value.decode()
    return fields
