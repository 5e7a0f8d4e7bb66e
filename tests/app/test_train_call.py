"""One call in Python does what the command line does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import dkel_lightning
from dkel_lightning.app.cli import jobs, main
from dkel_lightning.errors import ConfigError, DkelError

SMALL = {"trainer": "cpu", "data.limit": 120, "callbacks.progress": "none", "method.peers": 2, "seed": 3}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {**os.environ})


@pytest.mark.slow
def test_a_call_gives_what_the_command_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(jobs.FOLDER, raising=False)
    found = dkel_lightning.train("resnet8", "digits", "dkel", epochs=1, out=tmp_path / "called", settings=SMALL)
    assert jobs.FOLDER not in os.environ  # the next run of this process takes a folder of its own
    assert found.folder == tmp_path / "called"
    assert found.network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    arguments = [f"{key}={value}" for key, value in SMALL.items()]
    monkeypatch.setattr("sys.argv", ["dkel", *arguments, "trainer.max_epochs=1", "hydra.run.dir=typed"])
    main.main()
    assert jobs.FOLDER not in os.environ
    typed = json.loads((tmp_path / "typed" / "summary.json").read_text())
    assert found.summary["test"] == typed["test"]
    assert (found.member, found.accuracy) == (
        typed["test"]["best"]["deployed"],
        typed["test"]["best"]["deployed_accuracy"],
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet7"}, "resnet7"),
        ({"settings": {"method.temprature": 2}}, "Unknown key method.temprature. Did you mean"),
        ({"data": "no_such_folder"}, "no_such_folder"),
        ({"settings": {"task": "export"}}, "takes no task"),
        ({"epochs": 0}, "trainer.max_epochs"),
        ({"settings": {"trainer": "ddp_cpu"}}, "trains in one process"),
        ({"settings": {"trainer.fast_dev_run": True}}, "writes none"),
        ({"model": torch.nn.Linear(2, 2)}, "no Linear: with objects of your own build a DistillationModule"),
        ({"data": torch.utils.data.TensorDataset(torch.zeros(2))}, "no TensorDataset: with objects of your own"),
        ({"settings": {"optimizer": torch.optim.SGD}}, "no type: with objects of your own"),
    ],
)
def test_what_the_command_line_refuses_is_refused_with_its_cure_and_leaves_nothing(
    arguments: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DkelError, match=message):
        dkel_lightning.train(out=tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_values_of_every_kind_are_settings() -> None:
    from dkel_lightning.app.train_call import _overrides

    given = {
        "method.peers": ["resnet8", "vgg16"],
        "teacher.decay": {0: 0.9, 3: 0.99},
        "data.flip": False,
        "resume": None,
        "optimizer.lr": np.float64(0.1),
        "seed": np.int64(3),
    }
    assert list(_overrides("resnet8", "my images", "pcl", 2, given)) == [
        "experiment=own_data",
        "data=image_folder",
        "data.root='my images'",
        "backbone=resnet8",
        "method=pcl",
        "trainer.max_epochs=2",
        "method.peers=[resnet8,vgg16]",
        "teacher.decay={0:0.9,3:0.99}",
        "data.flip=false",
        "resume=null",
        "optimizer.lr=0.1",
        "seed=3",
    ]
    with pytest.raises(ConfigError, match=r"takes no hydra\.run\.dir: give out="):
        list(_overrides(None, "digits", None, None, {"hydra.run.dir": "x"}))
