"""Writing a network as a Python file of plain torch code, with the names of its weights kept.

Two ways, the first that works: a tree of torch.nn layers with short forwards (torch.fx, one module deep), which reads
like a network written by hand and can be trained further; or the operations of `torch.export`, which exist for nearly
every network, for inference. Either is built and compared with the network before it is returned.
"""

from __future__ import annotations

import ast
import inspect
import math
import operator
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.export.metadata import Preprocessing
from dkel_lightning.networks import Branch, SinglePeer

_WIDTH = 110


class _NotPlainError(Exception):
    """The network cannot be written in this way."""


def source(
    network: nn.Module, example: Tensor, preprocessing: Preprocessing, title: str, weights: str
) -> tuple[str, dict[str, Tensor]]:
    """Write `network` as the text of a Python file, and gather the weights that it loads.

    Args:
        network: in eval mode.
        example: a few inputs [B, C, H, W], on which file and network are compared.
        preprocessing: written into the file.
        title: one line that says what the network is.
        weights: name of the weights' file.

    Raises:
        ConfigError: it cannot be written; says why.
    """
    reasons = []
    for write in (_tree, _graph):
        try:
            code, constants = write(network, example)
            text = _file(code, preprocessing, title, weights)
            tensors = {**network.state_dict(), **constants}
            _compare(text, network, tensors, example)
            return text, {name: value.detach().contiguous().clone() for name, value in tensors.items()}
        except Exception as error:  # tracing someone's network fails in any way it likes
            reasons.append(f"{write.__name__[1:]}: {type(error).__name__}: {str(error).splitlines()[:1]}")
    raise ConfigError(
        f"The network cannot be written as plain torch code ({'; '.join(reasons)}): save "
        "module.deploy().state_dict() and build the network from its own class, or try another export.format."
    )


def _compare(text: str, network: nn.Module, tensors: Mapping[str, Tensor], example: Tensor) -> None:
    names: dict[str, Any] = {"__name__": "model"}
    exec(compile(text, "model.py", "exec"), names)
    built = names["build"]()
    built.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        found, expected = built.eval()(example), network(example)
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
        raise _NotPlainError(f"the code gives other logits, by {(found - expected).abs().max():g}")


def _file(code: str, preprocessing: Preprocessing, title: str, weights: str) -> str:
    read = (
        'torch.load(path, map_location="cpu", weights_only=True)' if weights.endswith(".pt") else "load_file(str(path))"
    )
    extra = "" if weights.endswith(".pt") else "from safetensors.torch import load_file\n"
    uses = [f"import {name}\n" for name in ("operator",) if re.search(rf"\b{name}\.", code)]
    numbers = [name for name in ("inf", "nan") if re.search(rf"\b{name}\b", code)]
    uses += [f"from math import {', '.join(numbers)}\n"] if numbers else []
    channels, height, width = preprocessing.shape
    title = title.replace("\\", "/").replace('"', "'")  # it ends in a docstring
    return f'''"""{title}

Made by dkel_lightning, which it does not need. Images [B, {channels}, {height}, {width}] -> logits.

    network = load()
    probabilities = network(preprocess(images)).softmax(-1)  # images: uint8 [B, {channels}, {height}, {width}]
"""

{"".join(uses)}from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn
{extra}
MEAN = {list(preprocessing.mean)}
STD = {list(preprocessing.std)}
CLASSES = {list(preprocessing.classes)}


def load(path=Path(__file__).with_name({weights!r}) if "__file__" in globals() else {weights!r}):
    """Build the network, load its weights, and put it into eval mode."""
    network = build()
    network.load_state_dict({read})
    return network.eval()


def preprocess(images):
    """Scale uint8 images [B, C, H, W] of the right size to [0, 1] and normalise them."""
    mean, std = torch.tensor(MEAN).view(-1, 1, 1), torch.tensor(STD).view(-1, 1, 1)
    return (images.float() / 255 - mean) / std


{code}'''


# ---------------------------------------------------------------------- a tree of layers


