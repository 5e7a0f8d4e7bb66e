"""Golden cases of the methods with a prepared or learning teacher, and steps made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dkel_lightning import DistillationModule, methods
from dkel_lightning.app.records import RunRecord
from dkel_lightning.app.tasks.train import train
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.networks import PeerOutputs, SinglePeer
from tests.compose import tiny_run
from tests.modules.toy import CLASSES, SGD

PATH = Path(__file__).parents[1] / "golden" / "teachers.json"


@cache
def golden() -> dict[str, Any]:
    """Read `golden/teachers.json`; the `source` and `evidence` of each case say whence its numbers are."""
    return json.loads(PATH.read_text(encoding="utf-8"))


def tensor(values: Any) -> Tensor:
    """Make a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Draw float64 logits."""
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaf(values: Any) -> Tensor:
    """Make a float64 tensor that collects a gradient."""
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def build(name: str, backbone: str = "resnet8", teacher: Any = "resnet8", **settings: Any) -> Any:
    """Build a method by its settings for images of 8x8; its teacher by a backbone or what else it has, or without."""
    names = ("peers", "seed", "sharing", "execution", "image_size", "targets")
    beside: dict[str, Any] = {key: settings.pop(key) for key in names if key in settings}
    own = {"backbone": teacher} if isinstance(teacher, str) else teacher and {"backbone": "resnet8", **teacher}
    given: dict[str, Any] = {"teacher": own, "optimizer": SGD, "image_size": (8, 8), **beside}
    return DistillationModule.build(backbone, CLASSES, {"name": name, **settings}, **given)


def step(student: Tensor, teacher: Tensor | None, labels: Any, /, **named: Any) -> MethodInputs:
    """Make a step of student logits [P, B, C] and teacher logits [1 or P, B, C]."""
    features = torch.zeros(*student.shape[:2], 1)
    taught = None if teacher is None else PeerOutputs(teacher, features, named=named.get("teacher"))
    seen = PeerOutputs(student, features, named=named.get("student"))
    return MethodInputs(torch.as_tensor(labels), seen, taught)


def check_gradient(found: Tensor, expected: Any) -> None:
    """Compare a leaf's gradient to 1e-10; none at all is one of zeros."""
    grad = torch.zeros_like(found) if found.grad is None else found.grad
    torch.testing.assert_close(grad, torch.tensor(expected, dtype=torch.float64).view_as(grad), rtol=1e-10, atol=1e-10)


def loss_of(name: str, logits: Tensor, labels: Tensor, **settings: Any) -> Tensor:
    """Sum the terms of a method that looks at student logits [P, B, C] alone."""
    method = methods.create(name, len(logits), settings)
    terms = method.loss_terms(step(logits, None, labels))
    assert tuple(terms) == method.terms
    return total(terms)


def from_mean_of_others(
    logits: Tensor, labels: Tensor, labels_weight: float, weight: float, temperature: float, detach: bool
) -> Tensor:
    """Sum, in plain torch, over three peers that learn from labels and from the mean logits of the two others."""
    summed = torch.zeros((), dtype=logits.dtype)
    for k in range(3):
        a, b = (other for other in range(3) if other != k)
        target = ((logits[a] + logits[b]) / 2 / temperature).softmax(-1)
        target = target.detach() if detach else target
        student = (logits[k] / temperature).log_softmax(-1)
        summed = summed + labels_weight * F.cross_entropy(logits[k], labels)
        summed = summed + weight * temperature**2 * F.kl_div(student, target, reduction="batchmean")
    return summed


def trained_and_deployed(folder: Path, *overrides: str) -> tuple[RunRecord, DistillationModule, nn.Module]:
    """Train as the command line does; what is deployed is a plain network with the logits of its member."""
    result = train(tiny_run(folder, *overrides))
    module = DistillationModule.load_from_checkpoint(folder / "checkpoints" / "last.ckpt").eval()
    network, images = module.deploy(), torch.randn(4, 1, 8, 8)
    assert type(network) is SinglePeer
    members = dict(zip(module.scores.members, module.evaluate(images).logits, strict=True))
    torch.testing.assert_close(network(images), members[module.deployed_member()])
    return result, module, network


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Sum the terms."""
    return torch.stack(list(terms.values())).sum()
