"""Teachers that were trained on other images: their normalisation, size, type and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dkel_lightning import DistillationModule
from dkel_lightning.app.tasks import stages
from dkel_lightning.errors import CheckpointError, ConfigError
from dkel_lightning.networks import Conversion
from tests.compose import compose
from tests.modules.toy import CLASSES, SGD, images_and_labels, train_loader, trainer, val_loader

OURS = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
THEIRS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def build(**teacher: Any) -> DistillationModule:
    return DistillationModule.build(
        "resnet8", CLASSES, "kd", 1, teacher={"backbone": "densenet40_12", **teacher}, normalize=OURS, optimizer=SGD
    )


def normalised(raw: Tensor, constants: Any) -> Tensor:
    mean, std = (torch.tensor(each, dtype=raw.dtype).view(-1, 1, 1) for each in constants)
    return (raw - mean) / std


def test_images_are_normalised_and_resampled_as_if_they_had_come_raw() -> None:
    raw = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    taken, *rest = Conversion(OURS, THEIRS, 12)(nn.Linear(1, 1).double(), (normalised(raw, OURS), "other"))
    expected = F.interpolate(normalised(raw, THEIRS), (12, 12), mode="bilinear", antialias=True)
    torch.testing.assert_close(taken, expected, rtol=1e-5, atol=1e-6)
    assert rest == ["other"]
    kept = torch.rand(2, 3, 8, 8)
    assert Conversion(OURS, None, 8)(nn.Linear(1, 1), (kept,))[0] is kept


@pytest.mark.parametrize("backbone", ["densenet40_12", "timm:resnet10t"])
def test_the_teacher_sees_its_own_images_in_training_and_deployed_and_its_weights_keep_their_names(
    backbone: str, tmp_path: Path
) -> None:
    module = build(backbone=backbone, image_size=16, mean=THEIRS[0], std=THEIRS[1])
    plain = build(backbone=backbone)
    assert [*module.state_dict()] == [*plain.state_dict()]
    plain.teacher.network.load_state_dict(module.teacher.network.state_dict())
    raw = torch.rand(3, 2, 3, 8, 8)
    converted = F.interpolate(normalised(raw.flatten(0, 1), THEIRS), (16, 16), mode="bilinear", antialias=True)
    expected = plain.teacher.teach(converted.view(3, 2, 3, 16, 16)).logits
    images = normalised(raw, OURS)
    torch.testing.assert_close(module.teacher.teach(images).logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.deploy("teacher")(images[:, 0]), expected[0], rtol=1e-4, atol=1e-5)
    fit = trainer()
    fit.fit(module, train_loader(), val_loader())
    fit.save_checkpoint(tmp_path / "x.ckpt")
    again = DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt")
    torch.testing.assert_close(again.teacher.teach(images).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_teacher_computes_in_its_own_type_and_the_student_in_its_own() -> None:
    module = build(dtype="bfloat16")
    fit = trainer()
    fit.fit(module, train_loader(), val_loader())
    assert {each.dtype for each in module.teacher.network.parameters()} == {torch.bfloat16}
    assert {each.dtype for each in module.student.network.parameters()} == {torch.float32}
    assert fit.callback_metrics["val/acc/teacher_0"].isfinite()
    assert fit.callback_metrics["train/kd"].isfinite()


def test_a_checkpoint_of_a_folder_s_network_teaches_where_the_same_folder_is_named(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: extra hf")
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    transformers.ViTConfig(**shape, patch_size=8, image_size=16, num_labels=CLASSES).save_pretrained(tmp_path)
    named = f"hf:{tmp_path}"
    trained = DistillationModule.build(named, CLASSES, "baseline", 1, image_size=(16, 16), teacher={"update": "none"})
    fit = trainer()
    fit.fit(trained, DataLoader(TensorDataset(*images_and_labels(6, size=16)), batch_size=6))
    fit.save_checkpoint(tmp_path / "stage.ckpt")
    given = {"backbone": named, "image_size": 16, "weights": str(tmp_path / "stage.ckpt")}
    module = DistillationModule.build("resnet8", CLASSES, "kd", 1, image_size=(8, 8), teacher=given)
    ours, theirs = module.teacher.peer(0).state_dict(), trained.student.peer(0).state_dict()
    assert [*ours] == [*theirs]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(CheckpointError, match="no file chooses a folder that is read"):
        DistillationModule.build("resnet8", CLASSES, "kd", 1, teacher={**given, "backbone": "resnet8"})


def test_weights_and_normalisation_of_a_folder_teach_if_they_know_these_classes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: extra hf")
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(**shape, patch_size=8, image_size=16, num_labels=CLASSES)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(image_mean=THEIRS[0], image_std=THEIRS[1]).save_pretrained(tmp_path)
    module = build(backbone=f"hf:{tmp_path}", pretrained=True, image_size=16)
    assert module.recipe is not None
    told = {key: module.recipe["teacher"][key] for key in ("pretrained", "mean", "std")}
    assert told == {"pretrained": False, "mean": THEIRS[0], "std": THEIRS[1]}  # it is rebuilt without the folder's
    raw = torch.rand(3, 3, 8, 8)
    converted = F.interpolate(normalised(raw, THEIRS), (16, 16), mode="bilinear", antialias=True)
    taught = module.teacher.eval().teach(normalised(raw, OURS)).logits[0]
    torch.testing.assert_close(taught, model(converted).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"knows 3 classes, the data has 5: fine-tune it on these classes"):
        DistillationModule.build("resnet8", 5, "kd", 1, teacher={"backbone": f"hf:{tmp_path}", "pretrained": True})


@pytest.mark.parametrize(
    ("method", "teacher", "message"),
    [
        ("dkel", {"image_size": 16}, r"teacher\.image_size is set, but the teacher of DKEL has the student's form"),
        ("kd", {"mean": [0.5]}, r"teacher\.mean and teacher\.std belong together"),
        ("kd", {"mean": [0.5], "std": [0.2]}, r"which is not known: pass normalize=\(mean, std\)"),
        ("kd", {"pretrained": True}, r"set teacher\.backbone to torchvision:NAME"),
        ("dkel", {"dtype": "bfloat16", "update": "frozen"}, r"teacher\.dtype=bfloat16 is of a teacher that follows"),
        ("dkel", {"dtype": "float16"}, r"teacher\.dtype=float16 is for a frozen teacher: set it to bfloat16"),
        ("kd", {"dtype": "bfloat16", "update": "gradient"}, r"for a teacher that does not learn: add teacher=frozen"),
    ],
)
def test_what_cannot_be_is_refused(method: str, teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DistillationModule.build("resnet8", CLASSES, method, 2, teacher=teacher)


def test_a_teacher_that_is_trained_first_sees_what_its_student_sees(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"before this training \(teacher\) are of the images as they are"):
        stages.before(compose("method=kd", "teacher.image_size=16"))
    assert stages.before(compose("method=kd", "teacher.image_size=16", "teacher.weights=x.pt")) == {}
    fetched = ("method=kd", "teacher.backbone=hf:vit", "teacher.pretrained=true")
    assert stages.before(compose(*fetched)) == {}
    with pytest.raises(ConfigError, match="heads is fitted on a teacher in a file"):
        stages.before(compose("method=dih", *fetched[1:]))
