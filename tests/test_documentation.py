"""Every command and code block that README and docs show is run or checked here."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch.utils.data import DataLoader, TensorDataset

from dkel_lightning import cli, methods, reference

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> Iterator[str]:
    for page in PAGES:
        for block in blocks(page, "sh"):
            yield from (line.split("#")[0].strip() for line in block.splitlines() if line.strip())


SHOWN = sorted(set(commands()))


def test_the_documents_show_commands() -> None:
    assert "make run" in SHOWN
    assert "python -m dkel_lightning" in SHOWN


@pytest.mark.parametrize("command", [c for c in SHOWN if c.startswith("python -m dkel_lightning")])
def test_each_shown_command_is_one_that_the_program_accepts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = shlex.split(command)[3:]
    if "--help" in arguments:
        return  # run in test_cli.py
    # A run to resume or to evaluate, where the command names one.
    monkeypatch.chdir(tmp_path)
    checkpoints = tmp_path / "outputs" / "quickstart" / "TIME" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in ("last.ckpt", "best.ckpt"):
        torch.save({}, checkpoints / name)
    (checkpoints.parent / "config.yaml").write_text("seed: 0\n")
    prepared = cli.prepare(arguments)
    # What is resumed is replaced by what it means at this moment.
    assert [item for item in prepared[: len(arguments)] if not item.startswith("resume=")] == [
        item for item in arguments if not item.startswith("resume=")
    ]


@pytest.mark.parametrize("command", [c for c in SHOWN if c.startswith("make ")])
def test_each_shown_target_of_make_exists(command: str) -> None:
    targets = shlex.split(command)[1:]
    done = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_command_is_shown_that_is_neither_run_nor_checked() -> None:
    assert [c for c in SHOWN if not c.startswith(("make ", "python -m dkel_lightning"))] == []


class Splits:
    """Stands for the reader's own data."""

    @staticmethod
    def loader(channels: int, size: int) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(16, channels, size, size, generator=generator)
        return DataLoader(TensorDataset(images, torch.arange(16) % 10), batch_size=8)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_run_as_they_stand(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    channels, size = (3, 64) if page.name == "README.md" else (1, 8)
    # 300 epochs of the reader's data are one step here.
    original = Trainer.__init__

    def short(self: Trainer, *args: Any, **kwargs: Any) -> None:
        kwargs |= {"max_epochs": 1, "limit_train_batches": 1, "accelerator": "cpu", "logger": False}
        saves = any(isinstance(callback, Checkpoint) for callback in kwargs.get("callbacks", []))
        original(self, *args, **{**kwargs, "enable_checkpointing": saves, "enable_progress_bar": False})

    monkeypatch.setattr(Trainer, "__init__", short)
    names: dict[str, Any] = {"my_datamodule": Splits.loader(channels, size), "__name__": page.stem}
    registered = set(methods.METHODS)
    try:
        for block in blocks(page, "python"):
            sys.modules[page.stem] = type(sys)(page.stem)
            exec(compile(block, str(page), "exec"), names)
    finally:
        sys.modules.pop(page.stem, None)
        for name in set(methods.METHODS) - registered:
            del methods.METHODS[name]
    if page.name == "README.md":
        assert names["network"](torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    if page.name == "python.md":
        assert names["module"].method.terms == ("ce", "kd")


def test_the_configuration_reference_is_up_to_date() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == "\n".join(reference.lines()) + "\n", "run: python -m dkel_lightning.reference"


def test_links_between_documents_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_project_names_no_path_of_the_machine_it_was_made_on() -> None:
    # Brackets keep the pattern from finding itself.
    pattern = r"\.\./[s]hared|/[w]ork/|/[t]mp/bash"
    done = subprocess.run(["git", "grep", "-nE", pattern], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == []
