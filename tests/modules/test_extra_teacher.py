"""A frozen teacher from elsewhere beside the peers of any method, as one more voice."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dkel_lightning import DistillationModule
from dkel_lightning.app.config import checks
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tasks.evaluate import evaluate
from dkel_lightning.app.tasks.train import train
from dkel_lightning.data import Batch
from dkel_lightning.errors import CheckpointError, ConfigError
from dkel_lightning.functional import distillation
from dkel_lightning.methods import METHODS
from tests.checkpoints import test_left_out
from tests.checkpoints.test_left_out import trained
from tests.compose import compose, tiny_run
from tests.modules.toy import CLASSES, SGD, parameters_of, same, train_loader, trainer

BACKBONE = "resnet8"
IN_STAGES = {"heads", "sftn", "soteacher"}
"""They train a teacher, or fit on one."""


def build(method: Any, extra: dict[str, Any] | None, peers: int | None = None, **settings: Any) -> DistillationModule:
    own = METHODS[method if isinstance(method, str) else method["name"]].method.needs.foreign_teacher
    teacher = {**({"backbone": "resnet8"} if own else {}), **({"extra": extra} if extra is not None else {})}
    return DistillationModule.build(
        "resnet8", CLASSES, method, peers, teacher=teacher, optimizer=SGD, image_size=(8, 8), **settings
    )


def weights_file(folder: Path, seed: int = 0, **form: int) -> str:
    return test_left_out.weights_file(folder, seed, backbone=BACKBONE, **form)


def voice(folder: Path, **settings: Any) -> dict[str, Any]:
    return {"backbone": BACKBONE, "weights": weights_file(folder), **settings}


@pytest.fixture(scope="module")
def extra(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return voice(tmp_path_factory.mktemp("extra"))


@pytest.mark.parametrize("method", sorted(METHODS.keys() - IN_STAGES))
def test_it_teaches_each_peer_in_every_method(method: str, extra: dict[str, Any]) -> None:
    module, without = build(method, {**extra, "weight": 0.3}), build(method, None)
    assert same(parameters_of(module.student), parameters_of(without.student))
    views = module.num_views if module.num_views > 1 else 1
    images = torch.randn(4, views, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = Batch(images if views > 1 else images[:, 0], torch.tensor([0, 1, 2, 0]), torch.arange(4))
    inputs = module.eval().forward_all(batch)
    terms, loss = module.losses(inputs)
    own, _ = module.views_of_each(batch.views)
    peers = module.student.num_peers
    seen = [own if own.dim() == 4 else own[:, min(peer, own.shape[1] - 1)] for peer in range(peers)]
    taught = torch.stack([module.extra.network(view)[0][0] for view in seen])
    temperature = getattr(module.method.settings, "temperature", 1.0)
    expected = 0.3 * distillation(inputs.student.logits, taught.detach(), temperature).sum()
    torch.testing.assert_close(terms["kd_extra"], expected, rtol=1e-5, atol=1e-6)
    others = torch.stack([terms[name] for name in module.method.terms]).sum()
    if module.teacher is None or not module.teacher.learns:
        torch.testing.assert_close(loss, others + expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    assert all(parameter.grad is None for parameter in module.extra.parameters())
    gradient = torch.autograd.grad(
        module.losses(module.forward_all(batch))[0]["kd_extra"], [*module.student.parameters()], allow_unused=True
    )
    assert any(each is not None and each.abs().sum() > 0 for each in gradient)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dkel", "dml"])
def test_a_training_leaves_it_alone_and_resumes_exactly_without_it_in_the_checkpoint(
    method: str, extra: dict[str, Any], tmp_path: Path
) -> None:
    whole = trained(build(method, extra), tmp_path / "whole.ckpt", 2)
    untouched = build(method, extra).extra
    assert same(dict(whole.extra.network.state_dict()), dict(untouched.network.state_dict()))
    assert not whole.extra.network.training
    trained(build(method, extra), tmp_path / "half.ckpt")
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    assert not any(name.startswith("extra.network.") for name in state)
    resumed = trained(build(method, extra), tmp_path / "rest.ckpt", 2, tmp_path / "half.ckpt")
    assert same(parameters_of(whole.student), parameters_of(resumed.student))
    alone = DistillationModule.load_from_checkpoint(tmp_path / "half.ckpt")
    images = torch.randn(2, 3, 8, 8)
    assert alone.deploy()(images).shape == (2, CLASSES)
    with pytest.raises(CheckpointError, match=r"give teacher\.extra\.weights=FILE or teacher\.extra\.pretrained=true"):
        trainer().fit(alone, train_loader())
    again = DistillationModule.load_from_checkpoint(tmp_path / "half.ckpt", teacher={"extra": extra}, optimizer=SGD)
    trained(again, tmp_path / "rest.ckpt", 2, tmp_path / "half.ckpt")
    assert same(parameters_of(whole.student), parameters_of(again.student))
    with pytest.raises(CheckpointError, match=rf"was taught by {BACKBONE} beside the peers: give teacher\.extra"):
        trained(build(method, None), tmp_path / "x.ckpt", 2, tmp_path / "half.ckpt")
    other = {**extra, "weights": weights_file(tmp_path, 1)}
    with pytest.raises(CheckpointError, match=r"leaves out its teacher\.extra, .*_0\.pt.* here is .*_1\.pt"):
        trained(build(method, other), tmp_path / "x.ckpt", 2, tmp_path / "half.ckpt")


@pytest.mark.slow
def test_a_compiled_step_is_an_eager_one(extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    both = [build("dkel", extra, execution=execution) for execution in ("eager", "compile")]
    batch = Batch(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]), None)
    both[1].compile_networks(4)
    eager, compiled = (module.compute_step(batch).loss for module in both)
    torch.testing.assert_close(eager, compiled, rtol=1e-4, atol=1e-5)


def test_images_are_converted_for_it(extra: dict[str, Any]) -> None:
    constants = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    module = build("dml", {**extra, "mean": [0.1] * 3, "std": [0.4] * 3, "dtype": "bfloat16"}, normalize=constants)
    assert {each.dtype for each in module.extra.network.parameters()} == {torch.bfloat16}
    assert module.recipe is not None
    assert module.recipe["normalize"] is not None
    trainer().fit(module, train_loader())
    with pytest.raises(ConfigError, match=r"teacher\.extra\.mean replaces the normalisation"):
        build("dml", {**extra, "mean": [0.1] * 3, "std": [0.4] * 3})
    with pytest.raises(ConfigError, match=r"teacher\.extra\.mean and teacher\.extra\.std belong together"):
        build("dml", {**extra, "mean": [0.1] * 3})
    with pytest.raises(CheckpointError, match=r"set teacher\.extra\.backbone to the network that they belong to"):
        build("dml", {**extra, "backbone": "densenet40_12"})


@pytest.mark.parametrize("method", ["dkel", "dml"])
def test_a_run_with_one_command_and_its_evaluation(method: str, tmp_path: Path) -> None:
    given = f"teacher.extra.weights={weights_file(tmp_path, classes=10, channels=1)}"
    asked = (f"method={method}", f"teacher.extra.backbone={BACKBONE}")
    with pytest.raises(ConfigError, match=r"give teacher\.extra\.weights, or teacher\.extra\.pretrained=true"):
        checks.check(compose(*asked))
    with pytest.raises(ConfigError, match=r"weights and no network: give teacher\.extra\.backbone"):
        checks.check(compose(asked[0], given))
    train(tiny_run(tmp_path / "run", *asked, given, "trainer.max_epochs=1", "trainer.limit_train_batches=2"))
    assert "train/kd_extra" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    values = compose(*asked, "task=evaluate", f"checkpoint={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}")
    assert evaluate(Run(values, tmp_path / "test")).scores.deployed_accuracy >= 0
