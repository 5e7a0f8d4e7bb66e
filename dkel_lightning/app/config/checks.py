"""Which combinations of settings contradict each other, and which are hardly meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dkel_lightning.app.config.extras import TRACKERS, missing_extra
from dkel_lightning.app.config.schema import KEYS, Values, describe, leaves
from dkel_lightning.app.tasks import registry
from dkel_lightning.errors import ConfigError
from dkel_lightning.schedules import are_shares
from dkel_lightning.settings.data import LabelNoise
from dkel_lightning.settings.declarations import contradictions_in
from dkel_lightning.settings.keys import apart, unknown_key
from dkel_lightning.settings.methods import PRESETS, unmet_needs
from dkel_lightning.settings.needs import Needs
from dkel_lightning.settings.teacher import TeacherSettings, teacher_mistakes

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed", "auto": "auto"}
"""What Lightning knows nothing of is `auto`: `build.precision` chooses one of the others."""


def check(values: Values) -> None:
    """Raise one ConfigError that names every mistake in a resolved configuration."""
    mistakes = [*_value_mistakes(values)]
    if not mistakes:
        mistakes = [*_contradictions(values)]
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def warnings(values: Values) -> list[str]:
    """Say what is allowed but hardly meant."""
    epochs = values["trainer"]["max_epochs"]
    found = []
    length = values["method"].get("rampup", {}).get("epochs")
    if length is not None and 0 < epochs <= length:
        found.append(
            f"The ramp-up takes {length:g} epochs and the run only {epochs}: distillation stays weak. "
            "Set method.rampup.epochs, or method.rampup.epochs=null method.rampup.share=0.27."
        )
    noise = values["data"].get("label_noise", {})
    if noise.get("kind") == "pair" and noise["rate"] >= 0.5:
        found.append(f"data.label_noise.rate={noise['rate']:g}: the wrong class of a pair is as frequent as the right.")
    if values["data"]["selection"] == "paper":
        found.append(
            "data.selection=paper: epoch and peer are chosen on the test set; use its figures to compare only."
        )
    return found


def _value_mistakes(values: Values) -> Iterator[str]:
    for group in ("logger", "callbacks"):
        node = values.get(group)
        if isinstance(node, Mapping) and not isinstance(node.get("extra"), Mapping):
            yield f"{group}.extra must hold entries name: {{_target_: ...}}."
    own_data = values["data"].get("_target_") is not None
    method = values.get("method")
    name = method.get("name") if isinstance(method, Mapping) else None
    for key, value in leaves(values):
        if key.rsplit(".", 1)[-1] in ("_target_", "_partial_") or (own_data and key.startswith("data.")):
            continue
        description = describe(key, name if isinstance(name, str) else None)
        if description is None and (below := [each[len(key) + 1 :] for each in KEYS if each.startswith(f"{key}.")]):
            yield f"{key} must hold its keys ({', '.join(below)}), got {value!r}."
        elif description is None:
            # Methods and data sets of the user's own bring their own keys, which whoever builds them checks.
            if not key.startswith(("method.", "data.")):
                yield unknown_key(key, KEYS)
        elif (mistake := description.mistake(key, value)) is not None:
            yield mistake


def _contradictions(values: Values) -> Iterator[str]:
    method, teacher, trainer, data = (values[group] for group in ("method", "teacher", "trainer", "data"))
    name = method["name"]
    peers = method["peers"] if isinstance(method["peers"], int) else len(method["peers"])
    preset = PRESETS.get(name)
    # What an unregistered method of the user's own needs is known when it is built.
    needs = preset.needs if preset is not None else None
    if needs is not None:
        trunk = isinstance(method["peers"], int) and method.get("sharing") != "nothing"
        yield from unmet_needs(f"method={name}", needs, peers, trunk, method.get("views", "per_peer"))
        yield from contradictions_in(PRESETS[name].Settings, method, "method")
    if teacher["update"] == "none" and "decay" in teacher:
        yield "teacher.update=none: choose teacher=none, which leaves out the other keys too."
    elif teacher["update"] == "none":
        if needs is not None:
            yield from teacher_mistakes(f"method={name}", needs, teacher)
        if values["deploy"]["network"] == "teacher":
            yield "deploy.network=teacher, but teacher=none: choose deploy.network=student."
    elif "decay" not in teacher:
        yield f"teacher.update={teacher['update']}, but teacher=none has no other key: choose another teacher=."
    else:
        yield from contradictions_in(TeacherSettings, teacher, "teacher")
        if needs is not None:
            yield from teacher_mistakes(f"method={name}", needs, teacher)
            yield from _training_contradictions(needs, teacher)
    peer = values["deploy"]["peer"]
    # Of a checkpoint its own peers count, which whoever loads it knows.
    if values["checkpoint"] is None and isinstance(peer, int) and peer not in range(-peers, peers):
        yield f"deploy.peer={peer}, but {peers} peers are numbered 0 to {peers - 1}."
    if values["deploy"]["network"] == "ensemble" and peer not in ("auto", "best"):
        yield f"deploy.peer={peer} means nothing with deploy.network=ensemble: leave it out."
    if values["deploy"]["network"] == "ensemble" and peers < 2:
        yield "deploy.network=ensemble needs at least 2 peers: raise method.peers."
    yield from apart("data", data["mean"], data["std"])
    yield from contradictions_in(LabelNoise, data.get("label_noise", {}), LabelNoise.node)
    yield from _device_contradictions(values, trainer)
    for node in values["logger"]["extra"].values():
        extra = TRACKERS.get(str(node.get("_target_")) if isinstance(node, Mapping) else "")
        yield from () if extra is None else missing_extra(f"logger={extra}", extra)
    if str(values["optimizer"].get("_target_")).startswith("timm."):
        yield from missing_extra("optimizer=lamb", "timm")
    yield from registry.of(values).contradictions(values)


def _training_contradictions(needs: Needs, teacher: Values) -> Iterator[str]:
    first = needs.foreign_teacher and teacher["update"] == "frozen" and teacher.get("weights") is None
    if first and teacher.get("init_student_from_branches") and teacher.get("training") != "sftn":
        yield "teacher.init_student_from_branches takes the branches of an sftn teacher: set teacher.training=sftn."
    for key, plain in (("training", "plain"), ("training_epochs", None)):
        if teacher.get(key, plain) != plain and not first:
            yield (
                f"teacher.{key}={teacher[key]}, but nothing trains a teacher first: choose a method that has its "
                "own (kd), teacher=frozen, and no teacher.weights."
            )


def _device_contradictions(values: Values, trainer: Values) -> Iterator[str]:
    precision = values["precision"]
    if precision["trainer"] != PRECISIONS[precision["name"]]:
        yield f"precision.trainer={precision['trainer']} belongs to another precision=: choose that, and leave it out."
    if values["precision"]["name"] == "fp16" and trainer["accelerator"] == "cpu":
        yield "precision=fp16 needs a GPU: choose precision=bf16 or fp32 on the CPU."
    endless = trainer["max_epochs"] in (-1, None) and trainer["max_steps"] == -1 and not trainer.get("max_time")
    if endless:
        yield "The run has no end: set trainer.max_epochs, trainer.max_steps or trainer.max_time."
    for key in ("max_epochs", "max_steps", "limit_train_batches"):
        if trainer[key] == 0:
            yield f"trainer.{key} is 0: nothing would be trained."
    if values["callbacks"]["early_stopping"] is not None and trainer["limit_val_batches"] == 0:
        yield "callbacks.early_stopping needs validation, and trainer.limit_val_batches is 0."
    if trainer["limit_test_batches"] == 0:
        yield "trainer.limit_test_batches is 0: nothing would be tested."
    yield from _scheduler_contradictions(values["scheduler"], trainer)


def _scheduler_contradictions(scheduler: Values, trainer: Values) -> Iterator[str]:
    milestones = scheduler.get("milestones", ())
    by_step, shares = scheduler.get("interval") == "step", are_shares(milestones)
    fits = [milestone > 0 and (shares or milestone == int(milestone)) for milestone in milestones]
    if not all(fits) or sorted(set(milestones)) != list(milestones):
        yield f"scheduler.milestones is {milestones}: give rising epochs (150, 225) or rising shares (0.5, 0.75)."
    elif by_step and shares:
        yield "scheduler.interval=step counts milestones in steps: give scheduler.milestones in steps."
    if shares and trainer["max_steps"] != -1:
        yield "scheduler.milestones are shares of max_epochs, and trainer.max_steps is set: give milestones in epochs."
    if (
        not by_step
        and scheduler.get("T_max") == trainer["max_epochs"]
        and -1 not in (trainer["max_epochs"], trainer["max_steps"])
    ):
        yield (
            "scheduler.T_max is the length of trainer.max_epochs, and trainer.max_steps is set: set scheduler.T_max to "
            "the epochs that the run lasts, or scheduler.interval=step and scheduler.T_max to its steps."
        )
    if by_step and scheduler.get("T_max") is not None and scheduler["T_max"] == trainer["max_epochs"]:
        yield "scheduler.interval=step counts T_max in steps: set scheduler.T_max to the steps of the run."
