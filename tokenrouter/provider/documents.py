"""Read small documents from the provider, such as its list of models, within limits of time and size."""

import threading
from collections.abc import Mapping
from typing import Any

from tokenrouter.errors import ProviderBadResponse, ProviderTimeout
from tokenrouter.provider.client import Provider
from tokenrouter.provider.transport import ProviderLink
from tokenrouter.untrusted_json import parse_json

FETCH_S = 10.0
MOST_BYTES = 4 * 1024 * 1024


def read_document(
    provider: Provider, path: str, what: str, *, is_beside: bool = False, query: Mapping[str, str] | None = None
) -> Any:
    """Fetch a JSON document from the provider within FETCH_S in total, even if it trickles in.

    `what` names it in errors, such as `its models`. The rest, and what it raises, is as in `Provider.get`.
    """
    link = ProviderLink()
    too_late = ProviderTimeout(f"The provider took too long to tell {what}.")
    alarm = threading.Timer(FETCH_S, link.cut, (too_late,))
    alarm.daemon = True
    alarm.start()
    try:
        reply = provider.get(path, link, is_beside=is_beside, query=query)
        try:
            body = bytearray()
            for chunk in reply.chunks():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise ProviderBadResponse(f"What the provider sent of {what} is larger than 4 MiB.")
        finally:
            reply.close()
    finally:
        alarm.cancel()
    return parse_json(body)
