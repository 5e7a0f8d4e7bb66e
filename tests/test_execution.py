"""Compiled networks train as eager ones do."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dkel_lightning import DistillationModule
from dkel_lightning.errors import ConfigError
from dkel_lightning.execution import compile_networks
from tests.modules.toy import build, train_loader, trainer, val_loader

SAMPLES = 20  # batches of 8, 8 and 4


def fit(module: DistillationModule, **settings: Any) -> dict[str, Tensor]:
    torch.manual_seed(7)
    trainer(**settings).fit(module, train_loader(SAMPLES), val_loader())
    return module.state_dict()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Compile with a backend that runs the captured graphs as they are, and count them."""
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    return graphs


@pytest.mark.parametrize(
    ("method", "settings"), [("dkel", {}), ("ffl", {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05})]
)
def test_compiled_networks_end_where_eager_ones_do(method: str, settings: dict[str, Any], backend: list[int]) -> None:
    eager, compiled = build(method), build(method, execution="compile")
    expected = fit(eager, **settings)
    assert backend == []
    found = fit(compiled, **settings)
    assert backend
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name, equal_nan=True)


def test_nothing_compiled_is_left_after_a_fit_or_in_a_copy(backend: list[int]) -> None:
    module = build(execution="compile")
    compile_networks(module._parts, module.execution)
    assert all(part.compiled is not None for part in module._parts)
    assert all(part.compiled is None for part in copy.deepcopy(module)._parts)
    fit(module)
    assert all(part.compiled is None for part in module._parts)


def test_channels_last_trains_alike_and_leaves_the_deployed_network_as_it_was() -> None:
    expected = fit(build())
    module = build(execution={"channels_last": True})
    found = fit(module)
    kernels = [weight for weight in module.student.parameters() if weight.dim() == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert all(weight.is_contiguous() for weight in module.deploy().parameters())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name, equal_nan=True)


@pytest.mark.parametrize(
    ("execution", "message"),
    [
        ("cuda_graph", r"execution\.name must be one of eager, compile, reduce_overhead"),
        ({"mode": "eager"}, r"Unknown key execution\.mode\..* Keys of execution: channels_last, name, threads"),
        ({"channels_last": "auto"}, r"execution\.channels_last must be true or false"),
    ],
)
def test_an_unknown_execution_is_named(execution: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(execution=execution)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, where CUDA graphs are replayed")
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
def test_replayed_graphs_follow_eager_training(settings: dict[str, Any]) -> None:
    expected = fit(build(), accelerator="gpu", **settings)
    found = fit(build(execution="reduce_overhead"), accelerator="gpu", **settings)
    for name, value in expected.items():
        if not name.startswith("scores."):
            torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-2, msg=name)
