"""Tiny data, modules and Trainers for the tests of the core."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from dkel_lightning import DistillationModule
from dkel_lightning.networks import PeerNetwork, create
from dkel_lightning.runtime.seeding import seeded

CLASSES = 3
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4)


def images_and_labels(samples: int, seed: int = 0, size: int = 8) -> tuple[Tensor, Tensor]:
    """Make images [N, 3, size, size] of three well separated classes: a bright channel each, in noise."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % CLASSES
    images = 0.3 * torch.randn(samples, 3, size, size, generator=draws)
    images[torch.arange(samples), labels] += 1.0
    return images, labels


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augment images by noise."""
    return images + 0.1 * torch.randn(images.shape, generator=generator)


class Stream(IterableDataset[Any]):
    """The 24 images above, without a length."""

    def __iter__(self) -> Iterator[Any]:
        return zip(*images_and_labels(24), strict=True)


class Toy(Dataset[tuple[Tensor, Tensor]]):
    """The images above; with `views`, each sample comes in that many differing views [V, C, H, W]."""

    def __init__(self, samples: int = 24, seed: int = 0, views: int | None = None) -> None:
        self.images, self.labels = images_and_labels(samples, seed)
        self.views = views

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        if self.views is not None:
            image = torch.stack([image.roll(shift, -1) for shift in range(self.views)])
        return image, self.labels[index]


class EpochSampler(Sampler[int]):
    """Shuffle by the epoch alone, so that a resumed run sees what an uninterrupted one would have seen."""

    def __init__(self, data: Sized) -> None:
        self.samples = len(data)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(1000 + self.epoch))
        return iter(order.tolist())


def train_loader(samples: int = 24, batch_size: int = 8, views: int | None = None) -> DataLoader[Any]:
    data = Toy(samples, views=views)
    return DataLoader(data, batch_size=batch_size, sampler=EpochSampler(data))


def val_loader(samples: int = 15, batch_size: int = 5) -> DataLoader[Any]:
    return DataLoader(Toy(samples, seed=1), batch_size=batch_size)


def peers_network(peers: int = 2, seed: int = 0) -> PeerNetwork:
    with seeded(seed, "toy"):
        return create("resnet8", CLASSES, peers)


def build(method: Any = "dkel", peers: int = 2, **settings: Any) -> DistillationModule:
    settings.setdefault("optimizer", SGD)
    return DistillationModule.build("resnet8", CLASSES, method, peers, **settings)


def trainer(*callbacks: Callback, **settings: Any) -> Trainer:
    """Make a quiet Trainer on the CPU; one epoch, no logger, no checkpoints unless asked for."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "callbacks": list(callbacks),
    }
    return Trainer(**(defaults | settings))


def parameters_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def state_of(module: DistillationModule, fit: Trainer) -> dict[str, Tensor]:
    """Give the module's state without its metrics, and the momentum of its optimizer."""
    momentum = fit.optimizers[0].state_dict()["state"]
    state = {name: value for name, value in module.state_dict().items() if "accuracy" not in name}
    return state | {f"momentum.{index}": entry["momentum_buffer"] for index, entry in momentum.items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


class Interrupt(Callback):
    """Stands for Ctrl-C at the start of an epoch, counted from 0."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


class Recorder(Callback):
    """Keep what a fit passes by: batches, counters, and the parameters at each batch's start."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.teachers: list[dict[str, Tensor]] = []
        self.students: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)
        self.students.append(parameters_of(pl_module.student.network))
        if pl_module.teacher is not None:
            self.teachers.append(parameters_of(pl_module.teacher.network))
