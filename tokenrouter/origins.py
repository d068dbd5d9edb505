"""Which site's page sent a form, as browsers say."""

from flask import Request

OWN_SITE = ("same-origin", "none")


def is_from_another_site(request: Request) -> bool:
    """Tell whether another site's page sent this, as the browser says; programs say nothing about it.

    Old browsers, and all without https, only send the page's origin, and of our pages only because the referrer policy
    allows it. Source: Fetch Metadata Request Headers, W3C; RFC 6454, 7.
    """
    if site := request.headers.get("Sec-Fetch-Site"):
        return site not in OWN_SITE
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != request.host
