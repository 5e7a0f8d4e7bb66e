"""What a checkpoint may ask for and must hold: its file may be a stranger's, or of a training that has diverged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from dkel_lightning.errors import CheckpointError
from dkel_lightning.modules.peers import named_weights
from dkel_lightning.settings.backbone import reads_a_folder

_MOST_PIXELS = 1 << 24
# Classifiers that are replaced, and draws that are not kept, are no weights of the file.
_MOST_TIMES, _ALWAYS = 4, 1 << 20


@contextmanager
def no_more_than(state_dict: Mapping[str, Any], recipe: Mapping[str, Any], path: str | Path) -> Iterator[None]:
    """Build within the size of a file: as many weights as it holds, before they are drawn.

    Raises:
        CheckpointError: its recipe asks for more.
    """
    held = [value for value in state_dict.values() if isinstance(value, Tensor) and value.layout is torch.strided]
    longest = max((size for value in held for size in value.shape), default=0)
    _refuse_counts(recipe, {"peers": len(held), "num_classes": longest, "in_channels": longest}, path)
    left = _MOST_TIMES * sum(value.numel() for value in held) + _ALWAYS

    def count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal left
        left -= 0 if parameter is None or is_lazy(parameter) else parameter.numel()
        if left < 0:
            raise _larger(path, "networks of more weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _refuse_counts(recipe: Mapping[str, Any], most: Mapping[str, int], path: str | Path) -> None:
    method = recipe.get("method")
    given = {**recipe, "samples": method.get("samples") if isinstance(method, Mapping) else None}
    for key, bound in {**most, "samples": most["num_classes"]}.items():
        asked = given.get(key) or 0
        count = len(asked) if isinstance(asked, list | tuple) else asked
        if not isinstance(count, int) or count > bound:
            raise _larger(path, f"{key}={asked if count is asked else count}")
    size = recipe.get("image_size") or (1, 1)
    if not all(isinstance(each, int) for each in size) or size[0] * size[-1] > _MOST_PIXELS:
        raise CheckpointError(f"{path} asks for images of {size} pixels, more than {_MOST_PIXELS}: it was edited.")


def _larger(path: str | Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} asks for {what} than it holds: it was edited; use another checkpoint.")


def refuse_folder(path: str | Path, key: str, name: object) -> None:
    """Refuse a model that is read from a folder of the file's choice.

    Raises:
        CheckpointError: `name` is one; `key` is what names it on purpose.
    """
    if reads_a_folder(name):
        raise CheckpointError(
            f"{path} was trained with {name}, and no file chooses a folder that is read: pass {key}= to load it "
            "(trust=true on the command line)."
        )


def refuse_non_finite(module: nn.Module, path: str | Path) -> None:
    """Refuse weights and running statistics that are no numbers.

    Raises:
        CheckpointError: with how many there are and the first of them.
    """
    held = named_weights(module)
    bad = [name for name, value in held if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"{path} holds NaN or infinity in {len(bad)} of {len(held)} weights (the first is {bad[0]}): its training "
            "has diverged; use a checkpoint from before that."
        )
