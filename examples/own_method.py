"""Write a method as one class, for Python and the command line.

    python examples/own_method.py

This trains it on scikit-learn's digits and prints the test accuracy of all networks, in about a minute on a CPU. On
the command line, from this folder:

    dkel "modules=[own_method]" method=confident method.sharpness=2
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from dkel_lightning import DistillationModule, Method, MethodInputs
from dkel_lightning.data import DigitsDataModule
from dkel_lightning.functional import cross_entropy, distillation
from dkel_lightning.methods import MethodSettings, register
from dkel_lightning.settings.declarations import number
from dkel_lightning.settings.rampup import RampUp


@dataclass(frozen=True)
class ConfidentSettings(MethodSettings):
    """Settings with range and meaning. A field `rampup` also adds the callback that updates its weight."""

    temperature: Annotated[float, number("Temperature T.", 0.01, 100)] = 3.0
    sharpness: Annotated[float, number("How strongly the confident teachers are preferred.", 0, 1000)] = 1.0
    rampup: RampUp = field(default_factory=RampUp)


@register("confident", peers=3)
class Confident(Method):
    """Each peer learns from labels and from all teachers, weighted by their confidence in each sample."""

    Settings = ConfidentSettings
    terms = ("ce", "confident")  # logged as train/<term>; method.labels weights those that begin with ce

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute both terms as sums over the peers."""
        student, teachers = inputs.student.logits, inputs.teacher.logits.detach()  # [P, B, C]
        entropy = -(teachers.softmax(-1) * teachers.log_softmax(-1)).sum(-1)  # [P, B]
        weights = torch.softmax(-self.settings.sharpness * entropy, dim=0).unsqueeze(-1)
        target = (weights * teachers).sum(0).expand_as(student)
        return {
            "ce": cross_entropy(student, inputs.labels).sum(),
            "confident": self.rampup_weight * distillation(student, target, self.settings.temperature).sum(),
        }


def main(epochs: int = 15, folder: str = "outputs/examples", **settings: Any) -> float:
    """Train, test, and return the test accuracy of the deployed peer. `settings` go to the Trainer."""
    datamodule = DigitsDataModule(batch_size=16, views=3)
    module = DistillationModule.build(
        "resnet8",
        num_classes=10,
        method={"name": "confident", "sharpness": 2.0},
        in_channels=1,
        schedules="shares",
    )
    trainer = Trainer(max_epochs=epochs, default_root_dir=folder, log_every_n_steps=10, **settings)
    trainer.fit(module, datamodule)
    (results,) = trainer.test(module, datamodule)
    return results["test/acc"]


if __name__ == "__main__":
    main()
