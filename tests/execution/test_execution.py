"""Captured and compiled steps in a real Trainer: equal to eager ones, and eager where they cannot be.

On the CPU a tape of operations stands in for CUDA graphs, see `tape.py`; on it equality is to the last bit.
"""

from __future__ import annotations

import copy
import random
import re
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader

from dkel_lightning import DistillationModule, methods
from dkel_lightning.callbacks import DiversityMonitor
from dkel_lightning.data import WithIndices
from dkel_lightning.data.augment import CropFlip
from dkel_lightning.data.loaders import TrainingLoader
from dkel_lightning.data.sources import DeviceImages
from dkel_lightning.errors import ConfigError
from dkel_lightning.execution.captured import CapturedStep, CaptureError
from dkel_lightning.methods.baseline import Baseline
from dkel_lightning.modules.optim import configure, fused
from dkel_lightning.settings.execution import Execution
from tests.execution.tape import Tape, no_host_reads, tape
from tests.modules.toy import CLASSES, SGD, build, images_and_labels, train_loader, trainer, val_loader

__all__ = ["tape"]

SAMPLES = 28  # batches of 8, 8, 8 and 4
Outcome = tuple[dict[str, Tensor], dict[str, Tensor]]


def fitted(
    method: Any = "dkel",
    mode: str = "eager",
    *callbacks: Callback,
    given: dict[str, Any] | None = None,
    **settings: Any,
) -> Outcome:
    """Fit for three epochs, and return all state and all that was logged."""
    peers = {"okddip": 3, "kd": 1, "heads": 1, "iakd": 1, "consistent": 1, "sftn": 1, "soteacher": 1}.get(method, 2)
    own: dict[Any, dict[str, Any]] = {"sftn": {"student": "resnet8"}, "soteacher": {"samples": SAMPLES}}
    asked = {"name": method, **own[method]} if isinstance(method, str) and method in own else method
    size = {"image_size": (8, 8)} if method in ("heads", "dih") else {}
    module = build(asked, peers, execution=mode, **size, **(given or {}))
    fit = trainer(*callbacks, **({"max_epochs": 3} | settings))
    torch.manual_seed(7)
    loader = train_loader(SAMPLES)
    if method == "soteacher":
        loader = DataLoader(WithIndices(loader.dataset), batch_size=8, sampler=loader.sampler)
    fit.fit(module, loader, val_loader())
    assert module.execution_in_force.name == mode
    return module.state_dict(), {name: torch.as_tensor(value) for name, value in fit.callback_metrics.items()}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    differing = [name for name in ours if not torch.equal(ours[name].nan_to_num(7.0), theirs[name].nan_to_num(7.0))]
    assert differing == []


def assert_same_outcome(eager: Outcome, other: Outcome) -> None:
    for ours, theirs in zip(eager, other, strict=True):
        assert_equal(ours, theirs)


# ---------------------------------------------------------------- equal to eager steps


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_captured_steps_end_where_eager_ones_do(method: str, tape: type[Tape]) -> None:
    eager, captured = fitted(method), fitted(method, "cuda_graph")
    assert_same_outcome(eager, captured)
    # Of each epoch's four steps the first is observed; the two kinds of the others were proved once each.
    assert tape.replays == 3 * 3 + 2


CONDITIONS: dict[str, dict[str, Any]] = {
    "clipped": {"gradient_clip_val": 0.05},
    "clipped by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "accumulated": {"accumulate_grad_batches": 2},
    "accumulated by three, clipped": {"accumulate_grad_batches": 3, "gradient_clip_val": 0.05},
    "bfloat16": {"precision": "bf16-mixed"},
    "ended by steps": {"max_epochs": -1, "max_steps": 7},
    "validated within epochs": {"val_check_interval": 2},
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_what_the_trainer_does_around_a_step_is_the_same(condition: str, tape: type[Tape]) -> None:
    given = {"scheduler": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.8), "interval": "step"}
    results = [fitted("dkel", mode, given=given, **CONDITIONS[condition]) for mode in ("eager", "cuda_graph")]
    assert_same_outcome(*results)
    assert tape.replays > 4


