"""Cut any torch classifier in two at a named module: a trunk that peers share, and a branch for each.

The classifier's forward is traced with torch.fx, but only as deep as the cut needs: every module is taken as it is,
except those that contain the split module or the classifier. So the forwards of torchvision's and timm's blocks never
need to be traceable, only those on the path to the split.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks.peers import Branch, BranchedNetwork

_ROOT = "model."
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def branch_model(
    model: nn.Module,
    split_at: str,
    peers: int,
    num_classes: int,
    *,
    classifier: str | None = None,
    example: Tensor | None = None,
    redraw_branches: bool = True,
    views_per_pass: str = "all",
) -> BranchedNetwork:
    """Cut `model` before the module `split_at`: what runs earlier is the trunk, the rest becomes `peers` branches.

    The model must map one image tensor [B, C, H, W] to logits, and end with a linear layer. It is copied, never
    changed; the trunk keeps its weights (pretrained ones survive) and the children keep their names, so that
    `network.trunk.layer1` and `network.branches[0].body.layer4` exist for a torchvision ResNet split at `layer4`.
    Examples of split points: torchvision ResNet `layer4`, VGG `features.24`, MobileNet `features.9`, ConvNeXt
    `features.6`, DenseNet `features.denseblock4`; timm ResNet `layer4`, ViT `blocks.8`.

    Each branch is drawn on its own from torch's global CPU generator: `redraw_` for its body, a new linear layer for
    its classifier. The new network is in training mode. Modules of the branches no longer work in place, because
    several branches read one trunk output. Forward hooks of the modules that contain the split module are lost.

    Args:
        model: A classifier, for instance from torchvision or timm.
        split_at: Name of the first module of the branches, as in `model.named_modules()`.
        peers: How many branches, at least 1.
        num_classes: Classes to tell apart, at least 2.
        classifier: Name of the final linear layer; by default the last one called. Its input are the features [B, D].
        example: A few images [B, C, H, W]; when given, trunk and branch are checked to give the model's own logits, and
            the branch to leave the trunk's output as it is.
        redraw_branches: False starts every branch with the model's own weights; its classifier is then replaced only
            if it tells another number of classes apart.
        views_per_pass: `all` or `one`, see `BranchedNetwork`.

    Raises:
        ConfigError: If a number is out of range; a name is unknown; torch.fx cannot trace the forwards on the way to
            the split; they depend on train or eval mode; anything but one tensor crosses the split; trunk and branch
            share a parameter; or the model does not end with a linear layer on features [B, D].
    """
    if peers < 1:
        raise ConfigError(f"peers must be at least 1, not {peers}.")
    if num_classes < 2:
        raise ConfigError(f"num_classes must be at least 2, not {num_classes}.")
    model = copy.deepcopy(model)
    trace, classifier = _trace_to_classifier(model, split_at, classifier)
    trunk, branch = _cut(trace, split_at, classifier)
    _stop_working_in_place(branch)
    if example is not None:
        _check_example(model, trunk, branch, example)
    branches = [_draw_branch(branch, num_classes, redraw_branches) for _ in range(peers)]
    network = BranchedNetwork(trunk, branches, views_per_pass)
    return network.train()


def classes_of(model: nn.Module, split_at: str, classifier: str | None = None) -> int:
    """Count the classes that the classifier of `model` tells apart; arguments and errors of `branch_model`."""
    _, name = _trace_to_classifier(copy.deepcopy(model), split_at, classifier)
    return int(cast(nn.Linear, model.get_submodule(name)).out_features)


@torch.no_grad()
def redraw_(module: nn.Module) -> nn.Module:
    """Redraw the weights of any module in place, at the scale they have, from torch's global CPU generator.

    Works without knowing the architecture: a parameter whose elements are all equal (weight and bias of an untrained
    norm, zero biases, LayerScale) stays; any other is drawn from a normal distribution with its own mean and standard
    deviation, so that the model's own initialisation scale is kept. Trained normalisation layers return to their
    `reset_parameters`, and running statistics are reset. With it an independent teacher is drawn from a user's model.

    Returns:
        The module.
    """
    norms = [child for child in module.modules() if isinstance(child, _NORMS)]
    in_norms = {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}
    for norm in norms:
        if isinstance(norm, _NormBase):
            norm.reset_running_stats()
        # An untrained norm may start at other constants than torch's, such as the zeros of a residual block's last one.
        if not all(_is_constant(parameter) for parameter in norm.parameters(recurse=False)):
            norm.reset_parameters()
    for parameter in module.parameters():
        if id(parameter) not in in_norms and not _is_constant(parameter):
            # Drawn on the CPU, so that a seed gives the same weights wherever the module lies.
            values = parameter.detach().float().cpu()
            drawn = torch.empty_like(values).normal_(float(values.mean()), float(values.std(correction=0)))
            parameter.copy_(drawn)
    return module


def _is_constant(parameter: Tensor) -> bool:
    """Whether there is nothing to redraw: all elements equal, or none that a normal distribution could replace."""
    if parameter.is_meta or not parameter.is_floating_point() or parameter.numel() < 2:
        return True
    return bool(parameter.min() == parameter.max())


# --- tracing ---


class _OneInput(nn.Module):
    """Calls a model with images alone, so that its further arguments keep their defaults under torch.fx."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits


