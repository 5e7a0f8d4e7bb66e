"""One call in Python does what the command line does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import dkel_lightning
from dkel_lightning import DistillationModule
from tests.commands import dkel
from tests.modules.toy import trainer

SMALL = {"trainer": "cpu", "data.limit": 120, "callbacks.progress": "none", "method.peers": 2, "seed": 3}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_call_gives_what_the_command_gives(tmp_path: Path) -> None:
    trained = dkel_lightning.train("resnet8", "digits", "dkel", epochs=1, out=tmp_path / "called", settings=SMALL)
    assert trained.network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    arguments = [f"{key}={value}" for key, value in SMALL.items()]
    done = dkel(*arguments, "backbone=resnet8", "trainer.max_epochs=1", "hydra.run.dir=typed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    typed = json.loads((tmp_path / "typed" / "summary.json").read_text())
    assert trained.summary["test"] == typed["test"]
    best = typed["test"]["best"]
    assert (trained.member, trained.accuracy) == (best["deployed"], best["deployed_accuracy"])
    assert trained.folder == tmp_path / "called"
    shown = str(trained).splitlines()
    assert shown[0] == f"{trained.member} of dkel, resnet8, digits, epoch 1 of 1"
    assert shown[1] == f"test accuracy {trained.accuracy:.2%} of 360 images, 10 classes"
    assert len(shown) == 5


def test_a_classifier_of_one_s_own_is_trained_and_returned_as_its_class(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: extra hf")
    shape = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "embedding_size": 8}
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_channels=1, num_labels=7, **shape))
    trained = dkel_lightning.train(model, "digits", epochs=1, out=tmp_path / "own", settings=SMALL)
    assert type(trained.network) is type(model)
    assert trained.network.config.id2label == {index: str(index) for index in range(10)}
    assert trained.network(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 10)
    again = dkel_lightning.train(model, "digits", epochs=1, out=tmp_path / "own", settings=SMALL)
    assert again.summary["test"] == trained.summary["test"]


@pytest.fixture(scope="module")
def digits() -> dict[str, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    return {
        "train_images": images[:600],
        "train_labels": labels[:600],
        "test_images": images[600:900],
        "test_labels": labels[600:900],
    }


def test_images_of_one_s_own_are_learnt_without_a_setting_of_the_recipe(
    digits: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "mine.npz", allow_pickle=False, **digits)
    # Digits of 8 x 8 pixels can neither be mirrored nor moved.
    quiet = {"trainer": "cpu", "callbacks.progress": "none", "data.flip": False, "data.padding": 0}
    trained = dkel_lightning.train("resnet8", tmp_path / "mine.npz", epochs=10, settings=quiet)
    assert trained.accuracy > 0.6  # chance: 0.1


def test_a_module_of_a_lightning_project_learns_without_a_setting_of_the_recipe(digits: dict[str, np.ndarray]) -> None:
    def loader(split: str) -> DataLoader[Any]:
        images = torch.from_numpy(digits[f"{split}_images"]).unsqueeze(1) / 128 - 1
        data = TensorDataset(images, torch.from_numpy(digits[f"{split}_labels"]))
        return DataLoader(data, 32, shuffle=split == "train")

    module = DistillationModule.build("resnet8", 10, in_channels=1, image_size=(8, 8), schedules="shares")
    fit = trainer(max_epochs=10, gradient_clip_val=1.0)
    torch.manual_seed(0)
    fit.fit(module, loader("train"), loader("test"))
    assert fit.callback_metrics["val/acc"] > 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"settings": {"method.temprature": 2}}, r"Unknown key method\.temprature\. Did you mean method\.temperature"),
        ({"data": "no_such_folder"}, "no_such_folder"),
        ({"settings": {"task": "export"}}, "returns a network"),
        ({"settings": {"trainer": "ddp_cpu"}}, "uses one process"),
    ],
)
def test_a_mistake_is_refused_and_leaves_nothing(arguments: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=message):
        dkel_lightning.train(out=tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_values_are_taken_as_they_are(tmp_path: Path) -> None:
    from dkel_lightning.app import config, train_call

    settings = {"data.root": "my images, and {more}=", "teacher.decay": {0: 0.9, 3: 0.99}, "method.peers": 2}
    cfg = train_call.compose_call("resnet8", "digits", "dkel", 2, settings)
    values = config.resolve(cfg)
    assert values["data"]["root"] == settings["data.root"]
    assert values["teacher"]["decay"] == {0: 0.9, 3: 0.99}
    assert values["trainer"]["max_epochs"] == 2
    settings = {"+optimizer.fused": True, "+callbacks.extra": {"mine": {"_target_": "my.Callback"}}}
    values = config.resolve(train_call.compose_call("resnet8", "hf", None, None, {"data.root": "beans", **settings}))
    assert (values["name"], values["data"]["name"]) == ("own_data", "hf")
    assert values["optimizer"]["fused"]
    assert values["callbacks"]["extra"]["mine"] == {"_target_": "my.Callback"}
