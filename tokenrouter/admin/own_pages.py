"""The panel's own addresses: which are, and on which page a form stands."""

import re

from flask import current_app, url_for

OWN_PAGE = re.compile(r"/admin(?:[/?][^\\]*)?")  # browsers take a backslash for a slash


def is_own(target: str) -> bool:
    """Tell whether this is a path of the panel, and no address elsewhere."""
    return target.isprintable() and OWN_PAGE.fullmatch(target) is not None


def page_of(path: str) -> str:
    """Return the page on which a form stands that is sent to this path: it, or the nearest page above it."""
    routes, path = current_app.url_map.bind(""), path.partition("?")[0]
    while path.count("/") > 2:
        if routes.test(path, "GET"):
            return path
        path = path[: path.rstrip("/").rindex("/") + 1]
    return url_for("admin.index")
