"""QR codes, drawn as SVG in the page: no script, and no picture to fetch."""

import importlib

from markupsafe import Markup


def qr_code(text: str, spoken: str, *, svg_id: str | None = None) -> Markup:
    """Return a text as a QR code that the page's style sizes; `spoken` is its description for screen readers.

    With an `svg_id` the page can show it again.
    """
    segno = importlib.import_module("segno")  # loaded when needed, which is rare: 1.5 MB
    code = segno.make(text, error="m", micro=False)
    drawn = code.svg_inline(omitsize=True, svgid=svg_id, svgclass="qr", lineclass=None, border=2, light="#fff")
    return Markup('<span role="img" aria-label="{}">{}</span>').format(spoken, Markup(drawn))  # noqa: S704 - drawn here
