"""What all tests share: the golden numbers, one thread each, no figures, and Lightning without its chatter."""

from __future__ import annotations

import json
import logging
import multiprocessing.util
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dkel_lightning.app import figures
from tests import blank


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """Read the numbers of `golden/dkel.json`, all in float64."""
    text = (Path(__file__).parent / "golden" / "dkel.json").read_text(encoding="utf-8")
    return json.loads(text)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch on one thread: these networks are too small for more, and sums stay in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let what libraries leave in the folder of temporary files lie in that of these tests."""
    multiprocessing.util.get_temp_dir()  # stays outside: it removes it itself, when that of the tests is gone
    folder = str(tmp_path_factory.mktemp("t"))  # short, for the sockets in it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def undrawn() -> Iterator[Callable[..., bytes]]:
    """Leave out the drawing of figures, most of the time of a short run, where a test does not ask for `drawn`."""
    draw = figures.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "encode", blank.picture)
        yield draw


@pytest.fixture
def drawn(undrawn: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw figures."""
    monkeypatch.setattr(figures, "encode", undrawn)


@pytest.fixture(autouse=True)
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's announcements and its advice on loaders, loggers and checkpoints."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        yield
