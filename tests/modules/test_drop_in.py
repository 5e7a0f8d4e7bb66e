"""What people bring from their own Lightning projects, and what they run into."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dkel_lightning import DistillationModule
from dkel_lightning.errors import CheckpointError, ConfigError, DataError
from tests.modules import toy
from tests.modules.toy import Stream, jitter, parameters_of, same


class Net(nn.Module):
    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.stem(images)).mean((2, 3)))


class Wrapped(LightningModule):
    """Someone's LightningModule that makes its layers as late as Lightning allows."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net: Net | None = None

    def configure_model(self) -> None:
        if self.net is None:
            self.net = Net(classes=4)

    def forward(self, images: Tensor) -> Tensor:
        assert self.net is not None
        return self.net(images)


def images(channels: int = 3) -> TensorDataset:
    drawn = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(16, channels, 8, 8, generator=drawn), torch.arange(16) % 10)


class Data(LightningDataModule):
    """A data module with hyper-parameters of its own, some of them under names that this library uses too."""

    def __init__(self, seed: int = 3, image_size: int = 8, num_classes: int = 12, root: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(images(), batch_size=8)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def build(backbone: nn.Module | None = None, split_at: str = "body", **others: Any) -> DistillationModule:
    settings = {"peers": 2, "schedules": "shares", "image_size": (8, 8), **others}
    return DistillationModule.build(backbone or Net(), split_at=split_at, **settings)


def trainer(tmp_path: Path, *callbacks: Any, **others: Any) -> Trainer:
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    settings = {"default_root_dir": tmp_path, "max_epochs": 2, "enable_checkpointing": saves, **others}
    return toy.trainer(*callbacks, **settings)


def test_callbacks_logger_and_hyperparameters_of_ones_own_work_beside_ours(tmp_path: Path) -> None:
    best = ModelCheckpoint(monitor="val/acc", mode="max")
    own = [best, EarlyStopping("val/acc", mode="max"), LearningRateMonitor()]
    fit = trainer(tmp_path, *own, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    module = build()
    fit.fit(module, Data())  # num_classes 12 there and 10 here: Lightning refuses hyper-parameters that contradict
    (tested,) = fit.test(module, Data(), ckpt_path="best", verbose=False)
    assert tested["test/acc"] == fit.callback_metrics["test/acc"]
    predicted = fit.predict(module, Data(), ckpt_path="best")
    assert predicted is not None
    again = DistillationModule.load_from_checkpoint(best.best_model_path, backbone=Net()).eval()
    with pytest.raises(ConfigError, match=r"split_at is 'body' in .*ckpt, and 'head' here: leave it out"):
        DistillationModule.load_from_checkpoint(best.best_model_path, backbone=Net(), split_at="head")
    first = images()[:8][0]
    expected = again.evaluate(first).logits[again.scores.members.index(again.deployed_member())]
    torch.testing.assert_close(predicted[0], expected)
    written = (Path(fit.loggers[0].log_dir or "") / "hparams.yaml").read_text(encoding="utf-8")
    assert "distillation:\n" in written


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_every_precision_of_the_cpu_trains_and_clips_accumulated_gradients(tmp_path: Path, precision: Any) -> None:
    module = build()
    before = module.student.network.state_dict()["peers.0.model.stem.weight"].clone()
    fit = trainer(tmp_path, precision=precision, accumulate_grad_batches=2, gradient_clip_val=1.0)
    fit.fit(module, Data())
    assert fit.global_step == 2
    after = module.student.network.state_dict()["peers.0.model.stem.weight"].to(before.dtype)
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "64-true"])
def test_what_is_deployed_after_any_precision_takes_float32_images_and_is_the_checkpoints(
    tmp_path: Path, precision: Any
) -> None:
    saved = ModelCheckpoint(tmp_path, "last")
    module, shown = build(), images().tensors[0]
    trainer(tmp_path, saved, precision=precision).fit(module, Data())
    given = {"32-true": torch.float32, "bf16-true": torch.bfloat16, "64-true": torch.float64}[precision]
    average = torch.promote_types(given, torch.float32)  # bfloat16 would round its steps away, and ties into the scores
    assert module.scores.validation_accuracy.dtype == average
    for network, own in (("student", given), ("teacher", average)):
        part = getattr(module, network).peer(1)
        deployed = module.deploy(network, 1)
        logits = deployed(shown)
        assert logits.dtype == torch.float32
        for name, value in part.state_dict().items():
            # Not a bit is lost of what is narrower than float32 or float32 itself.
            assert value.dtype == (own if value.is_floating_point() else torch.int64)
            expected = value.float() if value.is_floating_point() else value
            assert torch.equal(deployed.state_dict()[name], expected), name
        again = DistillationModule.load_from_checkpoint(saved.best_model_path, backbone=Net()).eval()
        assert torch.equal(again.deploy(network, 1)(shown), logits)
        assert torch.equal(again.evaluate(shown).logits[again.scores.members.index(f"{network}_1")], logits)


