"""Each example runs with a few batches, and what it prints is true."""

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

import pytest
import torch

from dkel_lightning import methods
from tests.commands import dkel

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
SHORT: dict[str, Any] = {"limit_train_batches": 4, "limit_val_batches": 1, "limit_test_batches": 1}
SHORT |= {"num_sanity_val_steps": 0, "enable_progress_bar": False, "enable_model_summary": False}

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in an empty folder, and forget the method that an example registers."""
    monkeypatch.chdir(tmp_path)
    before = dict(methods.METHODS)
    yield
    methods.METHODS.clear()
    methods.METHODS.update(before)
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run_code(code: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); {code}"],
        cwd=cwd, capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart_notebook() -> None:
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec", dont_inherit=True), names)
    assert names["trained"].accuracy > 0.15  # chance is 0.1
    assert names["probabilities"].shape == (1, 10)


def test_torchvision_model(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    accuracy = load("torchvision_model").main(epochs=1, **SHORT)
    printed = capfd.readouterr().out
    assert re.search(r"deployed: (?:teacher|student)_\d, \d+\.\d% of 256 test images; checkpoint .*\.ckpt", printed)
    assert f"{accuracy:.1%} of 256" in printed
    rows = (tmp_path / "outputs/examples/torchvision/version_0/metrics.csv").read_text(encoding="utf-8")
    assert "val/acc" in rows.splitlines()[0]


def test_timm_model(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    load("timm_model").main(epochs=1, **SHORT)
    assert re.search(r"predicted \[(\d, ){9}\d\] of \[(\d, ){9}\d\]", capfd.readouterr().out)


def test_medmnist_npz(tmp_path: Path) -> None:
    assert load("medmnist_npz").main(epochs=1, **SHORT) < 1e-4
    assert (tmp_path / "outputs/examples/shipped/weights.pt").is_file()


def test_unlabelled_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    accuracy = load("unlabelled_folder").main(epochs=1, accelerator="cpu", **SHORT)
    assert f"{accuracy:.1%} of 300 test images" in capfd.readouterr().out
    assert (tmp_path / "outputs/examples/unlabelled/tiny/model.onnx").is_file()


def test_own_method_in_python() -> None:
    # Three epochs are far from enough, and more than enough to leave chance.
    assert 0.3 < load("own_method").main(epochs=3, limit_val_batches=1) <= 1


def test_own_method_on_the_command_line(tmp_path: Path) -> None:
    shown = re.search(r"dkel (.*modules=.*)", (EXAMPLES / "own_method.py").read_text("utf-8"))
    assert shown is not None
    command = [item.strip('"') for item in shown[1].split()]
    done = dkel(*command, "debug=smoke", f"hydra.run.dir={tmp_path / 'run'}", cwd=EXAMPLES)
    assert "confident on digits" in done.stdout, done.stderr


def test_supervision_complexity() -> None:
    rows = load("supervision_complexity").main(
        epochs=1, images=6, limit_train_batches=1, enable_checkpointing=False, enable_progress_bar=False
    )
    assert [epoch for epoch, *_ in rows] == [0, 1]
    assert all(value > 0 for row in rows for value in row[1:])


def test_lightning_cli_trains_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse")
    command = load("lightning_cli").DistillationCLI
    shown = [f"--config={EXAMPLES / 'lightning_cli.yaml'}", "--model.method=pcl", "--data.limit=128"]
    quick = ["--trainer.accelerator=cpu", *(f"--trainer.{key}={str(value).lower()}" for key, value in SHORT.items())]
    quick += ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"]
    command(args=["fit", *shown, *quick, "--trainer.max_epochs=1"])
    logs = tmp_path / "logs" / "lightning_logs" / "version_0"
    (checkpoint,) = logs.rglob("*.ckpt")
    recipe = torch.load(checkpoint, weights_only=True)["hyper_parameters"]["distillation"]
    assert (recipe["backbone"], recipe["method"]["name"], recipe["num_classes"]) == ("resnet8", "pcl", 10)
    again = [f"--config={logs / 'config.yaml'}", f"--ckpt_path={checkpoint}"]
    trainer = command(args=["fit", *again, "--trainer.max_epochs=2", "--trainer.logger.save_dir=more"]).trainer
    assert trainer.current_epoch == 2


def test_without_hydra(tmp_path: Path) -> None:
    printed = run_code("import without_hydra; without_hydra.main(2, images=96)", tmp_path)
    assert re.findall(r"^(dkel|pcl|baseline) +\d+\.\d\d%", printed, re.MULTILINE) == ["dkel", "pcl", "baseline"]
    assert printed.splitlines()[-1] == "hydra was imported: False"


def test_without_lightning(tmp_path: Path) -> None:
    code = "import without_lightning as w; print(w.main(epochs=4) > 0.5, 'lightning' in sys.modules)"
    assert run_code(code, tmp_path).splitlines()[-1] == "True False"
