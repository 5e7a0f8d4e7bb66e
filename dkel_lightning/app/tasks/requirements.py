"""What a comparison, a benchmark and task=complexity ask of the settings. Imports neither torch nor Lightning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Values = Mapping[str, Any]


def names_one(devices: Any) -> bool:
    """Tell whether `trainer.devices` is of one device: a number, or a list of one."""
    return str(devices) == "1" or (isinstance(devices, list) and len(devices) == 1)


def one_process(trainer: Values) -> bool:
    """Tell whether a training certainly stays in one process, of whatever devices the machine has."""
    return names_one(trainer["devices"]) or (trainer["accelerator"] == "cpu" and trainer["devices"] == "auto")


def of_comparison(values: Values) -> Iterator[str]:
    """Say what makes a comparison meaningless."""
    trainer = values["trainer"]
    if not names_one(trainer["devices"]) or trainer["num_nodes"] != 1:
        yield "task=compare trains on one device: leave trainer.devices at 1."
    if trainer["fast_dev_run"]:
        yield "trainer.fast_dev_run leaves nothing to compare: set trainer.max_epochs=1 instead."


def of_benchmark(values: Values) -> Iterator[str]:
    """Say what cannot be measured."""
    trainer = values["trainer"]
    if not names_one(trainer["devices"]):
        yield "task=benchmark measures one device: leave trainer.devices at 1 (trainer=auto, cpu or gpu)."
    elif trainer["num_nodes"] != 1 or trainer["strategy"] != "auto":
        yield "task=benchmark measures one process: leave trainer.num_nodes at 1 and trainer.strategy at auto."
    if trainer["fast_dev_run"] or trainer["overfit_batches"]:
        yield "task=benchmark measures ordinary training: leave trainer.fast_dev_run and trainer.overfit_batches out."
    if trainer["accumulate_grad_batches"] != 1:
        yield "task=benchmark takes a batch for a step: leave trainer.accumulate_grad_batches at 1."
    if values["benchmark"]["over"] is not None and len(values["benchmark"]["sides"] or [0]) > 1:
        yield "benchmark.over times one side against its size: name one in benchmark.sides, or none."
    for label in values["benchmark"]["sides"] or ():
        fault = side_fault(label, values)
        if fault is not None:
            yield f"benchmark.sides: {label} cannot be measured: {fault}."


def of_complexity(values: Values) -> Iterator[str]:
    """Say what keeps the measure from being made."""
    teacher, trainer = values["teacher"], values["trainer"]
    if values["data"].get("_target_") is not None:
        yield "task=complexity reads training images without augmentation, as data modules of this library give them."
    if teacher.get("update") == "none":
        yield "task=complexity compares labels with a teacher, and there is none: choose method=online_checkpoints."
    if teacher.get("update") == "frozen" and teacher.get("weights") is None:
        yield "task=complexity trains in one stage: give teacher.weights, or choose method=online_checkpoints."
    if not names_one(trainer["devices"]) or trainer["num_nodes"] != 1:
        yield "task=complexity trains on one device: leave trainer.devices at 1."


def side_fault(label: str, values: Values) -> str | None:
    """Say why a side of a benchmark does not fit the settings; None if it does."""
    method, teacher = values["method"], values["teacher"]
    if label.startswith("bare_") and values["precision"]["name"] == "fp16":
        return "the step without Lightning scales no loss, which precision=fp16 needs"
    if label != "plain":
        return None
    if method["name"] not in ("dkel", "dkel_released"):
        return f"the loop written by hand computes method=dkel or dkel_released, not {method['name']}"
    ensemble = method["ensemble"]
    usual = ensemble["space"] == "logits" and not ensemble["include_self"] and ensemble["weights"] == "complement"
    peers = isinstance(method["peers"], int) and method.get("sharing") == "trunk"
    usual = usual and method.get("loss", "kd") == "kd"
    learning = method.get("peer_lr_scale") is None and not method.get("frozen_peers")
    if not (usual and peers and learning and method["views"] == "per_peer"):
        return "the loop written by hand knows peers on one trunk, each with a view, and the method's usual targets"
    if teacher["update"] != "ema" or teacher["start"] != "keep" or teacher["batchnorm"] != "own":
        if method["name"] == "dkel_released" and teacher["update"] == "ema" and teacher["batchnorm"] == "own":
            return None  # the rate of its first updates costs nothing
        return "the loop written by hand knows teacher=independent only"
    return None
