"""task=benchmark: how fast training is, through the Trainer and without, against a loop written by hand."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from dkel_lightning.app import build
from dkel_lightning.app.benchmark import bench, sides
from dkel_lightning.app.benchmark.bench import BenchmarkResult, Plan
from dkel_lightning.app.callbacks import Throughput
from dkel_lightning.app.config.schema import Values
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.runs.tables import print_table
from dkel_lightning.app.tasks.train import usual_callbacks
from dkel_lightning.errors import DkelError
from dkel_lightning.runtime import provenance


def benchmark(run: Run) -> BenchmarkResult:
    """Measure all sides that the settings ask for, and write benchmark.csv, .md and .png.

    Raises:
        DkelError: not one side could be measured, or images are missing whose shape is not known.
    """
    values = run.values
    device = build.device(values)
    load = _load()  # before the benchmark itself makes some
    chosen, missing = sides.chosen(values, device)
    why_invented = sides.must_invent(values)
    name = values["data"]["name"]
    images = name if why_invented is None else f"random images in place of {name}"
    if why_invented is not None:
        print(f"Random images of the same shape stand for {name}: {why_invented}.", flush=True)
    for label, why in missing.items():
        print(f"{label} is left out: {why}", flush=True)
    torch.set_float32_matmul_precision(values["precision"]["matmul"])
    plan = _plan(values, device)
    run.describe()
    settings: dict[str, Any] = {"most": plan.most, "invented": why_invented is not None}
    # All that task=train attaches but what writes checkpoints.
    settings["callbacks"] = lambda run: [Throughput(), *usual_callbacks(run)]
    begun = [(side, partial(sides.begin, side, run, **settings)) for side in chosen]
    with _empty_compile_cache(), _fastest_kernels():
        found, failed, peak = bench.measure(begun, plan, device, lambda line: print(line, flush=True))
    missing |= failed
    if not found:
        why = "; ".join(f"{label}: {reason}" for label, reason in missing.items())
        raise DkelError(f"No side could be measured ({why}).")
    folder = Path(values["benchmark"]["to"]) if values["benchmark"]["to"] else run.folder
    title = f"{values['method']['name']}, {values['backbone']['name']}, {provenance.device()['names'][0]}"
    about, over = _about(values, plan, images, load), values["benchmark"]["over"]
    result = BenchmarkResult(folder, title, about, found, missing, peak, over)
    bench.write(result, values["figures"]["also"])
    print_table(title, *bench.table(result))
    print(f"{result.about}\nWritten to {folder}: benchmark.csv, benchmark.md, benchmark.png")
    return result


def _plan(values: Values, device: torch.device) -> Plan:
    settings = values["benchmark"]
    warmup, steps = (1, 3) if device.type == "cpu" else (10, 100)
    return Plan(
        settings["rounds"],
        warmup if settings["warmup"] is None else settings["warmup"],
        steps if settings["steps"] is None else settings["steps"],
    )


@contextlib.contextmanager
def _empty_compile_cache() -> Iterator[None]:
    """Begin with nothing compiled, or a first step would be as fast as the last run has left it."""
    with (
        tempfile.TemporaryDirectory(prefix="dkel_lightning_", ignore_cleanup_errors=True) as folder,
        mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder),
    ):
        yield


@contextlib.contextmanager
def _fastest_kernels() -> Iterator[None]:
    """Let cuDNN choose the kernels for the shapes of every side, as loops written by hand do."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _about(values: Values, plan: Plan, images: str, load: str) -> str:
    """Say what was measured, in which circumstances."""
    known = provenance.collect()
    versions = ", ".join(f"{name} {known['packages'][name]}" for name in ("dkel-lightning", "torch", "lightning"))
    return (
        f"Made by `{provenance.command()}`. {values['method']['peers']} peers, {images}, "
        f"batch {values['data']['batch_size']}, {build.precision(values)}, seed {values['seed']}; "
        f"{plan.rounds} rounds of {plan.steps} steps after {plan.warmup}, the sides taking turns in one process. "
        f"{known['cpu_count']} processors, {known['threads']} threads, load before: {load}. {versions}."
    )


def _load() -> str:
    """Tell what else the machine did in the minute before."""
    try:
        return f"{os.getloadavg()[0]:.1f}"
    except (AttributeError, OSError):
        return "not known"  # a system that does not say
