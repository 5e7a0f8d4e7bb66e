"""Draw the figures that explain the method, from the schedules that trainings use: `python docs/figures/draw.py`.

Each is plain SVG on a ground of its own, light or dark as the reader's system is, so it reads in a page of either kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import rooms

from dkel_lightning.schedules import TEACHER_WEIGHTS, Clock
from dkel_lightning.settings.weights import EnsembleTerm, RampUp

FOLDER = Path(__file__).parent
STYLE = """
  :root { color-scheme: light dark }
  .ground { fill: #ffffff; stroke: #d5d9e2 }
  .panel { fill: #f4f6fa; stroke: none }
  text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; fill: #1d2433 }
  .small { font-size: 14px; fill: #4b556b }
  .label { font-size: 16px }
  .head { font-size: 18px; font-weight: 600 }
  .axis { stroke: #8a93a6; fill: none }
  .grid { stroke: #d5d9e2; fill: none }
  .a { --c: #2f5fd0; --soft: #e3ebfc } .b { --c: #b3541e; --soft: #fbe9dd }
  .c { --c: #1b7f5c; --soft: #dcf3ea } .d { --c: #8b3fa8; --soft: #f2e3f8 }
  .box { fill: var(--soft); stroke: var(--c); stroke-width: 1.8 }
  .line { fill: none; stroke: var(--c); stroke-width: 2.4 }
  .dash { stroke-dasharray: 6 5 }
  .word, .small.word { fill: var(--c); font-weight: 600 }
  .tip { fill: var(--c) }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #171b24; stroke: #39415a }
    .panel { fill: #1f2531 }
    text { fill: #e8ebf2 }
    .small { fill: #b4bccd }
    .axis { stroke: #7d879c } .grid { stroke: #333b4d }
    .a { --c: #86a9ff; --soft: #22325c } .b { --c: #f0a36f; --soft: #4a2f20 }
    .c { --c: #62d1a7; --soft: #1b4336 } .d { --c: #d69bea; --soft: #43284f }
  }
"""


def page(width: int, height: int, title: str, *parts: str) -> str:
    """Put parts on a ground; `title` is what a screen reader says."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{title}">\n<title>{title}</title>\n<style>{STYLE}</style>\n'
        f'<rect class="ground" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10"/>\n{body}\n</svg>\n'
    )


def text(x: float, y: float, words: str, kind: str = "label", anchor: str = "start") -> str:
    """Write `words`."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{words}</text>'


def box(x: float, y: float, width: float, height: float, colour: str, words: str = "", extra: str = "") -> str:
    """Draw a rounded box with words in its middle."""
    label = text(x + width / 2, y + height / 2 + 5.5, words, "label", "middle")
    return (
        f'<rect class="box {colour} {extra}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8"/>{label}'
    )


def arrow(points: Sequence[tuple[float, float]], colour: str, extra: str = "") -> str:
    """Draw a line through `points` with a tip at its end; its last piece is horizontal or vertical."""
    (x0, y0), (x1, y1) = points[-2:]
    length = max(abs(x1 - x0), abs(y1 - y0))
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    back = (x1 - 9 * dx, y1 - 9 * dy)
    path = " ".join(f"{x:g},{y:g}" for x, y in (*points[:-1], back))
    tip = [(x1, y1), (back[0] - 5.5 * dy, back[1] + 5.5 * dx), (back[0] + 5.5 * dy, back[1] - 5.5 * dx)]
    corners = " ".join(f"{x:g},{y:g}" for x, y in tip)
    return (
        f'<g class="{colour}"><polyline class="line {extra}" points="{path}"/>'
        f'<polygon class="tip" points="{corners}"/></g>'
    )


def curve(
    values: Callable[[int], float],
    frame: tuple[float, float, float, float],
    epochs: int,
    top: float,
    colour: str,
    extra: str = "",
) -> str:
    """Draw the values of the first `epochs` epochs in `frame` (x, y, width, height), whose height stands for `top`."""
    x, y, width, height = frame
    points = []
    for epoch in range(epochs):
        level = y + height * (1 - values(epoch) / top)
        points += [f"{x + width * e / epochs:.1f},{level:.1f}" for e in (epoch, epoch + 1)]
    return f'<g class="{colour}"><polyline class="line {extra}" points="{" ".join(points)}"/></g>'


def axes(frame: tuple[float, float, float, float], epochs: int, every: int, top: float) -> str:
    """Draw the axes of a chart: epochs to the right, weights from 0 to `top` upwards."""
    x, y, width, height = frame
    parts = []
    for value in (0.0, top / 2, top):
        at = y + height * (1 - value / top)
        parts.append(f'<line class="grid" x1="{x:g}" x2="{x + width:g}" y1="{at:g}" y2="{at:g}"/>')
        parts.append(text(x - 8, at + 5, f"{value:g}", "small", "end"))
    for tick in range(0, epochs + 1, every):
        at = x + width * tick / epochs
        parts.append(f'<line class="axis" x1="{at:g}" x2="{at:g}" y1="{y + height:g}" y2="{y + height + 5:g}"/>')
        parts.append(text(at, y + height + 21, f"{tick}", "small", "middle"))
    parts.append(f'<line class="axis" x1="{x:g}" x2="{x + width:g}" y1="{y + height:g}" y2="{y + height:g}"/>')
    parts.append(text(x + width, y + height + 38, "epoch", "small", "end"))
    return "\n".join(parts)


RAMP, TERM = RampUp(), EnsembleTerm()


def at(epoch: int) -> tuple[float, float, float, float]:
    """Give v, r, G and H of `method=dkel`, with the defaults of the classes that a training uses."""
    clock = Clock(epoch=epoch)
    v, r = TERM.weight(clock), RAMP.weight(clock)
    assembled, individual = TEACHER_WEIGHTS[TERM.weights](v, r, RAMP.scale, RAMP.scale)
    return v, r, assembled, individual


def at_released(epoch: int) -> tuple[float, float]:
    """Give G and H of `method=dkel_released`."""
    clock = Clock(epoch=epoch)
    v, r = TERM.weight(clock), RampUp(scale=0.1, form="released").weight(clock)
    assembled, individual = TEACHER_WEIGHTS[TERM.weights](v, r, r, 0.1)
    return assembled, individual


def peers() -> str:
    """Draw student and teacher, who learns from whom, and when."""
    parts = [
        '<rect class="panel" x="14" y="46" width="612" height="212" rx="8"/>',
        '<rect class="panel" x="14" y="304" width="612" height="196" rx="8"/>',
        text(24, 33, "Student: learns from labels, ensemble and teachers", "head"),
        text(24, 526, "Teacher: of the same form, starts elsewhere, no gradient", "head"),
    ]
    # The image, and its way into both trunks.
    parts += [
        f'<rect class="box d" x="{44 + 9 * i}" y="{84 + 9 * i}" width="32" height="32" rx="3"/>' for i in range(3)
    ]
    words = ("an image,", "augmented", "once for", "each peer")
    parts += [text(69, 158 + 18 * i, line, "small", "middle") for i, line in enumerate(words)]
    parts += [arrow([(99, 119), (126, 119)], "d"), arrow([(69, 222), (69, 402), (126, 402)], "d")]
    for colour, top, name in (("a", 84, "peer"), ("b", 324, "teacher")):
        parts += [box(128, top, 104, 156, colour), text(180, top + 75, "shared", "label", "middle")]
        parts.append(text(180, top + 95, "trunk", "label", "middle"))
        for i in range(3):
            y = top + 5 + 55 * i
            own = "c" if (name, i) == ("teacher", 0) else colour
            parts += [arrow([(234, y + 18), (272, y + 18)], colour), box(274, y, 92, 36, own, f"{name} {i + 1}")]
            parts.append(f'<g class="{colour}"><polyline class="line" points="368,{y + 18} 408,{y + 18}"/></g>')
        parts.append(f'<g class="{colour}"><polyline class="line" points="408,{top + 23} 408,{top + 133}"/></g>')
        parts.append(f'<rect class="axis dash" x="262" y="{top - 6}" width="116" height="168" rx="10"/>')
    parts += [
        arrow([(408, 162), (438, 162)], "a"),
        box(440, 134, 104, 56, "a", "ensemble"),
        arrow([(492, 132), (492, 60), (320, 60), (320, 77)], "a", "dash"),
        text(502, 84, "teaches them,", "small"),
        text(502, 102, "ramped up", "small"),
        arrow([(180, 242), (180, 322)], "b"),
        text(192, 284, "follows after each step:", "small"),
        text(192, 300, "0.999 of its own + 0.001 of the student", "small"),
        arrow([(408, 402), (604, 402), (604, 264), (320, 264), (320, 247)], "c", "dash"),
        text(420, 374, "each peer learns from", "small"),
        text(420, 392, "the others' teachers", "small"),
        text(420, 346, "deployed: one of them", "small word c"),
        text(420, 428, "first their mean, then", "small"),
        text(420, 446, "each of them (below)", "small"),
    ]
    frame = (60.0, 592.0, 300.0, 130.0)
    parts += [
        text(24, 568, "What the teachers weigh", "head"),
        axes(frame, 120, 40, 1.0),
        curve(lambda e: at(e)[2], frame, 120, 1.0, "c"),
        curve(lambda e: at(e)[3], frame, 120, 1.0, "b"),
        text(76, 614, "their mean", "label word c"),
        text(216, 676, "each by itself", "label word b"),
    ]
    lines = ("At first the mean of the others'", "teachers weighs most, and fades", "within 10 epochs.",
             "Then each teacher by itself,", "ramped up until epoch 80 of 300.")  # fmt: skip
    parts += [text(388, 606 + 23 * i, line, "small") for i, line in enumerate(lines)]
    title = "Student peers on one trunk learn from labels, from their ensemble and from a slowly following teacher"
    return page(640, 776, title, *parts)


def schedules() -> str:
    """Draw v, r, G and H of `dkel` over the epochs, and the released arithmetic below."""
    early, late, released = ((60.0, y, 556.0, 120.0) for y in (64.0, 300.0, 536.0))
    title = (
        "Weights over the epochs: v decays, r ramps up, G and H follow; in the released code all are about 0 at first"
    )
    return page(
        640,
        716,
        title,
        text(24, 36, "method=dkel: the first 20 epochs", "head"),
        axes(early, 20, 5, 1.0),
        curve(lambda e: at(e)[2], early, 20, 1.0, "c"),
        curve(lambda e: at(e)[0], early, 20, 1.0, "a", "dash"),
        curve(lambda e: at(e)[3], early, 20, 1.0, "b"),
        curve(lambda e: at(e)[1], early, 20, 1.0, "d", "dash"),
        text(104, 84, "v(e), and G = λ v: the assembled teachers", "label word c"),
        text(340, 166, "r(e), and H = r (1 - v)", "label word b"),
        text(24, 272, "method=dkel: 120 of 300 epochs", "head"),
        axes(late, 120, 20, 1.0),
        curve(lambda e: at(e)[2], late, 120, 1.0, "c"),
        curve(lambda e: at(e)[3], late, 120, 1.0, "b"),
        curve(lambda e: at(e)[1], late, 120, 1.0, "d", "dash"),
        text(78, 322, "G", "label word c"),
        text(340, 396, "r, and H: each teacher by itself", "label word b"),
        text(24, 508, "method=dkel_released: about 0 until epoch 80, then 0.1", "head"),
        axes(released, 120, 20, 0.1),
        curve(lambda e: at_released(e)[0], released, 120, 0.1, "c"),
        curve(lambda e: at_released(e)[1], released, 120, 0.1, "b"),
        text(78, 640, "G: 0.0007 in epoch 0, then 0", "label word c"),
        text(452, 562, "H", "label word b"),
    )


def architecture() -> str:
    """Draw the rooms on their floors, and a line from each to those it imports that no other line leads to."""
    width, step, high = 760, 74, 42
    height = step * len(rooms.FLOORS) + 66
    centres: dict[str, tuple[float, float]] = {}
    boxes: list[str] = []
    for number, on_floor in enumerate(rooms.FLOORS):
        y = height - 10 - (number + 1) * step
        wide = min(420, (width - 40) / len(on_floor) - 16)
        for place, name in enumerate(on_floor):
            x = width / 2 + (place - (len(on_floor) - 1) / 2) * (wide + 16)
            centres[name] = (x, y + high / 2)
            boxes.append(box(x - wide / 2, y, wide, high, "abcd"[number % 4]))
            boxes.append(text(x, y + 27, name, "label word " + "abcd"[number % 4], "middle"))
    lines = []
    for upper, lower in sorted(rooms.arrows()):
        (x1, y1), (x2, y2) = centres[upper], centres[lower]
        middle = (y1 + y2) / 2
        curve = f"M{x1:g} {y1 + high / 2:g}C{x1:g} {middle:g} {x2:g} {middle:g} {x2:g} {y2 - high / 2:g}"
        lines.append(f'<path class="axis" stroke-width="1.4" d="{curve}"/>')
    title = "The rooms of the package: a line leads down from a room to what it imports"
    return page(width, height, title, text(24, 36, "The rooms, and who imports whom", "head"), *lines, *boxes)


DRAWN: dict[str, Callable[[], str]] = {
    "peers.svg": peers,
    "schedules.svg": schedules,
    "architecture.svg": architecture,
}

if __name__ == "__main__":
    for name, drawing in DRAWN.items():
        (FOLDER / name).write_text(drawing(), encoding="utf-8")
