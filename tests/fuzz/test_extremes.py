"""An extreme number trains or is refused with one clear error, however far it is from what anybody means."""

from __future__ import annotations

import random
from pathlib import Path

from dkel_lightning.app.config import schema
from dkel_lightning.settings.keys import Key
from tests.fuzz.runs import Tally, attempt, each_composed_once, make_sets, temporary_folder
from tests.fuzz.space import extremes


def explore(count: int, seed: int, sets: dict[str, Path]) -> Tally:
    """Try so many commands, the same ones for the same seed."""
    tally, draws = Tally(), random.Random(seed)
    with each_composed_once():
        for _ in range(count):
            with temporary_folder() as folder:
                attempt(extremes(draws, sets), folder, tally)
    return tally


def test_extreme_numbers_train_or_are_refused_with_one_clear_error(tmp_path: Path) -> None:
    tally = explore(12, 0, make_sets(tmp_path))
    assert not tally.failures, "\n".join(tally.failures)
    assert min(tally.trained, tally.refused) > 2, tally


def is_refused(key: Key, value: float) -> bool:
    return all(key.fault(each) is not None for each in (value, [value], [value, value], {0: value}))


def test_no_number_is_without_bounds() -> None:
    numeric = {name: key for name, key in schema.KEYS.items() if "number" in key.kind}
    assert len(numeric) > 100
    assert [name for name, key in numeric.items() if not is_refused(key, 1e308) or not is_refused(key, -1e308)] == []
    # What is too large for an update ends the run by its loss, which is one clear error too.
    rates = ["optimizer.lr", "scheduler.eta_min", "trainer.gradient_clip_val"]
    assert [name for name, key in numeric.items() if not is_refused(key, 10**20)] == rates
