"""Supervision complexity: how hard targets are for a network, by the kernel of its own gradients.

Source: Harutyunyan et al., ICLR 2023, arXiv 2301.12245. The normalisation (tr K and 1/n), the mean over outputs
instead of the block kernel, the ridge, and targets minus 1/C are our reading.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from dkel_lightning.errors import ConfigError

RIDGE = 1e-4


def gradient_kernel(network: nn.Module, images: Tensor, classes: int, chunk: int = 64) -> Tensor:
    """Compute the kernel of a classifier's gradients, averaged over its outputs: images [n, ...] -> [n, n], float64.

    `K_ij = (1/C) sum_c <d z_c(x_i), d z_c(x_j)>`, over all parameters, biases included. It is summed over groups of
    layers and outputs, so the gradients of n samples exist for one group at a time.

    Args:
        network: [b, ...] -> logits [b, C]; used in eval mode, as a copy in float64.
        images: on the network's device.
        classes: C.
        chunk: samples whose gradients are computed together.
    """
    network = copy.deepcopy(network).double().eval()
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    state = {**parameters, **dict(network.named_buffers())}

    def output(layer: Mapping[str, Tensor], image: Tensor, index: int) -> Tensor:
        logits: Tensor = functional_call(network, {**state, **layer}, (image.unsqueeze(0),))
        return logits[0, index]

    # A group costs a pass, so parameters that are small beside the largest one share a group.
    most = max(250_000, *(value.numel() for value in parameters.values()))
    groups: list[dict[str, Tensor]] = [{}]
    for name, value in parameters.items():
        if sum(map(Tensor.numel, groups[-1].values())) + value.numel() > most:
            groups.append({})
        groups[-1][name] = value
    images = images.double()
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)
    for group in groups:
        for index in range(classes):
            gradients = vmap(grad(output), in_dims=(None, 0, None), chunk_size=chunk)(group, images, index)
            for gradient in gradients.values():
                kernel += gradient.flatten(1) @ gradient.flatten(1).T / classes
    return kernel


def supervision_complexity(kernel: Tensor, targets: Tensor, ridge: float = RIDGE) -> float:
    """Compute the adjusted complexity `(1/n) sqrt(tr K sum_c y_c^T (K + e I)^-1 y_c)` of targets [n, C].

    It does not change when K [n, n] is scaled, and is the root mean squared norm of the targets' rows where K = c I.

    Args:
        kernel: positive semi-definite.
        targets: as `centred` returns them.
        ridge: e as a share of the mean of K's diagonal.
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
