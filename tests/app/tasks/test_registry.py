"""The rows of the tasks: each has its file and its choice, and the checks of the settings follow from it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import dkel_lightning
from dkel_lightning.app.cli import composition
from dkel_lightning.app.config import schema
from dkel_lightning.app.tasks import registry
from dkel_lightning.app.tasks.registry import TASKS, Place, Task
from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.declarations import keys_of
from tests.compose import check_arguments, compose


def test_every_task_is_a_choice_and_every_choice_a_task() -> None:
    assert sorted(TASKS) == composition.options("task", None)


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_the_functions_of_a_row_are_there_and_take_what_they_are_given(task: Task) -> None:
    taken = [*inspect.signature(registry.load(task.function)).parameters]
    assert taken == (["run", "comparison"] if task.plans else ["run"])
    assert task.owner is None or [*inspect.signature(registry.load(task.owner)).parameters] == ["values"]
    assert bool(task.folder) is (task.place is Place.BESIDE_CHECKPOINT)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task=evaluate"], ["task=evaluate needs checkpoint=PATH of a .ckpt file."]),
        (
            ["task=predict"],
            [
                "task=predict needs checkpoint=PATH of a .ckpt file, or of what task=export wrote.",
                "task=predict needs predict.images=PATH of an image file or a folder of images.",
            ],
        ),
        (["task=predict", "checkpoint=x", "predict.images=y"], []),
        (["task=export"], ["task=export needs checkpoint=PATH of a .ckpt file."]),
        (
            ["checkpoint=x"],
            [
                "task=train takes no checkpoint=: choose task=evaluate, export or predict, or go on with a run by "
                "resume=PATH."
            ],
        ),
        (
            ["task=compare", "resume=x", "trainer.devices=2", "trainer.fast_dev_run=true"],
            [
                "task=compare takes no resume=: go on with a comparison by compare.folder=PATH.",
                "task=compare trains on one device: leave trainer.devices at 1.",
                "trainer.fast_dev_run leaves nothing to compare: set trainer.max_epochs=1 instead.",
            ],
        ),
        (["task=geometry", "checkpoint=x"], ["task=geometry takes no checkpoint=: leave it out."]),
        (
            ["task=evaluate", "checkpoint=x", "resume=y"],
            ["task=evaluate takes no resume=: leave it out."],
        ),
        (["task=geometry"], []),
    ],
    ids=str,
)
def test_what_a_task_lacks_and_what_does_not_go_with_it_follows_from_its_row(
    overrides: list[str], said: list[str]
) -> None:
    values = compose(*overrides)
    assert [*registry.of(values).contradictions(values)] == said


OF_ITS_NAME = [task for task in TASKS.values() if task.settings is not None and task.settings.node == task.name]


@pytest.mark.parametrize("task", OF_ITS_NAME, ids=lambda task: task.name)
def test_a_key_of_a_task_without_the_task_says_what_to_add(task: Task) -> None:
    assert task.settings is not None
    key = next(iter(keys_of(task.settings)))
    with pytest.raises(ConfigError, match=re.escape(f"{key} belongs to task={task.name}: choose that")):
        check_arguments([f"{key}=1"])


@pytest.mark.parametrize("task", [task for task in TASKS.values() if task.no_sweep], ids=lambda task: task.name)
def test_what_is_no_job_of_a_sweep_is_refused_with_its_reason(task: Task) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"task={task.name} {task.no_sweep}.")):
        check_arguments([f"task={task.name}", "seed=0,1"], multirun=True)


def test_a_row_is_all_that_a_new_task_needs() -> None:
    task = Task("mine", "Mine.", "os.path:basename", needs={"data.root": "a folder"}, no_sweep="is run once")
    assert registry.load(task.function)("a/b") == "b"
    values = {"data": {"root": None}, "resume": None, "checkpoint": None}
    assert [*task.contradictions(values)] == ["task=mine needs data.root=PATH of a folder."]
    assert not task.reads_checkpoint


def test_no_other_file_compares_names_of_tasks() -> None:
    package = Path(dkel_lightning.__file__).parent
    compared = re.compile(r"""\["task"\]\["name"\]\)?\s*(==|!=|in\b|not\b)""")
    found = [path.name for path in package.rglob("*.py") if compared.search(path.read_text(encoding="utf-8"))]
    assert found == []
    assert schema.KEYS["task.name"].kind == f"one of {', '.join(TASKS)}"
