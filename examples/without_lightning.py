"""Use the losses, schedules and moving average of DKEL in a plain PyTorch loop.

    python examples/without_lightning.py

This trains two small networks and their teachers on scikit-learn's digits in ten seconds on a CPU. Every fifth epoch
it prints the current weights and the test accuracy of students and teachers.
"""

from __future__ import annotations

import copy
import math

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from dkel_lightning.ema import average_, matched, update_rate
from dkel_lightning.functional import assemble, cross_entropy, distillation, distillation_from_each
from dkel_lightning.networks import redraw_
from dkel_lightning.schedules import ensemble_weight, rampup

PEERS = 2
TEMPERATURE = 3.0


def network() -> nn.Module:
    """Return a classifier without BatchNorm, which would need its statistics averaged too."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GELU(), nn.Flatten(),
        nn.Linear(512, 64), nn.GELU(), nn.Linear(64, 10),
    )  # fmt: skip


def logits_of(networks: nn.ModuleList, images: Tensor) -> Tensor:
    """Stack the logits of all peers: [P, B, C]."""
    return torch.stack([peer(images) for peer in networks])


def main(epochs: int = 30) -> float:
    """Train and return the test accuracy of the better teacher."""
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1, torch.tensor(digits.target)
    test = slice(1400, 1797)  # the first 1400 train

    students = nn.ModuleList(network() for _ in range(PEERS))
    teachers = redraw_(copy.deepcopy(students)).requires_grad_(False)  # independent initial weights, no gradient
    followed = matched(teachers, students, "parameters")
    optimizer = torch.optim.SGD(students.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    batches = math.ceil(1400 / 32)
    time_constant = 0.1 * epochs * batches  # of the EMA, in steps

    updates = torch.tensor(0)
    accuracy = torch.zeros(PEERS)
    for epoch in range(epochs):
        v = ensemble_weight(epoch, decay=10 / epochs)  # weight of the assembled teachers: high at first, then 0
        r = rampup(epoch, scale=1.0, length=0.27 * epochs)  # weight of the individual teachers: rises
        for batch in torch.randperm(1400).split(32):
            student, teacher = logits_of(students, images[batch]), logits_of(teachers, images[batch])
            loss = (
                cross_entropy(student, labels[batch]).sum()
                + v * distillation(student, assemble(teacher, TEMPERATURE), TEMPERATURE).sum()
                + r * (1 - v) * distillation_from_each(student, teacher, TEMPERATURE).sum()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average_(*followed, update_rate(updates, 1 - 1 / time_constant, start="keep"))
            updates += 1
        scheduler.step()
        if epoch % 5 == 4 or epoch == epochs - 1:
            with torch.no_grad():
                correct = [
                    (logits_of(n, images[test]).argmax(-1) == labels[test]).float().mean(-1)
                    for n in (students, teachers)
                ]
            accuracy = correct[1]
            shown = ", ".join(f"{value:.1%}" for value in torch.cat(correct).tolist())
            print(f"epoch {epoch + 1:3d}  v {v:.2f}  r {r:.2f}  students and teachers: {shown}")
    return float(accuracy.max())


if __name__ == "__main__":
    main()
