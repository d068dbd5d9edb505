"""Charts as SVG, drawn here: no script, no font and no style of its own, so that the page's style sheet rules them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

from tokenrouter import money
from tokenrouter.admin.drawing import Style, pygal
from tokenrouter.figures import counted, short
from tokenrouter.reports import DailyUse, Series

TITLES = {"tokens": "Tokens a {}", "money": "Cost a {}"}
WIDTH, HEIGHT = 960, 260
LABELS = Style(label_font_size=14, major_label_font_size=14)  # as large as on a phone: pygal leaves room for them
GREYS = (8, 9)  # beside those of teams, for what is several together


@dataclass(frozen=True)
class Chart:
    """A drawing, and the same figures for a legend and a table."""

    svg: Markup
    days: Sequence[date]
    series: Sequence[Series]
    colours: Sequence[int]
    totals: Sequence[int]
    title: str
    step: str
    write: Callable[[int], str]
    """Writes an amount, exactly."""
    scale: Markup
    """A copy of the y axis, which stays in place while the chart is scrolled."""


def use_chart(daily: DailyUse, currency: str = "") -> Chart | None:
    """Draw the tokens of each day, or their cost in a currency, one colour per series; None without any."""
    if not any(any(each.amounts) for each in daily.series):
        return None
    greys = iter(GREYS)
    is_alone = len(daily.series) == 1
    colours = [
        next(greys) if each.is_rest and not is_alone else index + len(GREYS) * (index >= GREYS[0])
        for index, each in enumerate(daily.series)
    ]
    totals = [sum(amounts) for amounts in zip(*(each.amounts for each in daily.series), strict=True)]
    title, write = TITLES[daily.unit].format(daily.step), "{:,}".format
    label, tooltip = short, partial(counted, thing="token")
    if daily.unit == "money":
        label = write = tooltip = partial(_money, currency=currency)
    svg = _stacked_bars(daily, colours, title, label, tooltip)
    return Chart(
        _markup(svg), daily.days, daily.series, colours, totals, title, daily.step, write, _markup(_scale(svg))
    )


def _money(amount: float, currency: str) -> str:
    return money.shown(round(amount), currency)


def day_label(day: date) -> str:
    """Write a day in few characters."""
    return f"{day.day} {day:%b}"


def month_label(day: date) -> str:
    """Write a month likewise."""
    return f"{day:%b %Y}"


def _stacked_bars(
    daily: DailyUse, colours: Sequence[int], title: str, label: Callable[[float], str], tooltip: Callable[[int], str]
) -> Element:
    chart = pygal.StackedBar(
        css=(),
        js=(),
        width=WIDTH,
        height=HEIGHT,
        margin=6,
        style=LABELS,
        show_legend=False,
        max_scale=5,
        truncate_label=-1,
        x_labels_major_every=max(1, len(daily.days) // 6),
        show_minor_x_labels=False,
        value_formatter=label,
    )
    label_of = month_label if daily.step == "month" else day_label
    chart.x_labels = [label_of(day) for day in daily.days]
    for each in daily.series:
        chart.add("", each.amounts)
    svg = chart.render_tree()
    _strip(svg, title)
    for index, (each, colour) in enumerate(zip(daily.series, colours, strict=True)):
        _add_tooltips(svg, index, each, colour, chart.x_labels, tooltip)
    return svg


def _scale(svg: Element) -> Element:
    """Draw the figures of the y axis alone."""
    plot = next(each for each in svg.iter("g") if each.get("class") == "plot")
    place = plot.get("transform", "")
    left = place.removeprefix("translate(").partition(",")[0]
    scale = Element("svg", {"class": "chart scale", "viewBox": f"0 0 {left} {HEIGHT}", "aria-hidden": "true"})
    axis = SubElement(scale, "g", {"class": "axis y", "transform": place})
    axis.extend(next(each for each in plot if "axis y" in each.get("class", "")).iter("text"))
    return scale


def _markup(svg: Element) -> Markup:
    return Markup(tostring(svg, encoding="unicode"))  # noqa: S704 - the XML writer escapes every text


def _strip(svg: Element, label: str) -> None:
    """Take out pygal's own style and script, and its texts that only its script could show."""
    for parent in list(svg.iter()):
        for child in [each for each in parent if each.tag in ("defs", "desc") or "overlay" in each.get("class", "")]:
            parent.remove(child)
    for title in svg.findall("title"):
        title.text = label
    svg.set("role", "img")
    svg.set("aria-label", label)
    svg.set("class", "chart")


def _add_tooltips(
    svg: Element, index: int, series: Series, colour: int, labels: Sequence[str], tooltip: Callable[[int], str]
) -> None:
    group = next(each for each in svg.iter("g") if f"serie-{index}" in each.get("class", "").split())
    group.set("class", f"series color-{colour}")
    bars = [each for each in group.iter("g") if each.get("class") == "bar"]
    for bar, label, amount in zip(bars, labels, series.amounts, strict=True):
        SubElement(bar, "title").text = f"{label}, {series.name}: {tooltip(amount)}"