class _PathTracer(fx.Tracer):
    """Traces only into the modules that contain one of `targets`; all others stay whole.

    Attributes:
        starts: For each module called, the length of the graph at each of its calls.
        inside: The modules being traced into, innermost last.
    """

    def __init__(self, targets: Iterable[str]) -> None:
        super().__init__()
        # Otherwise what is computed from a buffer while tracing would be frozen at its present value.
        self.proxy_buffer_attributes = True
        self.targets = [_ROOT + target for target in targets]
        self.starts: dict[str, list[int]] = {}
        self.inside: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(target.startswith(module_qualified_name + ".") for target in self.targets)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if isinstance(self.root, _OneInput) and m is not self.root.model:
            name = self.path_of_module(m).removeprefix(_ROOT)
            self.starts.setdefault(name, []).append(len(self.graph.nodes))
            self.inside.append(name)
        result = super().call_module(m, forward, args, kwargs)
        if self.inside:
            self.inside.pop()  # left in place by an error, which then knows where it arose
        return result


@dataclass(frozen=True)
class _Trace:
    """A traced model: `root.model` is the model, `starts` as in `_PathTracer`."""

    root: nn.Module
    graph: fx.Graph
    starts: dict[str, list[int]]


def _trace_to_classifier(model: nn.Module, split_at: str, classifier: str | None) -> tuple[_Trace, str]:
    """Trace `model`, and find the name of its classifier if none is given."""
    _check_name(model, split_at, "split_at")
    if classifier is None:
        classifier = _last_linear(model, _trace(model, [split_at]))
    _check_name(model, classifier, "classifier")
    if not isinstance(model.get_submodule(classifier), nn.Linear):
        kind = type(model.get_submodule(classifier)).__name__
        raise ConfigError(
            f"The classifier {classifier!r} is a {kind}, but a branch needs an nn.Linear: name another one."
        )
    evaluation = _trace(model.eval(), [split_at, classifier])
    training = _trace(model.train(), [split_at, classifier])
    _free_dropouts(training, evaluation)
    if str(training.graph) != str(evaluation.graph):
        raise ConfigError(
            "The forward of the model, or of a module that contains the split, does different things in train and "
            "eval mode, which a split would freeze: move what differs into a child module of its own"
            + (", or build the model with aux_logits=False." if getattr(model, "aux_logits", False) else ".")
        )
    return training, classifier


def _free_dropouts(training: _Trace, evaluation: _Trace) -> None:
    """Turn each `F.dropout(x, p, self.training)` of both graphs, whose mode tracing froze, into an nn.Dropout."""
    pairs = list(zip(training.graph.nodes, evaluation.graph.nodes, strict=False))
    for number, (node, twin) in enumerate(pairs):
        if node.target is not F.dropout or twin.target is not F.dropout:
            continue
        settings, frozen = _dropout_settings(node), _dropout_settings(twin)
        if (settings["training"], frozen["training"]) != (True, False):
            continue  # the same in both modes, on purpose
        name = f"dropout_{number}"
        for trace, call, source in ((training, node, settings["input"]), (evaluation, twin, frozen["input"])):
            trace.root.add_module(name, nn.Dropout(settings["p"]))
            call.op, call.target, call.args, call.kwargs = "call_module", name, (source,), {}


def _dropout_settings(node: fx.Node) -> dict[str, Any]:
    bound = inspect.signature(F.dropout).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _trace(model: nn.Module, targets: list[str]) -> _Trace:
    tracer = _PathTracer(targets)
    root = _OneInput(model)
    try:
        graph = tracer.trace(root)
    # A forward under tracing may raise anything: torch.fx's own errors, or those of Python code that meets a proxy.
    except Exception as error:
        raise ConfigError(_untraceable(model, tracer, error)) from error
    return _Trace(root, graph, tracer.starts)


def _untraceable(model: nn.Module, tracer: _PathTracer, error: Exception) -> str:
    name = tracer.inside[-1] if tracer.inside else ""
    where = repr(name) if name else "the model"
    kind = type(model.get_submodule(name)).__name__
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.line for frame in frames if "/torch/" not in frame.filename.replace("\\", "/") and frame.line]
    reason = str(error).strip().splitlines()
    return (
        f"torch.fx cannot trace the forward of {where} ({kind}) at `{lines[-1] if lines else '?'}`: "
        f"{reason[0] if reason else type(error).__name__}. Move what depends on the values of a tensor there into a "
        f"child module of its own, or split at a module that {where} does not contain."
    )