TEACHERS: dict[str, dict[str, Any]] = {
    "by gradient": {"update": "gradient"},
    "frozen": {"update": "frozen", "init_steps": 2},
    "statistics copied": {"batchnorm": "copy"},
    "statistics averaged, released start": {"batchnorm": "ema", "start": "copy"},
    "rate by schedule": {"decay": {0: 0.5, 1: 0.9}},
}


@pytest.mark.parametrize("teacher", TEACHERS)
def test_every_kind_of_teacher_learns_the_same(teacher: str, tape: type[Tape]) -> None:
    results = [fitted("dkel", mode, given={"teacher": TEACHERS[teacher]}) for mode in ("eager", "cuda_graph")]
    assert_same_outcome(*results)
    assert tape.replays == 3 * 3 + 2


def test_without_an_observer_every_step_is_replayed(tape: type[Tape]) -> None:
    fitted("dkel", "cuda_graph", DiversityMonitor("none"))
    assert tape.replays == 3 * 4 + 2


class Dropping(nn.Module):
    """A network that draws random numbers on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(8, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))


def dropping(mode: str, **settings: Any) -> DistillationModule:
    torch.manual_seed(0)
    return DistillationModule.build(
        Dropping(), CLASSES, "dkel", 2, split_at="head", optimizer=SGD, image_size=(8, 8), execution=mode, **settings
    )


def test_dropout_draws_anew_in_every_replay_and_as_eager_steps_do(tape: type[Tape]) -> None:
    states = []
    for mode in ("eager", "cuda_graph"):
        module = dropping(mode)
        torch.manual_seed(7)
        trainer(max_epochs=2).fit(module, train_loader(SAMPLES))
        states.append(module.state_dict())
    assert_equal(*states)
    assert tape.replays > 4


def test_views_made_on_the_device_reach_the_captured_step(tape: type[Tape]) -> None:
    def shifted(images: Tensor, draws: torch.Generator) -> Tensor:
        return images + 0.1 * torch.randn(images.shape, generator=draws)

    results = [fitted("dkel", mode, given={"augmentation": shifted}) for mode in ("eager", "cuda_graph")]
    assert_same_outcome(*results)


@pytest.mark.parametrize("steps", [3, 4, 6])
def test_a_run_resumed_from_any_step_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, steps: int, tape: type[Tape]
) -> None:
    def fit(module: DistillationModule, *callbacks: Callback, resumed: Path | None = None, **settings: Any) -> None:
        # A loader of ours keeps its place within the epoch in the checkpoint.
        images, labels = images_and_labels(SAMPLES)
        pixels = (images.clamp(-1, 1) * 100 + 128).to(torch.uint8)
        augment = CropFlip(1, True, [0.5] * 3, [0.5] * 3)
        loader = TrainingLoader(DeviceImages(pixels, labels, augment, 2), batch_size=8)
        fit = trainer(*callbacks, **({"max_epochs": 2} | settings))
        fit.fit(module, loader, val_loader(), ckpt_path=resumed, weights_only=True)

    whole, resumed = build(execution="cuda_graph"), build(execution="cuda_graph", seed=1)
    fit(whole)
    saving = ModelCheckpoint(tmp_path, filename="at", every_n_train_steps=steps, save_top_k=-1)
    fit(build(execution="cuda_graph"), saving, max_steps=steps, enable_checkpointing=True)
    before = tape.replays
    resumed.seed = whole.seed
    fit(resumed, resumed=tmp_path / "at.ckpt")
    assert tape.replays > before
    assert_equal(whole.state_dict(), resumed.state_dict())


# ---------------------------------------------------------------- what stands against it


class Gradients(Callback):
    def __init__(self, hook: str) -> None:
        setattr(self, hook, lambda *_: None)


class EarlyHook(Callback):
    def on_before_zero_grad(self, *_: Any) -> None: ...


class OwnStep(DistillationModule):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx)


class OwnBackward(DistillationModule):
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward()


class Counting(Baseline):
    """Its loss depends on a number that Python counts."""

    calls = 0

    def loss_terms(self, step: Any) -> dict[str, Tensor]:
        self.calls += 1
        return {name: value * self.calls for name, value in super().loss_terms(step).items()}


class Reading(Baseline):
    def loss_terms(self, step: Any) -> dict[str, Tensor]:
        terms = super().loss_terms(step)
        return {**terms, "ce": terms["ce"] * (1 + 0 * terms["ce"].item())}


class DrawingOnHost(Baseline):
    def loss_terms(self, step: Any) -> dict[str, Tensor]:
        factor = 1.0 + random.random()
        return {name: value * factor for name, value in super().loss_terms(step).items()}


def hooked() -> DistillationModule:
    module = build(execution="cuda_graph")
    module.student.network.branches[0].register_forward_hook(lambda *_: None)  # type: ignore[index]
    return module


def with_a_hooked_gradient() -> DistillationModule:
    module = build(execution="cuda_graph")
    next(module.student.parameters()).register_hook(lambda gradient: gradient)
    return module


def of_class(kind: type[DistillationModule]) -> DistillationModule:
    return kind.build("resnet8", CLASSES, "dkel", 2, optimizer=SGD, execution="cuda_graph")


AGAINST: dict[str, tuple[Any, list[Any], dict[str, Any]]] = {
    r"OwnStep has a training_step of its own": (lambda: of_class(OwnStep), [], {}),
    r"OwnBackward has a backward of its own": (lambda: of_class(OwnBackward), [], {}),
    r"the callback EarlyHook has a hook on_before_zero_grad, which would come": (None, [EarlyHook], {}),
    r"the callback Gradients has a hook on_before_backward": (None, [lambda: Gradients("on_before_backward")], {}),
    r"the callback StochasticWeightAveraging makes": (None, [lambda: StochasticWeightAveraging(0.01)], {}),
    r"trainer\.detect_anomaly looks at every gradient": (None, [], {"detect_anomaly": True}),
    r"LBFGS makes its own steps": (
        lambda: build(optimizer=lambda groups: torch.optim.LBFGS(groups[0]["params"]), execution="cuda_graph"),
        [],
        {},
    ),
    r"student\.network\.branches\.0 has a forward or backward hook": (hooked, [], {}),
    r"the parameter student\.\S+ has a hook on its gradient": (with_a_hooked_gradient, [], {}),
    r"HostReadError: item reads a value back": (lambda: build(Reading(2), execution="cuda_graph"), [], {}),
    r"draws random numbers on the host": (lambda: build(DrawingOnHost(2), execution="cuda_graph"), [], {}),
    r"does not give what the eager one gives": (lambda: build(Counting(2), execution="cuda_graph"), [], {}),
}


@pytest.mark.parametrize("reason", AGAINST)
def test_what_cannot_be_captured_runs_eagerly_and_one_line_says_why(
    reason: str, tape: type[Tape], capsys: pytest.CaptureFixture[str]
) -> None:
    make, callbacks, settings = AGAINST[reason]
    module = (make or (lambda: build(execution="cuda_graph")))()
    fit = trainer(DiversityMonitor("none"), *(make_one() for make_one in callbacks), **settings)
    fit.fit(module, train_loader(SAMPLES))
    assert module.execution_in_force.name == "eager"
    assert fit.global_step >= 4
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("execution: ")]
    assert len(lines) == 1
    assert lines[0].startswith("execution: eager (cuda_graph is not possible: ")
    assert re.search(reason, lines[0])


def test_a_capture_that_fails_changes_nothing(tape: type[Tape]) -> None:
    def states(mode: str) -> dict[str, Tensor]:
        torch.manual_seed(7)
        module = build(Reading(2), execution=mode)
        trainer(max_epochs=2).fit(module, train_loader(SAMPLES))
        return module.state_dict() | {"random": torch.random.get_rng_state()}

    assert_equal(states("eager"), states("cuda_graph"))


def test_a_recording_that_breaks_takes_along_the_graphs_before_it(
    tape: type[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = CapturedStep(build().train())
    step.capture(images_and_labels(8))

    def broken(self: Tape, step: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Tape, "capture", broken)
    with pytest.raises(CaptureError, match="RuntimeError: operation not permitted"):
        step.capture(images_and_labels(4))
    assert len(step) == 0


def test_hooks_that_come_after_the_gradients_see_them(tape: type[Tape]) -> None:
    class Norms(Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.seen.append(sum(float(p.grad.norm()) for p in pl_module.parameters() if p.grad is not None))

    norms = [Norms(), Norms()]
    for mode, callback in zip(("eager", "cuda_graph"), norms, strict=True):
        fitted("dkel", mode, callback, max_epochs=1)
    assert norms[0].seen == norms[1].seen
    assert len(norms[0].seen) == 4


class Thaw(BaseFinetuning):
    """Freeze the branches, and let them learn from the second epoch on."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.student.network.branches)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.student.network.branches, optimizer)


