"""The code in a model card, run as it stands, gives the network that was exported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dkel_lightning import DistillationModule
from dkel_lightning.export import Preprocessing, Shipped, export
from dkel_lightning.export.metadata import backbone_of
from dkel_lightning.networks import size_arguments

OURS = ((0.5,) * 3, (0.25,) * 3)


def pictures(size: int) -> Tensor:
    return torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(0))


def shipped(module: DistillationModule, size: int, folder: Path, **settings: Any) -> Shipped:
    known = Preprocessing(3, size, size, *OURS)
    return export(module, pictures(size), folder, known, **{"repeats": 0, **settings})


def of_card(folder: Path, monkeypatch: pytest.MonkeyPatch, network: nn.Module | None = None) -> nn.Module:
    """Run the card's code in its folder, where `network` is what it takes for given."""
    found = re.search(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)
    assert found
    names: dict[str, Any] = {"network": network}
    monkeypatch.chdir(folder)
    exec(found[1], names)
    made: nn.Module = names["network"].eval()
    return made


def member(module: DistillationModule, name: str, size: int) -> Tensor:
    with torch.no_grad():
        return module.eval().evaluate(pictures(size)).logits[module.scores.members.index(name)]


def kd(backbone: Any, size: int = 16, **teacher: Any) -> DistillationModule:
    return DistillationModule.build("resnet8", 5, "kd", 1, teacher={**teacher, "backbone": backbone},
                                    image_size=(size, size))  # fmt: skip


def test_a_network_of_one_size_alone_is_built_for_the_size_of_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = DistillationModule.build("timm:test_vit", 5, "dkel", 2, split_at="blocks.4", image_size=(32, 32))
    folder = shipped(module, 32, tmp_path / "out", format="original", network="student", peer=1).folder
    network = of_card(folder, monkeypatch)
    torch.testing.assert_close(network(pictures(32)), member(module, "student_1", 32), rtol=1e-3, atol=1e-4)
    assert size_arguments("torchvision:vit_b_16", (32, 32)) == {"image_size": 32}
    assert size_arguments("torchvision:resnet18", (32, 32)) == size_arguments("resnet8", (32, 32)) == {}


def test_a_teacher_of_its_own_backbone_is_called_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = kd("timm:test_resnet", 32)
    folder = shipped(module, 32, tmp_path / "out", format="original", network="teacher").folder
    network = of_card(folder, monkeypatch)
    torch.testing.assert_close(network(pictures(32)), member(module, "teacher_0", 32), rtol=1e-3, atol=1e-4)
    assert backbone_of(module.recipe, "teacher_0") == "timm:test_resnet"
    assert backbone_of(module.recipe, "student_0") == "resnet8"
    assert backbone_of({"backbone": "resnet32", "peers": ["resnet8", "vgg16"]}, "student_1") == "vgg16"
    assert backbone_of(None, "student_0") == ""


def test_a_model_of_transformers_that_was_given_itself_is_read_by_from_pretrained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: extra hf")
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**shape, patch_size=8, image_size=16))
    module = DistillationModule.build(model, 5, "dkel", 2, split_at="vit.layers.1", image_size=(16, 16))
    folder = shipped(module, 16, tmp_path / "out", format="original", network="student", peer=0).folder
    network = of_card(folder, monkeypatch)
    torch.testing.assert_close(network(pictures(16)).logits, member(module, "student_0", 16), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["safetensors", "state_dict", "original"])
def test_weights_of_a_network_of_ones_own_are_read_into_its_own_class(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def own() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))

    module = DistillationModule.build(own(), 5, "dkel", 2, split_at="2", image_size=(8, 8))
    folder = shipped(module, 8, tmp_path / "out", format=kind, network="student", peer=1).folder
    torch.testing.assert_close(of_card(folder, monkeypatch, own())(pictures(8)), member(module, "student_1", 8))
    assert "names that the network's own library gives" in (folder / "README.md").read_text()


CONVERTING: dict[str, Any] = {"image_size": 32, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
