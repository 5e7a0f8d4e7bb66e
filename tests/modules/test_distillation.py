"""The coordinator in a real Trainer: steps, batches, logs, choice of the deployed peer, checkpoints and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from dkel_lightning import (
    Deploy,
    DistillationModule,
    EnsembleModule,
    StudentModule,
    TeacherModule,
    TeacherSettings,
    methods,
)
from dkel_lightning.errors import CheckpointError, ConfigError, DataError
from dkel_lightning.methods import Method
from dkel_lightning.methods.baseline import Baseline
from dkel_lightning.methods.dkel import DKEL
from dkel_lightning.methods.dml import DML
from dkel_lightning.modules import checkpoint_state
from dkel_lightning.modules.batch import images_of, unpack
from dkel_lightning.modules.deployment import default_member
from dkel_lightning.modules.peers import running_statistics
from tests.modules.toy import (
    CLASSES,
    SGD,
    Toy,
    build,
    images_and_labels,
    jitter,
    parameters_of,
    peers_network,
    same,
    train_loader,
    trainer,
    val_loader,
)

ALL_METHODS = ["baseline", "pcl", "dkel", "dkel_released"]


# ---------------------------------------------------------------- one step


def test_the_loss_of_a_step_is_recomputed_from_the_networks_by_hand() -> None:
    module: Any = build(peers=3, teacher={"init_steps": 0}).double()
    module.method.rampup_weight.fill_(0.3)
    module.method.ensemble_weight.fill_(0.25)
    images, labels = images_and_labels(6)
    loss = module.training_step((images.double(), labels), 0)
    z, features, *_ = module.student.network(images.double())
    ensemble = module.ensemble.classifier(torch.cat(list(features), -1))
    t, *_ = module.teacher.network(images.double())

    def kd(student: Tensor, teacher: Tensor) -> Tensor:
        return 9 * F.kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="batchmean")

    expected = F.cross_entropy(ensemble, labels)
    for i in range(3):
        j, k = [peer for peer in range(3) if peer != i]
        expected = expected + F.cross_entropy(z[i], labels) + 0.3 * kd(z[i], ensemble)
        expected = expected + 1.0 * 0.25 * kd(z[i], (t[j] + t[k]) / 2)
        expected = expected + 0.3 * 0.75 * (kd(z[i], t[j]) + kd(z[i], t[k])) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("method", ALL_METHODS)
def test_one_summed_loss_reaches_every_trained_parameter_and_no_other(method: str) -> None:
    module = build(method, peers=3)
    images, labels = images_and_labels(6)
    module.training_step((images, labels), 0).backward()
    trained = [*module.student.parameters(), *(module.ensemble.parameters() if module.ensemble else [])]
    assert all(p.grad is not None for p in trained)
    assert {id(p) for p in module.parameters() if p.requires_grad} == {id(p) for p in trained}


class Forgetful(Baseline):
    """Computes a term that it does not name."""

    @property
    def terms(self) -> tuple[str, ...]:
        return ("ce",)


def test_a_term_that_a_method_does_not_name_is_not_lost_in_silence() -> None:
    module = build(Forgetful(2))
    with pytest.raises(ConfigError, match=r"Forgetful\.terms names ce, but loss_terms returns ce, ce_ensemble"):
        module.training_step(images_and_labels(4), 0)


# ---------------------------------------------------------------- batches


IMAGES, LABELS = images_and_labels(6)
FORMS: dict[str, Any] = {
    "mapping": {"pixel_values": IMAGES, "label": LABELS, "index": LABELS * 0},
    "column": (IMAGES, LABELS[:, None]),
    "int32": (IMAGES, LABELS.int()),
    "indices": (IMAGES, LABELS, torch.arange(6)),
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_any_usual_form_are_read_alike(form: str) -> None:
    read = unpack(FORMS[form])
    assert read.labels.dtype == torch.int64
    assert torch.equal(read.labels, LABELS)
    assert torch.equal(read.views, IMAGES)
    assert torch.equal(images_of(FORMS[form]), IMAGES)


def test_a_mapping_may_call_its_images_and_labels_what_it_likes() -> None:
    batch = {"image": torch.zeros(3), "photo": IMAGES, "species": LABELS}
    module, plain = build(batch_keys={"images": "photo", "labels": "species"}), build()
    assert torch.equal(module.training_step(batch, 0), plain.training_step((IMAGES, LABELS), 0))
    assert torch.equal(module.eval().predict_step(batch, 0), plain.eval().predict_step(IMAGES, 0))
    with pytest.raises(DataError, match=r"No 'photo' in a batch with keys species: set batch_keys\.images"):
        module.read({"species": 0})


def test_only_unusual_names_of_a_mapping_are_given_and_a_checkpoint_keeps_them(tmp_path: Path) -> None:
    def loader(names: tuple[str, str]) -> DataLoader[Any]:
        def collate(samples: Any) -> dict[str, Any]:
            images, labels = (torch.stack(part) for part in zip(*samples, strict=True))
            return {"index": labels + 7, names[0]: images, names[1]: labels}

        return DataLoader(Toy(), batch_size=8, collate_fn=collate)

    module = build(batch_keys={"labels": "species"})
    (first, *_) = named = loader(("image", "species"))
    assert torch.equal(unpack(module.read(first)).indices, first["index"])  # type: ignore[arg-type]
    trainer(saving(tmp_path), enable_checkpointing=True).fit(module, named)
    loaded = DistillationModule.load_from_checkpoint(tmp_path / "last.ckpt")
    trainer().validate(loaded, named, verbose=False)
    # Another data set's names are no other training.
    resumed = build(batch_keys={"images": "photo"})
    trainer().fit(resumed, loader(("photo", "label")), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert same(parameters_of(resumed), parameters_of(module))


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ((torch.zeros(2, 7), torch.tensor([0, 1])), r"torch\.float32 \[2, 7\].*This library trains classifiers"),
        ((torch.zeros(2, 3, 8, 8), torch.zeros(3).long()), r"for 2 images, got torch.int64 of shape \(3,\)"),
        ((torch.zeros(2, 3, 8, 8), torch.zeros(2)), r"got torch.float32 of shape \(2,\)"),
        ((torch.zeros(2, 3, 8, 8), torch.full((2, 3), 0.5)), "distributions over the 3 classes.* 2 of 2 are not"),
        ((torch.zeros(2, 3, 8, 8), torch.full((2, 2), 0.5)), r"over the 3 classes.*their shape is \(2, 2\)"),
        ((torch.zeros(2, 3, 3, 8, 8), torch.tensor([0, 1])), r"V = 1 or V = 2 \(the peers\), got torch.float32 \[2, 3"),
        ((torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), torch.ones(2)), "integer indices.*, float indices"),
        (torch.zeros(2, 3, 8, 8), "A batch must be tensors .*got torch.FloatTensor, NoneType"),
        (([1, 2], torch.tensor([0, 1])), "got list, torch.LongTensor: check the collate function"),
        (
            {"pixels": torch.zeros(2), "label": torch.zeros(2)},
            "No images in a batch with keys pixels, label: give batch_keys={'images': KEY, 'labels': KEY}",
        ),
    ],
)
def test_batches_that_cannot_be_meant_are_named(batch: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        build(peers=2).training_step(batch, 0)


def test_augmented_views_differ_between_peers_and_repeat_by_seed_and_key() -> None:
    images, _ = images_and_labels(4)
    module, twin, other = (build(peers=3, augmentation=jitter, seed=seed) for seed in (0, 0, 1))
    views = module.make_views(images, 2, 7, 0)
    assert views.shape == (4, 3, 3, 8, 8)
    assert torch.equal(views, twin.make_views(images, 2, 7, 0))
    drawn = [views, other.make_views(images, 2, 7, 0)]
    drawn += [module.make_views(images, *key) for key in ((3, 7, 0), (2, 8, 0), (2, 7, 1))]
    distinct = torch.cat([one.unbind(1)[peer][None] for one in drawn for peer in range(3)]).flatten(1)
    assert len(torch.unique(distinct, dim=0)) == 15


def test_a_transform_that_takes_no_generator_is_told_how_it_is_passed() -> None:
    with pytest.raises(ConfigError, match=r"returns a tuple, not images: .*as lambda images, generator: tr"):
        build(augmentation=v2.RandomHorizontalFlip()).training_step(images_and_labels(4), 0)


def test_ready_views_and_evaluation_are_not_augmented() -> None:
    module = build(peers=2, augmentation=jitter)
    views = torch.stack([images_and_labels(4)[0]] * 2, 1)
    assert module.make_views(views, 0, 0, 0) is views
    calls: list[int] = []
    module.augmentation = lambda images, generator: (calls.append(1), images)[1]
    trainer().validate(module, val_loader())
    assert calls == []
    trainer(limit_train_batches=1).fit(module, train_loader())
    assert len(calls) == (2 + 1) * 2  # two initialisation batches and one training batch, two views each


# ---------------------------------------------------------------- callbacks and logs


def test_needed_callbacks_are_attached_once_and_the_users_are_kept() -> None:
    from dkel_lightning import callbacks

    class MyWeights(callbacks.WeightSchedules):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            pl_module.method.rampup_weight.fill_(0.125)

    class MyOwn(Callback):
        pass

    mine, own = MyWeights(), MyOwn()
    module, fit = build(), trainer(mine, own, max_epochs=1)
    fit.fit(module, train_loader(), val_loader())
    fit.validate(module, val_loader())
    kinds = [type(callback) for callback in fit.callbacks]  # type: ignore[attr-defined]
    assert mine in fit.callbacks  # type: ignore[attr-defined]
    assert own in fit.callbacks  # type: ignore[attr-defined]
    assert callbacks.WeightSchedules not in kinds
    for name in ("CollapseGuard", "DiversityMonitor", "TeacherInitialisation"):
        assert kinds.count(getattr(callbacks, name)) == 1
    assert module.method.rampup_weight.item() == 0.125


def names_of(peers: int, stage: str) -> set[str]:
    students, teachers = ([f"{kind}_{i}" for i in range(peers)] for kind in ("student", "teacher"))
    members = [*students, "student_mean", "student_best", "ensemble", *teachers, "teacher_mean", "teacher_best"]
    members += ["student_ensemble", "teacher_ensemble"]
    return {f"{stage}/{what}/{member}" for what in ("acc", "nll") for member in members}


def test_logged_names_are_exactly_those_documented() -> None:
    module, fit = build(peers=2), trainer()
    fit.fit(module, train_loader(), val_loader())
    train = {"train/loss", "train/loss_per_peer", "train/ce", "train/ce_ensemble", "train/kd_ensemble"}
    train |= {"train/kd_individual", "train/kd_assembled"}
    train |= {"train/acc/student_0", "train/acc/student_1", "train/acc/student_mean"}
    weights = {"weights/rampup", "weights/ensemble_decay", "weights/teacher_assembled", "weights/teacher_individual"}
    watched = {f"share/{what}/{term}" for what in ("loss", "gradient") for term in module.method.terms}
    kinds = ("student-teacher", "student-student", "teacher-teacher")
    watched |= {f"diversity/{what}/{kind}" for what in ("agreement", "kl", "cka", "distance") for kind in kinds}
    networks = ("student", "teacher", "ensemble")
    watched |= {f"diversity/{what}/{network}" for what in ("entropy", "classes") for network in networks}
    watched |= {"diversity/distance/whole", "diversity/homogenised", "weights/ema_rate", "val/acc"}
    assert set(fit.callback_metrics) == train | weights | watched | names_of(2, "val")
    calibrated = {name.replace("/acc/", "/ece/") for name in names_of(2, "test")}
    tested = (
        names_of(2, "test") | calibrated | {f"test/{what}" for what in ("acc", "images", "disagreement", "distance")}
    )
    scored = fit.test(module, val_loader(), verbose=False)[0]
    assert set(scored) == tested
    with torch.no_grad():
        logits = [module.eval().evaluate(unpack(batch).views).logits for batch in val_loader()]
        guesses = torch.cat([of_batch.argmax(-1) for of_batch in logits], 1)
    assert scored["test/disagreement"] == pytest.approx(float((guesses[0] != guesses[1]).float().mean()))


# ---------------------------------------------------------------- choice and deployment


def accuracy_of(network: torch.nn.Module, loader: DataLoader[Any]) -> float:
    right = total = 0
    with torch.no_grad():
        for images, labels in loader:
            right += int((network(images).argmax(-1) == labels).sum())
            total += len(labels)
    return right / total


@pytest.mark.parametrize("network", ["teacher", "student", "ensemble"])
def test_validation_accuracy_is_that_of_the_deployed_network(network: str) -> None:
    module, fit = build(peers=3, deploy={"network": network}, teacher={"decay": 0.5}), trainer()
    loader = val_loader(samples=30)
    fit.fit(module, train_loader(), loader)
    assert float(fit.callback_metrics["val/acc"]) == pytest.approx(accuracy_of(module.deploy(), loader), abs=1e-6)
    for peer in range(3):
        by_hand = accuracy_of(module.deploy("student", peer), loader)
        assert float(fit.callback_metrics[f"val/acc/student_{peer}"]) == pytest.approx(by_hand, abs=1e-6)
    by_hand = accuracy_of(module.deploy("ensemble"), loader)
    assert float(fit.callback_metrics["val/acc/ensemble"]) == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_an_ensemble_without_a_classifier_averages_probabilities(network: str) -> None:
    module = build(peers=3).eval()
    images, _ = images_and_labels(5)
    rows = dict(zip(module.scores.members, module.evaluate(30 * images).logits, strict=True))
    peers = torch.stack([rows[f"{network}_{i}"] for i in range(3)])
    mean = peers.softmax(-1).mean(0)
    assert (mean - peers.mean(0).softmax(-1)).abs().max() > 1e-3
    torch.testing.assert_close(rows[f"{network}_ensemble"].softmax(-1), mean, rtol=1e-5, atol=1e-6)


def test_the_best_peer_is_that_of_the_last_validation_also_in_tests_and_deployment() -> None:
    module = build(peers=3)
    assert module.deployed_member() == "teacher_0"  # no validation yet
    accuracy = {"student_0": 0.2, "student_1": 0.9, "teacher_0": 0.3, "teacher_1": 0.4, "teacher_2": 0.8}
    module.scores.validation_accuracy.copy_(torch.tensor([accuracy.get(name, 0.1) for name in module.scores.members]))
    scores = module.scores
    chosen = [scores.best(scores.peers[network], scores.validation_accuracy) for network in ("student", "teacher")]
    assert chosen == ["student_1", "teacher_2"]
    assert module.deployed_member() == "student_1"
    logged = trainer().test(module, val_loader(), verbose=False)[0]
    assert logged["test/acc"] == logged["test/acc/student_1"] == logged["test/acc/student_best"]
    assert logged["test/acc/teacher_best"] == logged["test/acc/teacher_2"]
    images, _ = images_and_labels(4)
    module.eval()
    predicted = module.predict_step({"images": images}, 0)
    torch.testing.assert_close(predicted, module.deploy()(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "peers", "choice", "member"),
    [
        ("dkel", 2, Deploy(), "student_1"),
        ("dkel", 2, Deploy("teacher"), "teacher_1"),
        ("dkel", 2, Deploy("auto", 0), "teacher_0"),
        ("dkel", 2, Deploy("student", 0), "student_0"),
        ("dml", 2, Deploy(), "student_1"),
        ("okddip", 3, Deploy(), "student_2"),  # the leader, whatever the others have reached
        ("one", 2, Deploy("auto", "best"), "student_1"),
    ],
)
def test_validation_chooses_among_the_networks_that_may_be_deployed(
    method: str, peers: int, choice: Deploy, member: str
) -> None:
    module = build(method, peers=peers, deploy=choice)
    reached = {"student_1": 0.9, "teacher_1": 0.8}
    module.scores.validation_accuracy.copy_(torch.tensor([reached.get(name, 0.1) for name in module.scores.members]))
    assert module.deployed_member() == member
    module.scores.validation_accuracy.fill_(0.5)  # of equal networks the method's own
    assert default_member(module).partition("_")[0] in ("teacher" if method == "dkel" else "student")
    if choice == Deploy():
        assert module.deployed_member() == default_member(module)


def test_a_sanity_check_does_not_choose_a_peer() -> None:
    module, seen = build(peers=2), []

    class Look(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            seen.append(pl_module.scores.validation_accuracy.isnan().all().item())

    trainer(Look(), num_sanity_val_steps=2).fit(module, train_loader(), val_loader())
    assert seen == [True]
    assert not module.scores.validation_accuracy.isnan().any()


def test_a_deployed_network_is_a_copy_without_this_library_around_it() -> None:
    module = build(peers=2)
    network = module.deploy("teacher", 1)
    before = parameters_of(network)
    trainer(limit_train_batches=1).fit(module, train_loader())
    assert same(parameters_of(network), before)
    assert not network.training
    assert all(p.requires_grad for p in network.parameters())
    assert not isinstance(network, LightningModule)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"deploy": {"peer": 2}}, "deploy.peer=2, but peers are numbered 0 to 1"),
        ({"method": "baseline", "teacher": {"update": "none"}, "deploy": {"network": "teacher"}}, "has no teacher"),
        ({"method": "baseline", "peers": 1, "deploy": {"network": "ensemble"}}, "has no ensemble"),
        (
            {"method": "pcl", "teacher": {"update": "none"}},
            "teacher=none, but PCL needs a teacher: choose teacher=independent, copy",
        ),
        ({"views": "per_peer_and_teacher"}, "method.views=per_peer_and_teacher is for mean_teacher"),
        ({"method": {"temperature": 2.0}}, "Unknown choice method=."),
        ({"method": Baseline(3), "peers": 2}, "Baseline was built for 3 peers, the student has 2"),
        ({"classifiers": "none"}, "method.classifiers must be one of own, equal, released, got 'none'"),
        ({"teacher": {"deacy": 0.5}}, "Unknown key teacher.deacy. Did you mean teacher.decay?"),
    ],
)
def test_impossible_modules_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**settings)
    assert text in str(caught.value)


def parts() -> tuple[StudentModule, TeacherModule, EnsembleModule]:
    student = StudentModule(peers_network(seed=1))
    return student, TeacherModule(peers_network(seed=2)), EnsembleModule(student.network.feature_dims, CLASSES)


def test_parts_put_together_by_hand_train_and_parts_that_do_not_fit_are_named() -> None:
    method = methods.create("dkel", 2)
    student, teacher, ensemble = parts()
    module = DistillationModule(student, method, teacher=teacher, ensemble=ensemble, optimizer=SGD)
    trainer(limit_train_batches=1).fit(module, train_loader())
    assert teacher.updates.item() == 1
    with pytest.raises(ConfigError, match="DKEL needs a teacher: pass teacher=TeacherModule"):
        DistillationModule(student, method, ensemble=ensemble)
    with pytest.raises(ConfigError, match="DKEL needs an ensemble classifier: pass ensemble=EnsembleModule"):
        DistillationModule(student, method, teacher=teacher)
    with pytest.raises(
        ConfigError, match="needs a teacher of 2 peers and 3 classes, and this one has 3 peers and 3 classes"
    ):
        DistillationModule(student, method, teacher=TeacherModule(peers_network(3)), ensemble=ensemble)


def test_equal_seeds_build_equal_networks_whatever_was_drawn_before() -> None:
    one = build(seed=3).state_dict()
    torch.rand(7)
    assert same({k: v for k, v in build(seed=3).state_dict().items() if "accuracy" not in k},
                {k: v for k, v in one.items() if "accuracy" not in k})  # fmt: skip
    assert not same(parameters_of(build(seed=4).student.network), parameters_of(build(seed=3).student.network))


# ---------------------------------------------------------------- checkpoints and resume


def saving(folder: Path, **settings: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, save_last=True, save_top_k=1, **settings)


def test_a_loaded_checkpoint_gives_equal_logits_of_every_member(tmp_path: Path) -> None:
    module = build(peers=2, deploy={"peer": "best"})
    trainer(saving(tmp_path), enable_checkpointing=True).fit(module, train_loader(), val_loader())
    loaded = DistillationModule.load_from_checkpoint(tmp_path / "last.ckpt", optimizer=SGD)
    images, _ = images_and_labels(6, seed=5)
    assert torch.equal(loaded.eval().evaluate(images).logits, module.eval().evaluate(images).logits)
    assert loaded.deployed_member() == module.deployed_member()
    assert torch.equal(loaded.scores.validation_accuracy, module.scores.validation_accuracy)
    assert same(loaded.state_dict(), module.state_dict())


def test_a_method_of_ones_own_is_asked_for_when_loading(tmp_path: Path) -> None:
    trainer(saving(tmp_path), enable_checkpointing=True).fit(build(Baseline(2)), train_loader())
    with pytest.raises(CheckpointError, match="was trained with your own method: pass method= to load it"):
        DistillationModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert DistillationModule.load_from_checkpoint(tmp_path / "last.ckpt", method=Baseline(2)).method.peers == 2


def test_rates_may_differ_where_a_checkpoint_is_tested_and_processes_may_not_where_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(saving(tmp_path), enable_checkpointing=True).fit(build(), train_loader())
    path = tmp_path / "last.ckpt"
    trainer().test(build(lr_scale=0.3), val_loader(), ckpt_path=path, weights_only=True, verbose=False)
    with pytest.raises(CheckpointError, match=r"lr_scale: 1\.0 in the checkpoint, 0\.3 here"):
        trainer().fit(build(lr_scale=0.3), train_loader(), ckpt_path=path, weights_only=True)
    monkeypatch.setattr(checkpoint_state, "world_size", lambda: 2)
    with pytest.raises(CheckpointError, match="1 processes wrote the checkpoint, and there are 2"):
        trainer().fit(build(), train_loader(), ckpt_path=path, weights_only=True)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (
            {"method": "pcl"},
            r"belongs to another configuration \(method\.name: dkel in the checkpoint, pcl here; .*teacher\.draw: ",
        ),
        ({"peers": 3}, r"peers: 2 in the checkpoint, 3 here"),
        ({"teacher": {"decay": 0.5}}, r"teacher\.decay: 0\.999 in the checkpoint, 0\.5 here"),
    ],
)
def test_resuming_from_another_configuration_is_refused_with_the_differences(
    tmp_path: Path, other: dict[str, Any], text: str
) -> None:
    trainer(saving(tmp_path), enable_checkpointing=True).fit(build(), train_loader())
    module = build(**other)
    before = parameters_of(module)
    with pytest.raises(CheckpointError, match=text):
        trainer(max_epochs=2).fit(module, train_loader(), ckpt_path=tmp_path / "last.ckpt")
    assert same(parameters_of(module), before)


@pytest.mark.parametrize("method", [DKEL, DML, Baseline])
def test_an_instance_of_a_method_has_the_defaults_of_its_name(method: type[Method]) -> None:
    name = method.__name__.lower()
    instance, named = (build(given).recipe or {} for given in (method(2), name))
    assert instance == named | {"method": None}


def test_statistics_are_averaged_after_a_training_without_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    averaged: list[int] = []
    monkeypatch.setattr(checkpoint_state, "average_over_processes", lambda tensors: averaged.append(len(tensors)))
    module = build()
    trainer(limit_val_batches=0, limit_train_batches=1).fit(module, train_loader())
    assert averaged == [len(running_statistics(module))]


def test_a_method_given_as_in_conf_brings_the_arrangement_of_its_peers() -> None:
    method = {"name": "dkel", "peers": 4, "views": "shared", "temperature": 2.0}
    module = DistillationModule.build("resnet8", CLASSES, method)
    assert (module.student.num_peers, module.num_views, module.method.settings.temperature) == (4, 1, 2.0)
    assert build(method, 2).student.num_peers == 2


def test_settings_are_taken_as_what_they_are_and_anything_else_is_named() -> None:
    module = build(teacher=TeacherSettings(decay=0.5), deploy=Deploy("student", 1))
    assert (module.teacher.settings.decay, module.deployment) == (0.5, Deploy("student", 1))
    with pytest.raises(ConfigError, match="deploy must be a mapping of its keys, got 'x'"):
        build(deploy="x")
