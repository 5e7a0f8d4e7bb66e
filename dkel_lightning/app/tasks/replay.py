"""task=replay: run a failing training step again, and say where the first number went wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from dkel_lightning.app.runs.folder import Run
from dkel_lightning.callbacks.step_recorder import FORMAT, KEY, non_finite
from dkel_lightning.checkpoints import file_format
from dkel_lightning.errors import CheckpointError
from dkel_lightning.methods import Method
from dkel_lightning.modules.batch import Batch
from dkel_lightning.modules.distillation import DistillationModule

STILL = 1e-5
"""Difference of images, relative to the largest output, up to which an output says nothing of them: rounding."""


@dataclass(frozen=True)
class ReplayResult:
    """What a replay has shown.

    Attributes:
        what: why the run kept the step; empty where it did not say.
        clock: epoch, steps done before, batch and process of the step.
        terms: the loss terms, computed again.
        loss: their sum.
        recorded: the loss that the run had.
        reproduced: whether terms and loss are the recorded ones to the last bit, a NaN counting as a NaN.
        weights: names of the weights that were NaN or infinite before the step.
        images: whether the images were finite.
        output: the first module, in the order of computation, with an output that is not finite; None if none.
        bad_terms: the terms that are not finite.
        gradient: the first weight, in the order of the backward pass, with a gradient that is not finite; None if none.
        bad_gradients: how many weights have one.
        gradients: how many have a gradient at all.
        still: the first module, in the order of computation, whose output is the same for all images; None if none.
        accuracy: of each student peer, on the batch.
        top_share: of each student peer's predictions for the batch, the share of the class it predicts most.
    """

    what: str
    clock: Mapping[str, int]
    terms: Mapping[str, float]
    loss: float
    recorded: float
    reproduced: bool
    weights: tuple[str, ...]
    images: bool
    output: str | None
    bad_terms: tuple[str, ...]
    gradient: str | None
    bad_gradients: int
    gradients: int
    still: str | None
    accuracy: tuple[float, ...]
    top_share: tuple[float, ...]

    @property
    def objective(self) -> float:
        """The loss."""
        return self.loss

    def lines(self) -> Iterator[str]:
        """Say it in words."""
        clock = self.clock
        # Epochs are counted from 1 wherever they are shown, and from 0 in files.
        yield f"Step {clock['step']} (epoch {clock['epoch'] + 1}, batch {clock['batch_idx']}, process {clock['rank']})"
        if self.what:
            yield f"  kept because        {self.what}"
        yield f"  weights before it   {_finite(self.weights)}"
        yield f"  images              {'finite' if self.images else 'not finite: the data is at fault'}"
        yield f"  first bad output    {self.output or 'none'}"
        yield f"  first still output  {f'{self.still}, alike for all images' if self.still else 'none'}"
        peers = zip(self.accuracy, self.top_share, strict=True)
        said = "; ".join(f"{100 * right:.0f} % right, {100 * share:.0f} % one class" for right, share in peers)
        yield f"  student peers       {said}"
        for name, value in self.terms.items():
            yield f"  term {name:<14} {value:g}{'  <- not finite' if name in self.bad_terms else ''}"
        exact = "the same to the last bit" if self.reproduced else f"NOT reproduced: recorded {self.recorded:g}"
        yield f"  loss                {self.loss:g}, {exact}"
        where = f"{self.gradient}, in {self.bad_gradients} of {self.gradients} weights" if self.gradient else "none"
        yield f"  first bad gradient  {where}"


def replay(run: Run) -> ReplayResult:
    """Replay the step in `values["checkpoint"]`, print what it shows and write replay.json.

    Raises:
        CheckpointError: the file is missing, damaged, no recorded step, or of parts put together by hand.
    """
    result = replay_step(Path(run.values["checkpoint"]))
    _report(run, result)
    return result


def replay_step(path: Path, *, backbone: nn.Module | None = None, method: Method | None = None) -> ReplayResult:
    """Replay a recorded step on the CPU.

    Args:
        path: the file `collapse/step_<n>.pt`.
        backbone: the model the run was built from, if that was not a registered name.
        method: the method, if that was not a registered name.

    Raises:
        CheckpointError: as in `replay`.
    """
    record = file_format.load(path)
    if record.get(KEY) != FORMAT:
        raise CheckpointError(f"{path} is no recorded step: give the path of a collapse/step_<n>.pt.")
    module = _rebuilt(record, path, backbone, method)
    threads = torch.get_num_threads()
    # Sums over several threads are taken in another order.
    torch.set_num_threads(int(record["threads"]))
    try:
        return _again(module, record)
    finally:
        torch.set_num_threads(threads)


def _rebuilt(
    record: Mapping[str, Any], path: Path, backbone: nn.Module | None, method: Method | None
) -> DistillationModule:
    given = {"backbone": backbone, "method": method}
    recipe = {**(record["recipe"] or {}), **{key: part for key, part in given.items() if part is not None}}
    missing = [key for key in given if recipe.get(key) is None]
    if missing:
        raise CheckpointError(
            f"{path} is a step of a {' and a '.join(missing)} of its own: replay it from Python, with "
            f"dkel_lightning.app.tasks.replay.replay_step(path, {', '.join(f'{key}=...' for key in missing)})."
        )
    module = DistillationModule.build(**recipe)
    file_format.load_weights(module, record, path)
    # Convolutions in another memory layout sum in another order.
    layout = torch.channels_last if record["channels_last"] else torch.contiguous_format
    return module.to(memory_format=layout).train()


def _again(module: DistillationModule, record: Mapping[str, Any]) -> ReplayResult:
    outputs, still, gradients = _watch(module)
    weights = tuple(non_finite(module.named_parameters()))
    batch = Batch(record["views"], record["labels"], record["indices"])
    with torch.random.fork_rng(devices=[]):
        torch.random.set_rng_state(record["random"]["torch"])
        with _precision(str(record["precision"])):
            step = module.forward_all(batch)
            terms, loss = module.losses(step)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
    predicted = step.student.logits.detach().argmax(-1)
    pairs = [(terms[name], recorded) for name, recorded in record["terms"].items()] + [(loss, record["loss"])]
    return ReplayResult(
        what=str(record.get("what", "")),
        clock=record["clock"],
        terms={name: float(value.detach()) for name, value in terms.items()},
        loss=float(loss.detach()),
        recorded=float(record["loss"]),
        reproduced=all(_same(found.detach(), recorded) for found, recorded in pairs),
        weights=weights,
        images=not batch.views.is_floating_point() or bool(batch.views.isfinite().all()),
        output=outputs[0] if outputs else None,
        bad_terms=tuple(non_finite(terms.items())),
        gradient=gradients[0] if gradients else None,
        bad_gradients=len(gradients),
        gradients=sum(parameter.grad is not None for parameter in module.parameters()),
        still=still[0] if still else None,
        accuracy=tuple((predicted == step.classes).float().mean(-1).tolist()),
        top_share=tuple(float(each.bincount().max()) / len(each) for each in predicted),
    )


def _watch(module: DistillationModule) -> tuple[list[str], list[str], list[str]]:
    """Note the modules with a bad or still output and the weights with a bad gradient, in the order they come in."""
    outputs: list[str] = []
    still: list[str] = []
    gradients: list[str] = []

    def look_at_output(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            if not bool(output.isfinite().all()):
                outputs.append(name)
            elif len(output) > 1 and bool((output - output[:1]).abs().max() <= STILL * output.abs().max()):
                still.append(name)

    def look_at_gradient(name: str, gradient: Tensor) -> None:
        if not bool(gradient.isfinite().all()):
            gradients.append(name)

    for name, part in module.named_modules():
        if not any(part.children()):
            part.register_forward_hook(lambda _, __, output, name=name: look_at_output(name, output))
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient, name=name: look_at_gradient(name, gradient)
            )
    return outputs, still, gradients


def _precision(name: str) -> contextlib.AbstractContextManager[Any]:
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast("cpu", kinds[name]) if name in kinds else contextlib.nullcontext()


def _same(found: Tensor, recorded: Tensor) -> bool:
    return found.dtype == recorded.dtype and bool(
        torch.equal(found, recorded) or (found.isnan() & recorded.isnan()).all()
    )


def _finite(names: tuple[str, ...]) -> str:
    return f"{len(names)} not finite ({', '.join(names[:3])})" if names else "finite"


@rank_zero_only
def _report(run: Run, result: ReplayResult) -> None:
    print("\n".join(result.lines()))
    # As text: JSON has no NaN.
    terms = {name: repr(value) for name, value in result.terms.items()}
    as_text = {"terms": terms, "loss": repr(result.loss), "recorded": repr(result.recorded)}
    run.write_json("replay.json", asdict(result) | as_text)
    print(f"Written to {run.folder / 'replay.json'}")
