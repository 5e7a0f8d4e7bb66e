"""conf/ holds what the declarations say, composes without torch, and builds what Python builds by itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dkel_lightning.assembly.parts import SHARES
from dkel_lightning.methods import METHODS
from dkel_lightning.settings.declarations import from_mapping
from dkel_lightning.settings.teacher import TeacherSettings

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
SHIPPED = [name for name, preset in METHODS.items() if preset.method.__module__.startswith("dkel_lightning.")]
ROOT_CONFIG = """
defaults:
  - protocol: default
  - targets: default
  - deploy: default
  - data: digits
  - backbone: resnet8
  - teacher: independent
  - method: dkel
  - execution: default
  - _self_
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root.yaml").write_text(f"{ROOT_CONFIG}hydra: {{searchpath: ['file://{CONF}']}}\n", encoding="utf-8")
    return tmp_path


def composed(root: Path, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(root), version_base="1.3"):
        values = OmegaConf.to_container(compose("root", list(overrides)), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def test_writing_the_files_again_changes_nothing() -> None:
    spec = importlib.util.spec_from_file_location("write_conf", ROOT / "scripts" / "write_conf.py")
    assert spec is not None
    assert spec.loader is not None
    write_conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(write_conf)
    files = write_conf.files()
    assert {name for name, text in files.items() if (CONF / name).read_text(encoding="utf-8") != text} == set()
    groups = ("method", "teacher", "data", "deploy", "execution", "targets", "callbacks")
    assert {f"{group}/{path.name}" for group in groups for path in (CONF / group).iterdir()} - files.keys() == set()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_composed_method_is_the_one_that_python_builds_by_default(root: Path, name: str) -> None:
    values, preset = composed(root, f"method={name}"), METHODS[name]
    method = values["method"]
    arrangement = {key: method.pop(key) for key in ("name", "peers", "sharing", "views", "classifiers")}
    assert arrangement == vars(preset.arrangement)
    assert from_mapping(preset.method.Settings, method, "method") == preset.default_settings()
    assert values["backbone"]["views_per_pass"] == preset.views_per_pass
    expected = preset.teacher_settings
    if expected.get("update") == "none":
        assert values["teacher"] == {"update": "none"}
    else:
        teacher = from_mapping(TeacherSettings, values["teacher"], "teacher")
        assert teacher == from_mapping(TeacherSettings, expected, "teacher")


def test_a_teacher_that_is_chosen_stands_over_the_methods(root: Path) -> None:
    assert composed(root, "method=pcl")["teacher"]["draw"] == "student"
    assert composed(root, "method=pcl", "teacher=independent")["teacher"]["draw"] == "independent"


def test_shares_of_the_run_reach_the_methods_that_have_no_lengths_of_their_own(root: Path) -> None:
    lengths = {
        name: composed(root, f"method={name}", "protocol=shares")["method"]["rampup"]["share"]
        for name in ("dkel", "pcl", "dkel_released", "mean_teacher", "cl_ilr")
    }
    assert lengths == {"dkel": 0.27, "pcl": 0.27, "dkel_released": None, "mean_teacher": 0.125, "cl_ilr": None}
    values = composed(root, "protocol=shares")
    for part, shares in {**values["method"], "teacher": values["teacher"]}.items():
        assert part not in SHARES or SHARES[part].items() <= shares.items()  # as `schedules="shares"` in Python
