"""What a saved config.yaml decides: nothing that a stranger's names runs, and a resume changes nothing it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dkel_lightning.app import saved
from dkel_lightning.app.run import Run
from dkel_lightning.errors import ConfigError
from tests.compose import compose

HOST = "http://127.0.0.1:9/x"


def put(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return {**values, first: put(values.get(first, {}), rest, value) if rest else value}


def write(folder: Path, values: dict[str, Any]) -> Path:
    Run(values, folder).write_config()
    return folder


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer._target_", "os.system"),
        ("optimizer._target_", "torch_evil.optim.SGD"),
        ("data._target_", "theirs.Data"),
        ("trainer._target_", "os.system"),
        ("callbacks.extra", {"x": {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "/outside"}}),
        ("modules", ["theirs"]),
    ],
)
def test_what_a_strangers_folder_names_is_refused_until_it_is_named_again(key: str, value: Any, tmp_path: Path) -> None:
    folder = write(tmp_path, put(compose(), key, value))
    with pytest.raises(ConfigError, match=rf"is not trusted: pass \+?{key}"):
        saved.resume_settings(folder, compose(), set())
    for typed in (key.split(".")[0], key):
        again = saved.resume_settings(folder, put(compose(), key, value), {typed})
        assert again["method"] == compose()["method"]


def test_loggers_hosts_and_places_to_write_are_not_taken_from_a_file(tmp_path: Path) -> None:
    values = put(compose("logger=mlflow"), "logger.extra.mlflow.tracking_uri", HOST)
    values["data"]["cache_dir"] = "/outside"
    folder = write(tmp_path, values)
    for taken in (
        saved.resume_settings(folder, compose(), set()),
        saved.checkpoint_settings(folder, compose("task=evaluate"), {"task"}),
    ):
        assert HOST not in str(taken)
        assert "/outside" not in str(taken)


def test_images_are_read_from_where_a_file_says_and_downloaded_only_where_the_command_says(tmp_path: Path) -> None:
    folder = write(tmp_path, compose("data=cifar10", "data.root=pictures"))
    for typed, download in (set(), False), ({"data.root"}, True):
        given = compose("task=evaluate", *(["data.root=pictures"] if typed else []))
        for taken in (saved.resume_settings(folder, given, typed), saved.checkpoint_settings(folder, given, typed)):
            assert (taken["data"]["root"], taken["data"]["download"]) == ("pictures", download)


def test_no_interpolation_of_a_file_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "secret")
    folder = write(tmp_path, put(compose(), "data.root", "${oc.env:SECRET}"))
    assert saved.resume_settings(folder, compose(), set())["data"]["root"] == "${oc.env:SECRET}"


def test_a_resume_takes_devices_and_places_and_nothing_that_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged = write(tmp_path / "logged", compose("logger=tensorboard"))
    saved.resume_settings(logged, compose(), {"resume"})
    assert capsys.readouterr().out == "Without tensorboard: pass logger= again to log there.\n"
    saved.resume_settings(logged, compose("logger=tensorboard"), {"resume", "logger"})
    assert not capsys.readouterr().out
    folder = write(tmp_path, compose("method=pcl", "optimizer.lr=0.05"))
    typed = {"trainer", "data.root", "execution.name", "callbacks.progress", "logger"}
    given = compose("trainer=gpu", "data.root=elsewhere", "execution.name=compile", "callbacks.progress=none")
    values = saved.resume_settings(folder, given, typed)
    assert values["trainer"]["accelerator"] == "gpu"
    assert values["data"]["root"] == "elsewhere"
    assert (values["execution"]["name"], values["callbacks"]["progress"]) == ("compile", "none")
    assert (values["method"]["name"], values["optimizer"]["lr"]) == ("pcl", 0.05)
    assert saved.settings_hash(values) == saved.settings_hash(compose("method=pcl", "optimizer.lr=0.05"))


@pytest.mark.parametrize("typed", ["optimizer.lr=0.2", "method=dkel_released", "trainer.max_epochs=99", "seed=4"])
def test_a_resume_refuses_what_would_change_the_run(typed: str, tmp_path: Path) -> None:
    folder = write(tmp_path, compose())
    key = typed.split("=")[0]
    with pytest.raises(ConfigError, match=f"{key} cannot change when a run is resumed"):
        saved.resume_settings(folder, compose(typed), {key})
    # The value that the run has is no change.
    assert saved.resume_settings(folder, compose(), {key})["method"] == compose()["method"]


def test_the_command_of_a_run_resumes_it_and_combinations_of_keys_are_no_way_around(tmp_path: Path) -> None:
    command = ["experiment=own_data", "data=npz", "data.root=a.npz"]
    values = compose(*command)
    values["data"] |= {"mean": [0.5], "std": [0.2]}  # which the run has computed
    folder = write(tmp_path, values)
    with pytest.raises(ConfigError, match=r"data\.mean cannot change when a run is resumed"):
        saved.resume_settings(folder, compose(*command, "data.mean=[0.9]"), {"data.mean"})
    given = compose("task=evaluate", "data=npz", "data.root=b.npz")
    assert saved.checkpoint_settings(folder, given, {"data"})["data"]["std"] == [0.2]
    typed = {"experiment", "data", "data.root"}
    assert saved.resume_settings(folder, compose(*command), typed)["data"]["mean"] == [0.5]
    for other in ("experiment=cifar100", "recipe=modern", "variant=single", "debug=smoke"):
        key = other.split("=")[0]
        with pytest.raises(ConfigError, match=f"{key} cannot change when a run is resumed"):
            saved.resume_settings(folder, compose(*command, other), {key})


def test_settings_that_differ_have_another_hash_and_are_named() -> None:
    before, now = compose(), compose("optimizer.lr=0.2", "callbacks.progress=none", "logger=tensorboard")
    assert saved.settings_hash(before) != saved.settings_hash(now)
    assert saved.differences(before, now) == ["optimizer.lr: 0.1, now 0.2"]


def test_a_checkpoint_decides_networks_and_the_command_may_name_other_data(tmp_path: Path) -> None:
    folder = write(tmp_path, compose("method=pcl", "backbone=resnet20"))
    given = compose("task=evaluate", "data=npz", "data.root=mine.npz")
    values = saved.checkpoint_settings(folder, given, {"task", "data", "data.root"})
    assert (values["backbone"]["name"], values["method"]["name"]) == ("resnet20", "pcl")
    assert (values["data"]["name"], values["data"]["root"]) == ("npz", "mine.npz")
    for typed in ("method.temperature", "variant", "recipe"):
        with pytest.raises(ConfigError, match=f"{typed}: fixed by the checkpoint"):
            saved.checkpoint_settings(folder, given, {typed})


def test_a_task_needs_no_class_of_a_run_that_it_does_not_use(tmp_path: Path) -> None:
    values = put(compose("execution.threads=2"), "optimizer._target_", "theirs.Optimizer")
    folder = write(tmp_path, put(values, "callbacks.extra", {"x": {"_target_": "theirs.Callback"}}))
    taken = saved.checkpoint_settings(folder, compose("task=export"), {"task"})
    assert "theirs" not in str(taken)
    assert taken["execution"]["threads"] == 2
