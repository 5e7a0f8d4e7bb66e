"""What a saved configuration may say: of every declared key, of a stranger's folder, and of a run that goes on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dkel_lightning.app.cli import saved_settings
from dkel_lightning.app.cli.overrides import parse
from dkel_lightning.app.config import schema
from dkel_lightning.app.runs.claim import begin, release
from dkel_lightning.app.runs.folder import Run, newest_checkpoint, values_in
from dkel_lightning.errors import CheckpointError, ConfigError, DkelError, FolderInUseError
from dkel_lightning.runtime import locks
from tests.compose import compose, prepare
from tests.runtime.test_locks import held_elsewhere

HOSTILE = "http://127.0.0.1:9/../x"
LOOKED_UP = {
    *(
        "data.name",
        "backbone.name",
        "method.name",
        "method.peers",
        "teacher.backbone",
        "callbacks.monitor",
        "teacher.extra.backbone",
    ),
    *("backbone.split_at", "trainer.accelerator", "trainer.strategy", "method.layers", "method.teacher_layers"),
    *("method.layer", "method.teacher_layer", "method.student", "teacher.extra.backbone"),
}
"""Takes any text, and does nothing with it but look it up among what is registered or known."""


def put(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Give a copy with another value at a key."""
    first, _, rest = key.partition(".")
    return {**values, first: put(values.get(first, {}), rest, value) if rest else value}


