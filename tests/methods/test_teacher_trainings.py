"""SFTN and SoTeacher: golden losses and memories, and teachers that are trained so before their students."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from dkel_lightning import DistillationModule, methods
from dkel_lightning.app.tasks import stages
from dkel_lightning.data import Batch, WithIndices
from dkel_lightning.errors import ConfigError, DataError
from dkel_lightning.methods.soteacher import SoTeacher, lipschitz, released_count
from dkel_lightning.modules import checkpoint_state
from dkel_lightning.networks import create
from dkel_lightning.schedules import Clock, consistency_ramp
from tests.compose import compose
from tests.methods import family
from tests.methods.family import check_gradient, golden, leaf, tensor, total
from tests.modules import toy
from tests.modules.toy import CLASSES, EpochSampler, Toy, parameters_of, same, train_loader, trainer

SAMPLES = 24


build = partial(family.build, teacher=None, peers=1)


def plain() -> DistillationModule:
    return toy.build("baseline", 1, teacher={"update": "none"}, image_size=(8, 8))


def indexed_loader() -> DataLoader[Any]:
    data = Toy(SAMPLES)
    return DataLoader(WithIndices(data), batch_size=8, sampler=EpochSampler(data))


# ---------------------------------------------------------------------- SFTN


@pytest.mark.parametrize("index", [0, 1])
def test_golden_sftn_loss_with_nothing_detached(index: int) -> None:
    case = golden()["sftn"]["logits"][index]
    given, expected = case["settings"], case["expected"]
    settings = {"ce_weight": given["l_T"], "kl_weight": given["l_KL"], "branch_weight": given["l_CE"]}
    method: Any = methods.create("sftn", 1, {**settings, "temperature": given["T"]})
    trunk, branches = leaf(case["inputs"]["teacher_logits"]), leaf(case["inputs"]["branch_logits"])
    found = total(method.terms_of(trunk, branches, torch.tensor(case["inputs"]["labels"])))
    found.backward()
    assert found.item() == pytest.approx(expected["total"], rel=1e-12)
    check_gradient(trunk, expected["grad_teacher_logits"])
    check_gradient(branches, expected["grad_branch_logits"])


def test_golden_sftn_gradient_reaches_the_trunk() -> None:
    case = golden()["sftn"]["trunk"][0]
    given, expected = case["settings"], case["expected"]
    weights = {name: leaf(value) for name, value in case["inputs"]["weights"].items()}
    first = torch.tanh(tensor(case["inputs"]["x"]) @ weights["trunk1"].t())
    second = torch.tanh(first @ weights["trunk2"].t())
    branches = torch.stack(
        [
            torch.tanh(first @ weights["branch1_block"].t()) @ weights["branch1_classifier"].t(),
            second @ weights["branch2_classifier"].t(),
        ]
    )
    settings = {"ce_weight": given["l_T"], "kl_weight": given["l_KL"], "branch_weight": given["l_CE"]}
    method: Any = methods.create("sftn", 1, {**settings, "temperature": given["T"]})
    labels = torch.tensor(case["inputs"]["labels"])
    found = total(method.terms_of(second @ weights["classifier"].t(), branches, labels))
    assert found.item() == pytest.approx(expected["total"], rel=1e-12)
    found.backward()
    for name, value in weights.items():
        check_gradient(value, expected["grad"][name])


@pytest.mark.parametrize(
    ("teacher", "student", "size"), [("resnet8", "resnet8", 8), ("densenet40_12", "resnet8", 8), ("vgg16", "vgg16", 32)]
)
def test_branches_of_a_student_hang_on_its_teacher(teacher: str, student: str, size: int) -> None:
    module = build("sftn", teacher, student=student, image_size=(size, size))
    images, labels = torch.randn(4, 3, size, size), torch.tensor([0, 1, 2, 0])
    terms, loss = module.losses(module.forward_all(Batch(images, labels, None)))
    kd = terms["kd_branches"]
    stem = next(module.student.network.parameters())
    assert torch.autograd.grad(kd, stem, retain_graph=True)[0].abs().max() > 0
    assert len(module.method.branches) == (4 if teacher == "vgg16" else 2)
    assert module.deploy().state_dict().keys() == create(teacher, CLASSES, 1).peer(0).state_dict().keys()
    assert loss.isfinite()


def test_without_its_terms_it_is_plain_training_bit_for_bit() -> None:
    module, reference = build("sftn", student="resnet8", kl_weight=0.0, branch_weight=0.0), plain()
    for each in (module, reference):
        trainer().fit(each, train_loader())
    assert same(parameters_of(module.student.network), parameters_of(reference.student.network))


def test_a_student_that_is_missing_or_has_other_stages_is_named() -> None:
    with pytest.raises(ConfigError, match=r"set method\.student"):
        build("sftn")
    with pytest.raises(ConfigError, match=r"the teacher has 3 .*, vgg16 5 "):
        build("sftn", student="vgg16", image_size=(32, 32))


# ---------------------------------------------------------------------- SoTeacher


def layers_of(specs: list[dict[str, Any]]) -> list[nn.Module]:
    made: list[nn.Module] = []
    for spec in specs:
        weight = tensor(spec["weight"])
        layer: Any
        if spec["kind"] == "conv":
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), bias=False)  # type: ignore[arg-type]
        elif spec["kind"] == "linear":
            layer = nn.Linear(weight.shape[1], weight.shape[0])
        else:
            layer = nn.BatchNorm2d(len(weight), eps=spec["eps"])
            layer.running_var = tensor(spec["running_var"])
        layer.weight = nn.Parameter(weight)
        made.append(layer)
    return made


def test_golden_lipschitz() -> None:
    case = golden()["soteacher"]["lipschitz"][0]
    layers = layers_of(case["inputs"]["layers"])
    found = lipschitz(layers)
    assert found.item() == pytest.approx(case["expected"]["lip"], rel=1e-12)
    assert [lipschitz([layer]).item() for layer in layers] == pytest.approx(case["expected"]["per_layer"], rel=1e-12)
    found.backward()
    for layer, expected in zip(layers, case["expected"]["grad_weights"], strict=True):
        check_gradient(layer.weight, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("index", range(4))
def test_golden_coefficient(index: int) -> None:
    case = golden()["soteacher"]["coefficient"][index]
    given, epochs = case["settings"], case["inputs"]["epoch"]
    ramp = {"ramp": given["scheduler"], "ramp_start": given.get("start_at", 0), "consistency_weight": given["c_max"]}
    method = remembering("uniform", 1, 3, **ramp)
    found = []
    for epoch in epochs:
        method.set_time(Clock(epoch, steps_per_epoch=2, steps=2 * given["epochs"]))
        found.append(method.coefficient.item())
    assert found == pytest.approx(case["expected"]["weight_in_training"], rel=1e-12)


def remembering(counter: str, samples: int, classes: int, **settings: Any) -> SoTeacher:
    method = methods.create("soteacher", 1, {"counter": counter, "samples": samples, **settings})
    assert isinstance(method, SoTeacher)
    method.attach(create("resnet8", classes, 1))
    return method.double()


@pytest.mark.parametrize("counter", ["released", "uniform"])
def test_golden_memory(counter: str) -> None:
    case = golden()["soteacher"]["memory"][0]
    given = case["settings"]
    method = remembering(counter, given["samples"], given["classes"])
    for expected, logits in zip(case["expected"][counter], case["inputs"]["logits"], strict=True):
        epoch = expected["epoch"]
        method.rate.fill_(1 / (1 + released_count(epoch)))
        weight = given["c_max"] * consistency_ramp("linear", epoch, given["epochs"])
        assert weight == pytest.approx(expected["coefficient"], rel=1e-12)
        for batch, values, wanted in zip(case["inputs"]["batches"], logits, expected["batches"], strict=True):
            z = leaf(values)
            apart = method.consistency(z, torch.tensor(batch))
            (weight * apart).backward()
            check_gradient(z, wanted["grad_logits"])
            if epoch > 0:
                assert apart.item() == pytest.approx(wanted["cons"], rel=1e-12)
        torch.testing.assert_close(method.memory, tensor(expected["memory_after"]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("counter", ["released", "uniform"])
def test_a_sample_drawn_twice_in_a_batch_is_remembered_twice(counter: str) -> None:
    method = remembering(counter, 4, 3)
    logits = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    said = logits.softmax(-1)
    method.consistency(logits[:1], torch.tensor([2]))
    method.rate.fill_(0.25)
    method.consistency(logits[1:], torch.tensor([2, 0, 2, 2]))
    assert method.visits.tolist() == [1, 0, 4, 0]
    mean = said[[1, 3, 4]].mean(0)
    first = {"uniform": said[[0, 1, 3, 4]].mean(0), "released": 0.75 * said[0] + 0.25 * mean}[counter]
    other = {"uniform": said[2], "released": 0.25 * said[2]}[counter]
    torch.testing.assert_close(method.memory[2], first, rtol=1e-12, atol=0)
    torch.testing.assert_close(method.memory[0], other, rtol=1e-12, atol=0)
    assert method.written.tolist() == [1, 0, 1, 0]


def test_visits_are_counted_beyond_256_in_bf16_true() -> None:
    method = remembering("uniform", 2, 3).to(torch.float32).to(torch.bfloat16)
    for _ in range(300):
        method.consistency(torch.zeros(1, 3, dtype=torch.bfloat16), torch.tensor([1]))
    assert method.visits.tolist() == [0, 300]
    assert method.coefficient.dtype == torch.bfloat16


def test_without_its_terms_it_is_plain_training_bit_for_bit_and_the_memory_is_resumed(tmp_path: Path) -> None:
    module, reference = build("soteacher", samples=SAMPLES, lipschitz_weight=0.0, consistency_weight=0.0), plain()
    for each in (module, reference):
        trainer(max_epochs=2).fit(each, indexed_loader())
    assert same(parameters_of(module.student.network), parameters_of(reference.student.network))
    assert torch.equal(module.method.visits, torch.full((SAMPLES,), 2.0))
    torch.testing.assert_close(module.method.memory.sum(1), torch.ones(SAMPLES))
    whole, half = (build("soteacher", samples=SAMPLES) for _ in range(2))
    trainer(max_epochs=3).fit(whole, indexed_loader())
    keeper = ModelCheckpoint(tmp_path, filename="half", every_n_epochs=2, save_on_train_epoch_end=True)
    trainer(keeper, max_epochs=3, enable_checkpointing=True).fit(half, indexed_loader())
    rest = build("soteacher", samples=SAMPLES)
    trainer(max_epochs=3).fit(rest, indexed_loader(), ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(rest.method.memory, whole.method.memory)
    assert same(parameters_of(rest.student.network), parameters_of(whole.student.network))


def test_the_memory_of_every_process_is_in_a_checkpoint() -> None:
    module = toy.build({"name": "soteacher", "samples": SAMPLES}, 1)
    module.method.get_buffer("memory").fill_(2.0)
    kept = checkpoint_state.tensors_of_process(module)
    assert torch.equal(kept["method.memory"], torch.full((SAMPLES, CLASSES), 2.0))
    assert kept.keys() <= module.state_dict().keys()


def test_batches_must_tell_their_samples_and_how_many_there_are() -> None:
    with pytest.raises(DataError, match=r"WithIndices\(data\)"):
        trainer().fit(build("soteacher", samples=SAMPLES), train_loader())
    with pytest.raises(ConfigError, match=r"set method\.samples to their number"):
        build("soteacher")


# ---------------------------------------------------------------------- before a student


@pytest.mark.parametrize("training", ["sftn", "soteacher"])
def test_a_teacher_is_trained_so_before_its_student(training: str) -> None:
    asked = ("method=kd", "backbone=resnet8", "teacher.backbone=densenet40_12", f"teacher.training={training}")
    (stage,) = stages.stages_before(compose(*asked)).values()
    assert stage["method"]["name"] == training
    assert stage["backbone"]["name"] == "densenet40_12"
    if training == "sftn":
        assert stage["method"]["student"] == "resnet8"
