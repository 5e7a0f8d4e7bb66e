"""DIH: the golden losses, its three stages with one command, and what becomes of heads that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from dkel_lightning import DistillationModule, methods
from dkel_lightning.app.run import Run, find_checkpoint, resume_path
from dkel_lightning.app.tasks import stages
from dkel_lightning.app.tasks.train import train
from dkel_lightning.errors import ConfigError
from tests.compose import compose, tiny_run
from tests.methods import family
from tests.methods.family import check_gradient, golden, leaf, total
from tests.modules import toy
from tests.modules.toy import Interrupt, parameters_of, same, train_loader, trainer

THREE_STAGES = ("method=dih", "backbone=resnet8", "teacher.backbone=resnet8", "teacher.training_epochs=1")


def outputs_of(case: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    taught = [leaf([case["inputs"]["teacher_logits"]]), *(leaf([head]) for head in case["inputs"]["head_logits"])]
    return leaf([case["inputs"]["student_logits"]]), taught


def method_of(case: dict[str, Any], **settings: Any) -> Any:
    given = case["settings"]["a"]
    weight = given if isinstance(given, float) else [given[key] for key in sorted(given)]
    return methods.create("dih", 1, {"weights": weight, "temperature": case["settings"]["T"], **settings})


@pytest.mark.parametrize("index", range(4))
def test_golden_losses_and_gradients_as_released_and_with_the_labels_once(index: int) -> None:
    case = golden()["dih"][index]
    labels = torch.tensor(case["inputs"]["labels"])
    for name, settings in (("released", {}), ("ce_once", {"ce_once": True})):
        if f"{name}_total" not in case["expected"]:
            continue
        student, taught = outputs_of(case)
        found = total(method_of(case, **settings).terms_of(student, torch.stack(taught).detach(), labels, labels))
        assert found.item() == pytest.approx(case["expected"][f"{name}_total"], rel=1e-12)
        found.backward()
        check_gradient(student, case["expected"][f"{name}_grad_student"])


def test_the_labels_count_once_for_each_output_whose_weight_is_above_0() -> None:
    case = golden()["dih"][3]
    student, taught = outputs_of(case)
    labels = torch.tensor(case["inputs"]["labels"])
    terms = method_of(case).terms_of(student, torch.stack(taught).detach(), labels, labels)
    once = case["expected"]["weight_of_cross_entropy"] * case["expected"]["cross_entropy"]
    assert terms["ce"].item() == pytest.approx(once, rel=1e-12)
    spoilt = torch.stack(taught).detach()
    spoilt[2] = float("nan")  # the head of weight 0 is not there
    assert torch.equal(method_of(case).terms_of(student, spoilt, labels, labels)["kd_heads"], terms["kd_heads"])


def test_without_heads_it_is_kd() -> None:
    student, teacher = torch.randn(2, 4, 5), torch.randn(1, 1, 4, 5)
    labels = torch.arange(4)
    method: Any = methods.create("dih", 2, {"weights": 0.3, "temperature": 4.0})
    ours = method.terms_of(student, teacher, labels, labels)
    step = torch.nn.functional.cross_entropy(student[0], labels) + torch.nn.functional.cross_entropy(student[1], labels)
    assert ours["ce"].item() == pytest.approx(0.7 * step.item(), rel=1e-6)
    assert ours["kd_heads"].item() == 0
    module = build("dih", layers=[])
    assert bool(module.method.fitted)
    assert len(module.method.heads) == 0


def build(method: str, teacher: dict[str, Any] | None = None, **settings: Any) -> Any:
    return family.build(method, teacher=teacher or "resnet8" if method == "dih" else None, **settings)


def fitted_heads(path: Path, **settings: Any) -> Any:
    module, fit = build("heads", seed=7, **settings), trainer()
    before = {name: value.clone() for name, value in module.student.state_dict().items()}
    heads = parameters_of(module.method.heads)
    fit.fit(module, train_loader())
    after = module.student.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # BatchNorm's statistics too
    assert not same(heads, parameters_of(module.method.heads))
    assert [group["name"] for group in fit.optimizers[0].param_groups] == ["method"]
    fit.save_checkpoint(path)
    return module


def test_a_fixed_student_stays_frozen_whatever_its_rate() -> None:
    module = toy.build("heads", 1, lr_scale=0.0)
    assert not any(parameter.requires_grad for parameter in module.student.network.parameters())
    assert not any(part.training for part in module.train().student.network.modules())


def test_heads_are_fitted_on_a_frozen_network_and_teach_unchanged(tmp_path: Path) -> None:
    prepared = fitted_heads(tmp_path / "heads.ckpt")
    assert prepared.method.heads.layers == ("stage1", "stage2", "stage3")
    module = build("dih", {"weights": str(tmp_path / "heads.ckpt")}, layers=["stage3", "stage1"], peers=2)
    assert bool(module.method.fitted)
    theirs = prepared.method.heads
    assert torch.equal(module.method.heads[0][1].weight, theirs[2][1].weight)
    frozen = {**parameters_of(module.method.heads), **parameters_of(module.teacher.network)}
    fit = trainer()
    fit.fit(module, train_loader(views=2))
    assert same(frozen, {**parameters_of(module.method.heads), **parameters_of(module.teacher.network)})
    assert [group["name"] for group in fit.optimizers[0].param_groups] == ["student"]
    assert float(fit.callback_metrics["train/kd_heads"]) > 0
    fit.save_checkpoint(tmp_path / "dih.ckpt")
    (tmp_path / "heads.ckpt").unlink()
    loaded: Any = DistillationModule.load_from_checkpoint(tmp_path / "dih.ckpt")
    assert bool(loaded.method.fitted)
    assert torch.equal(loaded.method.heads[0][1].weight, theirs[2][1].weight)
    assert not any("head" in name for name in loaded.deploy().state_dict())


def test_heads_that_do_not_fit_and_weights_without_meaning_are_refused(tmp_path: Path) -> None:
    fitted_heads(tmp_path / "heads.ckpt", layers=["stage2"])
    with pytest.raises(
        ConfigError, match=r"method\.layers names stage1, and the heads of teacher\.weights are on stage2"
    ):
        build("dih", {"weights": str(tmp_path / "heads.ckpt")}, layers=["stage1", "stage2"])
    with pytest.raises(ConfigError, match=r"'stage4', but SinglePeer has no such module. Did you mean stage"):
        build("heads", layers=["stage4"])
    with pytest.raises(
        ConfigError, match=r"method\.weights has 2 entries .* 3 heads \(stage1, stage2, stage3\): give 4"
    ):
        build("dih", weights=[0.5, 0.5])
    with pytest.raises(ConfigError, match="has no weight above 0"):
        build("dih", weights=0.0)
    with pytest.raises(ConfigError, match="ce_once=true needs one weight"):
        build("dih", weights=[0.5, 0.1, 0.1, 0.1], ce_once=True)
    with pytest.raises(ConfigError, match="takes at most 1 peer, got 2"):
        build("heads", peers=2)
    with pytest.warns(UserWarning, match="The parts of DIH that method=heads fits have random weights"):
        trainer(limit_train_batches=1).fit(build("dih"), train_loader())


# ---------------------------------------------------------------------- three stages with one command


def test_the_stages_are_settled_by_what_is_given(tmp_path: Path) -> None:
    values = compose(*THREE_STAGES, "method.layers=[stage1]")
    found = stages.stages_before(values)
    assert [*found] == ["teacher", "heads"]
    first, second = found.values()
    assert (first["method"]["name"], first["trainer"]["max_epochs"]) == ("baseline", 1)
    assert (second["method"]["name"], second["method"]["layers"]) == ("heads", ["stage1"])
    assert first["seed"] != second["seed"] != values["seed"]
    fitted_heads(tmp_path / "heads.ckpt")
    plain = build("heads", seed=1)
    torch.save(plain.deploy().state_dict(), tmp_path / "plain.pt")
    given = compose(*THREE_STAGES, f"teacher.weights={tmp_path / 'plain.pt'}")
    ((name, only),) = stages.stages_before(given).items()
    assert (name, only["backbone"]["weights"]) == ("heads", str(tmp_path / "plain.pt"))
    assert stages.stages_before(compose(*THREE_STAGES, f"teacher.weights={tmp_path / 'heads.ckpt'}")) == {}
    assert stages.stages_before(compose(*THREE_STAGES, "teacher.update=gradient")) == {}


def test_an_early_stopped_teacher_leaves_the_schedule_of_the_whole_run() -> None:
    asked = ("experiment=cifar100", "method=kd", "teacher.training=early_stopped")
    (stage,) = stages.stages_before(compose(*asked, "trainer.max_epochs=240")).values()
    assert stage["trainer"]["max_epochs"] == 150
    assert stage["scheduler"]["milestones"] == [150, 225]
    (stage,) = stages.stages_before(
        compose("method=kd", "teacher.training=early_stopped", "trainer.max_epochs=16")
    ).values()
    assert stage["trainer"]["max_epochs"] == 10
    assert stage["scheduler"]["milestones"] == [8, 12]
    (stage,) = stages.stages_before(compose(*asked, "scheduler=warmup_cosine", "trainer.max_epochs=16")).values()
    assert (stage["scheduler"]["T_max"], stage["scheduler"]["interval"]) == (16, "epoch")
    (stage,) = stages.stages_before(compose("experiment=cifar100", "method=kd", "teacher.training_epochs=100")).values()
    assert (stage["trainer"]["max_epochs"], stage["scheduler"]["milestones"]) == (100, [50, 75])


@pytest.mark.slow
def test_one_command_trains_teacher_heads_and_student_and_each_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = (*THREE_STAGES, "teacher.training_epochs=2", "trainer.max_epochs=2", "trainer.limit_train_batches=2")
    whole = train(tiny_run(tmp_path / "whole", *tiny))
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    fits = [
        json.loads((tmp_path / "whole" / name / "summary.json").read_text())["seconds"] for name in ("teacher", "heads")
    ]
    assert summary["seconds_before"] == pytest.approx(sum(fits))
    monkeypatch.chdir(tmp_path)
    broken = tiny_run(tmp_path / "outputs" / "broken", *tiny)
    from dkel_lightning.app.tasks import train as module

    real = module._callbacks
    run = broken
    for where in ("teacher", "heads", "broken"):

        def callbacks(run: Run, *rest: Any, where: str = where) -> list[Callback]:
            return [*real(run, *rest), *([Interrupt(1)] if run.folder.name == where else [])]

        with monkeypatch.context() as patch:
            patch.setattr(module, "_callbacks", callbacks)
            with pytest.raises((KeyboardInterrupt, SystemExit)):
                train(run)
        # What is resumed is the run around a stage.
        assert resume_path("last").resolve() == broken.folder
        run = replace(broken, resume=find_checkpoint(broken.folder))
        assert (run.resume is None) is (where != "broken")
    written = (broken.folder / "teacher" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    result = train(run)
    assert result.last.accuracy == whole.last.accuracy
    assert (broken.folder / "teacher" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == written
    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (broken.folder, tmp_path / "whole")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
