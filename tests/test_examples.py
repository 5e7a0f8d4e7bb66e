"""Every example runs: as it stands, for one epoch, and what it promises is true."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from dkel_lightning.data import NpzDataModule
from tests.commands import dkel
from tests.own_code import forgotten

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
SHORT: dict[str, Any] = {"limit_train_batches": 4, "limit_val_batches": 1, "limit_test_batches": 1}
SHORT |= {"num_sanity_val_steps": 0, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in an empty folder, and forget the method that an example registers."""
    monkeypatch.chdir(tmp_path)
    with forgotten():
        yield
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def as_script(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_notebook_runs_cell_by_cell_and_holds_no_output() -> None:
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec", dont_inherit=True), names)
    assert names["trained"].accuracy > 0.15  # chance is 0.1
    assert names["probabilities"].shape == (1, 10)


def test_each_example_is_tested_here_and_told_of_in_the_documents() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    tests = Path(__file__).read_text(encoding="utf-8")
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    assert len(names) >= 6
    assert {
        name for name in names if f"({name!r})".replace("'", '"') not in tests and f"import {name};" not in tests
    } == set()
    assert {name for name in names if f"`examples/{name}.py`" not in page} == set()


def test_each_example_begins_with_the_command_that_runs_it() -> None:
    for path in EXAMPLES.glob("*.py"):
        docstring = path.read_text(encoding="utf-8").split('"""')[1]
        assert f"    python examples/{path.name}" in docstring, path.name


@pytest.mark.slow
def test_a_torchvision_model_in_a_project_of_ones_own(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    accuracy = example("torchvision_model").main(epochs=1, **SHORT)
    printed = capfd.readouterr().out
    assert re.search(r"kept: (?:teacher|student)_\d, \d+\.\d% of 256 test images; checkpoint .*\.ckpt", printed)
    assert f"{accuracy:.1%} of 256" in printed
    rows = (tmp_path / "outputs/examples/torchvision/version_0/metrics.csv").read_text(encoding="utf-8")
    assert "lr-SGD" in rows.splitlines()[0]
    assert "val/acc" in rows.splitlines()[0]


@pytest.mark.slow
def test_a_vision_transformer_with_dicts_as_batches(capfd: pytest.CaptureFixture[str]) -> None:
    accuracy = example("timm_model").main(epochs=3, **{**SHORT, "limit_train_batches": 1.0})
    assert accuracy > 0.15  # ten classes, 200 images: 0.26 with torch 2.11, 0.27 with 2.14
    assert re.search(r"predicted \[(\d, ){9}\d\] of \[(\d, ){9}\d\]", capfd.readouterr().out)


@pytest.mark.slow
def test_a_file_in_the_layout_of_medmnist(tmp_path: Path) -> None:
    module = example("medmnist_npz")
    assert module.main(epochs=1, **SHORT) < 1e-4
    made = tmp_path / "outputs/examples/digits_28.npz"
    with np.load(made) as arrays:
        shapes = {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
    # As in medmnist.com's files of 28x28 grey images.
    assert shapes["train_images"] == ((1200, 28, 28), "uint8")
    assert shapes["test_labels"] == ((397, 1), "uint8")
    assert len(NpzDataModule(str(made)).read().class_names) == 10
    assert (tmp_path / "outputs/examples/shipped/weights.pt").is_file()


@pytest.mark.slow
def test_a_method_of_ones_own_in_python() -> None:
    # Three epochs are far from enough, and more than enough to leave chance.
    assert 0.3 < example("own_method").main(epochs=3, limit_val_batches=1) <= 1


@pytest.mark.slow
def test_a_method_of_ones_own_on_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown = re.search(r"dkel (.*modules=.*)", (EXAMPLES / "own_method.py").read_text("utf-8"))
    assert shown is not None
    command = [item.strip('"') for item in shown[1].split()]
    run = [*command, "trainer.fast_dev_run=true", f"hydra.run.dir={tmp_path / 'run'}"]
    done = dkel(*run, cwd=EXAMPLES)
    assert "confident on digits" in done.stdout, done.stderr
    assert not (EXAMPLES / "outputs").exists()


def test_the_complexity_of_labels_and_teacher_epoch_by_epoch() -> None:
    rows = example("supervision_complexity").main(
        epochs=1, images=6, limit_train_batches=1, enable_checkpointing=False, enable_progress_bar=False
    )
    assert [epoch for epoch, *_ in rows] == [0, 1]
    assert all(value > 0 for row in rows for value in row[1:])


@pytest.mark.slow
def test_lightnings_own_command_line_trains_tests_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse", reason="jsonargparse is not installed: see the extra cli")
    command = example("lightning_cli").DistillationCLI
    shown = [f"--config={EXAMPLES / 'lightning_cli.yaml'}", "--model.method=pcl", "--data.limit=128"]
    quick = ["--trainer.accelerator=cpu", *(f"--trainer.{key}={str(value).lower()}" for key, value in SHORT.items())]
    quick += ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"]
    command(args=["fit", *shown, *quick, "--trainer.max_epochs=1"])
    logs = tmp_path / "logs" / "lightning_logs" / "version_0"
    (checkpoint,) = logs.rglob("*.ckpt")
    recipe = torch.load(checkpoint, weights_only=True)["hyper_parameters"]["distillation"]
    assert (recipe["backbone"], recipe["method"]["name"], recipe["num_classes"]) == ("resnet8", "pcl", 10)
    again = [f"--config={logs / 'config.yaml'}", f"--ckpt_path={checkpoint}"]
    tested = command(args=["test", *again]).trainer
    assert tested.callback_metrics["test/images"] == 360
    gone_on = command(args=["fit", *again, "--trainer.max_epochs=2", "--trainer.logger.save_dir=more"]).trainer
    assert (gone_on.current_epoch, gone_on.optimizers[0].defaults["lr"]) == (2, 0.002)
    assert type(gone_on.optimizers[0]) is torch.optim.AdamW


@pytest.mark.slow
def test_use_without_hydra(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); import without_hydra; without_hydra.main(2, images=96)"
    printed = as_script("-c", code, cwd=tmp_path)
    assert re.findall(r"^(dkel|pcl|baseline) +\d+\.\d\d%", printed, re.MULTILINE) == ["dkel", "pcl", "baseline"]
    assert printed.splitlines()[-1] == "hydra was imported: False"


@pytest.mark.slow
def test_use_without_lightning(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); import without_lightning; "
        "print(without_lightning.main(epochs=4) > 0.5, 'lightning' in sys.modules, 'hydra' in sys.modules)"
    )
    assert as_script("-c", code, cwd=tmp_path).splitlines()[-1] == "True False False"
