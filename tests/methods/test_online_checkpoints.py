"""Online distillation by stages: a teacher beside its student, or from the checkpoints of its own training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from dkel_lightning import DistillationModule, methods
from dkel_lightning.app.tasks import stages
from dkel_lightning.data import Batch
from dkel_lightning.errors import CheckpointError, ConfigError
from dkel_lightning.functional import distillation
from tests.compose import compose
from tests.methods.family import step
from tests.modules import toy
from tests.modules.toy import CLASSES, SGD, parameters_of, same, train_loader, trainer


def build(folder: Path | None = None, backbone: str = "resnet8", **settings: Any) -> DistillationModule:
    method: dict[str, Any] = {"name": "online_checkpoints"}
    teacher: dict[str, Any] = {"backbone": backbone, "init_steps": 0}
    if folder is not None:
        method |= {"checkpoints": str(folder)}
        teacher |= {"update": "frozen"}
    return DistillationModule.build(
        "resnet8", CLASSES, method, 1, teacher={**teacher, **settings}, optimizer=SGD, in_channels=3
    )


def teacher_of_its_own() -> DistillationModule:
    return toy.build("baseline", 1, teacher={"update": "none"}, in_channels=3, seed=7)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, dict[str, Tensor]]]:
    """Train a teacher for six steps and keep every second one, with its weights by the step."""
    folder = tmp_path_factory.mktemp("teacher")
    kept: dict[int, dict[str, Tensor]] = {}

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
            kept[trainer.global_step] = parameters_of(module.student.network)

    saving = ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=2)
    trainer(Keep(), saving, max_epochs=2, enable_checkpointing=True).fit(teacher_of_its_own(), train_loader())
    return folder, kept


class Watch(Callback):
    """Note the teacher's weights with which each step is made."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        self.seen[trainer.global_step - 1] = parameters_of(module.teacher.network)


def test_the_loss_is_kd_without_labels_unless_they_are_weighed() -> None:
    draws = torch.Generator().manual_seed(0)
    student, taught = (torch.randn(1, 4, 3, generator=draws, dtype=torch.float64) for _ in range(2))
    terms = methods.create("online_checkpoints", 1).loss_terms(step(student, taught, [0, 1, 2, 2]))
    assert terms["ce"].item() == 0
    torch.testing.assert_close(terms["kd"], distillation(student, taught, 4.0).sum(), rtol=1e-12, atol=0)


def test_a_teacher_beside_its_student_learns_as_if_it_were_alone() -> None:
    module, alone = build(), teacher_of_its_own()
    alone.student.network.load_state_dict(module.teacher.network.state_dict())
    for each in (module, alone):
        trainer().fit(each, train_loader())
    ours, theirs = module.teacher.network.state_dict(), alone.student.network.state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)


def test_one_teacher_of_several_peers_learns_and_is_scored_where_each_has_a_view() -> None:
    # First it is initialised on all views, each as an image of its own.
    several, single = (toy.build("online_checkpoints", 2).teacher for _ in range(2))
    images, labels = next(iter(train_loader(views=2)))
    several.initialise([Batch(images, labels, None)], 0.1)
    single.initialise([Batch(images.transpose(0, 1).flatten(0, 1), labels.repeat(2), None)], 0.1)
    assert same(parameters_of(several.network), parameters_of(single.network))
    # Then a whole run, also of a validation set with a view each.
    module = toy.build("online_checkpoints", 2)
    assert module.teacher is not None
    assert module.teacher.settings.init_steps == 2
    run = trainer()
    run.fit(module, train_loader(views=2), train_loader(views=2))
    assert "val/acc/teacher_0" in run.callback_metrics
    module.eval()
    teacher = module.scores.members.index("teacher_0")
    torch.testing.assert_close(module.evaluate(images).logits[teacher], module.teacher(images[:, 0]).logits[0])


def test_each_step_is_taught_by_the_newest_checkpoint_of_its_moment(
    left: tuple[Path, dict[int, dict[str, Tensor]]],
) -> None:
    folder, kept = left
    assert {path.name for path in folder.iterdir()} == {f"epoch={e}-step={s}.ckpt" for e, s in ((0, 2), (1, 4), (1, 6))}
    watch = Watch()
    trainer(watch, max_epochs=3).fit(build(folder), train_loader())
    for begun, seen in watch.seen.items():
        moment = min(max(2, begun - begun % 2), 6)
        assert same(seen, kept[moment]), begun


def test_a_resumed_run_goes_on_with_the_teacher_of_its_step(
    left: tuple[Path, dict[int, dict[str, Tensor]]], tmp_path: Path
) -> None:
    folder, _ = left
    whole, resumed = build(folder), build(folder)
    trainer(max_epochs=2).fit(whole, train_loader())
    first = trainer(max_epochs=1)
    first.fit(build(folder), train_loader())
    first.save_checkpoint(tmp_path / "x.ckpt")
    trainer(max_epochs=2).fit(resumed, train_loader(), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    assert same(parameters_of(whole), parameters_of(resumed))
    # A file makes nobody read a folder.
    loaded = DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt")
    assert loaded.method.settings.checkpoints is None


def test_what_does_not_fit_is_refused(left: tuple[Path, dict[int, dict[str, Tensor]]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No checkpoint named by its step, such as step=500\.ckpt"):
        trainer().fit(build(tmp_path), train_loader())
    with pytest.raises(ConfigError, match="replaces a teacher that learns: add teacher=frozen"):
        trainer().fit(build(left[0], update="gradient"), train_loader())
    with pytest.raises(CheckpointError, match="is not this teacher: train one by method=baseline"):
        trainer().fit(build(left[0], backbone="densenet40_12"), train_loader())


def test_no_first_stage_trains_a_teacher_that_has_been_trained(tmp_path: Path) -> None:
    frozen = ("method=online_checkpoints", "teacher=frozen")
    assert stages.stages_before(compose(*frozen, f"method.checkpoints={tmp_path}")) == {}
    assert stages.stages_before(compose("method=online_checkpoints")) == {}
    assert len(stages.stages_before(compose(*frozen))) == 1