def test_parts_that_begin_to_learn_are_captured_anew(tape: type[Tape]) -> None:
    results = [fitted("dkel", mode, Thaw(), max_epochs=2) for mode in ("eager", "cuda_graph")]
    assert_same_outcome(*results)
    assert tape.replays == 2 * 3 + 4


class AtEpoch(Callback):
    """Does something to the module at the start of the second epoch."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.change(pl_module)


def replaced(module: DistillationModule) -> None:
    norm = next(part for part in module.student.modules() if isinstance(part, nn.BatchNorm2d))
    norm.running_mean = norm.running_mean.clone()


def pruned(module: DistillationModule) -> None:
    layer = next(part for part in module.student.modules() if isinstance(part, nn.Conv2d))
    prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.parametrize(("change", "mode"), [(replaced, "cuda_graph"), (pruned, "eager")])
def test_parts_that_are_replaced_or_hooked_between_epochs_are_seen(change: Any, mode: str, tape: type[Tape]) -> None:
    states = []
    for execution in ("eager", "cuda_graph"):
        module = build(execution=execution)
        # The average matches the networks by name, which pruning changes.
        module.teacher.follow = lambda student: None
        torch.manual_seed(7)
        trainer(AtEpoch(change), DiversityMonitor("none"), max_epochs=2).fit(module, train_loader(SAMPLES))
        states.append(module.state_dict())
    assert_equal(*states)
    assert module.execution_in_force.name == mode


class Spoil(Callback):
    """Spoil one weight in the middle of the first epoch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            with torch.no_grad():
                next(pl_module.parameters()).fill_(float("nan"))


