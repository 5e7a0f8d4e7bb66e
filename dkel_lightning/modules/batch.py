"""What a batch may look like, and its checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dkel_lightning.data.batch import Batch as Batch
from dkel_lightning.errors import ConfigError, DataError
from dkel_lightning.schedules import one_of

IMAGE_KEYS = ("views", "images", "image", "pixel_values", "img", "x", "inputs", "input")
LABEL_KEYS = ("labels", "label", "targets", "target", "y")
INDEX_KEYS = ("indices", "index", "idx")

PURPOSE = (
    "This library trains classifiers of images: floats [B, C, H, W], and for each image a class [B], or a distribution "
    "over the classes [B, C]. For another task take its losses (dkel_lightning.functional) into a module of your own."
)


def unpack(batch: Any) -> Batch:
    """Read a batch: a tuple or list `(images, labels[, indices])`, or a mapping with the usual names.

    Labels of shape [B, 1] become [B], and all integers int64. Float labels [B, C] are distributions over the classes.
    Indices that are no tensor, such as the images' paths, are left out; weights of samples are refused.
    """
    if isinstance(batch, Mapping):
        views, labels = _first(batch, IMAGE_KEYS, "images"), _first(batch, LABEL_KEYS, "labels")
        indices = next((batch[key] for key in INDEX_KEYS if key in batch), None)
    elif isinstance(batch, Sequence) and 2 <= len(batch) <= 3:
        views, labels, indices = (*batch, None)[:3]
    else:
        seen = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, Sequence) else type(batch).__name__
        raise DataError(f"A batch must be (images, labels), (images, labels, indices) or a mapping; got {seen}.")
    if not isinstance(views, Tensor) or not isinstance(labels, Tensor):
        kinds = f"{type(views).__name__} and {type(labels).__name__}"
        raise DataError(f"Images and labels of a batch must be tensors, got {kinds}: check the collate function.")
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    most = 3 if isinstance(batch, Batch) else 2  # only batches of our own differ between peers
    distributions = labels.is_floating_point() and 2 <= labels.dim() <= most
    if not (labels.dim() == 1 or distributions) or labels.shape[0] != views.shape[0]:
        raise DataError(
            f"Labels must be [B] class indices, or float [B, C], for {views.shape[0]} images, got {labels.dtype} of "
            f"shape {tuple(labels.shape)}. {PURPOSE}"
        )
    if isinstance(indices, Tensor) and indices.is_floating_point():
        raise DataError(
            f"What follows the labels of a batch are the indices of its samples, and these are {indices.dtype} "
            f"{list(indices.shape)}: leave them out. Losses weigh classes (targets.class_weights), and no samples."
        )
    if not labels.is_floating_point() and labels.dtype != torch.bool:
        labels = labels.long()  # cross-entropy takes no other integers
    return Batch(views, labels, indices if isinstance(indices, Tensor) else None)


def batch_keys_of(keys: Any) -> Mapping[str, str]:
    """Check what images, labels and indices are called."""
    if not keys:
        return {}
    names = ("images", "labels", "indices")
    if not isinstance(keys, Mapping) or "images" not in keys or keys.keys() - {*names}:
        raise ConfigError(f"batch_keys is {keys!r}: say what images and labels are called, of {', '.join(names)}.")
    return {str(key): str(name) for key, name in keys.items()}


def rename_entries(batch: Any, keys: Mapping[str, str]) -> Any:
    """Give the entries of a batch that is a mapping their usual names; any other batch stays as it is."""
    if not keys or not isinstance(batch, Mapping):
        return batch
    if keys["images"] not in batch:
        raise DataError(f"No {keys['images']!r} in a batch with keys {', '.join(map(str, batch))}: see batch_keys.")
    return {key: batch[name] for key, name in keys.items() if name in batch}


def unpack_checked(batch: Any, batch_idx: int, peers: int, num_classes: int, teacher_too: bool = False) -> Batch:
    """Read a batch and check its views, and its labels where that costs no wait: see `check_views`, `check_labels`."""
    unpacked = unpack(batch)
    check_views(unpacked.views, peers, teacher_too)
    if batch_idx == 0 or unpacked.labels.device.type == "cpu":
        check_labels(unpacked.labels, num_classes)
    return unpacked


def images_of(batch: Any) -> Tensor:
    """Read the images of a batch without labels: a tensor, a tuple or list that starts with one, or a mapping."""
    if isinstance(batch, Mapping):
        batch = _first(batch, IMAGE_KEYS, "images")
    elif isinstance(batch, Sequence) and len(batch) > 0:
        batch = batch[0]
    if not isinstance(batch, Tensor):
        raise DataError(f"Images of a batch must be a tensor, got {type(batch).__name__}: check the collate function.")
    return batch


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise a DataError unless all labels are whole numbers in 0 .. num_classes - 1, or distributions over the classes.

    Reads values back to the host: for a device tensor call it once, not every step.
    """
    if labels.is_floating_point() and labels.dim() > 1:
        _check_distributions(labels, num_classes)
        return
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"Labels must be integer class indices, got {labels.dtype}. {PURPOSE}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"Label {low if low < 0 else high} lies outside the {num_classes} classes (0 to {num_classes - 1}): "
            "correct the labels, or build the module with the right num_classes."
        )


