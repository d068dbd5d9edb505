"""Charts as SVG, drawn here: no script, no font and no style of its own, so that the page's style sheet rules them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from xml.etree.ElementTree import Element, SubElement, tostring

import pygal
from markupsafe import Markup

from tokenrouter.reports import DailyTokens, Series

# pygal hooks into the import of maps that nobody has here; its hook is of a kind that Python warns of or passes over
sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, pygal.PluginImportFixer)]

TITLE = "Tokens a day"
WIDTH, HEIGHT = 960, 260
SCALED = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k"))
GREYS = (8, 9)


@dataclass(frozen=True)
class Chart:
    """A drawing, and the same figures for a legend and a table."""

    svg: Markup
    days: Sequence[date]
    series: Sequence[Series]
    colours: Sequence[int]
    totals: Sequence[int]


def short(number: float) -> str:
    """Write a number in few characters: `2.5M`, `12.3k`, `950`."""
    for unit, letter in SCALED:
        if abs(number) >= unit * 0.9995:
            return f"{number / unit:.1f}".rstrip("0").rstrip(".") + letter
    return f"{number:.0f}"


def tokens_chart(daily: DailyTokens) -> Chart | None:
    """Draw the tokens of each day, a colour a series; None where there are none."""
    if not any(any(each.tokens) for each in daily.series):
        return None
    greys = iter(GREYS)  # beside those of teams, for what is several together
    is_alone = len(daily.series) == 1
    colours = [
        index if is_alone or each.team_id is not None else next(greys) for index, each in enumerate(daily.series)
    ]
    totals = [sum(tokens) for tokens in zip(*(each.tokens for each in daily.series), strict=True)]
    return Chart(_stacked_bars(daily, colours), daily.days, daily.series, colours, totals)


def day_label(day: date) -> str:
    """Write a day in few characters."""
    return f"{day.day} {day:%b}"


def _stacked_bars(daily: DailyTokens, colours: Sequence[int]) -> Markup:
    chart = pygal.StackedBar(
        css=(),
        js=(),
        width=WIDTH,
        height=HEIGHT,
        margin=6,
        show_legend=False,
        max_scale=5,
        truncate_label=-1,
        x_labels_major_every=max(1, len(daily.days) // 6),
        show_minor_x_labels=False,
        value_formatter=short,
    )
    chart.x_labels = [day_label(day) for day in daily.days]
    for each in daily.series:
        chart.add("", each.tokens)
    svg = chart.render_tree()
    _strip(svg)
    for index, (each, colour) in enumerate(zip(daily.series, colours, strict=True)):
        _tell_figures(svg, index, each, colour, daily.days)
    return Markup(tostring(svg, encoding="unicode"))  # noqa: S704 - the XML writer escapes every text


def _strip(svg: Element) -> None:
    """Take out pygal's own style and script, and its texts that only its script could show."""
    for parent in list(svg.iter()):
        for child in [each for each in parent if each.tag in ("defs", "desc") or "overlay" in each.get("class", "")]:
            parent.remove(child)
    for title in svg.findall("title"):
        title.text = TITLE
    svg.set("role", "img")
    svg.set("aria-label", TITLE)
    svg.set("class", "chart")


def _tell_figures(svg: Element, index: int, series: Series, colour: int, days: Sequence[date]) -> None:
    group = next(each for each in svg.iter("g") if f"serie-{index}" in each.get("class", "").split())
    group.set("class", f"series color-{colour}")
    bars = [each for each in group.iter("g") if each.get("class") == "bar"]
    for bar, day, tokens in zip(bars, days, series.tokens, strict=True):
        SubElement(bar, "title").text = f"{day_label(day)}, {series.name}: {tokens:,} tokens"
