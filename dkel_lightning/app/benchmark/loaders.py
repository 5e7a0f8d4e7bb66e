"""Training batches alone, without a network: from the device, from worker processes, and the usual way."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch

from dkel_lightning.app.benchmark import plain
from dkel_lightning.app.benchmark.processes import Plan
from dkel_lightning.app.benchmark.setting import images_of
from dkel_lightning.app.benchmark.watch import Round, wait_for
from dkel_lightning.app.config.schema import Values
from dkel_lightning.data import ImageDataModule
from dkel_lightning.data.device_loaders import DeviceLoader, TrainingLoader
from dkel_lightning.data.worker_loaders import WorkerLoader

LABELS = {
    "device": "images on the device, augmented there in batches",
    "workers": "this library's workers, a batch each",
    "plain": "torch's DataLoader, image by image",
}
FIRST = 2
"""Batches that no loader is measured by: workers start, caches fill."""


def measure(values: Values, device: torch.device, plan: Plan, *, invented: bool) -> dict[str, list[Round]]:
    """Let three loaders take turns in this process; their batches arrive on the device, views normalised."""
    images = images_of(values, invented=invented)
    sources = {
        "device": _ours(_device_loader(values, images, device), device),
        "workers": _ours(_worker_loader(values, images, device), device),
        "plain": _usual(values, images, device),
    }
    found: dict[str, list[Round]] = {label: [] for label in sources}
    for source in sources.values():
        _count(source, FIRST, device)
    # What workers have put into their queues while others had their turn shall not count.
    queued = 2 * int(values["data"]["workers"])
    for _ in range(plan.rounds):
        for label, source in sources.items():
            _count(source, plan.warmup + (0 if label == "device" else queued), device)
            found[label].append(_count(source, plan.steps, device))
    return found


def plain_loader(values: Values, images: ImageDataModule, device: torch.device) -> Any:
    """Make the usual loader of these images."""
    normalize = images.augment.normalize
    per_image = plain.PerImage(
        images.training_images,
        images.views,
        padding=images.padding,
        flip=images.flip,
        mean=normalize.mean,
        std=normalize.std,
    )
    data = values["data"]
    return plain.loader(per_image, data["batch_size"], data["workers"], data["drop_last"], device.type == "cuda")


def _device_loader(values: Values, images: ImageDataModule, device: torch.device) -> DeviceLoader:
    stored = images.training_images
    return DeviceLoader(
        stored.read(torch.arange(len(stored))).to(device),
        stored.labels.to(device),
        images.augment,
        batch_size=values["data"]["batch_size"],
        views=images.views,
        seed=values["seed"],
    )


def _worker_loader(values: Values, images: ImageDataModule, device: torch.device) -> WorkerLoader:
    return WorkerLoader(
        images.training_images,
        images.augment,
        batch_size=values["data"]["batch_size"],
        views=images.views,
        seed=values["seed"],
        workers=values["data"]["workers"],
        pin_memory=device.type == "cuda",
    )


def _ours(loader: TrainingLoader, device: torch.device) -> Iterator[int]:
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        for views, labels, _ in loader:
            views.to(device, non_blocking=True)
            yield len(labels)


def _usual(values: Values, images: ImageDataModule, device: torch.device) -> Iterator[int]:
    loader = plain_loader(values, images, device)
    while True:
        for _, labels in plain.batches_on(device, loader):
            yield len(labels)


def _count(source: Iterator[int], batches: int, device: torch.device) -> Round:
    wait_for(device)
    started = time.perf_counter()
    images = sum(itertools.islice(source, batches))
    wait_for(device)
    return Round(time.perf_counter() - started, images)
