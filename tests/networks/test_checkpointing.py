"""A trunk that is computed again in the backward pass: the same step, with less kept in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dkel_lightning import DistillationModule
from dkel_lightning.errors import ConfigError
from tests.modules.toy import CLASSES, images_and_labels, same, train_loader, trainer


class Dropping(nn.Module):
    """A user's network with dropout and BatchNorm before its split."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3))
        self.behind = nn.Sequential(nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.behind(self.before(images)))


def build(kind: str, checkpoint: bool) -> DistillationModule:
    torch.manual_seed(0)
    execution = {"checkpoint_trunk": checkpoint}
    if kind == "foreign":
        return DistillationModule.build(
            Dropping(), split_at="behind", method="pcl", peers=2, image_size=(8, 8), execution=execution
        )
    views_per_pass = "one" if kind == "one" else "all"
    return DistillationModule.build(
        "resnet8", CLASSES, "one" if kind == "stages" else "pcl", 2, views_per_pass=views_per_pass, execution=execution
    )


def step(module: DistillationModule) -> tuple[Tensor, int]:
    """Make the gradients of a step; return its loss, and how many bytes the backward pass was kept for."""
    images, labels = images_and_labels(6)
    views = torch.stack([images, images.flip(-1)], 1)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = module.train().training_step((views, labels), 0)
    size = sum(kept.values())
    torch.rand(3)  # others draw in between
    loss.backward()
    return loss.detach(), size


@pytest.mark.parametrize("kind", ["all", "one", "stages", "foreign"])
def test_gradients_and_statistics_are_the_same_and_less_is_kept(kind: str) -> None:
    plain, saving = build(kind, False), build(kind, True)
    (loss, kept), (again, less) = step(plain), step(saving)
    assert torch.equal(loss, again)
    for name, parameter in plain.named_parameters():
        other = saving.get_parameter(name)
        assert (parameter.grad is None) == (other.grad is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, other.grad), name  # type: ignore[arg-type]
    assert same(*(dict(module.student.network.named_buffers()) for module in (plain, saving)))
    assert less < 0.75 * kept


def test_a_fit_ends_with_the_same_weights_and_an_evaluation_keeps_nothing_back() -> None:
    ended: list[dict[str, Any]] = []
    for checkpoint in (False, True):
        module = build("all", checkpoint)
        trainer().fit(module, train_loader(views=2))
        ended.append({name: value.clone() for name, value in module.student.network.state_dict().items()})
    assert same(*ended)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dml"}, "execution.checkpoint_trunk needs a trunk that peers share"),
        ({"execution": {"name": "compile", "checkpoint_trunk": True}}, "choose execution=eager or auto"),
    ],
)
def test_where_it_cannot_be_it_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DistillationModule.build("resnet8", CLASSES, **{"execution": {"checkpoint_trunk": True}, **settings})
