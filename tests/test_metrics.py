"""Metrics of several networks at once, by hand, in pieces and through a checkpoint."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from dkel_lightning.metrics import CalibrationErrors, Disagreement, NetworkScores, TermMeans, relative_distance


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


def test_calibration_errors_by_hand() -> None:
    # Confidence 3/4 in bin [11/15, 12/15), twice right and twice wrong; confidence 1/2 in bin [7/15, 8/15), right.
    three_quarters, half = [math.log(3.0), 0.0], [0.0, 0.0]
    logits = torch.tensor([[three_quarters] * 4 + [half]])
    errors = CalibrationErrors(1)
    errors.update(logits, torch.tensor([0, 0, 1, 1, 0]))
    assert errors.compute().reshape(-1).item() == pytest.approx(4 / 5 * abs(1 / 2 - 3 / 4) + 1 / 5 * abs(1 - 1 / 2))


def test_calibration_errors_are_those_of_torchmetrics_in_one_piece_and_in_two() -> None:
    draws = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 200, 5, generator=draws)
    logits[0, :20, 0] = 200.0  # confidence of exactly 1
    labels = torch.randint(0, 5, (200,), generator=draws)
    errors = CalibrationErrors(3)
    errors.update(logits[:, :70], labels[:70])
    errors.update(logits[:, 70:], labels[70:])
    theirs = [multiclass_calibration_error(network.softmax(-1), labels, 5, n_bins=15, norm="l1") for network in logits]
    assert errors.compute().tolist() == pytest.approx([value.item() for value in theirs], rel=1e-5)


def test_disagreement_of_identical_peers_is_0_of_opposite_ones_1_and_of_three_by_hand() -> None:
    first = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    cases = [([first, first], 0.0), ([first, -first], 1.0), ([first, first * 9, -first], 2 / 3)]
    # One peer that differs on one sample of four: two of the three pairs differ there.
    odd = first.clone()
    odd[0] = torch.tensor([0.0, 2.0])
    cases.append(([first, odd, first], 2 / 3 / 4))
    for peers, expected in cases:
        disagreement = Disagreement()
        logits = torch.stack(peers)
        disagreement.update(logits[:, :1])
        disagreement.update(logits[:, 1:])
        assert disagreement.compute().item() == pytest.approx(expected)


def test_relative_distance_by_hand_and_none_where_shapes_differ() -> None:
    student = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]], requires_grad=True)]
    teacher = [torch.tensor([3.0, 6.0]), torch.tensor([[12.0]])]
    distance = relative_distance(teacher, student)
    assert distance is not None
    assert distance.item() == pytest.approx(10 / 5)
    assert relative_distance(student, student) == 0
    assert relative_distance(teacher[:1], student) is None
