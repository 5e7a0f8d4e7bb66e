"""Classifiers of torchvision, timm and transformers by name: their usual cuts, weights and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from dkel_lightning import DistillationModule
from dkel_lightning.errors import ConfigError
from dkel_lightning.networks import SplitModel, default_cut, make
from dkel_lightning.networks.outline import observe
from tests.compose import compose

STAGES = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
BLOCKS = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8, "patch_size": 8}
HF: dict[str, dict[str, Any]] = {
    "vit": BLOCKS,
    "deit": BLOCKS,
    "resnet": {**STAGES, "embedding_size": 8},
    "regnet": {**STAGES, "embedding_size": 8, "groups_width": 8},
    "convnext": STAGES,
    "swin": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2},
}
NAMES = [
    *("resnet18", "resnext50_32x4d", "regnet_y_400mf", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"),
    *("efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t"),
]
TIMM = [
    *("resnet10t", "resnext50_32x4d", "regnetx_002", "mobilenetv3_small_050", "mobilenetv2_050", "efficientnet_b0"),
    *("convnext_atto", "vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"),
]


@pytest.mark.parametrize("name", [*map("torchvision:{}".format, NAMES), *map("timm:{}".format, TIMM), *HF])
def test_the_usual_cut_lies_between_the_first_and_the_last_weights(name: str, tmp_path: Path) -> None:
    side = 64 if "swin" in name else 32
    if name in HF:
        transformers = pytest.importorskip("transformers", reason="transformers is not installed: extra hf")
        transformers.AutoConfig.for_model(name, **HF[name]).save_pretrained(tmp_path)
        name = f"hf:{tmp_path}"
    model = make(name, 5, 3, (side, side))
    outline = observe(model, (3, side, side), None, default_cut(name, model))
    assert outline.num_classes == 5
    before = sum(p.numel() for each in outline.before for p in model.get_submodule(each).parameters())
    assert 0 < before < sum(parameter.numel() for parameter in model.parameters())


def small(backbone: str | nn.Module, **settings: Any) -> DistillationModule:
    return DistillationModule.build(backbone, 5, "dkel", 2, image_size=(32, 32), **settings)


def test_a_library_network_is_built_deployed_and_rebuilt_by_name(tmp_path: Path) -> None:
    module = small("torchvision:resnet18")
    assert module.recipe is not None
    network = module.deploy()
    assert type(network) is models.ResNet
    fresh = models.resnet18(num_classes=5)
    fresh.load_state_dict(network.state_dict())
    again = DistillationModule.build(**module.recipe)
    again.load_state_dict(module.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again.deploy()(images), fresh.eval()(images))


def trained() -> nn.Module:
    model: nn.Module = models.resnet18(num_classes=5)
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize(
    ("model", "pretrained", "kept"), [(True, None, True), (True, False, False), (False, None, False)]
)
def test_peers_keep_the_weights_of_a_trained_model_and_draw_their_classifiers(
    model: bool, pretrained: bool | None, kept: bool
) -> None:
    given = trained() if model else models.resnet18(num_classes=5)
    module = small(given, split_at="layer4", pretrained=pretrained)
    assert isinstance(module.student.network, SplitModel)
    for peer in map(module.student.peer, (0, 1)):
        assert torch.equal(peer.get_parameter("conv1.weight"), given.get_parameter("conv1.weight"))
        assert (
            torch.equal(peer.get_parameter("layer4.0.conv1.weight"), given.get_parameter("layer4.0.conv1.weight"))
            is kept
        )
        assert not torch.equal(peer.get_parameter("fc.weight"), given.get_parameter("fc.weight"))
    first, second = module.student.network.classifiers
    assert not torch.equal(first.weight, second.weight)
    # An independent teacher keeps none.
    assert not torch.equal(module.teacher.peer(0).get_parameter("conv1.weight"), given.get_parameter("conv1.weight"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "torchvision:squeezenet1_0"}, r"peers of torchvision:squeezenet1_0 begin is not known: give"),
        ({"backbone": "torchvision:resnet18", "split_at": "layer5"}, r"split_at names 'layer5'.* Did you mean layer4"),
        ({"backbone": "torchvision:resnet18", "in_channels": 1}, r"takes images of 3 channels, the data has 1"),
        ({"backbone": "torchvision:resnet81"}, r"torchvision has no classifier 'resnet81'\. Did you mean"),
        ({"backbone": "torchvision:squeezenet1_0", "split_at": "features.9"}, r"calls no nn\.Linear"),
        ({"backbone": "resnet8", "split_at": "layer4"}, r"split_at='layer4' is for your own model"),
        ({"backbone": "resnet8", "pretrained": True}, r"pretrained=True is for your own model"),
        ({"backbone": "hf:no/such"}, r"hf:no/such is no image classifier that is here"),
    ],
)
def test_a_mistake_is_named_with_its_cure(settings: dict[str, Any], message: str) -> None:
    if "hf:" in settings["backbone"]:
        pytest.importorskip("transformers", reason="transformers is not installed: extra hf")
    with pytest.raises(ConfigError, match=message):
        small(**settings)


def test_pretrained_weights_that_cannot_be_had_are_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> nn.Module:
        raise OSError("no route to host")

    monkeypatch.setattr(models, "get_model", unreachable)
    with pytest.raises(ConfigError, match=r"weights of torchvision:resnet18 cannot be had \(no route to host"):
        small("torchvision:resnet18", pretrained=True)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:vit_tiny_patch16_224", "hf:google/vit-base", "hf:vit"])
def test_a_library_network_is_a_choice_of_the_command_line(name: str) -> None:
    expected = {"name": name, "views_per_pass": "all", "split_at": "layer3", "pretrained": False, "weights": None}
    assert compose(f"backbone={name}", "backbone.split_at=layer3")["backbone"] == expected


def test_a_plain_word_is_a_type_and_never_a_folder_beside_you(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: extra hf")
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "config.json").write_text('{"model_type": "vit"}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"hf:evil is no image classifier .*one beside you is hf:\./NAME"):
        small("hf:evil")
