"""A dry run of a torch classifier: its final linear layer, and the modules before a split."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks.watching import find

IMAGE_SHAPE = (3, 224, 224)


@dataclass(frozen=True)
class Outline:
    """Result of a dry run.

    Attributes:
        classifier: name of the final linear layer.
        feature_dim: width of its input.
        num_classes: width of its output.
        split_at: module at which the branches begin; None for a model that is not split.
        before: the outermost modules that run before the split.
        used_before: parameters and buffers that the forward reads before the split.
        batched: by module, whether the first dimension of each tensor that it returns is the batch (for the split: of
            each of its arguments).
    """

    classifier: str
    feature_dim: int
    num_classes: int
    split_at: str | None
    before: tuple[str, ...]
    used_before: frozenset[str]
    batched: Mapping[str, Sequence[bool]]


@dataclass(eq=False)
class _Call:
    """A call of a module."""

    name: str
    caller: _Call | None
    arguments: Any
    returned: Any = None
    is_open: bool = True


class _Pass(TorchFunctionMode):
    """Records the calls of a model's modules, and which of its tensors are read before the split."""

    def __init__(self, model: nn.Module, split_at: str | None) -> None:
        super().__init__()
        self.model = model
        self.split_at = split_at
        self.calls: list[_Call] = []
        self.before: list[_Call] = []
        self.used_before: set[str] = set()
        self._open: list[_Call] = []
        self._names = {id(tensor): name for name, tensor in tensors_of(model).items()}
        self._is_before = split_at is not None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._is_before:
            self.used_before |= {self._names[id(x)] for x in tree_leaves((args, kwargs)) if id(x) in self._names}
        return func(*args, **(kwargs or {}))

    def run(self, images: Tensor) -> Any:
        hooks = []
        for name, module in self.model.named_modules():
            hooks.append(module.register_forward_pre_hook(self._begin(name), with_kwargs=True))
            hooks.append(module.register_forward_hook(self._end))
        try:
            with self:
                return self.model(images)
        finally:
            for hook in hooks:
                hook.remove()

    def _begin(self, name: str) -> Callable[..., None]:
        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            call = _Call(name, self._open[-1] if self._open else None, (args, kwargs))
            if name == self.split_at and self._is_before:
                self._is_before = False
                self.before = [
                    done for done in self.calls if not done.is_open and (done.caller is None or done.caller.is_open)
                ]
            self.calls.append(call)
            self._open.append(call)

        return begin

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self._open.pop()
        call.returned, call.is_open = output, False


@torch.no_grad()
def observe(
    model: nn.Module, image_shape: tuple[int, int, int], classifier: str | None = None, split_at: str | None = None
) -> Outline:
    """Pass noise through a copy of `model`, in training and in evaluation mode."""
    if classifier is not None:
        find(model, classifier, "classifier")
    model = copy.deepcopy(model)
    weight = next(model.parameters())
    noise = torch.randn(3, *image_shape, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    passes, outputs = [], []
    with torch.random.fork_rng([weight.device] if weight.device.type == "cuda" else []):
        # Two batch sizes: a dimension that stays the same is not the batch.
        for training, images in ((True, noise[:2]), (False, noise)):
            passes.append(_Pass(model.train(training), split_at))
            try:
                outputs.append(passes[-1].run(images.clone()))
            except Exception as error:  # a user's model may raise anything
                channels, height, width = image_shape
                raise ConfigError(
                    f"{type(model).__name__} does not take images of {channels} channels and {height}x{width} "
                    f"({str(error).strip()}): set in_channels and image_size to those of your images."
                ) from error
    if type(outputs[0]) is not type(outputs[1]):
        kinds = " and ".join(type(output).__name__ for output in outputs)
        raise ConfigError(
            f"{type(model).__name__} returns different types in training and evaluation ({kinds}): return logits"
            + (", with aux_logits=False." if getattr(model, "aux_logits", False) else ".")
        )
    last = _classifier_call(model, passes[1].calls, logits_of(outputs[1]), classifier)
    features = tree_leaves(last.arguments)
    if len(features) != 1 or features[0].dim() < 2 or features[0].shape[2:].numel() != 1:
        raise ConfigError(
            f"The features of a peer must have the form [batch, width], not {list(features[0].shape)}, which "
            f"{last.name!r} is given: let the model pool and flatten before it."
        )
    if split_at is not None:
        _check_split(model, split_at, passes[1].calls, last)
    before = {call.name: None for run in passes for call in run.before}
    return Outline(
        last.name,
        features[0].shape[1],
        last.returned.shape[1],
        split_at,
        tuple(before),
        frozenset(passes[0].used_before | passes[1].used_before),
        _batched(*passes),
    )


def _batched(*passes: _Pass) -> dict[str, list[bool]]:
    sizes: list[dict[str, list[Any]]] = []
    for run in passes:
        crossing = {call.name: call.returned for call in run.before}
        crossing |= {call.name: call.arguments for call in run.calls if call.name == run.split_at}
        sizes.append(
            {name: [getattr(leaf, "shape", ())[:1] for leaf in tree_leaves(value)] for name, value in crossing.items()}
        )
    names = sizes[0].keys() & sizes[1].keys()
    return {name: [a != b for a, b in zip(sizes[0][name], sizes[1][name], strict=False)] for name in names}


def logits_of(output: Any) -> Tensor:
    """Return the logits of a model's output: a tensor, or a mapping or object that has `logits`."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise ConfigError(
            f"The model returns a {type(output).__name__} without logits: let its forward return logits [B, classes]."
        )
    return logits


class LogitsOf(nn.Module):
    """Wrap a model of any kind as images [B, C, H, W] -> logits [B, classes]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model(images))