def _check_name(model: nn.Module, name: str, setting: str) -> None:
    names = [known for known, _ in model.named_modules() if known]
    if name in names:
        return
    close = difflib.get_close_matches(name, names, n=3)
    choices = f"Did you mean {' or '.join(close)}?" if close else f"Its children are {', '.join(_children(model))}."
    raise ConfigError(f"{setting} names {name!r}, but {type(model).__name__} has no such module. {choices}")


def _children(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_children()]


def _last_linear(model: nn.Module, trace: _Trace) -> str:
    """Name the last nn.Linear that is called; inside a module that was not traced into, the last one it holds."""
    for node in reversed(trace.graph.nodes):
        if node.op == "call_module":
            name = str(node.target).removeprefix(_ROOT)
            inner = [
                child for child, module in model.get_submodule(name).named_modules() if isinstance(module, nn.Linear)
            ]
            if inner:
                return f"{name}.{inner[-1]}".rstrip(".")
    raise ConfigError(
        f"{type(model).__name__} calls no nn.Linear, so it has no classifier to replace: end it with one on pooled "
        "features."
    )


# --- cutting ---


def _cut(trace: _Trace, split_at: str, classifier: str) -> tuple[fx.GraphModule, Branch]:
    """Make the trunk, and one branch with the model's own weights."""
    nodes = list(trace.graph.nodes)
    start = _start_of(trace, split_at)
    logits = _classifier_call(trace, classifier)
    if nodes.index(logits) < start:
        raise ConfigError(f"The classifier {classifier!r} comes before {split_at!r}: split at an earlier module.")
    crossing = _crossing(nodes, start)
    if len(crossing) != 1 or _is_shape(crossing[0]):
        raise ConfigError(_crossing_error(trace, nodes, split_at, start, crossing))
    features = _classifier_input(logits)
    trunk = _subgraph(trace.root, nodes[:start], None, crossing[0])
    body = _subgraph(trace.root, nodes[start : nodes.index(logits)], crossing[0], features)
    linear = trace.root.get_submodule(_ROOT + classifier)
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"{classifier} has become a {type(linear).__name__}")
    branch = Branch(body, linear, linear.in_features, linear.out_features)
    _check_nothing_shared(trunk, branch)
    return trunk, branch


def _start_of(trace: _Trace, split_at: str) -> int:
    calls = trace.starts.get(split_at, [])
    if len(calls) == 1:
        return calls[0]
    if not calls:
        module = trace.root.get_submodule(_ROOT + split_at)
        inner = [f"{split_at}.{child}" for child in _children(module)]
        cure = f"one of its children {', '.join(inner)}" if inner else "another module"
        raise ConfigError(f"The forward of the model never calls {split_at!r}: split at {cure}.")
    raise ConfigError(
        f"{split_at!r} is called {len(calls)} times, so the split is not one point: split at a module called once."
    )


def _classifier_call(trace: _Trace, classifier: str) -> fx.Node:
    calls = [node for node in trace.graph.nodes if node.op == "call_module" and node.target == _ROOT + classifier]
    if len(calls) != 1:
        raise ConfigError(
            f"The classifier {classifier!r} is called {len(calls)} times, but must be called once: name the final "
            "nn.Linear with `classifier`."
        )
    call = calls[0]
    final: Any = next(node for node in trace.graph.nodes if node.op == "output").args[0]
    while isinstance(final, fx.Node) and _is_identity(trace.root, final):
        final = final.args[0]  # timm's heads end with an optional flatten
    if final is not call:
        followers = [_label(user) for user in call.users if user.op != "output"]
        what = f"by {', '.join(followers)}" if followers else "by an output that holds more than its logits"
        raise ConfigError(
            f"The classifier {classifier!r} is followed {what}, but its output must be the model's output: name the "
            "final nn.Linear with `classifier`, or wrap the model so that it ends there."
        )
    return cast(fx.Node, call)


