"""The command line in processes of its own, forked from one that has imported what a training needs.

A command has its own folder, environment, output and exit code; only the start of Python and the imports, most of the
time of a short command, are shared. Where they are what is tested, a test starts `python -m dkel_lightning` itself.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import dkel_lightning
from tests import blank

MAIN = str(Path(dkel_lightning.__file__).with_name("__main__.py"))
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("dkel_lightning.app.main", "dkel_lightning.app.sweep", "dkel_lightning.app.tasks.train"),
        *("dkel_lightning.app.tasks.evaluate", "dkel_lightning.app.tasks.predict", "sklearn.datasets", __name__),
    ]
)


class Command:
    """A command that has been started; figures are left blank but where they are `drawn`."""

    def __init__(self, *arguments: str, cwd: Path | None = None, drawn: bool = False) -> None:
        self._output = Path(tempfile.mkdtemp())
        self._arguments = arguments
        given = (arguments, str(cwd or Path.cwd()), dict(os.environ), str(self._output), drawn)
        self._process = CONTEXT.Process(target=_run, args=given)
        self._process.start()

    def wait(self, seconds: float = 280) -> subprocess.CompletedProcess[str]:
        """Wait for its end; one that hangs is killed."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
        output = {name: (self._output / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")}
        shutil.rmtree(self._output)
        assert code is not None, f"{self._arguments} hangs: {output}"
        return subprocess.CompletedProcess(self._arguments, code, **output)


def dkel(*arguments: str, cwd: Path | None = None, drawn: bool = False) -> subprocess.CompletedProcess[str]:
    """Do what `python -m dkel_lightning` does with these arguments, and return how it ended."""
    return Command(*arguments, cwd=cwd, drawn=drawn).wait()


def _run(arguments: tuple[str, ...], cwd: str, variables: dict[str, str], output: str, drawn: bool) -> None:
    from dkel_lightning.app import figures, main

    if not drawn:
        figures.encode = blank.picture
    for number, name in enumerate(("stdout", "stderr"), 1):
        os.dup2(os.open(Path(output, name), os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    torch.set_num_threads(1)
    sys.path.insert(0, cwd)
    sys.argv[:] = [MAIN, *arguments]
    main.main()