def test_a_lightning_module_that_makes_its_layers_late_is_split_like_any_other(tmp_path: Path) -> None:
    module = build(Wrapped(), split_at="net.body", num_classes=10)
    trainer(tmp_path).fit(module, Data())
    assert module.deploy()(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


def test_the_classes_of_a_model_of_ones_own_are_its_classifiers_unless_given() -> None:
    module = build(Net(classes=7))
    assert (module.student.num_classes, module.hparams["distillation"]["num_classes"]) == (7, 7)
    assert build(Net(classes=7), num_classes=5).student.num_classes == 5
    assert DistillationModule.build("resnet8", peers=2).student.num_classes == 100


@pytest.mark.parametrize("classes", [5, None])
def test_labels_beyond_the_classes_are_named_before_the_teacher_is_initialised(
    tmp_path: Path, classes: int | None
) -> None:
    with pytest.raises(DataError, match=r"Label \d lies outside the 5 classes \(0 to 4\)"):
        trainer(tmp_path).fit(build(Net(classes=5), num_classes=classes), Data())


def test_a_checkpoint_with_an_object_of_the_data_module_says_which_and_what_to_do(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path)
    trainer(tmp_path, best).fit(build(), Data(root=Path("images")))
    with pytest.raises(CheckpointError, match=r"\(pathlib.*Path\).*save_hyperparameters\(ignore="):
        DistillationModule.load_from_checkpoint(best.best_model_path, backbone=Net())


def test_a_stream_without_a_length_is_told_that_max_epochs_is_no_end(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_steps where the training loader has no length"):
        trainer(tmp_path).fit(build(), DataLoader(Stream(), 8))
    trainer(tmp_path, max_steps=3).fit(build(), DataLoader(Stream(), 8))


# ---------------------------------------------------------------------- how long schedules last


def test_schedules_as_shares_of_the_run_are_those_of_the_protocol_and_yield_to_the_users() -> None:
    module = build()
    assert (module.method.rampup.epochs, module.method.rampup.share) == (None, 0.27)
    assert (module.method.settings.ensemble.decay, module.method.settings.ensemble.decay_share) == (None, 0.02)
    assert (module.teacher.settings.decay, module.teacher.settings.decay_share) == (None, 0.01)
    own = build(method={"name": "dkel", "rampup": {"scale": 0.5, "epochs": 7}}, teacher={"decay": 0.9})
    assert (own.method.rampup.scale, own.method.rampup.epochs, own.method.rampup.share) == (0.5, 7, None)
    assert (own.teacher.settings.decay, own.teacher.settings.decay_share) == (0.9, None)
    with pytest.raises(ConfigError, match="schedules is 'share': choose one of epochs, shares"):
        build(schedules="share")


@pytest.mark.parametrize(
    ("method", "length"), [("cl_ilr", (0, None)), ("mean_teacher", (None, 0.125)), ("dkel_released", (80, None))]
)
def test_a_ramp_up_of_a_length_of_the_method_s_own_keeps_it_as_on_the_command_line(method: str, length: Any) -> None:
    peers = 1 if method == "mean_teacher" else 2
    for name in (method, {"name": method, "rampup": {"scale": 0.5}}):
        rampup = DistillationModule.build("resnet8", 10, name, peers, schedules="shares").method.rampup
        assert (rampup.epochs, rampup.share) == length
    for given, expected in (({"share": 0.5}, (None, 0.5)), ({"epochs": 7}, (7, None))):
        settings = {"name": method, "rampup": given}
        rampup = DistillationModule.build("resnet8", 10, settings, peers, schedules="shares").method.rampup
        assert (rampup.epochs, rampup.share) == expected
    if method != "cl_ilr":
        module: Any = DistillationModule.build("resnet8", 10, method, peers, teacher={"decay_share": 0.1})
        assert (module.teacher.settings.decay, module.teacher.settings.decay_share) == (None, 0.1)


def test_a_run_too_short_for_its_schedules_is_warned_of(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer(tmp_path).fit(build(schedules="epochs"), Data())
    said = [str(warning.message) for warning in seen]
    # 0.999 ** 4 = 0.996; exp(-5 (1 - 2 / 80) ** 2) = 0.0086
    assert [text for text in said if "Over the 4 steps of this run the teacher keeps 100% of the weights" in text]
    assert [text for text in said if "lasts 80 epochs and the run 2, so the weight" in text and "0.0086 of 1" in text]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"split_at": "layer4"}, "split_at='layer4' is for your own model"),
        ({"peers": "3"}, "peers must be a whole number between 1 and 64, or a list of names, got '3'"),
        ({"teacher": "copie"}, "Unknown choice teacher=copie. Did you mean copy"),
    ],
)
def test_what_build_cannot_take_is_named_at_once(given: dict[str, Any], message: str) -> None:
    settings = {"in_channels": 1, "image_size": (8, 8), **given}
    with pytest.raises(ConfigError, match=message):
        DistillationModule.build("resnet8", 10, "dkel", **settings)


