"""Metrics of several networks at once, by hand, in pieces and through a checkpoint."""

from __future__ import annotations

import math

import pytest
import torch

from dkel_lightning.metrics import NetworkScores, TermMeans


def test_term_means_by_hand_and_without_graph() -> None:
    means = TermMeans(["ce", "kd"])
    means.update({"kd": torch.tensor(4.0), "ce": torch.tensor(1.0, requires_grad=True)})
    means.update({"ce": torch.tensor(2.0, dtype=torch.float64), "kd": torch.tensor(5.0)})
    result = means.compute()
    assert {name: value.item() for name, value in result.items()} == {"ce": 1.5, "kd": 4.5}
    assert not means.sums.requires_grad


def test_scores_by_hand_for_two_networks() -> None:
    log3 = math.log(3.0)
    logits = torch.tensor([[[log3, 0.0], [log3, 0.0]], [[0.0, log3], [0.0, log3]]])  # p = 3/4 for class 0, then for 1
    scores = NetworkScores(2)
    scores.update(logits, torch.tensor([0, 0]))
    result = scores.per_network()
    assert result["accuracy"].tolist() == [1.0, 0.0]
    assert result["nll"].tolist() == pytest.approx([math.log(4 / 3), math.log(4)], rel=1e-6)


def test_batches_of_different_size_are_weighted_by_their_samples() -> None:
    logits = torch.tensor([[[1.0, 0.0]] * 4])
    labels = torch.tensor([0, 1, 1, 1])
    pieces = NetworkScores(1)
    pieces.update(logits[:, :1], labels[:1])
    pieces.update(logits[:, 1:], labels[1:])
    result = pieces.per_network()
    assert result["accuracy"].item() == 0.25
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert result["nll"].item() == pytest.approx((right + 3 * wrong) / 4, rel=1e-6)


def test_sums_of_a_begun_epoch_survive_a_checkpoint() -> None:
    begun = TermMeans(["ce"])
    begun.update({"ce": torch.tensor(3.0)})
    resumed = TermMeans(["ce"])
    resumed.load_state_dict(begun.state_dict())
    resumed.update({"ce": torch.tensor(5.0)})
    assert resumed.compute()["ce"].item() == 4.0
    assert begun.compute()["ce"].item() == 3.0


def test_evaluation_scores_are_kept_out_of_the_checkpoint_and_training_scores_in_it() -> None:
    assert NetworkScores(2).state_dict() == {}
    assert set(NetworkScores(2, persistent=True).state_dict()) == {"correct", "nll", "samples"}


def test_reset_forgets_the_epoch() -> None:
    scores = NetworkScores(1)
    scores.update(torch.zeros(1, 2, 3), torch.tensor([2, 2]))
    scores.reset()
    scores.update(torch.tensor([[[0.0, 9.0]]]), torch.tensor([1]))
    assert scores.per_network()["accuracy"].tolist() == [1.0]