class _Call(nn.Module):
    """One peer without the library's own modules: trunk, then branch."""

    def __init__(self, trunk: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.branch = branch

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.branch(self.trunk(images))
        return logits


class _Ends(nn.Module):
    """A branch that returns its logits alone."""

    def __init__(self, body: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.classifier = classifier

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.body(inputs))
        return logits


_NAMES = {"_Call": "Network", "_Ends": "Branch"}


class _OneLevel(fx.Tracer):
    """Takes every child of the traced module as it is."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Say yes."""
        return True


def _tree(network: nn.Module, example: Tensor) -> tuple[str, dict[str, Tensor]]:
    if not isinstance(network, SinglePeer):
        raise _NotPlainError("it is no single peer")
    tree = _Tree()
    whole = tree.expression(_Call(network.trunk, _Ends(network.branch.body, network.branch.classifier)), 4)
    return (
        f'{tree.classes()}def build():\n    """Build the network, its weights not yet loaded."""\n    return {whole}\n',
        {},
    )


class _Tree:
    """Writes modules as expressions, and one class for each kind of module that is not torch's own."""

    def __init__(self) -> None:
        self._bodies: dict[tuple[str, str], str] = {}

    def classes(self) -> str:
        """Write the classes that the expressions use."""
        kinds = [f"class {name}(Parts):\n{_indented(body)}\n\n\n" for (_, body), name in self._bodies.items()]
        return _PARTS + "".join(kinds)

    def expression(self, module: nn.Module, indent: int) -> str:
        """Write what builds `module`, its later lines indented."""
        if isinstance(module, Branch | SinglePeer):
            raise _NotPlainError("a peer within a peer")
        if type(module).forward is nn.Sequential.forward:
            return self._sequential(module, indent)
        if getattr(nn, type(module).__name__, None) is type(module) and type(module) is not nn.ModuleList:
            return "nn.Module()" if type(module) is nn.Module and not module._modules else self._layer(module, indent)
        return self._composite(module, indent)

    def _layer(self, module: nn.Module, indent: int) -> str:
        if type(module) is nn.Module:
            return self._parts("Parts", module, indent)
        if module._modules:
            raise _NotPlainError(f"{type(module).__name__} has modules of its own")
        return f"nn.{type(module).__name__}({', '.join(_arguments(module))})"

    def _sequential(self, module: nn.Module, indent: int) -> str:
        children = _children(module)
        inner = [(name, self.expression(child, indent + 4)) for name, child in children.items()]
        pad = " " * (indent + 4)
        if list(children) == [str(i) for i in range(len(children))]:
            return _joined("nn.Sequential(", [text for _, text in inner], ")", pad)
        return _joined("nn.Sequential(OrderedDict(", [f"{_key(name)}={text}" for name, text in inner], "))", pad)

    def _composite(self, module: nn.Module, indent: int) -> str:
        body = _forward(module)
        kind = type(module).__name__
        kind = _NAMES.get(kind, kind)
        if (kind, body) not in self._bodies:
            taken = set(self._bodies.values()) | {"Parts"}
            named = (kind if n == 1 else f"{kind}{n}" for n in range(1, len(taken) + 2))
            self._bodies[kind, body] = next(name for name in named if name not in taken)
        return self._parts(self._bodies[kind, body], module, indent)

    def _parts(self, name: str, module: nn.Module, indent: int) -> str:
        parts = {key: self.expression(child, indent + 4) for key, child in _children(module).items()}
        parts |= {key: f"nn.Parameter({_empty(value)})" for key, value in _own(module._parameters)}
        for key, value in _own(module._buffers):
            if key in module._non_persistent_buffers_set:
                raise _NotPlainError(f"{type(module).__name__}.{key} is not among the weights")
            parts[key] = _empty(value)
        if all(key.isidentifier() for key in parts):
            return _joined(f"{name}(", [f"{key}={text}" for key, text in parts.items()], ")", " " * (indent + 4))
        return _joined(f"{name}(**{{", [f"{key!r}: {text}" for key, text in parts.items()], "})", " " * (indent + 4))


_PARTS = '''class Parts(nn.Module):
    """A module made of named parts: layers, parameters, buffers."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            elif isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            else:
                self.register_buffer(name, part)


'''


def _children(module: nn.Module) -> dict[str, nn.Module]:
    # Not named_children, which leaves out a module that comes a second time.
    return {name: child for name, child in module._modules.items() if child is not None}


def _own(tensors: Mapping[str, Tensor | None]) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, value) for name, value in tensors.items() if value is not None)


def _empty(value: Tensor) -> str:
    return f"torch.zeros({list(value.shape)}, dtype={value.dtype})"


def _arguments(module: nn.Module) -> Iterator[str]:
    """Write the arguments that give a layer of torch again, those that differ from their defaults."""
    if isinstance(module, nn.Identity):
        return  # it takes whatever it is given
    for name, parameter in inspect.signature(type(module)).parameters.items():
        # A teacher's momentum of 0 belongs to its training; what trains the network further wants torch's own.
        if name in ("device", "dtype", "momentum") or name.startswith("_"):
            continue
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise _NotPlainError(f"{type(module).__name__} takes {name}")
        if not hasattr(module, name):
            raise _NotPlainError(f"{type(module).__name__} does not tell its {name}")
        value = getattr(module, name)
        if name == "bias":
            value = value is not None and value is not False
        if isinstance(value, tuple) and isinstance(parameter.default, int) and len(set(value)) == 1:
            value = value[0]  # the 1 that torch keeps as (1, 1)
        if parameter.default is parameter.empty:
            yield _literal(value)
        elif value != parameter.default:
            yield f"{name}={_literal(value)}"


def _forward(module: nn.Module) -> str:
    """Write the forward of one module, calling its children."""
    code = _OneLevel().trace(module).python_code("self")
    text = re.sub(r";  (?:\w+ = )+None\b", "", code.src)
    text = re.sub(r"[ \t]*#.*$", "", text, flags=re.MULTILINE)
    (function,) = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    for argument in function.args.args:
        argument.annotation = None
    function.returns = None
    used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    foreign = [name for name in used & code.globals.keys() if name not in ("torch", "inf", "nan")]
    if foreign:
        raise _NotPlainError(f"{type(module).__name__} uses {', '.join(foreign)}")
    return ast.unparse(function)