def test_a_captured_step_serves_a_loop_of_ones_own(tape: type[Tape]) -> None:
    images, labels = images_and_labels(24)
    states = []
    for captured in (False, True):
        module = build(execution="cuda_graph").train()
        optimizer: Any = module.configure_optimizers()
        step = CapturedStep(module, optimizer)
        data = [(images[start : start + 8], labels[start : start + 8]) for start in (0, 8, 16)]
        if captured:
            step.capture(data[0])
        losses = [float(step.step(batch)) for batch in data * 2]
        states.append(module.state_dict() | {"losses": torch.tensor(losses)})
    assert_equal(*states)
    assert tape.replays == 6 + 1


def test_nothing_is_captured_where_no_recorder_is(capsys: pytest.CaptureFixture[str]) -> None:
    module = build(execution="cuda_graph")
    trainer(limit_train_batches=1).fit(module, train_loader())
    assert "execution: eager (cuda_graph is not possible: the device is cpu, not cuda)" in capsys.readouterr().out
    with pytest.raises(CaptureError, match="nothing captures on a cpu device"):
        CapturedStep(module).capture(images_and_labels(4))


def test_a_choice_left_open_is_eager_on_the_cpu_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    module = build(execution="auto")
    trainer(limit_train_batches=1).fit(module, train_loader())
    assert (module.execution_in_force.name, module.execution_in_force.why) == ("eager", "")
    assert "execution" not in capsys.readouterr().out


# ---------------------------------------------------------------- nothing is read back


class Guarded(Callback):
    """Forbid that a step reads a value back: all of it, callbacks and optimizer too."""

    def __init__(self) -> None:
        self.steps = 0
        self._forbidden = ExitStack()

    def on_train_batch_start(self, *_: Any) -> None:
        self._forbidden.enter_context(no_host_reads())

    def on_train_batch_end(self, *_: Any) -> None:
        self._forbidden.close()
        self.steps += 1

    def on_exception(self, *_: Any) -> None:
        self._forbidden.close()


