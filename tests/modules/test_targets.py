"""Labels that are distributions, smoothing, weights, mixup and cutmix: against torch, by hand, and in every method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from dkel_lightning.data.batch import Batch
from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import classes_of, cross_entropy, targets_of
from dkel_lightning.methods import METHODS
from tests.modules.toy import CLASSES, build, images_and_labels, trainer

EVERY = [name for name in METHODS if name != "dkel_released"]  # which differs from dkel in settings


OWN: dict[str, dict[str, Any]] = {
    "kdcl": {"target": "linear"},
    "sftn": {"student": "resnet8"},
    "soteacher": {"samples": 6},
}


def settings_of(name: str) -> dict[str, Any]:
    """Build any method; kdcl with a target that takes distributions."""
    method: dict[str, Any] = {"name": name, **OWN.get(name, {})}
    teacher = {"update": "gradient"} if name == "kd" else None
    peers = {"okddip": 3}.get(name, min(METHODS[name].arrangement.peers, 2))
    return {"method": method, "peers": peers, "teacher": teacher, "image_size": (8, 8)}


def draws(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_cross_entropy_takes_what_torchs_takes() -> None:
    logits, labels = draws(2, 5, 4), torch.tensor([0, 3, 1, 1, 2])
    soft = draws(5, 4).softmax(-1)
    for peer in range(2):
        assert cross_entropy(logits, labels)[peer] == pytest.approx(F.cross_entropy(logits[peer], labels).item())
        assert cross_entropy(logits, soft)[peer] == pytest.approx(F.cross_entropy(logits[peer], soft).item())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 3.0, 0.5, 0.0])])
def test_smoothing_and_class_weights_are_torchs(smoothing: float, weights: Tensor | None) -> None:
    logits = draws(5, 4).float()
    for labels in (torch.tensor([0, 3, 1, 1, 2]), draws(5, 4).flip(0).float().softmax(-1)):
        ours = cross_entropy(logits, targets_of(labels, 4, smoothing, weights))
        theirs = F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_labels_stay_what_they_are_where_nothing_is_asked_for() -> None:
    labels = torch.tensor([0, 2])
    assert targets_of(labels, 3) is labels
    assert classes_of(labels) is labels
    assert classes_of(torch.tensor([[0.1, 0.9], [0.8, 0.2]])).tolist() == [1, 0]


@pytest.mark.parametrize("name", EVERY)
def test_a_class_and_all_weight_on_it_are_the_same_to_every_method(name: str) -> None:
    images, labels = images_and_labels(6)
    hard, soft, smooth = (build(**settings_of(name), targets={"label_smoothing": s}) for s in (0, 0, 0.1))
    indices = torch.arange(6)
    on_hard = hard.training_step((images, labels, indices), 0)
    one_hot = F.one_hot(labels, CLASSES).float()
    torch.testing.assert_close(soft.training_step((images, one_hot, indices), 0), on_hard, rtol=1e-5, atol=1e-6)
    assert torch.equal(soft.scores.train_scores.correct, hard.scores.train_scores.correct)
    # Smoothed by the setting, or by whoever made the labels: to a method it is the same, and not what it was.
    by_hand = build(**settings_of(name))
    made = by_hand.training_step((images, 0.9 * one_hot + 0.1 / CLASSES, indices), 0)
    smoothed = smooth.training_step((images, labels, indices), 0)
    torch.testing.assert_close(smoothed, made, rtol=1e-5, atol=1e-6)
    assert abs(smoothed.item() - on_hard.item()) > 1e-4


def test_a_method_of_one_class_an_image_says_so_and_can_be_smoothed() -> None:
    images, labels = images_and_labels(6)
    with pytest.raises(ConfigError, match=r"works on one class an image, and these labels.*of kdcl, method.target"):
        build("kdcl").training_step((images, F.one_hot(labels, CLASSES).float()), 0)
    with pytest.raises(ConfigError, match=r"The method.*targets.mixup and targets.cutmix"):
        build({"name": "pcl", "loss": "dkd"}, targets={"cutmix": 1.0})
    with pytest.raises(ConfigError, match=r"The method.*targets.mixup and targets.cutmix"):
        build("kdcl", targets={"mixup": 0.2})
    heavy = {"label_smoothing": 0.5, "class_weights": [1, 1, 1000]}
    for method in ({"name": "kdcl"}, {"name": "kdcl", "target": "mean", "loss": "dkd"}):
        plain, weighted = build(method), build(method, targets=heavy)
        for module in (plain, weighted):
            module.training_step((images, labels), 0)
        # What is distilled follows the class, not the largest smoothed weight.
        assert plain.scores.term_means.compute()["kd_target"] == weighted.scores.term_means.compute()["kd_target"]
        assert plain.scores.term_means.compute()["ce"] != weighted.scores.term_means.compute()["ce"]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"class_weights": [1.0, 2.0]}, r"a number for each of the 3 classes, one of them above 0, got \(1.0, 2.0\)"),
        ({"class_weights": [0, 0, 0]}, r"one of them above 0, got \(0, 0, 0\)"),
        ({"class_weights": "balanced"}, "balanced is for `train` and the command line: pass balanced_weights"),
        ({"mixupp": 1}, "Unknown key targets.mixupp. Did you mean targets.mixup"),
    ],
)
def test_settings_out_of_range_are_named(targets: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(targets=targets)


# ---------------------------------------------------------------------- mixing


def colours(views: int) -> Batch:
    """Images that show their class: channel c is 1 for class c, so that the channels' means are the label."""
    labels = torch.tensor([0, 1, 2, 1])
    images = F.one_hot(labels, CLASSES).float()[:, :, None, None].expand(-1, -1, 8, 8)
    return Batch(torch.stack([images] * views, 1), labels, None)


