"""Code of the user's own from the command line: chosen by name, built with its keys, and never on a file's word."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from dkel_lightning.app import build, tasks
from dkel_lightning.app.cli import composition, saved_settings, user_code
from dkel_lightning.app.config import checks
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tasks import registry
from dkel_lightning.app.tasks.train import prepared
from dkel_lightning.errors import CheckpointError, ConfigError
from dkel_lightning.modules.batch import unpack
from tests.commands import dkel
from tests.compose import compose, prepare
from tests.own_code import forgotten

ROOT = Path(__file__).resolve().parents[2]
MODULES = "modules=[my_code]"
NOISE = "data._target_=my_code.Noise"
SHORT = ("debug=smoke", "trainer=cpu", "trainer.max_epochs=1", "callbacks.progress=none", "hydra.run.dir=run")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working folder with a module of the user's own, which is forgotten afterwards."""
    shutil.copy(ROOT / "tests" / "fixtures" / "my_code.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with forgotten():
        yield


def composed(*arguments: str) -> dict[str, Any]:
    """What a command composes, as far as a single process can tell."""
    return compose(*user_code.load(arguments, None))


# Choices


def test_what_a_module_registers_is_a_choice_with_its_own_keys() -> None:
    values = composed(MODULES, "data=stripes", "data.width=3", "method=own_teacher", "backbone=tiny")
    assert values["data"] == {**compose("data=digits")["data"], "name": "stripes", "width": 3}
    rest = {"views_per_pass": "all", "split_at": None, "pretrained": False, "weights": None}
    assert values["backbone"] == {"name": "tiny", **rest}
    method = {key: values["method"][key] for key in ("name", "peers", "views", "weight")}
    assert method == {"name": "own_teacher", "peers": 2, "views": "per_peer", "weight": 1.0}
    # Of the length that the experiment has, as for the methods that ship.
    assert (values["method"]["rampup"]["epochs"], values["method"]["rampup"]["share"]) == (None, 0.27)
    assert (values["teacher"]["draw"], values["teacher"]["start"]) == ("student", "copy")
    checks.check(values)


def test_a_task_of_ones_own_is_a_choice_with_its_keys_and_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = composed(MODULES, "task=greet", "greet.times=3", "seed=5")
    checks.check(values)
    tasks.run(Run(values, tmp_path / "run"))
    assert capsys.readouterr().out == "hello, 5\n" * 3
    with pytest.raises(ConfigError, match=r"greet\.times must be a whole number between 1 and 10, got 0"):
        prepare([MODULES, "task=greet", "greet.times=0"])
    with pytest.raises(ConfigError, match="There is a task train already: give yours another name"):
        registry.register(registry.Task("train", "", "my_code:greet"))


def test_a_method_without_a_teacher_gets_none_and_another_teacher_can_be_chosen() -> None:
    assert composed(MODULES, "method=alone")["teacher"]["update"] == "none"
    assert composed(MODULES, "method=own_teacher", "teacher=follow")["teacher"] == compose("teacher=follow")["teacher"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("data=stripe", r"Unknown choice data=stripe. Did you mean stripes\? Choices: cifar10, .*stripes"),
        ("method=own_teach", r"Did you mean own_teacher\?.*own_teacher, pcl"),
        ("backbone=tinny", r"Did you mean tiny\?.*tiny, tiny_resnet18"),
        ("data.widht=3", r"Unknown key data.widht. Did you mean data.width\?"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_choices_and_those_of_the_user(typed: str, message: str) -> None:
    chosen = ["data=stripes"] if typed.startswith("data.") else []
    with pytest.raises(ConfigError, match=message):
        prepare([MODULES, *chosen, typed])


def test_a_preset_in_a_folder_of_the_users_own_stands_for_what_is_registered(tmp_path: Path) -> None:
    (tmp_path / "conf" / "backbone").mkdir(parents=True)
    (tmp_path / "conf" / "backbone" / "tiny.yaml").write_text("defaults: [_base]\nname: tiny\nviews_per_pass: one\n")
    user_code.load([MODULES], tmp_path / "conf")
    assert "tiny" not in user_code.chosen_from("backbone")
    assert composition.compose(["backbone=tiny"], tmp_path / "conf").backbone.views_per_pass == "one"


def test_without_modules_nothing_of_the_users_is_imported_and_torch_neither() -> None:
    code = (
        "import sys; from dkel_lightning.app.cli import main; main.prepared(['data=digits']); "
        "print([m for m in ('torch', 'lightning', 'my_code') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Data modules by their path


def test_a_data_module_is_built_with_its_own_arguments_and_says_what_its_images_are() -> None:
    values = composed(NOISE, "data.count=48", "data.batch_size=4", "seed=3")
    checks.check(values)
    assert values["data"]["_target_"] == values["data"]["name"] == "my_code.Noise"
    assert "validation" not in values["data"]  # which experiment=quickstart sets for this library's loaders
    images = prepared(values)
    assert (images.num_classes, images.image_shape, images.class_names) == (2, (1, 8, 8), ("0", "1"))
    assert (images.seed, images.batch_size) == (3, 4)  # type: ignore[attr-defined]
    module = build.distillation(values, images)
    batch = unpack(next(iter(images.train_dataloader())))
    loss = module.losses(module.forward_all(batch))[1]
    assert loss.isfinite()


def test_the_augmentation_of_a_data_module_makes_the_views() -> None:
    values = composed(NOISE, "data.count=48")
    images = prepared(values)
    images.augmentation = lambda given, generator: given + 1  # type: ignore[attr-defined]
    module = build.distillation(values, images)
    views, _, _ = unpack(next(iter(images.train_dataloader())))
    made = module.make_views(views, 0, 0, 0)
    assert made.shape == (len(views), 3, 1, 8, 8)
    assert made[:, 2].equal(views + 1)


def test_what_a_data_module_does_not_say_is_given_by_a_key() -> None:
    told = composed("data._target_=my_code.Silent", "data.count=48", "data.num_classes=2", "data.image_shape=[1,8,8]")
    assert prepared(told).image_shape == (1, 8, 8)
    with pytest.raises(ConfigError, match=r"does not say num_classes: give it as an attribute, or as data.num_classes"):
        prepared(composed("data._target_=my_code.Silent", "data.count=48"))
    with pytest.raises(ConfigError, match=r"data.num_classes is 9, and my_code.Noise says 2: leave it out"):
        prepared(composed(NOISE, "data.count=48", "data.num_classes=9"))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("modules=[gone]",), r"modules: gone cannot be imported \(ModuleNotFoundError"),
        (("data._target_=my_code.Nose",), r"data._target_: my_code.Nose cannot be imported \(AttributeError"),
        (("data._target_=my_code.OwnTeacher",), "my_code.OwnTeacher is no LightningDataModule"),
        (("data._target_=gone.Noise",), r"gone.Noise cannot be imported \(ModuleNotFoundError"),
        ((NOISE, "data.cuont=4"), r"Unknown key data.cuont. Did you mean data.count\?"),
        ((NOISE, "data.validation=0.3"), r"Unknown key data.validation"),
    ],
)
def test_a_mistake_in_what_is_imported_is_named_before_a_run_begins(typed: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(typed)


def test_an_argument_without_a_value_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"needs data.count, which has no default: give data.count=VALUE"):
        prepared(composed(NOISE))


# Runs


@pytest.mark.slow
def test_a_run_of_the_users_own_data_set_method_and_backbone() -> None:
    done = dkel(MODULES, "data=stripes", "method=own_teacher", "backbone=tiny", "data.batch_size=8", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "own_teacher: 2 peers of tiny" in done.stdout
    assert "on stripes (32 training, 8 validation, 20 test images of 1x8x8, 2 classes)" in done.stdout
    refused = dkel("resume=run")
    assert refused.returncode == 1
    assert "config.yaml names modules='[my_code]': folders, hosts, loggers and code are not taken" in refused.stderr
    assert dkel("resume=run", MODULES).returncode == 0


@pytest.mark.slow
def test_a_run_of_the_users_own_data_module_and_what_follows_it() -> None:
    done = dkel(NOISE, "data.count=48", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "on my_code.Noise (48 training, 48 validation, 48 test images of 1x8x8, 2 classes)" in done.stdout
    checkpoint = "checkpoint=run/checkpoints/best.ckpt"
    refused = dkel("task=evaluate", checkpoint)
    assert refused.returncode == 1
    assert "config.yaml names data._target_=my_code.Noise" in refused.stderr
    again = dkel("task=evaluate", checkpoint, NOISE)
    assert again.returncode == 0, again.stderr
    # What leaves the run says how images are prepared, or that nobody has said it.
    values = composed(NOISE, "data.count=48", "task=export", checkpoint)
    cure = r"attributes mean and std .* or data.mean=\[\.\.\.\] and data.std=\[\.\.\.\]"
    with pytest.raises(ConfigError, match=cure):
        tasks.run(Run(values, Path("run")))
    told = {**values, "data": {**values["data"], "mean": [0.5], "std": [0.5]}}
    tasks.run(Run(told, Path("exported")))
    assert json.loads(next(Path("exported").rglob("export.json")).read_text())["preprocessing"]["mean"] == [0.5]
    Image.new("L", (8, 8)).save("grey.png")
    with pytest.raises(ConfigError, match=cure):
        tasks.run(Run({**composed(NOISE, "task=predict", checkpoint, "predict.images=grey.png")}, Path("run")))


# A stranger's file


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    """The folder of a run whose config.yaml names a data module that would leave a trace."""
    (tmp_path / "evil.py").write_text("open('trace', 'w').close()\nclass Evil: ...\n")
    (tmp_path / "digits.py").write_text("open('trace', 'w').close()\n")
    (tmp_path / "theirs").mkdir()
    return tmp_path / "theirs"


@pytest.mark.parametrize("target", ["evil.Evil", "digits", "os.system", "dkel_lightning.data.DigitsDataModule"])
def test_a_data_module_that_only_a_file_names_is_never_imported(target: str, strangers: Path) -> None:
    saved = {**compose(), "data": {**compose()["data"], "_target_": target}}
    (strangers / "config.yaml").write_text(yaml.safe_dump(saved))
    given = compose()
    with pytest.raises(CheckpointError, match=r"names data\._target_="):
        saved_settings.of_checkpoint(saved, compose("task=evaluate"), ["task=evaluate"], strangers)
    with pytest.raises(CheckpointError, match=r"names data\._target_="):
        saved_settings.resumed(strangers, given, [])
    with pytest.raises(CheckpointError, match=r"names data\._target_="):
        prepare([f"resume={strangers}"])
    assert not (strangers.parent / "trace").exists()


def test_naming_another_data_module_lets_no_other_pass(tmp_path: Path) -> None:
    saved = {**compose(), "data": {**compose()["data"], "_target_": "evil.Evil"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    given = composed(NOISE, "data.count=48")
    with pytest.raises(ConfigError, match="data would change a run that is being resumed"):
        saved_settings.resumed(tmp_path, given, ["data=my_code.Noise"])
    chosen = saved_settings.of_checkpoint(saved, given, ["data=my_code.Noise"], Path())
    assert chosen["data"]["_target_"] == "my_code.Noise"


def test_an_evaluation_of_a_method_of_the_users_own_asks_for_its_module() -> None:
    saved = {**compose(), "modules": ["my_methods"]}
    saved["method"] = {**saved["method"], "name": "theirs"}
    with pytest.raises(ConfigError, match=r"name them again, modules=\[my_methods\]"):
        saved_settings.of_checkpoint(saved, compose(), ["task=evaluate"], Path())


@pytest.mark.parametrize("typed", ["data=glob(nothing*)", "++data=glob(nothing*)"])
def test_a_pattern_of_choices_asks_for_no_import(typed: str) -> None:
    with pytest.raises(ConfigError, match="matches none of cifar10"):
        prepare(["-m", typed])