def test_the_guard_sees_every_way_to_read_a_value() -> None:
    ones = torch.ones(3)
    mask = ones > 0
    ways: list[Any] = [
        lambda: ones[0].item(),
        lambda: float(ones[0]),
        lambda: int(ones[0]),
        lambda: bool(ones[0]),
        lambda: ones.tolist(),
        lambda: ones.cpu(),
        lambda: ones.numpy(),
        lambda: ones.nonzero(),
        lambda: ones[mask],
        lambda: torch.equal(ones, ones),
        lambda: list(range(3))[torch.tensor(1)],
        lambda: 1 if ones[0] > 0 else 2,
    ]
    for way in ways:
        with pytest.raises(RuntimeError, match="reads a value back"), no_host_reads():
            way()


# ---------------------------------------------------------------- compiled networks


@pytest.mark.slow
def test_compiled_networks_change_no_name_no_copy_and_no_deployed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile
    # Without Inductor, which takes most of a minute; its numbers are compared in the test below.
    monkeypatch.setattr(torch, "compile", partial(compiled, backend="aot_eager"))
    eager, module = build(), build(execution="compile")
    for each in (eager, module):
        trainer(max_epochs=2).fit(each, train_loader(SAMPLES), val_loader())
    assert (module.execution_in_force.name, module.execution_in_force.why) == ("compile", "")
    assert [*module.state_dict()] == [*eager.state_dict()]
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-4, atol=1e-5, equal_nan=True)
    images, _ = images_and_labels(4)
    assert torch.equal(module.deploy()(images), copy.deepcopy(module).deploy()(images))
    assert [*module.deploy().state_dict()] == [*eager.deploy().state_dict()]
    assert module.compiled is None


def test_only_the_largest_batches_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def counting(function: Any, **settings: Any) -> Any:
        assert settings == {"dynamic": False, "fullgraph": True}

        def call(views: Tensor) -> Any:
            seen.append(tuple(views.shape))
            return function(views)

        return call

    monkeypatch.setattr(torch, "compile", counting)
    trainer(max_epochs=2).fit(build(execution="compile"), train_loader(SAMPLES), val_loader())
    # A try and three batches, then three more; each by student and teacher. The last of an epoch, and validation, not.
    assert seen == [(8, 3, 8, 8)] * 2 * 7


def test_networks_that_cannot_be_compiled_run_eagerly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(function: Any, **settings: Any) -> Any:
        def call(views: Tensor) -> Any:
            function(views)
            raise RuntimeError("no compiler is here")

        return call

    eager = fitted("dkel", "eager", max_epochs=1)
    monkeypatch.setattr(torch, "compile", broken)
    module = build(execution="compile")
    torch.manual_seed(7)
    trainer().fit(module, train_loader(SAMPLES), val_loader())
    assert_equal(eager[0], module.state_dict())
    said = "execution: eager (compile is not possible: RuntimeError: no compiler is here)"
    assert capsys.readouterr().out.count(said) == 1


