"""A benchmark as tables, for a page and for the terminal, and as a figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dkel_lightning.app import figures
from dkel_lightning.app.benchmark import loaders
from dkel_lightning.app.benchmark.results import PARTS, REST, BenchmarkResult, SideResult, Spread, aims
from dkel_lightning.app.runs.tables import markdown_table

NAMES = {
    "plain": "loop written by hand",
    "eager": "Trainer, eager",
    "compile": "Trainer, compiled",
    "cuda_graph": "Trainer, CUDA graph",
    "cuda_graph_compiled": "Trainer, CUDA graph, compiled",
    "eager_workers": "Trainer, eager, images in workers",
    "bare_eager": "without Lightning, eager",
    "bare_compile": "without Lightning, compiled",
    "bare_cuda_graph": "without Lightning, CUDA graph",
    "bare_cuda_graph_compiled": "without Lightning, CUDA graph, compiled",
}
COLOURS = {"plain": "#888888", "trainer": "#1f77b4", "bare": "#9ecae1"}

Table = tuple[list[str], list[list[str]]]


def name_of(label: str) -> str:
    """Say in words what a side is; a variant is named by its own label."""
    return NAMES.get(label, f"Trainer, {label}")


def number(value: float) -> str:
    """Write a number with three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _with_spread(spread: Spread | None, one: bool = False) -> str:
    if spread is None:
        return ""
    return number(spread.median) if one else f"{number(spread.median)} ({number(spread.low)}-{number(spread.high)})"


def main_table(result: BenchmarkResult) -> Table:
    """Show a row a side."""
    heading = ["", "ms a step", "images/s", "times by hand", "of without Lightning", "first step, s", "peak memory"]
    return heading, [_main_row(result, each) for each in result.sides]


def _main_row(result: BenchmarkResult, each: SideResult) -> list[str]:
    label, one = each.side.label, len(each.seconds) == 1
    share = result.ratio(label, f"bare_{label}")
    return [
        name_of(label),
        _with_spread(each.milliseconds, one),
        _with_spread(each.rate, one),
        "" if label == "plain" else _with_spread(result.ratio(label, "plain"), one),
        "" if share is None else f"{share.median:.0%}",
        f"{each.begun.first_step:.1f}",
        _megabytes(each.memory.bytes),
    ]


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def parts_table(result: BenchmarkResult) -> Table:
    """Show the milliseconds of each part."""
    there = [each for each in result.sides if each.parts]
    names = _parts_of(result)
    return ["", *names, "step"], [
        [
            name_of(each.side.label),
            *(number(each.parts[name]) if name in each.parts else "" for name in names),
            number(sum(each.parts.values())),
        ]
        for each in there
    ]


def _parts_of(result: BenchmarkResult) -> list[str]:
    """List the parts that any side has."""
    return [name for name in (*PARTS, REST) if any(name in each.parts for each in result.sides)]


def loaders_table(result: BenchmarkResult) -> Table:
    """Show the images a second of loaders alone, and in training where the same images were also trained on."""
    trained = {"device": "eager", "workers": "eager_workers", "plain": "plain"}
    rows = []
    for label, rates in result.loaders.items():
        side = result.find(trained[label])
        one = len(rates) == 1
        rows.append(
            [
                loaders.LABELS[label],
                _with_spread(Spread.of(rates), one),
                "" if side is None else number(side.rate.median),
            ]
        )
    return ["", "alone, images/s", "in training, images/s"], rows


def aims_table(result: BenchmarkResult) -> Table:
    """Show what this library aims at on such a device beside what was measured."""
    rows = []
    for aim in aims(result.about["device"]["kind"], result.about["backbone"]):
        memory = aim.what == "memory"
        found = result.memory_ratio(aim.first, aim.second) if memory else result.ratio(aim.first, aim.second)
        what = f"{name_of(aim.first)}, against {name_of(aim.second)}"
        bound = f"peak memory at most {aim.bound:g}" if memory else f"images/s at least {aim.bound:g}"
        if found is None:
            why = result.missing.get(aim.first) or result.missing.get(aim.second) or "it was not chosen"
            rows.append([what, bound, f"not measured: {why}"])
        else:
            rows.append([what, bound, f"{found:.2f}" if isinstance(found, float) else _ratio(found)])
    return ["measure", "aim", "measured"], rows