def _check_distributions(labels: Tensor, num_classes: int) -> None:
    if labels.shape[-1] != num_classes:
        raise DataError(
            f"Float labels of shape {tuple(labels.shape)} must have an entry for each of the {num_classes} classes: "
            "correct the labels, or build the module with the right num_classes."
        )
    sums = labels.sum(-1)
    wrong = ((sums - 1).abs() > 0.01) | (labels < 0).any(-1) | ~sums.isfinite()
    if bool(wrong.any()):
        row = [round(value, 4) for value in labels[wrong][0].tolist()[:8]]
        raise DataError(
            f"Float labels must be distributions over the classes, 0 or more and 1 in sum, and {int(wrong.sum())} of "
            f"{wrong.numel()} are not (the first begins {row}). {PURPOSE}"
        )


def number_of_views(kind: str, peers: int) -> int:
    """Count the views that `per_peer`, `shared` or `per_peer_and_teacher` asks for."""
    counts = {"per_peer": peers, "shared": 1, "per_peer_and_teacher": 2 * peers}
    one_of("method.views", kind, counts)
    return counts[kind]


def check_views(views: Tensor, peers: int, teacher_too: bool = False) -> None:
    """Refuse views other than floats [B, C, H, W] or [B, V, C, H, W] with V = 1 or one for each peer.

    With `teacher_too` V may also be one for each peer and one for each teacher.
    """
    if views.dim() < 3:
        raise DataError(f"Images of a batch are {views.dtype} {list(views.shape)}. {PURPOSE}")
    if not views.is_floating_point():
        raise DataError(
            f"Images of a batch are {views.dtype}, and networks need floats: scale them in the data set's transform, "
            "as torchvision's v2.ToDtype(torch.float32, scale=True) does."
        )
    allowed = (1, peers, 2 * peers) if teacher_too else (1, peers)
    if views.dim() != 4 and not (views.dim() == 5 and views.shape[1] in allowed):
        raise ConfigError(
            f"Views must be [B, C, H, W] or [B, V, C, H, W] with V = 1 or V = {peers} (the peers), "
            f"got {tuple(views.shape)}."
        )


@contextmanager
def explain_shape_errors(views: Tensor, network: nn.Module) -> Iterator[None]:
    """Name the form of `views` in the error of a network that takes other channels or another type."""
    try:
        yield
    except RuntimeError as error:
        kind = next((weight.dtype for weight in network.parameters() if weight.is_floating_point()), views.dtype)
        if "channels, but got" not in str(error) and (views.dtype == kind or "type" not in str(error)):
            raise
        raise DataError(
            f"The network does not take images of a batch that are {views.dtype} {list(views.shape)} ({error}): bring "
            f"them to {kind} and [B, C, H, W] in the data set's transform, or build the module with their channels."
        ) from error


def _first(batch: Mapping[Any, Any], keys: Sequence[str], what: str) -> Any:
    for key in keys:
        if key in batch:
            return batch[key]
    raise DataError(f"No {what} in a batch with keys {', '.join(map(str, batch))}: name them one of {', '.join(keys)}.")
