"""Metrics of several networks at once, by hand, in pieces and through a checkpoint."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_calibration_error

from dkel_lightning.metrics import (
    CalibrationErrors,
    Confusion,
    Disagreement,
    NetworkScores,
    PairDiversity,
    Predictions,
    TermMeans,
    mutual_distance,
    relative_distance,
    scores_of,
)


def test_sums_go_on_growing_in_a_module_of_a_half_type() -> None:
    means, scores = TermMeans(["ce"]), NetworkScores(1)
    nn.ModuleList([means, scores]).to(torch.bfloat16)
    for _ in range(400):
        means.update(torch.tensor([1.2345]))
        scores.update(torch.tensor([64.0]), torch.tensor([256.0]), torch.tensor(128))
    assert means.compute()["ce"].item() == pytest.approx(1.2345, rel=1e-5)
    assert {name: value.item() for name, value in scores.compute().items()} == {"accuracy": 0.5, "nll": 2.0}


def test_term_means_by_hand_and_without_graph() -> None:
    means = TermMeans(["ce", "kd"])
    means.update(torch.tensor([1.0, 4.0], requires_grad=True))
    means.update(torch.tensor([2.0, 5.0], dtype=torch.float64))
    result = means.compute()
    assert {name: value.item() for name, value in result.items()} == {"ce": 1.5, "kd": 4.5}
    assert not means.sums.requires_grad


@pytest.mark.parametrize("broken", [[math.nan, math.nan], [math.nan, 0.0], [math.inf, 0.0]])
def test_an_output_that_is_no_number_is_never_right(broken: list[float]) -> None:
    correct, nll, _ = scores_of(torch.tensor([[broken, [1.0, 0.0]]]), torch.tensor([0, 0]))
    assert correct.tolist() == [1.0]
    assert not nll.isfinite().any()


def test_batches_of_different_size_are_weighted_by_their_samples() -> None:
    logits = torch.tensor([[[1.0, 0.0]] * 4])
    labels = torch.tensor([0, 1, 1, 1])
    pieces = NetworkScores(1)
    pieces.update(*scores_of(logits[:, :1], labels[:1]))
    pieces.update(*scores_of(logits[:, 1:], labels[1:]))
    result = pieces.per_network()
    assert result["accuracy"].item() == 0.25
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert result["nll"].item() == pytest.approx((right + 3 * wrong) / 4, rel=1e-6)


def test_sums_of_a_begun_epoch_survive_a_checkpoint() -> None:
    begun = TermMeans(["ce"])
    begun.update(torch.tensor([3.0]))
    resumed = TermMeans(["ce"])
    resumed.load_state_dict(begun.state_dict())
    resumed.update(torch.tensor([5.0]))
    assert resumed.compute()["ce"].item() == 4.0
    assert begun.compute()["ce"].item() == 3.0


def test_evaluation_scores_are_kept_out_of_the_checkpoint_and_training_scores_in_it() -> None:
    assert NetworkScores(2).state_dict() == {}
    assert set(NetworkScores(2, persistent=True).state_dict()) == {"correct", "nll", "samples"}


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
    assert distance.item() == pytest.approx(10 / 5)
    assert relative_distance(student, student) == 0
    assert relative_distance(teacher[:1], student) is None


def test_mutual_distance_of_equal_opposite_and_orthogonal_weights() -> None:
    a, b = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])], [torch.tensor([0.0, 5.0]), torch.tensor([0.0])]
    opposite = [-tensor for tensor in a]
    long = [7 * tensor for tensor in b]  # of another length than a
    for other, expected in ((a, 0.0), (opposite, 2.0), (b, math.sqrt(2)), (long, math.sqrt(2))):
        distance = mutual_distance(a, other)
        assert distance.item() == pytest.approx(expected)
    assert mutual_distance(a, a[:1]) is None


def compared(one: torch.Tensor, other: torch.Tensor, features: list[torch.Tensor], pieces: int = 1) -> dict[str, float]:
    diversity = PairDiversity([each.shape[1] for each in features], [(0, 1)])
    logits = torch.stack([one, other])
    cuts = torch.arange(logits.shape[1]).tensor_split(pieces)
    for cut in cuts:
        diversity.update(logits[:, cut], [each[cut] for each in features])
    return {name: value.reshape(-1).item() for name, value in diversity.compute().items()}


def random_features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_agreement_and_symmetric_kl_by_hand_and_independent_of_batches() -> None:
    log3 = math.log(3.0)
    one = torch.tensor([[log3, 0.0], [0.0, 0.0], [log3, 0.0], [log3, 0.0]])  # p = 3/4 (1/2 in the second)
    other = torch.tensor([[0.0, log3], [log3, 0.0], [log3, 0.0], [0.0, log3]])
    features = random_features(4, 3)
    # KL(3/4 || 1/4) = log(3) / 2, both ways. KL(1/2 || 3/4) = log(4/3) / 2 and KL(3/4 || 1/2) = log(2) - H(3/4).
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    mixed = (math.log(4 / 3) / 2 + math.log(2) - entropy) / 2
    expected = {"agreement": 1 / 2, "kl": (2 * log3 / 2 + mixed + 0) / 4, "cka": 1.0}
    for pieces in (1, 3):
        assert compared(one, other, [features, features], pieces) == pytest.approx(expected, rel=1e-5)


def test_cka_ignores_rotation_order_scale_and_offset_of_features() -> None:
    features = random_features(50, 6)
    rotation = torch.linalg.qr(random_features(6, 6, seed=1)).Q
    logits = torch.zeros(50, 2)
    for same in (features @ rotation, features[:, [3, 1, 0, 5, 4, 2]], 7 * features, features + 3):
        assert compared(logits, logits, [features, same], pieces=3)["cka"] == pytest.approx(1.0, abs=1e-5)


def test_cka_of_orthogonal_features_is_0_also_of_different_width() -> None:
    # Columns of a Hadamard matrix: centred, and orthogonal to each other.
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    hadamard = torch.kron(torch.kron(pair, pair), pair)
    logits = torch.zeros(8, 2)
    assert compared(logits, logits, [hadamard[:, 1:3], hadamard[:, 3:8]])["cka"] == pytest.approx(0.0, abs=1e-6)
    # One shared direction of two and one: |A^T B|^2 / (|A^T A| |B^T B|) = 64 / (8 sqrt(2) * 8).
    half = compared(logits, logits, [hadamard[:, 1:3], hadamard[:, 2:3]], pieces=2)["cka"]
    assert half == pytest.approx(1 / math.sqrt(2))


def test_cka_is_that_of_the_gram_matrices_far_from_zero() -> None:
    one, other = 40 + random_features(60, 5), random_features(60, 7, seed=1) - 25
    other[:, 0] = 2 * one[:, 0]
    centring = torch.eye(60, dtype=torch.float64) - 1 / 60
    grams = [centring @ x.double() @ x.double().T @ centring for x in (one, other)]
    expected = (grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm())
    logits = torch.zeros(60, 2)
    assert compared(logits, logits, [one, other], pieces=7)["cka"] == pytest.approx(expected.item(), rel=1e-3)


def test_cka_of_features_that_do_not_vary_is_undefined_and_of_too_wide_ones_left_out() -> None:
    logits, features = torch.zeros(10, 2), random_features(10, 3)
    assert math.isnan(compared(logits, logits, [features, torch.full((10, 4), 0.3)], pieces=3)["cka"])
    wide = torch.zeros(10, PairDiversity.WIDEST + 1)
    assert compared(logits, logits, [features, wide]) == {"agreement": 1.0, "kl": 0.0}


def test_many_pairs_are_each_compared() -> None:
    networks = 13  # 78 pairs, more than are taken at once
    logits = torch.zeros(networks, 5, networks)
    logits[torch.arange(networks), :, torch.arange(networks)] = 1.0
    logits[12] = logits[11]
    pairs = [(a, b) for a in range(networks) for b in range(a)]
    diversity = PairDiversity([2] * networks, pairs)
    diversity.update(logits, [random_features(5, 2, seed=i) for i in range(networks)])
    agreement = dict(zip(pairs, diversity.compute()["agreement"].tolist(), strict=True))
    assert {pair for pair, value in agreement.items() if value > 0} == {(12, 11)}
    cka = dict(zip(pairs, diversity.compute()["cka"].tolist(), strict=True))
    alone = compared(logits[9], logits[2], [random_features(5, 2, seed=i) for i in (9, 2)])["cka"]
    assert cka[9, 2] == pytest.approx(alone, rel=1e-5)


def test_entropy_and_predicted_classes_by_hand() -> None:
    certain, even = [200.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    predictions = Predictions(2, 3)
    predictions.update(torch.tensor([[certain, certain], [even, even]]), torch.tensor([0, 1]))
    predictions.update(
        torch.tensor([[certain, [0.0, 200.0, 0.0]], [[0.0, 0.0, 9.0], [0.0, 0.0, 9.0]]]), torch.tensor([0, 1])
    )
    found = predictions.compute()
    assert found["entropy"][0].item() == pytest.approx(0.0, abs=1e-6)
    nine = 1 + 2 * math.exp(-9)
    sharp = math.log(nine) + 2 * math.exp(-9) / nine * 9
    assert found["entropy"][1].item() == pytest.approx((math.log(3) + sharp) / 2, rel=1e-5)
    assert found["classes"].tolist() == [2, 2]


def test_shares_of_the_commonest_class_by_hand() -> None:
    shares = Predictions(2, 3)
    one_hot = torch.eye(3)
    shares.update(torch.stack([one_hot[[0, 0]], one_hot[[1, 2]]]), torch.tensor([2, 2]))
    shares.update(torch.stack([one_hot[[0, 1]], one_hot[[0, 0]]]), torch.tensor([0, 2]))
    found = {name: value.reshape(-1).tolist() for name, value in shares.compute().items()}
    assert (found["commonest"], found["samples"]) == ([0.75], [4.0])


def test_the_confusion_matrix_is_that_of_torchmetrics_over_several_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = Confusion(4), MulticlassConfusionMatrix(num_classes=4)
    for size in (7, 1, 12):
        logits, labels = torch.randn(size, 4, generator=generator), torch.randint(4, (size,), generator=generator)
        ours.update(logits, labels)
        theirs.update(logits, labels)
    assert torch.equal(ours.compute(), theirs.compute())
    assert int(ours.compute().sum()) == 20