@pytest.mark.parametrize("kinds", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
def test_labels_are_mixed_as_the_pixels_are(kinds: dict[str, float]) -> None:
    module = build("mean_teacher", 2, targets=kinds)
    mixed = [module.make_batch(colours(4), 0, batch, 0) for batch in range(6)]
    assert mixed[0].views.shape == (4, 4, 3, 8, 8)
    for made in mixed:
        shares = made.views.mean((-2, -1))  # [B, V, C]
        torch.testing.assert_close(shares, made.labels.unsqueeze(1).expand(-1, 4, -1))
    assert len({each.labels[0].flatten()[0].item() for each in mixed}) > 3  # another share in each batch
    # cutmix leaves every pixel whole, mixup does not; where there are both, one of them is drawn.
    whole = {bool(((view == 0) | (view == 1)).all()) for each in mixed for view in each.views.unbind(1)}
    assert whole == {name == "cutmix" for name in kinds}


def test_a_mix_is_a_function_of_seed_and_key_and_leaves_the_users_numbers_alone() -> None:
    module, twin, other = (build(targets={"mixup": 1.0}, seed=seed) for seed in (0, 0, 1))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = module.make_batch(colours(1), 1, 2, 0)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.labels, twin.make_batch(colours(1), 1, 2, 0).labels)
    for unequal in (other.make_batch(colours(1), 1, 2, 0), *(module.make_batch(colours(1), *k) for k in KEYS)):
        assert not torch.equal(first.labels, unequal.labels)


KEYS = ((0, 2, 0), (1, 1, 0), (1, 2, 1))


def test_validation_scores_distributions_by_their_largest_class() -> None:
    images, labels = images_and_labels(9)
    soft = 0.6 * F.one_hot(labels, CLASSES) + 0.4 / CLASSES
    hard, scored = build(), build()
    found = []
    for module, given in ((hard, labels), (scored, soft)):
        data: DataLoader[Any] = DataLoader([*zip(images, given, strict=True)], batch_size=3)  # type: ignore[arg-type]
        (metrics,) = trainer().test(module, data, verbose=False)
        found.append({name: value for name, value in metrics.items() if "nll" not in name})
    assert found[0] == found[1]
