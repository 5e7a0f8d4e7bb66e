"""An extreme number trains or is refused with one clear error, however far it is from what anybody means."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dkel_lightning.app.config import schema
from dkel_lightning.app.tasks.train import train
from dkel_lightning.data.readers.digits import DigitsDataModule
from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import distillation
from dkel_lightning.settings.keys import Key
from dkel_lightning.settings.methods import DKELSettings
from dkel_lightning.settings.teacher import TeacherSettings
from dkel_lightning.settings.weights import RampUp
from tests.compose import check_arguments, tiny_run
from tests.fuzz.runs import Tally, attempt, each_composed_once, make_sets, temporary_folder
from tests.fuzz.space import extremes
from tests.reliability.record import record


def explore(count: int, seed: int, sets: dict[str, Path]) -> Tally:
    """Try so many commands, the same ones for the same seed."""
    tally, draws = Tally(), random.Random(seed)
    with each_composed_once():
        for _ in range(count):
            with temporary_folder() as folder:
                attempt(extremes(draws, sets), folder, tally)
    return tally


@pytest.mark.slow
def test_extreme_numbers_train_or_are_refused_with_one_clear_error(tmp_path: Path) -> None:
    tally = explore(20, 0, make_sets(tmp_path))
    assert not tally.failures, "\n".join(tally.failures)
    assert min(tally.trained, tally.refused) > 2, tally


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
def test_hundreds_of_extreme_numbers(tmp_path: Path) -> None:
    tally = explore(300, 1, make_sets(tmp_path))
    record(
        "extremes", commands=tally.trained + tally.refused, trained=tally.trained, refused=tally.refused,
        broken=len(tally.failures), slowest_seconds=round(tally.slowest[0], 1), slowest=tally.slowest[1],
    )  # fmt: skip
    assert not tally.failures, "\n".join(tally.failures)
    assert min(tally.trained, tally.refused) > 60, tally


def is_refused(key: Key, value: float) -> bool:
    return all(key.fault(each) is not None for each in (value, [value], [value, value], {0: value}))


def test_no_number_is_without_bounds() -> None:
    numeric = {name: key for name, key in schema.KEYS.items() if "number" in key.kind}
    assert len(numeric) > 100
    assert [name for name, key in numeric.items() if not is_refused(key, 1e308) or not is_refused(key, -1e308)] == []
    # What is too large for an update ends the run by its loss, which is one clear error too.
    rates = ["optimizer.lr", "scheduler.eta_min", "trainer.gradient_clip_val"]
    assert [name for name, key in numeric.items() if not is_refused(key, 10**20)] == rates


@pytest.mark.parametrize("temperature", [0.01, 100.0])
def test_float32_distils_at_both_ends_of_the_temperature(temperature: float) -> None:
    draws = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(8, 10, generator=draws, dtype=torch.float64) for _ in range(2))
    exact = distillation(student, teacher, temperature)
    assert float(exact) > 0.01
    assert float(distillation(student.float(), teacher.float(), temperature)) == pytest.approx(float(exact), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "key", "value"),
    [
        (DKELSettings, "method.temperature", 1e-30),
        (DKELSettings, "method.temperature", 1e308),
        (RampUp, "method.rampup.scale", 1e308),
        (TeacherSettings, "teacher.init_lr_scale", 1e308),
        (TeacherSettings, "teacher.init_weight_decay", 1e308),
        (DigitsDataModule, "data.batch_size", 10**20),
    ],
)
def test_an_extreme_value_is_the_same_error_in_python_and_on_the_command_line(
    settings: Callable[..., object], key: str, value: float
) -> None:
    with pytest.raises(ConfigError) as typed:
        check_arguments([f"{key}={value}"])
    with pytest.raises(ConfigError) as in_python:
        settings(**{key.rpartition(".")[2]: value})
    assert str(typed.value) == str(in_python.value)
    assert str(typed.value).startswith(f"{key} must be a")


@pytest.mark.parametrize("override", ["optimizer.weight_decay=1e308", "scheduler.gamma=1e308", "trainer.profiler=xla"])
def test_an_extreme_argument_of_another_library_is_refused_before_that_sees_it(override: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{override.partition('=')[0]} must be "):
        check_arguments([override])


@pytest.mark.long
def test_the_widest_guided_modules_fit_into_the_memory_of_a_laptop(tmp_path: Path) -> None:
    description = schema.describe("method.width")
    most = max(value for value in (2**n for n in range(40)) if description.fault(value) is None)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (6 << 30,) * 2); "
    start = limit + "from dkel_lightning.app.cli.main import main; main()"
    small = ("data.limit=32", "data.batch_size=8", "data.eval_batch_size=8", "trainer=cpu", "debug=smoke")
    done = subprocess.run(
        [sys.executable, "-c", start, "method=ekd", f"method.width={most}", *small, "execution.threads=1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_more_than_the_memory_can_hold_is_refused_before_it_is_taken(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "method=soteacher", "teacher=none", "method.samples=1000000000")
    with pytest.raises(ConfigError, match=r"method\.samples=1000000000: the data has \d+ training samples"):
        train(run)
