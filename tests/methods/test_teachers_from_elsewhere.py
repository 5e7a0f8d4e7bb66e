"""Teachers that were trained elsewhere: files and folders of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from dkel_lightning import DistillationModule
from dkel_lightning.app.tasks import stages
from dkel_lightning.errors import CheckpointError, ConfigError
from tests.compose import compose
from tests.modules.toy import CLASSES, images_and_labels, trainer


def test_a_checkpoint_of_a_folder_s_network_teaches_where_the_same_folder_is_named(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: extra hf")
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    transformers.ViTConfig(**shape, patch_size=8, image_size=16, num_labels=CLASSES).save_pretrained(tmp_path)
    named = f"hf:{tmp_path}"
    trained = DistillationModule.build(named, CLASSES, "baseline", 1, image_size=(16, 16), teacher={"update": "none"})
    fit = trainer()
    fit.fit(trained, DataLoader(TensorDataset(*images_and_labels(6, size=16)), batch_size=6))
    fit.save_checkpoint(tmp_path / "stage.ckpt")
    given = {"backbone": named, "weights": str(tmp_path / "stage.ckpt")}
    module = DistillationModule.build("resnet8", CLASSES, "kd", 1, image_size=(16, 16), teacher=given)
    ours, theirs = module.teacher.peer(0).state_dict(), trained.student.peer(0).state_dict()
    assert [*ours] == [*theirs]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(CheckpointError, match="no file chooses a folder that is read"):
        DistillationModule.build("resnet8", CLASSES, "kd", 1, teacher={**given, "backbone": "resnet8"})


def test_weights_of_a_folder_teach_if_they_know_these_classes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: extra hf")
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(**shape, patch_size=8, image_size=16, num_labels=CLASSES)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    teacher = {"backbone": f"hf:{tmp_path}", "pretrained": True}
    module = DistillationModule.build("resnet8", CLASSES, "kd", 1, teacher=teacher, image_size=(16, 16))
    assert module.recipe is not None
    assert module.recipe["teacher"]["pretrained"] is False  # it is rebuilt without the folder's weights
    images = torch.rand(3, 3, 16, 16)
    taught = module.teacher.eval().teach(images).logits[0]
    torch.testing.assert_close(taught, model(images).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"have 3 classes, the data 5"):
        DistillationModule.build("resnet8", 5, "kd", 1, teacher={"backbone": f"hf:{tmp_path}", "pretrained": True})


@pytest.mark.parametrize(
    ("method", "teacher", "message"),
    [
        ("dkel", {"training": "sftn"}, r"teacher\.training is 'sftn', but the teacher of DKEL has the student's form"),
        ("dkel", {"pretrained": True}, r"teacher\.pretrained is True, but the teacher of DKEL has the student's form"),
        ("kd", {"pretrained": True}, r"set teacher\.backbone to torchvision:NAME"),
    ],
)
def test_what_cannot_be_is_refused(method: str, teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DistillationModule.build("resnet8", CLASSES, method, 2, teacher=teacher)


def test_a_teacher_with_weights_needs_no_stage_of_its_own() -> None:
    assert stages.stages_before(compose("method=kd", "teacher.weights=x.pt")) == {}
    fetched = ("method=kd", "teacher.backbone=hf:vit", "teacher.pretrained=true")
    assert stages.stages_before(compose(*fetched)) == {}
    with pytest.raises(ConfigError, match="heads needs a teacher from a file"):
        stages.stages_before(compose("method=dih", *fetched[1:]))