def is_linear(module: nn.Module) -> bool:
    """Return whether a layer can be the classifier: linear, or a 1x1 convolution of pooled features."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))


def _classifier_call(model: nn.Module, calls: list[_Call], logits: Tensor, name: str | None) -> _Call:
    """Find the call of the classifier; its output must be the logits."""
    kind = type(model).__name__
    linear = [call for call in calls if is_linear(model.get_submodule(call.name))]
    if name is None:
        if not linear:
            ends = next((call.name for call in reversed(calls) if not _children(model.get_submodule(call.name))), kind)
            raise ConfigError(
                f"{kind} calls no nn.Linear, so it has no classifier to replace (it ends with {ends!r}): end it with "
                "one on pooled features, such as nn.Sequential(model, nn.Flatten(), nn.Linear(width, classes))."
            )
        name = linear[-1].name
    elif not is_linear(model.get_submodule(name)):
        raise ConfigError(
            f"The classifier {name!r} is a {type(model.get_submodule(name)).__name__}, but it must be an nn.Linear: "
            "name another one."
        )
    matches = [call for call in linear if call.name == name]
    if len(matches) != 1:
        raise ConfigError(
            f"The classifier {name!r} is called {len(matches)} times, but must be called once: name the final "
            "nn.Linear with `classifier`."
        )
    output = matches[0].returned
    if output.numel() != logits.numel() or not torch.equal(output.reshape(-1), logits.reshape(-1)):
        later = [call.name for call in calls[calls.index(matches[0]) + 1 :]]
        what = f"what follows it ({', '.join(later[:3])})" if later else "what the forward does after it"
        raise ConfigError(
            f"The output of the classifier {name!r} must be the model's output, but {what} changes it: name the final "
            "nn.Linear with `classifier`, or wrap the model so that it ends there."
        )
    return matches[0]


def _check_split(model: nn.Module, split_at: str, calls: list[_Call], classifier: _Call) -> None:
    starts = [place for place, call in enumerate(calls) if call.name == split_at]
    if not starts:
        inner = [f"{split_at}.{child}" for child in _children(model.get_submodule(split_at))]
        hint = f"one of its children {', '.join(inner)}" if inner else "another module"
        raise ConfigError(f"The forward of the model never calls {split_at!r}: split at {hint}.")
    if len(starts) > 1:
        raise ConfigError(
            f"{split_at!r} is called {len(starts)} times, so the split is not one point: split at a module called once."
        )
    if calls.index(classifier) < starts[0]:
        raise ConfigError(f"The classifier {classifier.name!r} comes before {split_at!r}: split at an earlier module.")


def _children(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_children()]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name."""
    return dict([*model.named_parameters(), *model.named_buffers()])