def _key(name: str) -> str:
    if not name.isidentifier():
        raise _NotPlainError(f"a module is called {name}")
    return name


def _joined(start: str, items: list[str], end: str, pad: str) -> str:
    line = f"{start}{', '.join(items)}{end}"
    if "\n" not in line and len(line) + len(pad) <= _WIDTH:
        return line
    return "\n".join([start, *(f"{pad}{item}," for item in items), f"{pad[4:]}{end}"])


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else line for line in text.splitlines())


# ---------------------------------------------------------------------- the operations of torch.export


_CHECKS = ("_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size")


def _graph(network: nn.Module, example: Tensor) -> tuple[str, dict[str, Tensor]]:
    program = program_of(network, example)
    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = signature.inputs_to_lifted_tensor_constants
    held |= {node: f"constants.{name.replace('.', '_')}" for node, name in constants.items()}
    extra = {held[node]: _tensor(program.constants[name]) for node, name in constants.items()}
    # Buffers that are not among the weights are constants too.
    missing = {name for name in signature.inputs_to_buffers.values() if name not in network.state_dict()}
    extra |= {name: _tensor(program.constants[name]) for name in missing}
    lines = [line for node in program.graph.nodes for line in _operation(node, held)]
    (images,) = signature.user_inputs
    table = {**network.state_dict(), **extra}
    learnt = {name for name, _ in network.named_parameters()}
    rows = [f"    ({name!r}, {list(t.shape)}, {t.dtype}, {name in learnt})," for name, t in table.items()]
    head = _GRAPH.format(rows="\n".join(rows), images=images)
    return head + "\n".join(f"        {line}" for line in lines) + _BUILD, extra


_GRAPH = '''TENSORS = [  # name, shape, type, whether it is a parameter
{rows}
]


class Network(nn.Module):
    """The network's operations one by one, for inference."""

    def __init__(self):
        super().__init__()
        for name, shape, dtype, is_parameter in TENSORS:
            *path, last = name.split(".")
            owner = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]
            tensor = torch.zeros(shape, dtype=dtype)
            if is_parameter:
                owner.register_parameter(last, nn.Parameter(tensor))
            else:
                owner.register_buffer(last, tensor)

    def forward(self, {images}):
        held = dict(self.named_parameters(remove_duplicate=False))
        held.update(self.named_buffers(remove_duplicate=False))
'''
_BUILD = '''


def build():
    """Build the network, its weights not yet loaded."""
    return Network()
'''


def program_of(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Trace a network with a batch of any size, without a word of where its code lies.

    Raises:
        ConfigError: torch.export cannot trace it.
    """
    name = next(iter(inspect.signature(network.forward).parameters))
    try:
        with torch.no_grad():
            program = torch.export.export(
                network, (example_of(example),), dynamic_shapes={name: {0: torch.export.Dim("batch", min=1)}}
            )
    except Exception as error:  # the forward of someone's network fails in any way it likes
        raise ConfigError(f"torch.export cannot trace this network: {str(error).splitlines()[0]}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def example_of(images: Tensor) -> Tensor:
    """Take two images to trace with: a batch of one would be taken for the only size."""
    return images[:2] if len(images) > 1 else images.repeat(2, 1, 1, 1)


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise _NotPlainError(f"it holds a {type(value).__name__}")
    return value


def _operation(node: fx.Node, held: Mapping[str, str]) -> Iterator[str]:
    if node.op == "placeholder":
        return
    if node.op == "output":
        (result,) = cast("tuple[fx.Node]", node.args[0])
        yield f"return {_literal(result, held)}"
    elif node.op != "call_function":
        raise _NotPlainError(f"an operation {node.op}")
    elif not any(check in str(node.target) for check in _CHECKS):
        arguments = [_literal(value, held) for value in node.args]
        arguments += [f"{key}={_literal(value, held)}" for key, value in node.kwargs.items()]
        yield f"{node.name} = {_function(node.target)}({', '.join(arguments)})"


def _function(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return f"torch.ops.{target}"
    name = getattr(target, "__name__", "")
    if getattr(operator, name, None) is target:
        return f"operator.{name}"
    raise _NotPlainError(f"an operation {target}")


def _literal(value: Any, held: Mapping[str, str] | None = None) -> str:
    """Write a value as Python code; nodes of a graph by their names."""
    if isinstance(value, fx.Node) and held is not None:
        return f"held[{held[value.name]!r}]" if value.name in held else value.name
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(_literal(item, held) for item in value)}]"
    if isinstance(value, tuple):
        return f"({', '.join(_literal(item, held) for item in value)}{',' if len(value) == 1 else ''})"
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return str(value)
    if isinstance(value, torch.device):
        return f"torch.{value!r}"
    raise _NotPlainError(f"a {type(value).__name__}")