def written(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(Run(values, folder).settings)
    return folder


def hostile_values() -> Iterator[tuple[str, Any]]:
    """Give every declared key with each form of text that it takes."""
    for key, described in schema.KEYS.items():
        place = key.replace("*", "mine")
        for value in (HOSTILE, "word", [HOSTILE], ["word"], {"x": {"_target_": "os.system"}}, {"x": HOSTILE}):
            if described.fault(value) is None:
                yield place, value


def test_no_key_of_a_file_says_where_to_go_or_what_to_run() -> None:
    values, given = compose(), compose()
    tried = 0
    for key, value in hostile_values():
        if key in LOOKED_UP or key == "name":
            continue
        tried += 1
        found = saved_settings.foreign(put(values, key, value), given)
        assert found, f"{key}={value!r} would be taken from a stranger's file: is it looked up (`registered`)?"
        assert not saved_settings.foreign(put(values, key, value), put(given, key, value)), key
    assert tried > 40
    assert {key for key, value in hostile_values() if not schema.KEYS.get(key, schema.describe(key)).is_free} <= {
        *LOOKED_UP, "name", *(key for key, described in schema.KEYS.items() if described.fault("word") is None)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("logger.extra", {"mlflow": {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": HOSTILE}}),
        ("logger.extra", {"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "/outside"}}),
        ("callbacks.extra", {"x": {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "/outside"}}),
        ("data.root", "/outside"),
        ("data.cache_dir", "/outside"),
        ("teacher.weights", "/outside/x.ckpt"),
        ("optimizer._target_", "os.system"),
        ("optimizer._target_", "torch.optim.sgd.os.system"),
        ("trainer._target_", "lightning.pytorch.trainer.os.system"),
        ("trainer.default_root_dir", HOSTILE),
        ("modules", ["os"]),
        ("anything.else", HOSTILE),
    ],
)
def test_a_strangers_folder_is_refused_with_the_cure_before_anything_is_opened(
    key: str, value: Any, tmp_path: Path
) -> None:
    folder = written(tmp_path / "theirs", put(compose(), key, value))
    with pytest.raises(CheckpointError, match=re.escape(f"config.yaml names {key}")) as caught:
        saved_settings.resumed(folder, compose(), [])
    assert "give them again, or add trust=true; from a stranger, do neither." in str(caught.value)
    if key.startswith("data."):
        with pytest.raises(CheckpointError, match=re.escape(key)):
            saved_settings.of_checkpoint(values_in(folder), compose("task=evaluate"), ["task=evaluate"], folder)


@pytest.mark.parametrize("name", ["hf:/tmp/theirs", "hf:theirs/model", "hf:../model", "hf:vit"])
def test_a_backbone_that_is_read_from_a_folder_is_not_taken_from_a_file(name: str) -> None:
    found = saved_settings.foreign(put(compose(), "backbone.name", name), compose())
    assert found == ({} if name == "hf:vit" else {"backbone.name": name})


def test_what_is_given_again_or_trusted_is_taken_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(tmp_path, compose("data.root=images", "logger=tensorboard"))
    again = ["data.root=images", "logger=tensorboard"]
    values = saved_settings.resumed(folder, compose(*again), again)
    assert values["data"]["root"] == "images"
    trusting = compose("trust=true")
    values = saved_settings.resumed(folder, trusting, ["trust=true"])
    assert [*values["logger"]["extra"]] == ["tensorboard"]
    saved_settings.announce(folder, trusting, values)
    said = "by trust=true: data.root=images, logger.extra (lightning.pytorch.loggers.TensorBoardLogger)"
    assert said in capsys.readouterr().out


def test_what_is_given_instead_needs_no_trust_since_it_is_not_taken_from_the_file(tmp_path: Path) -> None:
    folder = written(tmp_path, compose("method=kd", "teacher.backbone=resnet8", "teacher.weights=here.pt"))
    moved = ["method=kd", "teacher.backbone=resnet8", "teacher.weights=moved/here.pt"]
    assert saved_settings.resumed(folder, compose(*moved), moved[2:])["teacher"]["weights"] == "moved/here.pt"
    with pytest.raises(CheckpointError, match=r"names teacher\.weights=here\.pt"):
        saved_settings.resumed(folder, compose(), [])


def test_the_settings_of_the_shipped_experiments_need_no_trust() -> None:
    for overrides in ((), ("experiment=tinyimagenet",), ("scheduler=cosine", "optimizer=adamw"), ("method=kd",)):
        assert saved_settings.foreign(compose(*overrides), compose()) == {}


def resumed(folder: Path, *overrides: str) -> dict[str, Any]:
    return saved_settings.resumed(folder, compose(*overrides), overrides)


def test_what_only_repeats_the_run_is_accepted(tmp_path: Path) -> None:
    folder = written(tmp_path, compose("experiment=cifar100", "method=pcl", "seed=3"))
    for again in (
        ("seed=3",),
        ("method=pcl",),
        ("experiment=cifar100", "method=pcl", "seed=3"),
    ):
        assert resumed(folder, *again)["seed"] == 3
    with pytest.raises(ConfigError, match=r"seed would change a run that is being resumed \(it began with 3\)"):
        resumed(folder, "seed=4")
    with pytest.raises(ConfigError, match=r"experiment would change .*seed: 3 there, 0 here"):
        resumed(folder, "experiment=cifar100", "method=pcl")
    with pytest.raises(ConfigError, match=r"method would change"):
        resumed(folder, "method=dkel")


def test_the_whole_command_with_a_resume_behind_it_is_checked_against_the_run(tmp_path: Path) -> None:
    folder = written(tmp_path / "run", compose("method=mean_teacher", "method.consistency=kl"))
    # Keys that the method of the run has, and the default method has not.
    assert "++method.consistency=kl" in prepare([f"resume={folder}", "method.consistency=kl"])
    with pytest.raises(ConfigError, match=r"method\.consistency would change"):
        prepare([f"resume={folder}", "method.consistency=mse"])
    with pytest.raises(DkelError, match=r"method\.ensemble\.cutoff means nothing with method=mean_teacher"):
        prepare([f"resume={folder}", "method.ensemble.cutoff=0.1"])


def test_a_key_of_the_trainer_leaves_the_devices_as_they_were_and_a_change_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path, compose("trainer=ddp_cpu"))
    values = resumed(folder, "trainer.log_every_n_steps=10")
    assert {key: values["trainer"][key] for key in ("accelerator", "devices", "strategy", "log_every_n_steps")} == {
        "accelerator": "cpu", "devices": 2, "strategy": "ddp", "log_every_n_steps": 10
    }  # fmt: skip
    folder = written(tmp_path / "one", compose("trainer=gpu"))
    values = resumed(folder, "trainer=cpu")
    saved_settings.announce(folder, compose("trainer=cpu"), values)
    assert "The run goes on with trainer.accelerator=cpu, and it was gpu." in capsys.readouterr().out


def test_a_run_can_be_made_longer_where_no_schedule_depends_on_its_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path / "long", compose("experiment=cifar100"))
    values = resumed(folder, "trainer.max_epochs=400")
    assert values["trainer"]["max_epochs"] == 400
    # A run that another process trains keeps its settings.
    with held_elsewhere(folder), monkeypatch.context() as patched:
        patched.setattr(locks, "PATIENCE", 0.0)
        with pytest.raises(FolderInUseError):
            saved_settings.announce(folder, compose(), values)
    assert values_in(folder) == compose("experiment=cifar100")
    saved_settings.announce(folder, compose(), values)
    assert values_in(folder) == put(compose("experiment=cifar100"), "trainer.max_epochs", 400)
    assert resumed(folder)["trainer"]["max_epochs"] == 400
    with pytest.raises(ConfigError, match=r"trainer.max_epochs would change .*began with 400"):
        resumed(folder, "trainer.max_epochs=300")


@pytest.mark.parametrize(
    ("begun", "schedules"),
    [
        ((), ("method.rampup.share=0.27 (give method.rampup.epochs)", "teacher.decay_share=0.12 (give teacher.decay)",
              "scheduler.milestones=[0.5, 0.75] (give them in epochs)")),
        (("experiment=cifar100", "scheduler=cosine"), ("scheduler.T_max=300 (give the length to come",)),
        (("experiment=cifar100", "teacher.decay={0:0.9,0.5:0.99}"), ("teacher.decay (let it count in epochs)",)),
    ],
)  # fmt: skip
def test_a_longer_run_is_refused_at_once_with_the_schedules_that_would_move(
    begun: tuple[str, ...], schedules: tuple[str, ...], tmp_path: Path
) -> None:
    folder = written(tmp_path, compose(*begun))
    with pytest.raises(ConfigError, match="a longer one would move") as caught:
        prepare([f"resume={folder}", "trainer.max_epochs=1000"])
    assert all(each in str(caught.value) for each in schedules)


def test_a_run_takes_its_folder_with_its_settings_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "job"

    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(Path, "hardlink_to", killed)
        with pytest.raises(SystemExit):
            begin(folder, "a")
    assert [*folder.iterdir()] == []
    assert begin(folder, "a") == folder
    assert begin(folder, "b") == tmp_path / "job_1"
    assert [(each / "config.yaml").read_text() for each in (folder, tmp_path / "job_1")] == ["a", "b"]
    release(folder)
    assert folder.is_dir()
    release(folder, begun=True)
    assert not folder.exists()
    (folder / "config.yaml").mkdir(parents=True)  # a folder of that name
    assert begin(folder, "c") == tmp_path / "job_2"


def test_the_newest_run_is_one_that_has_no_checkpoint_yet_and_no_analysis(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = written(tmp_path / "quickstart" / "killed", compose())
    analysis = written(tmp_path / "geometry" / "later", compose("task=geometry"))
    os.utime(training / "config.yaml", (1, 1))
    os.utime(analysis / "config.yaml", (2, 2))
    assert newest_checkpoint(tmp_path) == training
    assert capsys.readouterr().out == f"{training} has no checkpoint yet: it begins anew.\n"
    (training / "summary.json").write_text("{}")  # it has ended, and its checkpoints were removed
    with pytest.raises(CheckpointError, match=r"No last\.ckpt of a run under"):
        newest_checkpoint(tmp_path)


def test_folders_however_deep_and_numbers_however_long_are_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DkelError, match="folders lie in one another; choose a shorter path"):
        prepare([f"hydra.run.dir={'a/' * 1900}x"])
    with pytest.raises(ConfigError, match="Cannot read 'seed=111"):
        parse(f"seed={'1' * 5000}")
    with pytest.raises(CheckpointError, match=r"No last\.ckpt of a run under"):
        newest_checkpoint(tmp_path)


def test_a_key_of_a_logger_that_is_not_chosen_names_the_choice() -> None:
    for typed in ("logger.extra.wandb.project=x", "+logger.extra.wandb.project=x"):
        with pytest.raises(ConfigError, match=r"logger\.extra\.wandb\.project belongs to logger=wandb: choose that"):
            prepare([typed])