def _is_identity(root: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(root.get_submodule(str(node.target)), nn.Identity)


def _classifier_input(call: fx.Node) -> fx.Node:
    values = [*call.args, *call.kwargs.values()]
    if len(values) != 1 or not isinstance(values[0], fx.Node):
        raise ConfigError("The classifier must be called with one tensor, its features.")
    return values[0]


def _crossing(nodes: list[fx.Node], start: int) -> list[fx.Node]:
    """List the values computed before `start` and used from it on. Parameters are none: each side fetches its own."""
    later = set(nodes[start:])
    return [node for node in nodes[:start] if node.op != "get_attr" and any(user in later for user in node.users)]


def _is_shape(node: fx.Node) -> bool:
    """Whether a value is a size rather than a tensor, as far as the graph tells."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel")
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "getattr":
        return node.args[1] in ("shape", "ndim")
    if node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator":
        inputs = node.all_input_nodes
        return bool(inputs) and all(_is_shape(source) for source in inputs)
    return False


def _crossing_error(trace: _Trace, nodes: list[fx.Node], split_at: str, start: int, crossing: list[fx.Node]) -> str:
    good = {}
    for name, starts in trace.starts.items():
        if len(starts) == 1 and name != split_at:
            values = _crossing(nodes, starts[0])
            if len(values) == 1 and not _is_shape(values[0]) and values[0].op != "placeholder":
                good[name] = abs(starts[0] - start)
    nearest = sorted(good, key=lambda name: good[name])[:3]
    cure = f"split at {' or '.join(nearest)}" if nearest else "split at a module that takes all of its input alone"
    what = ", ".join(_label(node) for node in crossing) or "nothing"
    return f"Exactly one tensor must cross a split, but at {split_at!r} {what} would cross: {cure}."


def _label(node: fx.Node) -> str:
    """Name a node for people."""
    if node.op == "placeholder":
        return "the images"
    if node.op == "call_module":
        return f"the output of {str(node.target).removeprefix(_ROOT)!r}"
    return f"the result of {getattr(node.target, '__name__', node.target)} ({node.name})"


def _subgraph(root: nn.Module, nodes: list[fx.Node], source: fx.Node | None, result: fx.Node) -> fx.GraphModule:
    """Make a module that computes `result` from `source` (a placeholder among `nodes` if None).

    Its modules and parameters are those of `root`, under their names in the user's model.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    attributes: dict[str, Any] = {}
    if source is not None:
        copies[source] = graph.placeholder("trunk_output")

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:  # a parameter or buffer, fetched where it is needed
            take(node)
        return copies[node]

    def take(node: fx.Node) -> None:
        copies[node] = graph.node_copy(node, copied)
        if node.op in ("call_module", "get_attr"):
            name = str(node.target).removeprefix(_ROOT)
            copies[node].target = name
            attributes[name] = _attribute(root, str(node.target))
        if "inplace" in copies[node].kwargs and source is not None:
            copies[node].kwargs = {**copies[node].kwargs, "inplace": False}

    for node in nodes:
        if node.op != "get_attr":
            take(node)
    graph.output(copied(result))
    return fx.GraphModule(attributes, graph)


def _attribute(root: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(root.get_submodule(owner), name)


def _check_nothing_shared(trunk: nn.Module, branch: nn.Module) -> None:
    """Refuse weights that both sides use: copied into the branches, they would no longer be tied."""
    in_trunk = {id(tensor): name for name, tensor in [*trunk.named_parameters(), *trunk.named_buffers()]}
    shared = [in_trunk[id(tensor)] for tensor in [*branch.parameters(), *branch.buffers()] if id(tensor) in in_trunk]
    if shared:
        raise ConfigError(
            f"The parameter {shared[0]!r} is used on both sides of the split: split before its first use or after "
            "its last."
        )


def _stop_working_in_place(branch: nn.Module) -> None:
    for module in branch.modules():
        if getattr(module, "inplace", False) is True:
            module.__dict__["inplace"] = False


def _draw_branch(branch: Branch, num_classes: int, redraw: bool) -> Branch:
    drawn = copy.deepcopy(branch)
    old = drawn.classifier
    if not isinstance(old, nn.Linear):
        raise TypeError(f"a branch ends with a {type(old).__name__}")
    if redraw:
        redraw_(drawn.body).requires_grad_(True)
    if redraw or old.out_features != num_classes:
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
        drawn.classifier = new.to(old.weight.device, old.weight.dtype)
        drawn.num_classes = num_classes
    return drawn


@torch.no_grad()
def _check_example(model: nn.Module, trunk: nn.Module, branch: nn.Module, example: Tensor) -> None:
    for module in (model, trunk, branch):
        module.eval()
    expected = model(example)
    crossing = trunk(example)
    version = crossing._version
    logits = branch(crossing)[0]
    if crossing._version != version:
        raise ConfigError(
            "The branch changes the tensor that crosses the split in place, which would spoil it for the other "
            "branches: split elsewhere, or replace the in-place operation."
        )
    if not torch.allclose(logits, expected, rtol=1e-4, atol=1e-5):
        raise ConfigError(
            "Trunk and branch do not give the model's own logits on the example: the forward of a module that "
            "contains the split must depend on its input alone."
        )
