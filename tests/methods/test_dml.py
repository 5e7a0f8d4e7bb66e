"""DML: its loss and gradients by hand, the defects that ports of it have, mixed architectures, a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dkel_lightning import DistillationModule
from dkel_lightning.networks import IndependentPeers
from tests.methods.family import draw, from_mean_of_others, loss_of, trained_and_deployed
from tests.modules.toy import build, images_and_labels

LABELS = torch.tensor([0, 2, 1, 2])


def peers_logits(peers: int = 3) -> Tensor:
    return draw(peers, 4, 3, seed=peers).requires_grad_()


loss = partial(loss_of, "dml")


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits)[0]


def test_three_peers_learn_from_the_mean_divergence_to_the_two_others_which_get_no_gradient() -> None:
    logits = peers_logits()
    value = loss(logits, LABELS, weight=0.7)
    p = logits.detach().softmax(-1)
    expected, expected_gradient = 0.0, torch.zeros_like(p)
    for k in range(3):
        expected += -p[k, range(4), LABELS].log().mean().item()
        expected_gradient[k] += (p[k] - F.one_hot(LABELS)) / 4
        for other in {0, 1, 2} - {k}:
            expected += 0.7 / 2 * (p[other] * (p[other] / p[k]).log()).sum().item() / 4
            expected_gradient[k] += 0.7 / 2 * (p[k] - p[other]) / 4
    assert value.item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(gradient(value, logits), expected_gradient)


@pytest.mark.parametrize("detach", [True, False])
def test_mean_logits_of_the_others_with_and_without_gradient_into_the_teaching_peers(detach: bool) -> None:
    logits = peers_logits()
    value = loss(logits, LABELS, temperature=3.0, targets="mean_logits", detach=detach)
    expected = from_mean_of_others(logits, LABELS, 1.0, 1.0, 3.0, detach)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient(value, logits), gradient(expected, logits))


def test_pairwise_targets_that_are_not_detached_get_the_gradient_of_plain_torch() -> None:
    logits = peers_logits(2)
    value = loss(logits, LABELS, detach=False)
    p, q = logits.log_softmax(-1)
    expected = F.nll_loss(p, LABELS) + F.nll_loss(q, LABELS)
    expected = expected + F.kl_div(p, q.exp(), reduction="batchmean") + F.kl_div(q, p.exp(), reduction="batchmean")
    undetached = gradient(value, logits)
    torch.testing.assert_close(undetached, gradient(expected, logits))
    assert not torch.allclose(undetached, gradient(loss(logits, LABELS), logits))


def test_no_gradient_of_one_network_leaks_into_another() -> None:
    module = build("dml", peers=2).double()
    images, labels = images_and_labels(6)
    images = images.double()
    module.training_step((images, labels), 0).backward()
    network = module.student.network
    assert isinstance(network, IndependentPeers)
    targets = network(images)[0].detach().softmax(-1)
    for k, peer in enumerate(network.peers):
        alone = peer(images)
        own = F.cross_entropy(alone, labels)
        own = own + F.kl_div(alone.log_softmax(-1), targets[1 - k], reduction="batchmean")
        parameters = list(peer.parameters())
        for parameter, expected in zip(parameters, torch.autograd.grad(own, parameters), strict=True):
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=1e-9)


def test_a_model_of_ones_own_becomes_separate_networks() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 3))
    module = DistillationModule.build(model, 3, "dml", 2, split_at="1", image_size=(8, 8))
    network = module.student.network
    assert isinstance(network, IndependentPeers)
    first, second = (list(peer.parameters()) for peer in network.peers)
    assert not {id(p) for p in first} & {id(p) for p in second}
    torch.testing.assert_close(network(torch.zeros(2, 3, 8, 8))[0].shape, (2, 2, 3))


def test_mixed_architectures_train_and_the_deployed_one_is_plain(tmp_path: Path) -> None:
    made = trained_and_deployed(tmp_path, "method=dml", "method.peers=[resnet8,densenet40_12]", "deploy.peer=1")
    result, module, network = made
    assert result.last.deployed == "student_1"
    assert (module.teacher, module.ensemble) == (None, None)
    assert module.scores.members == ("student_0", "student_1", "student_ensemble")
    sizes = [sum(p.numel() for p in module.student.peer(k).parameters()) for k in (0, 1)]
    assert sizes[0] != sizes[1]
    assert sum(p.numel() for p in network.parameters()) == sizes[1]
