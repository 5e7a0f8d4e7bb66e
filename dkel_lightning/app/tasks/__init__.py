"""The tasks of the command line, one file each: a plain function from a run to a typed result.

`registry` has a row for each. Importing this imports neither torch nor Lightning.
"""

from __future__ import annotations

import logging
import math
import sys
import warnings
from typing import TYPE_CHECKING

from dkel_lightning.runtime import processors, ranks

if TYPE_CHECKING:
    from dkel_lightning.app.compare.plan import Comparison
    from dkel_lightning.app.runs.folder import Run


def run(run: Run, comparison: Comparison | None = None) -> float:
    """Run the task that the configuration names and return its objective; task=compare needs its plan."""
    from dkel_lightning.app.tasks import registry, stages
    from dkel_lightning.runtime.error_translation import errors_named
    from dkel_lightning.runtime.parents import one_of_several

    def how_to_go_on() -> str:
        can = registry.of(run.values).resumable and (run.folder / run.PROVENANCE).is_file()
        return f"Go on with: {stages.go_on(run)}" if can else ""

    with one_of_several(), errors_named(how_to_go_on):
        return _run(run, comparison)


def _run(run: Run, comparison: Comparison | None) -> float:
    if "torch" not in sys.modules and sys.stdout.isatty() and ranks.is_first():
        print("Loading PyTorch and Lightning.", flush=True)
    import torch

    from dkel_lightning.app.tasks import registry

    task = registry.of(run.values)
    function = registry.load(task.function)
    quieten()  # Lightning sets its level when it is imported
    asked, there = run.values["execution"]["threads"], processors.allowed()
    threads = asked or processors.sensible_threads(torch.get_num_threads())
    if threads is not None:
        torch.set_num_threads(threads)
    if asked is not None and asked > there and ranks.is_first():
        print(f"execution.threads={asked}: processors here: {there}. More threads wait for each other.")
    if run.values.get("modules"):
        from dkel_lightning.app import build

        build.import_modules(run.values["modules"])
    result = function(run, comparison) if task.plans else function(run)
    return float(getattr(result, "objective", math.nan))


def quieten() -> None:
    """Leave out what Lightning says at every start and a user of a task can do nothing about."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Says which process has failed, before it ends them all.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
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
