"""Whose page sent a form, as browsers tell it."""

from flask import Request

OWN_SITE = ("same-origin", "none")


def is_from_another_site(request: Request) -> bool:
    """Tell whether a browser says that another site's page sent this. Programs say nothing of that.

    Old browsers, and all that came without https, tell the page's origin alone, and of our pages only because their
    referrer policy lets them. Source: Fetch Metadata Request Headers, W3C; RFC 6454, 7.
    """
    if site := request.headers.get("Sec-Fetch-Site"):
        return site not in OWN_SITE
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != request.host
