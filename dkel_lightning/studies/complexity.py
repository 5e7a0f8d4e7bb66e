"""Supervision complexity: how hard targets are for a network, by the kernel of its own gradients.

Source: Harutyunyan et al., ICLR 2023, arXiv 2301.12245. Evidence and our readings: docs/complexity.md.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from dkel_lightning.errors import ConfigError

RIDGE = 1e-4


def gradient_kernel(network: nn.Module, images: Tensor, classes: int, chunk: int = 64) -> Tensor:
    """Compute the kernel of a classifier's gradients, averaged over its outputs: images [n, ...] -> [n, n], float64.

    `K_ij = (1/C) sum_c <d z_c(x_i), d z_c(x_j)>`, over all parameters, biases included. It is summed over layers and
    outputs, so that at once the gradients of n samples with respect to one layer exist, and no more.

    Args:
        network: [b, ...] -> logits [b, C]; looked at in eval mode, as a copy in float64.
        images: on the network's device.
        classes: C.
        chunk: samples whose gradients are computed together.
    """
    network = copy.deepcopy(network).double().eval()
    state = {name: value.detach() for name, value in (*network.named_parameters(), *network.named_buffers())}
    images = images.double()

    def output(layer: Mapping[str, Tensor], image: Tensor, index: int) -> Tensor:
        logits: Tensor = functional_call(network, {**state, **layer}, (image.unsqueeze(0),))
        return logits[0, index]

    kernel = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)
    for layer in _layers(network):
        for index in range(classes):
            each = vmap(grad(output), in_dims=(None, 0, None), chunk_size=chunk)(layer, images, index)
            for gradients in each.values():
                rows = gradients.flatten(1)
                kernel += rows @ rows.T / classes
    return kernel


def _layers(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Put parameters that are small beside the largest one together, since every group costs a pass of its own."""
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    most = max(250_000, *(value.numel() for value in parameters.values()))
    group: dict[str, Tensor] = {}
    for name, value in parameters.items():
        if group and sum(map(Tensor.numel, group.values())) + value.numel() > most:
            yield group
            group = {}
        group[name] = value
    yield group


def supervision_complexity(kernel: Tensor, targets: Tensor, ridge: float = RIDGE) -> float:
    """Compute the adjusted complexity `(1/n) sqrt(tr K sum_c y_c^T (K + e I)^-1 y_c)` of targets [n, C].

    It does not change when K [n, n] is scaled, and is the root mean squared norm of the targets' rows where K = c I.

    Args:
        kernel: positive semi-definite.
        targets: as `centred` makes them.
        ridge: e as a share of the mean of K's diagonal.

    Raises:
        ConfigError: K + e I is not positive definite.
    """
    count, mean = len(kernel), kernel.diagonal().mean()
    factor, fault = torch.linalg.cholesky_ex(kernel + ridge * mean * torch.eye(count).to(kernel))
    if fault:
        raise ConfigError(
            f"The kernel of {count} images cannot be inverted: two images are alike, or the network has too few "
            f"parameters. Raise the ridge ({ridge:g}), or take fewer images."
        )
    targets = targets.to(kernel)
    norm = (targets * torch.cholesky_solve(targets, factor)).sum()
    return float((count * mean * norm).sqrt() / count)


def centred(probabilities: Tensor) -> Tensor:
    """Subtract 1 / C from distributions [n, C], one-hot labels among them: [n, C] in float64."""
    return probabilities.double() - 1 / probabilities.shape[-1]
