"""The tasks of the command line, one file each: a plain function from a run to a typed result."""

from __future__ import annotations

import logging
import math
import os
import warnings

import torch

from dkel_lightning.app.compare.plan import Comparison
from dkel_lightning.app.config.messages import unknown_choice
from dkel_lightning.app.config.nodes.tasks import TASKS
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tasks import stages
from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime import ranks


def run(run: Run, comparison: Comparison | None = None) -> float:
    """Run the task that the configuration names and return its objective; task=compare needs its plan."""
    from dkel_lightning.runtime.process_group import together

    processes = _processes_to_start(run)

    def how_to_go_on() -> str:
        can = run.values["task"]["name"] == "train" and (run.folder / "config.yaml").is_file()
        return f"Go on with: {stages.go_on(run)}" if can else ""

    with together(how_to_go_on):
        if processes > 1:
            from dkel_lightning.app.tasks.spawn import spawned

            return spawned(run_here, run, processes)
        return run_here(run, comparison)


def _processes_to_start(run: Run) -> int:
    trains = run.values["task"]["name"] in ("train", "evaluate")
    if not trains or run.values["trainer"]["strategy"] != "ddp_spawn" or "LOCAL_RANK" in os.environ:
        return 1
    from dkel_lightning.app import build

    quieten()
    return build.processes(run.values)


def run_here(run: Run, comparison: Comparison | None = None) -> float:
    """Do the same in this process, which may be one of several."""
    quieten()
    threads, processors = run.values["execution"]["threads"], os.cpu_count()
    if threads is not None:
        torch.set_num_threads(threads)
        if processors is not None and threads > processors and ranks.is_first():
            print(f"execution.threads={threads}: processors here: {processors}. More threads wait for each other.")
    if run.values.get("modules"):
        from dkel_lightning.app import build

        if run.resume is not None and not run.values["trust"]:
            build.refuse_untrusted(run.values)
        build.import_modules(run.values["modules"])
    name = run.values["task"]["name"]
    if name in ("train", "evaluate", "compare"):
        from dkel_lightning.app import build
        from dkel_lightning.runtime import memory

        memory.keep_freed_as_asked(run.values["execution"]["keep_memory"], build.device(run.values))
    if name == "train":
        from dkel_lightning.app.tasks.train import train

        return train(run).objective
    if name == "evaluate":
        from dkel_lightning.app.tasks.evaluate import evaluate

        return evaluate(run).objective
    if name == "export":
        from dkel_lightning.app.tasks.export import export_checkpoint

        return export_checkpoint(run).objective
    if name == "predict":
        from dkel_lightning.app.tasks.predict import predict

        predict(run)
        return math.nan
    if name == "compare" and comparison is not None:
        from dkel_lightning.app.tasks.compare import compare

        return compare(run, comparison).objective
    if name == "replay":
        from dkel_lightning.app.tasks.replay import replay

        return replay(run).objective
    if name == "report":
        from dkel_lightning.app.tasks.report import report

        report(run)
        return math.nan
    if name == "benchmark":
        from dkel_lightning.app.tasks.benchmark import benchmark

        return benchmark(run).objective
    if name == "geometry":
        from dkel_lightning.app.tasks.geometry import geometry

        return geometry(run).objective
    if name == "convergence":
        from dkel_lightning.app.tasks.convergence import convergence

        return convergence(run).objective
    raise ConfigError(unknown_choice("task", name, list(TASKS)))


def quieten() -> None:
    """Leave out what Lightning says at every start and a user of a task can do nothing about."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*LeafSpec.*is deprecated.*",
        ".*exists and is not empty.*",
        ".*Consider setting `persistent_workers.*",
        ".*in eval mode at the start of training.*",
        ".*weights_only.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
    ):
        warnings.filterwarnings("ignore", message)
