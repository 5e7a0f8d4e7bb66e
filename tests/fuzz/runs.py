"""Run one combination on the path of the command line, in this process, and judge how it ended."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from dkel_lightning.app import drawing, tasks
from dkel_lightning.app.cli import composition
from dkel_lightning.app.cli.folders import find_resume
from dkel_lightning.app.cli.invocation import Invocation
from dkel_lightning.app.config import checks, schema
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.errors import ConfigError, DkelError
from tests import blank
from tests.compose import check_arguments
from tests.fuzz.space import INTERNALS, Combination
from tests.pictures import write_noise


def reproducible(examples: int) -> settings:
    """Try so many examples, the same ones every time, without shrinking: each is short, and takes its time."""
    return settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@dataclass
class Tally:
    """How the combinations ended, in all and by choice in a group; and what was wrong."""

    trained: int = 0
    refused: int = 0
    by_choice: dict[str, Counter[str]] = field(default_factory=dict)
    slowest: tuple[float, str] = (0.0, "")
    failures: list[str] = field(default_factory=list)

    def count(self, combination: Combination, outcome: str, seconds: float) -> None:
        """Add one."""
        self.trained += outcome == "trained"
        self.refused += outcome == "refused"
        self.slowest = max(self.slowest, (seconds, str(combination)))
        for group, choice in combination.groups.items():
            self.by_choice.setdefault(f"{group}={choice}", Counter())[outcome] += 1


def make_sets(folder: Path) -> dict[str, Path]:
    """Write tiny data sets; `nowhere` names a place without one."""
    draws = np.random.default_rng(0)
    labels = np.arange(18) % 3
    images = draws.integers(0, 256, (18, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "set.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    write_noise(folder / "images", 6, 3, size=9, classes=("cat", "dog"))
    return {"npz": folder / "set.npz", "image_folder": folder / "images", "nowhere": folder / "nowhere"}


def attempt(combination: Combination, folder: Path, tally: Tally) -> None:
    """Run one combination and note how it ended; what should not be is added to the failures."""
    print(combination, flush=True)
    started = time.perf_counter()
    try:
        with _as_found(folder):
            run_like_the_command_line(combination, folder)
        fault = judge_outputs(folder)
        outcome = "trained"
    except DkelError as error:
        fault, outcome = judge_message(error, combination), "refused"
        print(f"-> {error}", flush=True)
    except (Exception, SystemExit) as error:
        fault, outcome = f"{type(error).__name__}: {error}"[:600] + _where(error), "broken"
    if fault is not None:
        print(f"!! {fault}", flush=True)
        tally.failures.append(f"{combination}\n    {fault}")
    tally.count(combination, outcome, time.perf_counter() - started)


def _where(error: BaseException) -> str:
    lines = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if "site-packages" not in code.co_filename:
            lines.append(f"{Path(code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f" [{' '.join(lines[-5:])}]"


def run_like_the_command_line(combination: Combination, folder: Path) -> None:
    """Do what the command line does with the arguments: check, compose, resolve, check again, run.

    Raises:
        DkelError: what the command line would print in one line.
        AssertionError: what passed the check of the arguments is refused when it is composed.
    """
    given = list(combination.arguments)
    check_arguments(given, None, False)
    typed = [*Invocation.of(given).arguments]
    try:
        values = composition.resolved(composition.compose(typed))
        checks.check(values)
    except ConfigError as error:
        raise AssertionError(f"passed check_arguments, then: {error}") from error
    resume = find_resume(values["resume"]) if values["resume"] else None
    with pytest.MonkeyPatch.context() as patch:
        if not combination.figures:
            patch.setattr(drawing, "encoded", blank.picture)
        objective = tasks.run(Run(values, folder, resume))
    assert values["trainer"]["fast_dev_run"] or 0 <= objective <= 1, f"the objective is {objective}"


def judge_outputs(folder: Path) -> str | None:
    """Say what is wrong with the files of a run that ended well, None if nothing is."""
    summary = folder / "summary.json"
    if not summary.is_file():
        return "it ended without summary.json"
    written = json.loads(summary.read_text())
    faults = [name for name, value in _numbers(written, "") if not math.isfinite(value)]
    # Without a validation only the test finds that outputs overflow; which, the run says in so many words.
    said = " ".join(written.get("warnings", [])).replace(",", " ").split()
    faults = [name for name in faults if not (name.startswith("/test/") and name.rsplit("/", 1)[-1] in said)]
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        checkpoint = torch.load(last, weights_only=True)
        faults += [] if checkpoint["global_step"] > 0 else ["not one step was made"]
        faults += [
            name
            for name, value in checkpoint["state_dict"].items()
            if name != "scores.validation_accuracy" and value.is_floating_point() and not bool(value.isfinite().all())
        ]
        rows = list(csv.DictReader((folder / "metrics.csv").open(encoding="utf-8")))
        faults += ["no row in metrics.csv"] if not rows else []
        # A similarity of features that do not differ is not defined.
        shown = [pair for row in rows for pair in row.items() if not pair[0].startswith("diversity/")]
        faults += [f"{name}={value}" for name, value in shown if value in ("nan", "inf", "-inf")]
    return f"trained, but: {', '.join(faults[:8])}" if faults else None


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _numbers(each, f"{name}/{key}")
    elif isinstance(value, float):
        yield name, value


def judge_message(error: DkelError, combination: Combination) -> str | None:
    """Say what is wrong with an error's message: it is empty, speaks of Python, or names nothing that was given."""
    message = str(error)
    said = f"{type(error).__name__}: {message}"[:600]
    if not message.strip():
        return f"{type(error).__name__} without a message"
    if INTERNALS.search(message):
        return f"unclear: {said}{_where(error)}"
    given = [item.lstrip("+~").partition("=") for item in combination.arguments]
    words = {key for key, _, _ in given} | {key.rpartition(".")[2] for key, _, _ in given} | set(schema.KEYS)
    words |= {value for _, _, value in given if len(value) > 3}
    if not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message) for word in words if word):
        return f"names nothing that was given: {said}"
    return None


@contextlib.contextmanager
def _as_found(folder: Path) -> Iterator[None]:
    """Run in a folder of its own and leave this process as it was found."""
    environment, where, path = dict(os.environ), Path.cwd(), list(sys.path)
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(where)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(False)
        torch.autograd.set_detect_anomaly(False)
        torch.set_grad_enabled(True)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder that is removed afterwards, also thousands of times."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz_"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def each_composed_once() -> Iterator[None]:
    """Let `composition.compose` compose the same arguments once: the check and the run ask for the same."""
    compose: Callable[..., Any] = composition.compose
    known: dict[Any, Any] = {}

    def remembered(overrides: Sequence[str], config_dir: Path | None = None, *, with_hydra: bool = False) -> Any:
        key = (tuple(overrides), config_dir, with_hydra)
        if key not in known:
            if len(known) > 500:
                known.clear()
            known[key] = compose(overrides, config_dir, with_hydra=with_hydra)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composition, "compose", remembered)
        yield
