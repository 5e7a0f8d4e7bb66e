"""task=benchmark: how fast training is, through the Trainer and without, against a loop written by hand."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dkel_lightning.app import build
from dkel_lightning.app.benchmark import loaders, page, results, setting, sides
from dkel_lightning.app.benchmark.processes import Plan, Sides
from dkel_lightning.app.benchmark.results import BenchmarkResult
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.runs.tables import terminal_table, write_csv
from dkel_lightning.errors import DkelError
from dkel_lightning.runtime import provenance
from dkel_lightning.runtime.atomic_files import write_text

VERSIONS = ("dkel-lightning", "torch", "lightning", "torchvision")


def benchmark(run: Run) -> BenchmarkResult:
    """Measure all sides that the settings ask for, and write benchmark.csv, .json, .md and .png.

    Raises:
        DkelError: not one side could be measured, or images are missing whose shape is not known.
    """
    values = run.values
    device = build.device(values)
    chosen, missing = setting.sides(values, device)
    load = _load()  # before the benchmark itself makes some
    why_invented = setting.must_invent(values)
    invented = why_invented is not None
    if invented:
        print(f"Random images of the same shape stand for {values['data']['name']}: {why_invented}.", flush=True)
    for label, why in missing.items():
        print(f"{label} is left out: {why}", flush=True)
    warmup, steps = setting.steps_of(values, device)
    plan = Plan(values["benchmark"]["rounds"], warmup, steps)
    # The first step, then every turn and the one whose parts are watched.
    most = 1 + (plan.rounds + 1) * (plan.warmup + plan.steps)
    run.describe()
    with tempfile.TemporaryDirectory(prefix="dkel_lightning_", ignore_cleanup_errors=True) as caches:
        tasks = [
            # A mode without Lightning finds what the Trainer's has compiled: half of the waiting.
            sides.Task(side, values, invented, run.folder / "sides" / side.label, most, Path(caches) / side.mode)
            for side in chosen
        ]
        measured = Sides(tasks, lambda line: print(line, flush=True))
        measured.measure(plan)
    found, missing = measured.found, {**missing, **measured.failed}
    if not found:
        why = "; ".join(f"{label}: {reason}" for label, reason in missing.items())
        raise DkelError(f"No side could be measured ({why}).")
    alone = loaders.measure(values, device, plan, invented=invented)
    result = BenchmarkResult(
        setting.folder_of(values, run.folder),
        _about(values, device, plan, invented, load),
        tuple(results.side_result(side, found[side.label], plan.steps) for side in chosen if side.label in found),
        missing,
        {label: [turn.images / turn.seconds for turn in turns] for label, turns in alone.items()},
    )
    write(result)
    show(result)
    return result


def _about(values: Mapping[str, Any], device: torch.device, plan: Plan, invented: bool, load: str) -> dict[str, Any]:
    known = provenance.collect()
    channels, height, width = setting.images_of(values, invented=invented).image_shape
    name = values["data"]["name"]
    return {
        "command": provenance.command(),
        "method": values["method"]["name"],
        "backbone": values["backbone"]["name"],
        "peers": values["method"]["peers"],
        "batch_size": values["data"]["batch_size"],
        "precision": values["precision"]["name"],
        "seed": values["seed"],
        "images": {
            "what": f"random images in place of {name}" if invented else name,
            "invented": invented,
            "shape": f"{channels}x{height}x{width}",
        },
        "rounds": plan.rounds,
        "warmup": plan.warmup,
        "steps": plan.steps,
        "device": {**known["device"], "kind": device.type},
        "cpus": known["cpu_count"],
        "threads": torch.get_num_threads(),
        "load": load,
        "versions": ", ".join(f"{package} {known['packages'][package]}" for package in VERSIONS),
        "git": known["git"],
    }


def _load() -> str:
    """Tell what else the machine did in the minute before."""
    try:
        return f"{os.getloadavg()[0]:.1f}"
    except (AttributeError, OSError):
        return "not known"  # a system that does not say


def write(result: BenchmarkResult) -> None:
    """Write the files."""
    folder = result.folder
    rows = result.rows()
    write_csv(folder / "benchmark.csv", [[*rows[0]], *([*map(_cell, row.values())] for row in rows)])
    write_text(folder / "benchmark.json", json.dumps(result.as_dict(), indent=2, default=str) + "\n")
    write_text(folder / "benchmark.md", page.markdown(result))
    page.draw(result, folder / "benchmark.png")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def show(result: BenchmarkResult, console: Console | None = None) -> None:
    """Print the tables."""
    console = console or Console(width=None if Console().is_terminal else 130)
    about = result.about
    title = f"{about['method']}, {about['backbone']}, on {about['device']['names'][0]}"
    console.print(terminal_table(title, *page.main_table(result)))
    console.print(terminal_table("Parts of a step, ms", *page.parts_table(result)))
    if result.loaders:
        console.print(terminal_table("Images", *page.loaders_table(result)))
    aimed = page.aims_table(result)
    if aimed[1]:
        console.print(terminal_table("Aims", *aimed))
    print(page.said(about))
    print(f"Peak memory: {page.memory_note(about['device']['kind'])}")
    print(f"Written to {result.folder}: benchmark.csv, benchmark.json, benchmark.md, benchmark.png")