def _ratio(found: Spread) -> str:
    return f"{found.median:.2f} ({found.low:.2f}-{found.high:.2f})"


def markdown(result: BenchmarkResult) -> str:
    """Write the page benchmark.md."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: BenchmarkResult) -> Iterator[str]:
    about = result.about
    yield f"# Speed: {about['method']}, {about['backbone']}, {about['device']['names'][0]}"
    yield ""
    yield f"Made by `{about['command']}`. {said(about)}"
    yield ""
    yield from markdown_table(*main_table(result))
    yield ""
    yield "Medians over the rounds, with the least and the most. An image counts once, however many views it has."
    yield "Times by hand: images/s against the loop written by hand, round by round. First step: after the imports,"
    yield "with images, networks, the teacher's initialisation, compiling into an empty cache and capturing; without"
    yield "Lightning what the Trainer has compiled is found in that cache."
    yield f"Peak memory: {memory_note(about['device']['kind'])}"
    if about["device"]["kind"] == "cpu":
        yield "Freed memory stays with the library's sides as it does in task=train (`execution.keep_memory`); the loop"
        yield "written by hand is left as Python starts it."
    yield ""
    yield "![images a second and parts of a step](benchmark.png)"
    yield ""
    aimed = aims_table(result)
    if aimed[1]:
        yield "## Aims"
        yield ""
        yield from markdown_table(*aimed)
        yield ""
    yield "## Parts of a step"
    yield ""
    yield "Milliseconds, in a round of its own in which every part was waited for. Rest: Lightning, metrics and"
    yield "callbacks; in the loop written by hand its metrics."
    yield ""
    yield from markdown_table(*parts_table(result))
    if result.loaders:
        yield ""
        yield "## Images"
        yield ""
        yield from markdown_table(*loaders_table(result))
    if result.missing:
        yield ""
        yield "Not measured: " + "; ".join(f"{name_of(label)} ({why})" for label, why in result.missing.items()) + "."


def memory_note(kind: str) -> str:
    """Say what the peak memory is of."""
    if kind == "cuda":
        return "tensors allocated on the GPU by the side's process, images that lie there included."
    return "resident set of the side's process, code and images included, workers left out."


def said(about: Mapping[str, Any]) -> str:
    """Say what was measured, in which circumstances."""
    images = about["images"]
    return (
        f"{about['peers']} peers of {about['backbone']}, {images['what']} ({images['shape']}), "
        f"batch {about['batch_size']}, {about['precision']}, seed {about['seed']}; {about['rounds']} rounds of "
        f"{about['steps']} steps after {about['warmup']}, the sides taking turns. "
        f"{about['device']['names'][0]}, {about['cpus']} processors, {about['threads']} threads, "
        f"load before: {about['load']}. {about['versions']}."
    )


# ---------------------------------------------------------------------- figure


def draw(result: BenchmarkResult, path: Path) -> None:
    """Draw images a second of all sides, and the parts of their steps, into a PNG."""
    sides = result.sides
    height = 1.6 + 0.42 * len(sides)
    figure = Figure(figsize=(11, height), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    names = [name_of(each.side.label) for each in sides]
    for place, each in enumerate(sides):
        rate = each.rate
        spread = [[rate.median - rate.low], [rate.high - rate.median]]
        left.barh(place, rate.median, xerr=spread, color=COLOURS[each.side.kind], error_kw={"elinewidth": 1})
        left.text(rate.high, place, f"  {number(rate.median)}", va="center", ha="left", fontsize=8)
    left.set_yticks(range(len(sides)), names, fontsize=8)
    left.set_ylim(len(sides) - 0.5, -0.5)
    left.margins(x=0.15)
    left.set_title("training images a second (median, least and most)", fontsize=10)
    begun = [0.0] * len(sides)
    for number_, name in enumerate(_parts_of(result)):
        widths: Sequence[float] = [max(0.0, each.parts.get(name, 0.0)) for each in sides]
        right.barh(range(len(sides)), widths, left=begun, color=f"C{number_}", label="EMA" if name == "ema" else name)
        begun = [start + width for start, width in zip(begun, widths, strict=True)]
    right.set_title("parts of a step, ms", fontsize=10)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=9, fontsize=8)
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figures.save(figure, path)
