"""Any configuration either trains or is refused with one clear error: never a traceback, never NaN in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given

from tests.fuzz.runs import Tally, attempt, each_composed_once, make_sets, reproducible, temporary_folder
from tests.fuzz.space import Combination, combinations
from tests.reliability.record import record


def explore(examples: int, sets: dict[str, Path]) -> Tally:
    """Try so many combinations, the same ones every time; all of them, whatever fails."""
    tally = Tally()

    @reproducible(examples)
    @given(combinations(sets))
    def each(combination: Combination) -> None:
        with temporary_folder() as folder:
            attempt(combination, folder, tally)

    with each_composed_once():
        each()
    return tally


def assert_clean(tally: Tally) -> None:
    listed = "\n".join(tally.failures)
    assert not tally.failures, f"{len(tally.failures)} of {tally.trained + tally.refused} combinations:\n{listed}"


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")  # of the few that ask for it
@pytest.mark.timeout(1200)
def test_every_combination_trains_or_is_refused_with_one_clear_error(tmp_path: Path) -> None:
    tally = explore(36, make_sets(tmp_path))
    assert_clean(tally)
    # Else it would be a test of nothing.
    assert tally.trained > 6
    assert tally.refused > 6


@pytest.mark.usefixtures("drawn")
@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
def test_hundreds_of_combinations(tmp_path: Path) -> None:
    tally = explore(500, make_sets(tmp_path))
    record(
        "fuzzing",
        combinations=tally.trained + tally.refused,
        trained=tally.trained,
        refused=tally.refused,
        broken=len(tally.failures),
        slowest_seconds=round(tally.slowest[0], 1),
        slowest=tally.slowest[1],
        by_choice={name: dict(counts) for name, counts in sorted(tally.by_choice.items())},
    )
    assert_clean(tally)
    assert tally.trained > 100
    assert tally.refused > 100
