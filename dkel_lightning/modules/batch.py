"""Reading and checking batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dkel_lightning.data.batch import Batch
from dkel_lightning.errors import DataError
from dkel_lightning.functional import UNKNOWN
from dkel_lightning.schedules import one_of

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""Called once per view: uint8 or float images [B, C, H, W] and the generator to draw from -> one view of them."""

IMAGE_KEYS = ("images", "views", "image", "pixel_values", "img", "x", "inputs", "input")
LABEL_KEYS = ("labels", "label", "targets", "target", "y")
INDEX_KEYS = ("indices", "index", "idx")

PURPOSE = (
    "This library trains classifiers of images: floats [B, C, H, W], and for each image a class [B], or a distribution "
    "over the classes [B, C]. For another task use its losses (dkel_lightning.functional) in your own module."
)


def unpack(batch: Any) -> Batch:
    """Read a batch: a tuple or list `(images, labels[, indices])`, or a mapping with common names.

    Labels of shape [B, 1] become [B], and all integers int64. Float labels [B, C] are distributions over the classes.
    Indices that are no tensor, such as the images' paths, are left out; weights of samples are refused.
    """
    if isinstance(batch, Mapping):
        views, labels = _first(batch, IMAGE_KEYS, "images"), _first(batch, LABEL_KEYS, "labels")
        indices = next((batch[key] for key in INDEX_KEYS if key in batch), None)
    else:
        fits = isinstance(batch, Sequence) and 2 <= len(batch) <= 3
        views, labels, indices = (*batch, None)[:3] if fits else (batch, None, None)
    weights = isinstance(indices, Tensor) and indices.is_floating_point()
    if not isinstance(views, Tensor) or not isinstance(labels, Tensor) or weights:
        kinds = ", ".join(part.type() if isinstance(part, Tensor) else type(part).__name__ for part in (views, labels))
        raise DataError(
            "A batch must be tensors (images, labels), (images, labels, integer indices) or a mapping of them, got "
            f"{kinds}{', float indices' if weights else ''}: check the collate function."
        )
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    soft = labels.is_floating_point() and labels.dim() == 2
    hard = labels.dim() == 1 and not labels.is_floating_point() and labels.dtype != torch.bool
    if not (soft or hard) or labels.shape[0] != views.shape[0]:
        raise DataError(
            f"Labels must be [B] integer class indices, or float [B, C], for {views.shape[0]} images, got "
            f"{labels.dtype} of shape {tuple(labels.shape)}. {PURPOSE}"
        )
    if not labels.is_floating_point():
        labels = labels.long()  # cross-entropy takes no other integers
    return Batch(views, labels, indices if isinstance(indices, Tensor) else None)


def rename_entries(batch: Any, keys: Mapping[str, str]) -> Any:
    """Rename the entries of a batch that is a mapping, and keep all others; other batches are returned unchanged."""
    if not keys or not isinstance(batch, Mapping):
        return batch
    if (images := keys.get("images")) is not None and images not in batch:
        raise DataError(f"No {images!r} in a batch with keys {', '.join(map(str, batch))}: set batch_keys.images.")
    return {**batch, **{key: batch[name] for key, name in keys.items() if name in batch}}


def unpack_checked(
    batch: Any, batch_idx: int, peers: int, num_classes: int, teacher_too: bool = False, known_labels: bool = False
) -> Batch:
    """Read and check a batch; labels on a device are checked in the first batch only, because that synchronises."""
    unpacked = unpack(batch)
    check_views(unpacked.views, peers, teacher_too)
    if batch_idx == 0 or unpacked.labels.device.type == "cpu":
        check_labels(unpacked.labels, num_classes, known_labels)
    return unpacked


def images_of(batch: Any) -> Tensor:
    """Read the images of a batch without labels: a tensor, a tuple or list that starts with one, or a mapping."""
    if isinstance(batch, Mapping):
        batch = _first(batch, IMAGE_KEYS, "images")
    elif isinstance(batch, Sequence) and len(batch) > 0:
        batch = batch[0]
    images: Tensor = batch
    return images


def check_labels(labels: Tensor, num_classes: int, known: bool = False) -> None:
    """Check that labels are classes in 0 .. num_classes - 1, or distributions over the classes.

    A class may also be -1, not known, unless all must be `known`. Synchronises with the labels' device.
    """
    if labels.is_floating_point():
        sums = labels.sum(-1)
        wrong = ((sums - 1).abs() > 0.01) | (labels < 0).any(-1) | ~sums.isfinite()
        if labels.shape[-1] != num_classes or bool(wrong.any()):
            raise DataError(
                f"Float labels must be distributions over the {num_classes} classes, 0 or more and 1 in sum, and "
                f"{int(wrong.sum())} of {wrong.numel()} are not; their shape is {tuple(labels.shape)}. {PURPOSE}"
            )
        return
    low, high = int(labels.min()), int(labels.max())
    if low == UNKNOWN and known:
        raise DataError("A label is -1, not known, and the method as it is set needs the class of every image.")
    if low < UNKNOWN or high >= num_classes:
        raise DataError(
            f"Label {low if low < UNKNOWN else high} lies outside the {num_classes} classes (0 to {num_classes - 1}): "
            "correct the labels, or build the module with the right num_classes."
        )


def number_of_views(kind: str, peers: int) -> int:
    """Count the views that `per_peer`, `shared` or `per_peer_and_teacher` asks for."""
    counts = {"per_peer": peers, "shared": 1, "per_peer_and_teacher": 2 * peers}
    one_of("method.views", kind, counts)
    return counts[kind]


def check_views(views: Tensor, peers: int, teacher_too: bool = False) -> None:
    """Check that views are [B, C, H, W] or [B, V, C, H, W] with V = 1 or P, or 2 P with `teacher_too`."""
    allowed = (1, peers, 2 * peers) if teacher_too else (1, peers)
    if views.dim() != 4 and not (views.dim() == 5 and views.shape[1] in allowed):
        raise DataError(
            f"Images of a batch must be [B, C, H, W] or [B, V, C, H, W] with V = 1 or V = {peers} (the peers), got "
            f"{views.dtype} {list(views.shape)}. {PURPOSE}"
        )


@contextmanager
def explain_shape_errors(views: Tensor, network: nn.Module) -> Iterator[None]:
    """Name the shape and type of `views` in the error of a network that takes other channels or another type."""
    try:
        yield
    except RuntimeError as error:
        kind = next((weight.dtype for weight in network.parameters() if weight.is_floating_point()), views.dtype)
        if "channels, but got" not in str(error) and (views.dtype == kind or "type" not in str(error)):
            raise
        raise DataError(
            f"The network cannot process a batch of images {views.dtype} {list(views.shape)} ({error}): convert them "
            f"to {kind} and [B, C, H, W] in the data set's transform, or build the module with their channels."
        ) from error


def _first(batch: Mapping[Any, Any], keys: Sequence[str], what: str) -> Any:
    for key in keys:
        if key in batch:
            return batch[key]
    names = ", ".join(map(str, batch))
    raise DataError(
        f"No {what} in a batch with keys {names}: give batch_keys={{'images': KEY, 'labels': KEY}}, or name them one "
        f"of {', '.join(keys)}."
    )