def test_compiled_networks_are_captured_too(tape: type[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    eager = fitted("dkel")
    module = build(execution={"name": "cuda_graph", "compile": True})
    torch.manual_seed(7)
    trainer(max_epochs=3).fit(module, train_loader(SAMPLES), val_loader())
    assert str(module.execution_in_force) == "execution: cuda_graph over compiled networks"
    assert_equal(eager[0], module.state_dict())
    assert tape.replays == 3 * 3 + 2


@pytest.mark.long
@pytest.mark.parametrize("method", ["dkel", "ffl"])
def test_compiled_training_follows_eager_training(method: str) -> None:
    eager, compiled = fitted(method), fitted(method, "compile")
    for ours, theirs in zip(eager, compiled, strict=True):
        for name, value in ours.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4, equal_nan=True, msg=name)


# ---------------------------------------------------------------- settings, layout, optimizer


def test_settings_are_a_name_or_a_mapping_and_mistakes_are_named() -> None:
    assert Execution.of("compile") == Execution("compile")
    assert Execution.of({"name": "auto", "compile": True, "threads": 1}).compile
    with pytest.raises(
        ConfigError, match=r"execution\.name must be one of auto, eager, compile, cuda_graph, got 'fast'"
    ):
        build(execution="fast")
    with pytest.raises(
        ConfigError, match=r"Unknown key execution\.mode\..* Keys of execution: channels_last, checkpoint_trunk, "
    ):
        build(execution={"mode": "eager"})
    with pytest.raises(ConfigError, match=r"execution\.channels_last must be true or false, or one of auto, got 'x'"):
        build(execution={"name": "eager", "channels_last": "x"})


def test_channels_last_trains_alike_and_leaves_the_deployed_network_as_it_was() -> None:
    plain = build()
    module = build(execution={"name": "eager", "channels_last": True})
    for each in (plain, module):
        trainer().fit(each, train_loader(SAMPLES), val_loader())
    kernels = [parameter for parameter in module.student.parameters() if parameter.dim() == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert any(not kernel.is_contiguous() for kernel in kernels)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-3, atol=1e-4, equal_nan=True)
    assert all(parameter.is_contiguous() for parameter in module.deploy().parameters())


def test_a_fused_optimizer_is_taken_where_there_is_one_and_nothing_else_was_asked_for() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(2))]}]
    with_one: list[Any] = [None, torch.optim.AdamW, partial(torch.optim.SGD, lr=0.1)]
    for factory in with_one:
        built = fused(factory)
        assert built is not None
        assert built(groups).param_groups[0]["fused"] is True
    without: list[Any] = [torch.optim.RMSprop, lambda given: torch.optim.SGD(given, lr=0.1)]
    without += [partial(torch.optim.SGD, lr=0.1, foreach=True), partial(torch.optim.SGD, lr=0.1, fused=False)]
    for factory in without:
        assert fused(factory) is None
    with pytest.raises(ConfigError, match=r"execution\.fused_optimizer=true, but the optimizer has no fused form"):
        build(optimizer=torch.optim.RMSprop, execution={"fused_optimizer": True}).configure_optimizers()


@pytest.mark.parametrize("kind", [SGD, partial(torch.optim.AdamW, lr=0.01)])
def test_a_state_from_another_layout_and_kernel_is_loaded_into_those_of_the_run(kind: Any) -> None:
    """A fused kernel reads weights and momentum side by side, as they lie in memory."""

    def stepped(one_kernel: bool, layout: torch.memory_format, state: Any = None) -> tuple[Tensor, Any]:
        draws = torch.Generator().manual_seed(0)
        weight = torch.randn(4, 3, 3, 3, generator=draws).to(memory_format=layout)
        parameter, gradient = nn.Parameter(weight), torch.randn(4, 3, 3, 3, generator=draws)
        group = nn.ParameterDict({"weight": parameter})
        optimizer: Any = configure({"student": group}, partial(kind, fused=one_kernel), None, "epoch")
        if state is not None:
            optimizer.load_state_dict(copy.deepcopy(state))
            assert all(v.stride() == parameter.stride() for v in optimizer.state[parameter].values() if v.dim())
        parameter.grad = gradient.to(memory_format=layout)
        optimizer.step()
        return parameter.detach(), optimizer.state_dict()

    _, saved = stepped(False, torch.channels_last)
    after, _ = stepped(True, torch.contiguous_format, saved)
    torch.testing.assert_close(after, stepped(False, torch.channels_last, saved)[0])


def test_a_fused_step_is_the_ordinary_one_and_a_loaded_state_does_not_choose_it(tmp_path: Path) -> None:
    states = []
    for wish in (False, True):
        module = build(execution={"name": "eager", "fused_optimizer": wish})
        saving = ModelCheckpoint(tmp_path / str(wish), filename="at", every_n_train_steps=2, save_top_k=1)
        trainer(saving, enable_checkpointing=True).fit(module, train_loader(24))
        states.append(module.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5, equal_nan=True)
    module, fit = build(execution={"name": "eager", "fused_optimizer": False}), trainer(max_epochs=2)
    fit.fit(module, train_loader(24), ckpt_path=tmp_path / "True" / "at.ckpt", weights_only=True)
    assert not fit.optimizers[0].param_groups[0]["fused"]