def test_a_frozen_teacher_that_nobody_trained_is_warned_of(tmp_path: Path) -> None:
    module = DistillationModule.build("resnet8", 10, "kd", image_size=(8, 8))
    with pytest.warns(UserWarning, match="The teacher of KD has random weights"):
        trainer(tmp_path, max_steps=1).fit(module, DataLoader(images(), 8))


# ---------------------------------------------------------------------- what a checkpoint cannot hold


def parts(**others: Any) -> dict[str, Any]:
    rates = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    return {"optimizer": partial(torch.optim.AdamW, lr=0.01), "scheduler": rates, "augmentation": jitter} | others


def test_a_training_that_goes_on_from_a_file_is_told_what_it_lacks_and_with_it_goes_on_as_it_was(
    tmp_path: Path,
) -> None:
    each = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    path = tmp_path / "epoch=0.ckpt"

    def loaded(**given: Any) -> DistillationModule:
        return DistillationModule.load_from_checkpoint(path, backbone=Net(), **given)

    def went_on(module: DistillationModule) -> DistillationModule:
        trainer(tmp_path).fit(module, Data(), ckpt_path=path, weights_only=True)
        return module

    through = build(views="shared", interval="step", **parts())
    trainer(tmp_path, each).fit(through, Data())
    assert (loaded().num_views, loaded()._factories[2]) == (1, "step")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*resumes with other parts.*")
        resumed = went_on(loaded(**parts()))
    assert same(parameters_of(through), parameters_of(resumed))
    lacking = r"resumes with other parts \(augmentation: jitter in the checkpoint, none here; scheduler: StepLR in"
    with pytest.warns(UserWarning, match=lacking):
        went_on(loaded(optimizer=parts()["optimizer"]))
    with pytest.raises(ConfigError, match=r"optimizer: AdamW in the checkpoint, SGD here.*pass optimizer=, augm"):
        went_on(loaded(optimizer=partial(torch.optim.SGD, lr=0.1)))


@pytest.mark.parametrize(("mode", "watched"), [("min", "val/nll/student_mean"), ("max", "val/acc")])
def test_a_rate_that_waits_for_a_plateau_follows_validation(mode: Any, watched: str, tmp_path: Path) -> None:
    never_better = partial(
        torch.optim.lr_scheduler.ReduceLROnPlateau, mode=mode, patience=0, threshold=1e9, threshold_mode="abs"
    )
    fit = trainer(tmp_path, max_epochs=3)
    fit.fit(build(optimizer=partial(torch.optim.SGD, lr=1.0), scheduler=never_better), Data())
    (config,) = fit.lr_scheduler_configs
    assert config.monitor == watched
    # The first epoch is better than nothing; the others are not.
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)
    seldom = trainer(tmp_path, max_epochs=6, check_val_every_n_epoch=2)
    seldom.fit(build(optimizer=partial(torch.optim.SGD, lr=1.0), scheduler=never_better), Data())
    assert seldom.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)  # three validations, as above


def test_a_module_that_is_trained_as_a_part_of_another_is_refused(tmp_path: Path) -> None:
    class Outer(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.inner.training_step(batch, batch_idx)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(ConfigError, match=r"DistillationModule is a part of .*Outer here, so nothing calls its hooks"):
        trainer(tmp_path).fit(Outer(), Data())
