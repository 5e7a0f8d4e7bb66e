"""Classifiers of torchvision, timm and transformers by name: their usual cuts, weights and mistakes."""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models

from dkel_lightning import DistillationModule
from dkel_lightning.app.build import pretrained_normalisation
from dkel_lightning.assembly.weights import load, read, unwrap
from dkel_lightning.errors import CheckpointError, ConfigError
from dkel_lightning.networks import SplitModel
from dkel_lightning.networks.cuts import default_cut
from dkel_lightning.networks.external import make
from dkel_lightning.networks.outline import observe
from tests.compose import compose
from tests.modules.toy import same

STAGES = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
BLOCKS = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8, "patch_size": 8}
HF: dict[str, tuple[dict[str, Any], str]] = {
    "vit": (BLOCKS, "vit.layers.2"),
    "resnet": ({**STAGES, "embedding_size": 8}, "resnet.encoder.stages.3"),
    "regnet": ({**STAGES, "embedding_size": 8, "groups_width": 8}, "regnet.encoder.stages.3"),
    "convnext": (STAGES, "convnext.encoder.stages.3"),
    "swin": ({"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1] * 4, "window_size": 2}, "swin.encoder.layers.3"),
}
CUTS = {
    "torchvision:resnet18": "layer4",
    "torchvision:regnet_y_400mf": "trunk_output.block4",
    "torchvision:mobilenet_v2": "features.14",
    "torchvision:mobilenet_v3_large": "features.13",
    "torchvision:mobilenet_v3_small": "features.9",
    "torchvision:efficientnet_b0": "features.6",
    "torchvision:convnext_tiny": "features.6",
    "torchvision:vit_b_16": "encoder.layers.encoder_layer_8",
    "torchvision:swin_t": "features.6",
    "torchvision:densenet121": "features.denseblock4",
    "torchvision:vgg11": "features.16",
    "torchvision:shufflenet_v2_x0_5": "stage4",
    "torchvision:mnasnet0_5": "layers.12",
    "torchvision:googlenet": "inception5a",
    "timm:resnet10t": "layer4",
    "timm:regnetx_002": "s4",
    "timm:mobilenetv3_small_050": "blocks.5",
    "timm:mobilenetv2_050": "blocks.5",
    "timm:efficientnet_b0": "blocks.5",
    "timm:convnext_atto": "stages.3",
    "timm:vit_tiny_patch16_224": "blocks.8",
    "timm:swin_tiny_patch4_window7_224": "layers.3",
}


@pytest.mark.parametrize("name", [*CUTS, *HF])
def test_the_usual_cut_lies_between_the_first_and_the_last_weights(name: str, tmp_path: Path) -> None:
    side, cut = 64 if "swin" in name or name.endswith("net") else 32, CUTS.get(name)
    if name in HF:
        settings, cut = HF[name]
        transformers = pytest.importorskip("transformers", reason="transformers is not installed: extra hf")
        transformers.AutoConfig.for_model(name, **settings).save_pretrained(tmp_path)
        name = f"hf:{tmp_path}"
    model = make(name, 5, 3, (side, side))
    assert default_cut(model) == cut
    outline = observe(model, (3, side, side), None, cut)
    assert outline.num_classes == 5
    before = sum(p.numel() for each in outline.before for p in model.get_submodule(each).parameters())
    assert 0 < before < sum(parameter.numel() for parameter in model.parameters())


SMALL = [name for name in timm.list_models() if re.search("nano|pico|femto|atto|tiny|small|_0[0-5]0|test_", name)]


@pytest.mark.parametrize("name", random.Random(0).sample(SMALL, 6))
def test_a_network_of_timm_at_random_becomes_peers_by_name(name: str) -> None:
    becomes_peers(name)


@pytest.mark.slow
def test_nine_in_ten_networks_of_timm_at_random_become_peers_by_name() -> None:
    refused = []
    for name in random.Random(1).sample(SMALL, 20):
        try:
            becomes_peers(name)
        except ConfigError:
            refused.append(name)
    assert len(refused) <= 2, refused


def becomes_peers(name: str) -> None:
    size = timm.get_pretrained_cfg(name).input_size
    network = DistillationModule.build(f"timm:{name}", 3, "baseline", 2, image_size=size[1:]).student.network
    shared = sum(parameter.numel() for parameter in network.shared_part().parameters())
    assert 0 < shared < sum(parameter.numel() for parameter in network.peer(0).parameters())


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
    assert not torch.equal(first.get_parameter("weight"), second.get_parameter("weight"))
    # An independent teacher keeps what was trained.
    taught = module.teacher.peer(0)
    assert torch.equal(taught.get_parameter("conv1.weight"), given.get_parameter("conv1.weight")) is kept
    assert not torch.equal(taught.get_parameter("fc.weight"), module.student.peer(0).get_parameter("fc.weight"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "torchvision:resnet18", "split_at": "layer5"}, r"split_at names 'layer5'.* Did you mean layer"),
        ({"backbone": "torchvision:resnet18", "in_channels": 1}, r"takes images of 3 channels, the data has 1"),
        ({"backbone": "torchvision:resnet81"}, r"torchvision has no classifier 'resnet81'\. Did you mean"),
        ({"backbone": "resnet8", "split_at": "layer4"}, r"split_at='layer4' is for your own model"),
        ({"backbone": "resnet8", "pretrained": True}, r"pretrained=True is for your own model"),
        ({"backbone": "hf:no/such"}, r"hf:no/such is not an available image classifier"),
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
    with pytest.raises(ConfigError, match=r"weights of torchvision:resnet18 cannot be loaded \(no route to host"):
        small("torchvision:resnet18", pretrained=True)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:vit_tiny_patch16_224", "hf:google/vit-base", "hf:vit"])
def test_a_library_network_is_a_choice_of_the_command_line(name: str) -> None:
    expected = {"name": name, "views_per_pass": "all", "split_at": "layer3", "pretrained": False}
    expected |= {"weights": None, "lr_scale": None}
    assert compose(f"backbone.name={name}", "backbone.split_at=layer3")["backbone"] == expected


def test_a_plain_word_is_a_type_and_never_a_folder_beside_you(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: extra hf")
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "config.json").write_text('{"model_type": "vit"}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"hf:evil is not an available image classifier .*current folder: hf:\./NAME"):
        small("hf:evil")


def test_without_a_usual_cut_two_that_work_are_named() -> None:
    blocks = [nn.Sequential(nn.Conv2d(6, 6, 3), nn.ReLU()) for _ in range(4)]
    model = nn.Sequential(nn.Conv2d(3, 6, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    with pytest.raises(ConfigError, match=r"Sequential has no default split point: set .* (\S+) or (\S+)\.$") as caught:
        small(model)
    for cut in re.findall(r"(\S+) or (\S+)\.$", str(caught.value))[0]:
        assert isinstance(small(model, split_at=cut).student.network, SplitModel)


@pytest.mark.slow
def test_where_the_usual_cut_fails_two_that_work_are_named() -> None:
    with pytest.raises(ConfigError, match=r"never calls 'transition3': .* may be \S+ or \S+\.$"):
        DistillationModule.build("timm:hrnet_w18_small", 3, "baseline", 2, image_size=(64, 64))


# --- trained weights ---


def wrapped(weights: dict[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """Return what scripts, timm, Lightning and torch.compile write."""
    return {
        "bare": weights,
        "timm": {"epoch": 3, "arch": "resnet18", "args": argparse.Namespace(lr=0.1), "state_dict": weights},
        "model": {"model": weights, "optimizer": {"lr": 0.1}},
        "ddp": {f"module.{name}": value for name, value in weights.items()},
        "lightning": {
            "state_dict": {"loss.weight": torch.ones(5)} | {f"model._orig_mod.{n}": v for n, v in weights.items()}
        },
        "network": {"state_dict": {f"network.{name}": value for name, value in weights.items()}},
    }


@pytest.mark.parametrize("kind", [*wrapped({}), "safetensors"])
def test_weights_are_found_in_whatever_wraps_them(kind: str, tmp_path: Path) -> None:
    saved, layer = nn.Linear(2, 2).state_dict(), nn.Linear(2, 2)
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed: extra export")
        safetensors.save_file(saved, path)
    else:
        torch.save(wrapped(saved)[kind], path)
    assert load(layer, unwrap(read(path, "backbone"), path), path, 2, "backbone") is None
    assert same(layer.state_dict(), saved)


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    torch.save(trained().state_dict(), tmp_path / "resnet18.pt")
    return tmp_path / "resnet18.pt"


def test_peers_and_an_independent_teacher_start_from_a_file_with_classifiers_of_their_own(
    weights_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = DistillationModule.build("torchvision:resnet18", 7, "dkel", 2, image_size=(32, 32), weights=weights_file)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{weights_file} has 5 classes, the data 7: the classifiers are re-initialised."
    assert said[1] == "From trained weights: all but the classifiers learn at 0.3 of the rate (lr_scale)."
    expected = torch.load(weights_file)
    peers = [part.peer(index) for part in (module.student, module.teacher) for index in (0, 1)]
    for peer in peers:
        differ = {name for name, value in peer.state_dict().items() if not torch.equal(value, expected[name])}
        assert differ == {"fc.weight", "fc.bias"}
    classifiers = [peer.get_parameter("fc.weight") for peer in peers]
    assert not any(torch.equal(classifiers[0], other) for other in classifiers[1:])


def test_weights_of_another_network_are_refused_by_name(weights_file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"set backbone to .* Missing: layer1.0.bn3.bias and 197 more"):
        small("torchvision:resnet50", weights=weights_file)


def test_the_same_classes_keep_the_classifier_of_the_file(
    weights_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = small("torchvision:resnet18", weights=weights_file)
    said = capsys.readouterr().out
    assert said == "From trained weights: all but the classifiers learn at 0.3 of the rate (lr_scale).\n"
    expected = torch.load(weights_file)["fc.weight"]
    assert all(torch.equal(module.student.peer(index).get_parameter("fc.weight"), expected) for index in (0, 1))


def test_downloaded_weights_start_peers_and_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    given, get_model = trained(), models.get_model
    monkeypatch.setattr(
        models, "get_model", lambda name, weights=None, **others: given if weights else get_model(name, **others)
    )
    module = DistillationModule.build("torchvision:resnet18", 7, "dkel", 2, image_size=(32, 32), pretrained=True)
    for part in (module.student, module.teacher):
        assert torch.equal(
            part.peer(1).get_parameter("layer4.1.conv2.weight"), given.get_parameter("layer4.1.conv2.weight")
        )
        assert part.peer(1).get_parameter("fc.weight").shape == (7, 512)


def test_trained_weights_learn_at_a_third_of_the_rate_by_default(weights_file: Path) -> None:
    network = models.resnet18(num_classes=5)
    untrained, from_file = small(network), small("torchvision:resnet18", weights=weights_file)
    nn.init.uniform_(network.bn1.weight)
    trained, typed = small(network), small(network, lr_scale=1.0)
    assert [module.student.lr_scale for module in (untrained, from_file, trained, typed)] == [1.0, 0.3, 0.3, 1.0]
    assert [module.recipe["lr_scale"] for module in (untrained, trained) if module.recipe] == [1.0, 0.3]


def test_a_model_without_normalisation_layers_says_that_it_counts_as_untrained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4), nn.Linear(4, 5))
    small(model, split_at="1")
    assert "Sequential has no normalisation layers" in capsys.readouterr().out
    kept = small(model, split_at="1", pretrained=True)
    assert "normalisation layers" not in capsys.readouterr().out
    assert torch.equal(kept.student.peer(1).get_parameter("1.weight"), model.get_parameter("1.weight"))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_weights_that_need_auxiliary_outputs_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="need its auxiliary outputs: take timm:inception_v3"):
        make(f"torchvision:{name}", 5, 3, (96, 96), True)


def test_the_normalisation_of_a_librarys_weights_fills_what_is_not_given() -> None:
    asked = ("backbone.name=torchvision:resnet18", "backbone.pretrained=true", "data.std=[0.1,0.2,0.3]")
    assert pretrained_normalisation(compose(*asked)) == {"mean": [0.485, 0.456, 0.406]}
    assert pretrained_normalisation(compose(*asked[:1])) == {}
    given = ("backbone.name=hf:not/on_this_machine", "backbone.pretrained=true", "data.mean=[0]", "data.std=[1]")
    assert pretrained_normalisation(compose(*given)) == {}  # without asking the hub


def fitted(lr_scale: float, **settings: Any) -> tuple[DistillationModule, dict[str, torch.Tensor], Trainer]:
    module = small("torchvision:resnet18", lr_scale=lr_scale, schedules="shares", **settings)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    fit.fit(module, DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 5), 4))
    return module, before, fit


def test_what_is_frozen_stands_still_statistics_included(weights_file: Path) -> None:
    module, before, _ = fitted(0.0, weights=weights_file)
    networks = ("student.network.", "teacher.network.")
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    moved = {name for name in moved if name.startswith(networks)}
    assert moved
    assert all(re.search(r"\.fc\.(weight|bias)$", name) for name in moved)


def test_one_key_scales_the_rate_of_all_but_the_classifiers() -> None:
    module, _, fit = fitted(0.1)
    groups = {group["name"]: group for group in fit.optimizers[0].param_groups}
    rates = {name: group["initial_lr"] for name, group in groups.items()}
    assert rates == pytest.approx({"student": 3e-4, "student_classifiers": 3e-3, "ensemble": 3e-3})
    classifiers = {parameter for layer in module.student.network.classifiers for parameter in layer.parameters()}
    assert set(groups["student_classifiers"]["params"]) == classifiers
    assert set(groups["student"]["params"]) == set(module.student.network.parameters()) - classifiers
    assert module.recipe is not None
    assert module.recipe["lr_scale"] == 0.1
