"""task=replay: a recorded step gives its loss again, and names what was at fault."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dkel_lightning import DistillationModule
from dkel_lightning.app import tasks
from dkel_lightning.app.config import checks
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tasks.replay import replay_step
from dkel_lightning.app.tasks.train import train
from dkel_lightning.callbacks import CollapseGuard
from dkel_lightning.errors import CheckpointError, CollapseError, NonFiniteError
from tests.callbacks.test_collapse import Deaden
from tests.callbacks.test_step_recorder import PoisonGradient, poisoned_loader
from tests.compose import compose, prepare, tiny_run
from tests.modules.toy import CLASSES, SGD, Toy, build, train_loader, trainer, val_loader


def failing(folder: Path, module: DistillationModule, *callbacks: Any, loader: Any = None) -> Path:
    with pytest.raises(NonFiniteError):
        trainer(*callbacks, default_root_dir=folder).fit(module, loader or poisoned_loader(1))
    return folder / "collapse" / "step_1.pt"


def test_a_poisoned_image_is_named_and_the_loss_is_reproduced(tmp_path: Path) -> None:
    result = replay_step(failing(tmp_path, build("dkel", 2)))
    assert result.reproduced
    assert not result.images
    assert result.output is not None
    assert result.output.startswith("student.network.trunk")
    assert set(result.bad_terms) == {"ce", "ce_ensemble", "kd_ensemble", "kd_individual", "kd_assembled"}
    assert result.weights == ()
    assert result.gradient is not None
    assert 0 < result.bad_gradients <= result.gradients
    assert result.clock == {"epoch": 0, "step": 1, "batch_idx": 1, "rank": 0}
    assert "images              not finite: the data is at fault" in [line.strip() for line in result.lines()]


def test_a_finite_step_with_an_infinite_gradient_gives_the_recorded_loss_to_the_last_bit(tmp_path: Path) -> None:
    result = replay_step(failing(tmp_path, build("dkel", 2), PoisonGradient(), loader=train_loader()))
    # The gradient was spoilt from outside, so the replay finds nothing wrong, and says so.
    assert result.reproduced
    assert result.loss == result.recorded > 0
    assert (result.output, result.gradient, result.bad_terms) == (None, None, ())


def test_another_loss_is_not_called_reproduced(tmp_path: Path) -> None:
    path = failing(tmp_path, build("dkel", 2), PoisonGradient(), loader=train_loader())
    record = torch.load(path, weights_only=True)
    record["loss"] = torch.nextafter(record["loss"], torch.tensor(0.0))
    torch.save(record, path)
    result = replay_step(path)
    assert not result.reproduced
    assert any("NOT reproduced" in line for line in result.lines())


class Dropping(nn.Module):
    """A network of one's own with dropout, and a layer that overflows on large inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.layer4 = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5))
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.layer4(self.stem(images)))
        return logits


def test_dropout_falls_as_it_fell_and_a_network_of_ones_own_is_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = Dropping()
    module = DistillationModule.build(
        network, CLASSES, "dkel", 2, split_at="layer4", classifier="fc", image_size=(8, 8), optimizer=SGD
    )
    path = failing(tmp_path, module, PoisonGradient(), loader=train_loader())
    torch.manual_seed(99)
    assert replay_step(path, backbone=network).reproduced
    with pytest.raises(CheckpointError, match=r"a backbone of its own: replay it from Python, .*backbone=\.\.\.\)"):
        replay_step(path)


def test_the_gradient_at_fault_is_named_though_loss_images_and_weights_are_finite(tmp_path: Path) -> None:
    module = build("dkel", 2, teacher={"init_steps": 0})
    data = Toy(40)
    data.images[8:16] *= 1e38  # their variance overflows, and BatchNorm's gradient with it
    result = replay_step(failing(tmp_path, module, loader=torch.utils.data.DataLoader(data, batch_size=8)))
    assert result.images
    assert result.reproduced
    assert (result.output, result.bad_terms, result.weights) == (None, (), ())
    assert result.gradient is not None
    assert result.gradient.startswith("student.network.trunk.stem")


def test_a_run_that_fails_is_replayed_by_the_command_it_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NonFiniteError) as caught:
        train(tiny_run(tmp_path, "optimizer.lr=1e30"))
    (path,) = (tmp_path / "collapse").glob("step_*.pt")
    command = str(caught.value).rsplit("Replay the step: dkel ", 1)[1].split()
    assert command == ["task=replay", f"checkpoint={path}"]
    (folder,) = [item for item in prepare(command) if item.startswith("hydra.run.dir=")]
    assert folder.endswith(f"replay_{path.stem}")
    values = compose(*command)
    checks.check(values)
    loss = tasks.run(Run(values, tmp_path / "replay"))
    written = json.loads((tmp_path / "replay" / "replay.json").read_text())
    assert written["reproduced"] is True
    assert written["recorded"] in ("nan", "inf")
    assert not torch.isfinite(torch.tensor(loss))
    assert "the same to the last bit" in capsys.readouterr().out


def test_a_forced_collapse_is_replayed_and_the_layer_that_went_dead_is_named(tmp_path: Path) -> None:
    module = build("dkel", 2, optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9))
    run = trainer(Deaden(), CollapseGuard("stop", validations=1), max_epochs=2, default_root_dir=tmp_path)
    with pytest.raises(CollapseError):
        run.fit(module, train_loader(48), val_loader(60, 20))
    (event,) = json.loads((tmp_path / "collapse.json").read_text())["events"]
    result = replay_step(Path(event["record"]))
    assert result.reproduced
    assert result.loss == result.recorded > 0
    assert (result.output, result.bad_terms, result.images) == (None, (), True)
    assert result.still == "student.network.trunk.stem.0"
    assert result.top_share == (1.0, 1.0)
    # Eight images of three classes in turn.
    assert all(right in (2 / 8, 3 / 8) for right in result.accuracy)
    lines = [line.strip() for line in result.lines()]
    assert f"kept because        {event['what']}" in lines
    assert "first still output  student.network.trunk.stem.0, alike for all images" in lines


def test_a_healthy_step_has_no_still_output(tmp_path: Path) -> None:
    result = replay_step(failing(tmp_path, build("dkel", 2), PoisonGradient(), loader=train_loader()))
    assert result.still is None
    assert all(0 < share < 1 for share in result.top_share)


def test_what_is_no_recorded_step_is_refused(tmp_path: Path) -> None:
    fit = trainer(default_root_dir=tmp_path)
    fit.fit(build(), train_loader())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"is no recorded step: give the path of a collapse/step_<n>\.pt"):
        replay_step(tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="No checkpoint at"):
        replay_step(tmp_path / "step_7.pt")
