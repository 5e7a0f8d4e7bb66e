"""Training images whose label is not known (-1): what is hidden, what counts them, and their share of a batch."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dkel_lightning import DistillationModule
from dkel_lightning.data import DigitsDataModule
from dkel_lightning.data.order import MixedOrder
from dkel_lightning.data.own import describe_sizes
from dkel_lightning.data.splits import hide_labels, hold_out_share
from dkel_lightning.errors import ConfigError, DataError
from tests.modules.toy import trainer


def digits(**options: Any) -> DigitsDataModule:
    module = DigitsDataModule(**{"batch_size": 32, "workers": 0, "labelled": 100, **options})
    module.setup()
    return module


def labels_of(module: DigitsDataModule) -> torch.Tensor:
    return module._stored("train").labels


def test_all_but_some_labels_are_hidden_in_every_class_alike() -> None:
    module = digits(limit=400)
    labels, all_labels = labels_of(module), labels_of(digits(limit=400, labelled=None))
    known = labels >= 0
    assert (module.train_size, module.unlabelled_size, int(known.sum())) == (400, 300, 100)
    assert torch.equal(labels[known], all_labels[known])
    assert set(torch.bincount(labels[known]).tolist()) <= {9, 10, 11}
    more = labels_of(digits(limit=400, labelled=150)) >= 0
    assert bool(more[known].all())
    assert not torch.equal(labels, labels_of(digits(limit=400, split_seed=1)))
    assert torch.equal(labels, labels_of(digits(limit=400, seed=1)))


def test_validation_images_noise_and_class_weights_are_of_known_labels() -> None:
    labels = np.where(np.arange(1000) % 4 == 0, np.arange(1000) % 10, -1)
    kept, held_out = hold_out_share(labels, 0.2, 0, "validation")
    assert (labels[held_out] >= 0).all()
    assert (len(kept), len(held_out)) == (950, 50)
    assert hide_labels(labels, 30, 0).clip(-1, 0).sum() == -970
    module = digits(label_noise={"kind": "pair", "rate": 0.3})
    noisy, true = labels_of(module), module.true_labels
    assert int((noisy != true).sum()) == 30
    assert torch.equal(noisy < 0, true < 0)
    assert sum(len(batch[1]) for batch in module.wrongly_labelled(999)) == 30
    counts = torch.bincount(noisy[noisy >= 0], minlength=10)
    assert module.balanced_weights() == pytest.approx((100 / (10 * counts)).tolist())


@settings(max_examples=150, deadline=None)
@given(
    labelled=st.integers(3, 40),
    unlabelled=st.integers(3, 90),
    share=st.floats(0.01, 0.99),
    batch_size=st.integers(2, 12),
    world=st.integers(1, 3),
)
def test_an_epoch_is_a_pass_over_the_part_that_fills_more_batches(
    labelled: int, unlabelled: int, share: float, batch_size: int, world: int
) -> None:
    ranks = [
        [
            batch.tolist()
            for batch in MixedOrder(labelled, unlabelled, share, batch_size, rank, world).batches(1, "order")
        ]
        for rank in range(world)
    ]
    size = min(max(round(share * batch_size), 1), batch_size - 1)
    shares = {False: (labelled // world, batch_size - size), True: (unlabelled // world, size)}
    assert {len(rank) for rank in ranks} == {max(-(-mine // each) for mine, each in shares.values())}
    whole = False
    for part, (mine, each) in shares.items():
        of_ranks = [[[i for i in batch if (i >= labelled) == part] for batch in rank] for rank in ranks]
        assert all(len(batch) == each for rank in of_ranks for batch in rank[:-1])
        firsts = [[i for batch in rank for i in batch][:mine] for rank in of_ranks]
        flat = [i for rank in firsts for i in rank]
        assert len(flat) == len(set(flat)) == mine * world  # each sample once before any comes again
        whole |= all(sum(map(len, rank)) == mine for rank in of_ranks)
    assert whole


@pytest.mark.parametrize("residency", ["device", "workers"])
def test_batches_hold_their_share_and_a_resume_gives_those_that_were_left(residency: str) -> None:
    loaders = [digits(unlabelled_share=0.75, residency=residency).train_dataloader() for _ in range(3)]
    batches = list(loaders[0])
    assert len(batches) == len(loaders[0]) == -(-1193 // 24)
    assert [int((batch.labels < 0).sum()) for batch in batches[:-1]] == [24] * (len(batches) - 1)
    assert all(int((batch.labels >= 0).sum()) == 8 for batch in batches)
    list(islice(loaders[1], 5))
    loaders[2].load_state_dict(loaders[1].state_dict())
    for left, batch in zip(loaders[2], batches[5:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, batch, strict=True))  # type: ignore[arg-type]
    as_they_come = digits(residency=residency).train_dataloader()
    assert len({int((batch.labels < 0).sum()) for batch in as_they_come}) > 3


def test_a_share_of_0_leaves_unlabelled_images_out() -> None:
    every, known = digits(), digits(unlabelled_share=0)
    assert describe_sizes(known).startswith("100 training, ")
    labelled = every.true_labels >= 0
    assert torch.equal(known.true_labels, every.true_labels[labelled])
    batches = list(known.train_dataloader())
    assert sorted(int(i) for batch in batches for i in batch.indices) == list(range(100))
    assert all(bool((batch.labels >= 0).all()) for batch in batches)


@pytest.mark.parametrize("residency", ["device", "workers"])
def test_an_image_that_is_repeated_in_an_epoch_has_another_augmentation(residency: str) -> None:
    views: dict[int, list[torch.Tensor]] = {}
    for batch in digits(labelled=10, unlabelled_share=0.5, residency=residency).train_dataloader():
        for view, index in zip(batch.views, batch.indices.tolist(), strict=True):
            views.setdefault(index, []).append(view)
    repeated = [torch.stack(of_image) for of_image in views.values() if len(of_image) > 2]
    assert len(repeated) == 10
    assert all(not torch.equal(of_image, of_image[:1].expand_as(of_image)) for of_image in repeated)


def test_an_initialisation_takes_a_batch_of_the_few_labels_that_there_are() -> None:
    loader = digits(labelled=20, unlabelled_share=0.75, batch_size=48, drop_last=True).train_dataloader()
    assert [len(batch.labels) for batch in loader.initialisation_batches(0, 2)] == [20, 20]


def test_a_share_of_images_that_are_not_there_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.unlabelled_share=0\.5 mixes 1293 labelled and 0 unlabelled .* enough of both"
    ):
        digits(labelled=None, unlabelled_share=0.5).train_dataloader()


def test_students_see_strong_views_and_teachers_weak_ones() -> None:
    weak, strong, both = (
        next(iter(digits(views=4, padding=0, **options).train_dataloader())).views
        for options in ({}, {"augment": "trivial"}, {"augment_strong": "trivial"})
    )
    assert torch.equal(both[:, 2:], weak[:, 2:])
    assert not torch.equal(both[:, :2], weak[:, :2])
    assert torch.equal(both[:, :2], strong[:, :2])


@pytest.mark.parametrize(
    ("method", "views", "fits"), [("mean_teacher", 2, True), ("mean_teacher", 1, False), ("baseline", 2, False)]
)
def test_strong_views_are_for_methods_whose_teacher_has_its_own(method: str, views: int, fits: bool) -> None:
    module = DistillationModule.build("resnet8", 10, method, 1, in_channels=1, image_size=(8, 8))
    refused = pytest.raises(ConfigError, match=r"method\.views=per_peer_and_teacher \(in Python views=2")
    with nullcontext() if fits else refused:
        trainer(limit_train_batches=1).fit(module, digits(views=views, augment_strong="trivial"))


def test_more_labels_than_there_are_cannot_be_kept() -> None:
    with pytest.raises(ConfigError, match=r"data\.labelled=60, but only 50 training images have a label"):
        digits(limit=50, labelled=60)


def test_a_training_without_any_label_warns() -> None:
    data = digits(limit=40, labelled=20)
    data._stored("train").labels.fill_(-1)
    module = DistillationModule.build("resnet8", 10, "baseline", 1, teacher="none", in_channels=1, image_size=(8, 8))
    with pytest.warns(UserWarning, match="No training image of this epoch has a known label"):
        trainer(limit_train_batches=1).fit(module, data)
    with pytest.raises(DataError, match="initialised on labelled training images, and none has a label"):
        next(data.train_dataloader().initialisation_batches(0, 1))
