"""Charts as inline SVG, drawn at the size of a phone so that their text stays readable there.

Colours are the classes c0 to c9 of page.css, which knows a light and a dark set.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dkel_lightning.app.report.markup import Markup, join, tag

WIDTH, HEIGHT = 380, 240
LEFT, RIGHT, TOP, BOTTOM = 50, 372, 10, 204
COLOURS, DASHES = 10, 3
POINTS = 12_000
LONGEST = 600
"""Points of one chart, all lines together, and of one line: what keeps the pages of many long runs small."""

Scale = Literal["linear", "symlog", "log"]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        group: lines of one group share an entry of the legend, a colour and a switch.
        style: which colour and, beyond ten, which dashes.
        faint: one of several behind a mean.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0
    group: str = ""
    faint: bool = False


@dataclass(frozen=True)
class Dots:
    """One setting of a sweep: where it lies on the axis, and a value a seed with its name."""

    x: float
    values: Sequence[tuple[str, float]]


# ---------------------------------------------------------------------- axes


@dataclass(frozen=True)
class Axis:
    """A scale from values to pixels, with its ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]
    transform: Callable[[float], float] = float

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high = self.transform(self.low), self.transform(self.high)
        share = (self.transform(value) - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Choose round values between two bounds, about as many as wanted."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * i, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _axis(values: Sequence[float], start: float, end: float, scale: Scale) -> Axis:
    low, high = min(values), max(values)
    if scale == "log":
        return Axis(low, high, start, end, _decades(low, high), math.log10)
    if scale == "symlog":
        high, low = max(high, 0.01), min(low, 0.0)
        ticks = [0.0, *_decades(0.01, high)] + [-tick for tick in _decades(0.01, -low) if low < 0]
        return Axis(low, high, start, end, [t for t in ticks if low <= t <= high], lambda v: math.asinh(v / 0.01))
    if high == low == 0:
        high = 1.0
    elif high == low:
        pad = abs(high) * 0.02 or 0.5
        low, high = low - pad, high + pad
    else:
        pad = 0.04 * (high - low)
        # An axis does not leave the side of 0 on which all values lie.
        low = low - pad if low < 0 or low - pad >= 0 else 0.0
        high = high + pad
    return Axis(low, high, start, end, _ticks(low, high, values))


def _ticks(low: float, high: float, values: Sequence[float]) -> list[float]:
    """Choose round values; whole ones for what is counted."""
    ticks = nice_ticks(low, high)
    if all(float(value).is_integer() for value in values):
        return sorted({float(round(tick)) for tick in ticks if low <= round(tick) <= high})
    return ticks


def _decades(low: float, high: float) -> list[float]:
    if not high > 0:
        return []
    found = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    every = math.ceil(len(found) / 6)
    return [value for value in found[::every] if low * 0.999 <= value <= high * 1.001]


def _tick_text(value: float, ticks: Sequence[float]) -> str:
    """Write a tick with as many digits as tell it from its neighbours."""
    largest = max(map(abs, ticks), default=0.0)
    if largest and (largest >= 1e6 or largest < 1e-3):
        return f"{value:.3g}"
    text = next(
        (f"{value:.{digits}f}" for digits in range(6) if all(abs(t - round(t, digits)) < 1e-9 for t in ticks)),
        f"{value:.4g}",
    )
    return text


def pretty(value: float) -> str:
    """Write a value with five significant digits."""
    return f"{value:.5g}"


# ---------------------------------------------------------------------- lines


def thin(x: Sequence[float], y: Sequence[float], limit: int) -> tuple[list[float], list[float]]:
    """Leave out points between the smallest and largest of each stretch, so that spikes stay; ends are kept."""
    if len(x) <= limit:
        return list(x), list(y)
    buckets = max(1, (limit - 2) // 2)
    inner = range(1, len(x) - 1)
    kept = {0, len(x) - 1}
    for i in range(buckets):
        stretch = inner[len(inner) * i // buckets : len(inner) * (i + 1) // buckets]
        finite = [k for k in stretch if math.isfinite(y[k])]
        gap = [k for k in stretch if not math.isfinite(y[k])]
        if finite:
            kept |= {min(finite, key=y.__getitem__), max(finite, key=y.__getitem__)}
        kept |= {*gap[:1]}
    chosen = sorted(kept)
    return [x[k] for k in chosen], [y[k] for k in chosen]


def lines(
    title: str,
    drawn: Sequence[Line],
    *,
    scale: Scale = "linear",
    note: str = "",
    legend: bool = True,
) -> Markup:
    """Draw lines over epochs; values that are not finite leave a gap. Without a `legend` there must be a shared one."""
    limit = min(LONGEST, max(40, POINTS // max(1, len(drawn))))
    thinned = [Line(one.name, *thin(one.x, one.y, limit), one.style, one.group, one.faint) for one in drawn]
    xs = [x for one in thinned for x in one.x]
    ys = [y for one in thinned for y in one.y if math.isfinite(y)]
    if not xs or not ys:
        return _empty(title, note)
    horizontal, vertical = _epochs(xs), _axis(ys, BOTTOM, TOP, scale)
    common = max((one.x for one in thinned), key=len)
    # The bold lines last, so that they lie above the faint ones.
    paths = [_path(one, horizontal, vertical, common) for one in sorted(thinned, key=lambda one: not one.faint)]
    svg = _svg(
        [*_frame(horizontal, vertical, "epoch"), *paths],
        f"{title}, over epochs",
        data_x=",".join(map(pretty, common)),
        data_box=f"{LEFT} {RIGHT} {TOP} {BOTTOM} {pretty(horizontal.low)} {pretty(horizontal.high)}",
    )
    return tag("figure", _caption(title, note), svg, *([_legend(drawn)] if legend else []), data_lines=len(drawn))


def _svg(parts: Sequence[Markup], label: str, height: int = HEIGHT, **data: str) -> Markup:
    return tag("svg", *parts, class_="plot", viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=label, **data)


def _empty(title: str, note: str) -> Markup:
    return tag("figure", _caption(title, note), tag("p", "No finite value.", class_="note"))


def _epochs(xs: Sequence[float]) -> Axis:
    low, high = min(xs), max(xs)
    return Axis(low, high, LEFT, RIGHT, [low] if low == high else _ticks(low, high, xs))


def _frame(horizontal: Axis, vertical: Axis, x_label: str) -> list[Markup]:
    parts = []
    for value in vertical.ticks:
        y = round(vertical.at(value), 1)
        parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", _tick_text(value, vertical.ticks), x=LEFT - 5, y=y + 4, text_anchor="end"))
    for value in horizontal.ticks:
        x = round(horizontal.at(value), 1)
        parts.append(tag("line", x1=x, x2=x, y1=BOTTOM, y2=BOTTOM + 4, class_="axis"))
        label = _tick_text(value, horizontal.ticks)
        wide = x + 3.5 * len(label) > WIDTH - 1
        place = {"x": WIDTH - 1, "text_anchor": "end"} if wide else {"x": x, "text_anchor": "middle"}
        parts.append(tag("text", label, y=BOTTOM + 17, **place))
    parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="axis"))
    parts.append(tag("text", x_label, x=(LEFT + RIGHT) / 2, y=HEIGHT - 4, text_anchor="middle"))
    return parts


def _path(one: Line, horizontal: Axis, vertical: Axis, common: Sequence[float]) -> Markup:
    segments: list[list[str]] = [[]]
    for x, y in zip(one.x, one.y, strict=True):
        if math.isfinite(y):
            segments[-1].append(f"{horizontal.at(x):.1f} {vertical.at(y):.1f}")
        elif segments[-1]:
            segments.append([])
    return tag(
        "path",
        tag("title", one.name),
        d="".join(map(_segment, segments)),
        class_=f"l {style(one.style)}{' faint' if one.faint else ''}",
        data_name=one.name,
        data_g=one.group or one.name,
        data_x=None if list(one.x) == list(common) else ",".join(map(pretty, one.x)),
        data_y=",".join(pretty(y) if math.isfinite(y) else "" for y in one.y),
    )


def _segment(places: Sequence[str]) -> str:
    """Join points; one by itself becomes a small diamond, or it could not be seen."""
    if len(places) == 1:
        return f"M{places[0]}m-3 0l3 -3l3 3l-3 3z"
    return f"M{'L'.join(places)}" if places else ""


def style(number: int) -> str:
    """Name the classes of a style: its colour, and its dashes beyond ten."""
    dash = (number // COLOURS) % DASHES
    return f"c{number % COLOURS}" + (f" d{dash}" if dash else "")


def _caption(title: str, note: str) -> Markup:
    return tag("figcaption", title, *([" ", tag("small", note)] if note else []))


def _legend(drawn: Sequence[Line]) -> Markup:
    groups: dict[str, Line] = {}
    for one in drawn:
        name = one.group or one.name
        if name not in groups or groups[name].faint:
            groups[name] = one
    return tag("div", *(_entry(name, one.style) for name, one in groups.items()), class_="legend")


def shared_legend(names: Mapping[str, int]) -> Markup:
    """Give one legend to all charts of a section, by name of the group its style; it hides series in all of them."""
    return tag("div", *(_entry(name, number) for name, number in names.items()), class_="legend shared")


def _entry(name: str, number: int) -> Markup:
    mark = tag("svg", tag("path", d="M1 4H21", class_=f"l {style(number)}"), viewBox="0 0 22 8", aria_hidden="true")
    return tag("span", mark, name, data_g=name)


# ---------------------------------------------------------------------- dots


def numeric_dots(title: str, series: Sequence[tuple[str, Sequence[Dots]]], *, x_label: str, note: str = "") -> Markup:
    """Draw a metric over a varied number: a dot a run, a line through the means; one colour a series."""
    xs = sorted({dots.x for _, all_dots in series for dots in all_dots})
    ys = [value for _, all_dots in series for dots in all_dots for _, value in dots.values]
    if not ys:
        return _empty(title, note)
    # Values that span decades lie on top of one another on a linear axis.
    horizontal = _axis(xs, LEFT + 10, RIGHT - 10, "log" if xs[0] > 0 and xs[-1] / xs[0] >= 30 else "linear")
    places = [horizontal.at(x) for x in xs]
    if len(xs) <= 6 and all(after - before >= 34 for before, after in itertools.pairwise(places)):
        horizontal = replace(horizontal, ticks=xs)
    vertical = _axis(ys, BOTTOM, TOP, "linear")
    parts = _frame(horizontal, vertical, x_label)
    for number, (name, all_dots) in enumerate(series):
        ordered = sorted((dots for dots in all_dots if dots.values), key=lambda dots: dots.x)
        means = [(d.x, _mean(d.values)) for d in ordered]
        line = _segment([f"{horizontal.at(x):.1f} {vertical.at(mean):.1f}" for x, mean in means])
        parts += [tag("path", d=line, class_=f"l {style(number)}")] if line else []
        for dots in ordered:
            parts += [
                _circle(horizontal.at(dots.x), vertical.at(value), number, f"{name} {run}: {pretty(value)}".strip())
                for run, value in dots.values
            ]
    legend = [_entry(name, i) for i, (name, _) in enumerate(series)] if len(series) > 1 else []
    svg = _svg(parts, f"{title}, over {x_label}")
    return tag("figure", _caption(title, note), svg, *([tag("div", *legend, class_="legend")] if legend else []))


ROW, ROWS_TOP = 36, 4


def rows(
    title: str,
    entries: Sequence[tuple[str, Sequence[tuple[str, float]]]],
    *,
    x_label: str,
    note: str = "",
    marked: int | None = None,
) -> Markup:
    """Draw one row a label: its name above, a dot a run, a bar at the mean; a dashed line at the marked mean."""
    values = [value for _, dots in entries for _, value in dots]
    if not values:
        return _empty(title, note)
    left, right = 14, RIGHT - 6
    axis = _axis(values, left, right, "linear")
    bottom = ROWS_TOP + ROW * len(entries)
    parts = []
    for value in axis.ticks:
        x = round(axis.at(value), 1)
        parts.append(tag("line", x1=x, x2=x, y1=ROWS_TOP, y2=bottom, class_="grid"))
        parts.append(tag("text", _tick_text(value, axis.ticks), x=x, y=bottom + 15, text_anchor="middle"))
    parts.append(tag("text", x_label, x=WIDTH / 2, y=bottom + 32, text_anchor="middle"))
    if marked is not None and entries[marked][1]:
        x = round(axis.at(_mean(entries[marked][1])), 1)
        parts.append(tag("line", x1=x, x2=x, y1=ROWS_TOP, y2=bottom, class_="guide"))
    for number, (label, dots) in enumerate(entries):
        top = ROWS_TOP + ROW * number
        colour = 1 if number == marked else 0
        shown = label if len(label) <= 52 else f"{label[:51]}…"
        parts.append(tag("text", tag("title", label), shown, x=2, y=top + 13, class_="row"))
        parts += [_circle(axis.at(value), top + 24, colour, f"{name}: {pretty(value)}") for name, value in dots]
        if dots:
            x = round(axis.at(_mean(dots)), 1)
            mean = tag("title", f"mean: {pretty(_mean(dots))}")
            parts.append(tag("line", mean, x1=x, x2=x, y1=top + 17, y2=top + 31, class_=f"mean c{colour}"))
    return tag("figure", _caption(title, note), _svg(parts, f"{title}, by label", bottom + 36))


def _mean(dots: Sequence[tuple[str, float]]) -> float:
    return sum(value for _, value in dots) / len(dots)


def _circle(x: float, y: float, number: int, name: str) -> Markup:
    return tag("circle", tag("title", name), cx=round(x, 1), cy=round(y, 1), r=4, class_=f"c{number % COLOURS}")


def grid(charts: Sequence[Markup]) -> Markup:
    """Lay charts side by side as far as the width allows."""
    return tag("div", join(charts), class_="charts")
