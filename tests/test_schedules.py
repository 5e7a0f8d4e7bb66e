"""Schedules: golden curves, ends, shares of a run, pairs of teacher weights, and the texts of refusals."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dkel_lightning.errors import ConfigError
from dkel_lightning.methods.dkel import EnsembleTerm
from dkel_lightning.schedules import (
    Clock,
    at_time,
    ema_rate,
    ensemble_weight,
    milestones_in_epochs,
    rampup,
    rampup_released,
    time_of,
)
from dkel_lightning.settings.rampup import RampUp
from dkel_lightning.settings.teacher import TeacherSettings


def test_golden_schedules(golden: dict[str, Any]) -> None:
    for case in golden["schedules"]:
        scale, length = case["rampup_scale"], case["rampup_epochs"]
        correct, released = RampUp(scale, length), RampUp(scale, length, form="released")
        term = EnsembleTerm(decay=case["decay"])
        for i, epoch in enumerate(case["epochs"]):
            clock = Clock(epoch)
            assert term.weight(clock) == pytest.approx(case["ensemble_weight"][i], rel=1e-9, abs=1e-12)
            assert correct.weight(clock) == pytest.approx(case["rampup_correct"][i], rel=1e-9, abs=1e-12)
            assert released.weight(clock) == pytest.approx(case["rampup_released"][i], rel=1e-9, abs=1e-12)


def test_a_rampup_of_no_length_is_lambda_at_once() -> None:
    assert rampup(0, 0.7, 0) == 0.7
    assert RampUp(0.7, 0).weight(Clock(0)) == 0.7
    assert RampUp(0.7, None, share=0.0).weight(Clock(0, steps=100)) == 0.7


def test_the_released_form_underflows_to_zero() -> None:
    assert rampup_released(3, 0.0, 80) == 0.0
    assert rampup_released(3, 1e-300, 80) == 0.0


@given(st.floats(0.01, 10), st.floats(0.1, 300), st.lists(st.floats(0, 400), min_size=2, max_size=8).map(sorted))
def test_the_correct_rampup_never_falls_and_never_exceeds_lambda(
    scale: float, length: float, times: list[float]
) -> None:
    values = [rampup(time, scale, length) for time in times]
    assert values == sorted(values)
    assert all(0 < value <= scale for value in values)


@given(st.floats(0, 5), st.lists(st.floats(0, 400), min_size=2, max_size=8).map(sorted))
def test_the_ensemble_weight_never_rises_and_lies_in_zero_to_one(decay: float, times: list[float]) -> None:
    values = [ensemble_weight(time, decay) for time in times]
    assert values == sorted(values, reverse=True)
    assert all(value == 0 or 0.01 < value <= 1 for value in values)


def test_the_ensemble_weight_is_cut_off_at_its_cutoff_and_not_above_it() -> None:
    assert ensemble_weight(1, math.log(2), cutoff=0.4999) == pytest.approx(0.5)
    assert ensemble_weight(1, math.log(2), cutoff=0.5001) == 0.0
    assert ensemble_weight(1, 1.0, cutoff=math.exp(-1)) == 0.0
    assert ensemble_weight(0, 7.0, cutoff=0.99) == 1.0
    assert ensemble_weight(10, 0.5) == 0.0  # exp(-5) = 0.0067
    # After one time constant, exp(-1) = 0.37.
    at_one = Clock(epoch=1, step=10, steps_per_epoch=10, steps=100)
    for constant in ({"decay": 1.0}, {"decay": None, "decay_share": 0.1}):
        assert EnsembleTerm(**constant, cutoff=0.3).weight(at_one) == pytest.approx(math.exp(-1))
        assert EnsembleTerm(**constant, cutoff=0.4).weight(at_one) == 0.0


def test_a_share_moves_within_an_epoch_where_epochs_do_not() -> None:
    middle = Clock(1, step=6, steps_per_epoch=4, steps=120)  # epoch 1.5
    assert EnsembleTerm(decay=None, decay_share=2 / 30).weight(middle) == pytest.approx(math.exp(-0.75), rel=1e-9)
    assert EnsembleTerm(decay=0.5).weight(middle) == pytest.approx(math.exp(-0.5), rel=1e-9)
    assert RampUp(1.0, None, share=0.1).weight(middle) == pytest.approx(math.exp(-1.25), rel=1e-9)  # half of 3 epochs
    assert RampUp(1.0, 3).weight(middle) == pytest.approx(math.exp(-5 * 4 / 9), rel=1e-9)


@pytest.mark.parametrize(
    ("schedule", "key"),
    [
        (RampUp(1.0, None, share=0.1), "method.rampup.share"),
        (EnsembleTerm(decay=None, decay_share=0.1), "method.ensemble.decay_share"),
    ],
)
def test_a_share_of_a_run_without_end_is_refused(schedule: RampUp | EnsembleTerm, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is a share of the run, but the run has no end: set max_epochs"):
        schedule.weight(Clock(0))


@pytest.mark.parametrize(
    ("schedule", "settings", "text"),
    [
        (RampUp, {"epochs": 80, "share": 0.1}, "Set one of method.rampup.epochs and method.rampup.share"),
        (RampUp, {"epochs": None}, "Set one of method.rampup.epochs and method.rampup.share"),
        (RampUp, {"epochs": math.nan}, "method.rampup.epochs must be a number between 0 and 1e+06, got nan."),
        (RampUp, {"scale": -1.0}, "method.rampup.scale must be a number between 0 and 1e+06, got -1.0."),
        (RampUp, {"form": "linear"}, "method.rampup.form must be one of correct, released, got 'linear'."),
        (
            EnsembleTerm,
            {"decay_share": 0.1},
            "Set one of method.ensemble.decay and method.ensemble.decay_share",
        ),
        (EnsembleTerm, {"decay": None, "decay_share": -0.5}, "decay_share must be a number between 1e-09 and"),
        (EnsembleTerm, {"cutoff": 1.0}, "method.ensemble.cutoff must be a number between 0 and 0.999999, got 1.0."),
        (EnsembleTerm, {"space": "votes"}, "method.ensemble.space must be one of logits, probabilities, got 'votes'."),
    ],
)
def test_impossible_settings_are_refused(schedule: Any, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        schedule(**settings)


def test_a_schedule_by_hand_is_read_from_its_last_entry_not_after_the_time() -> None:
    rates = {0: 0.99, 2: 0.999, 5.5: 0.9}
    times = {0: 0.99, 1.9: 0.99, 2: 0.999, 5: 0.999, 5.5: 0.9, 100: 0.9}
    assert {time: at_time(rates, time) for time in times} == times
    assert at_time({3: 0.5}, 0) == 0.5
    assert at_time(0.7, 12) == 0.7


def test_starts_below_one_are_shares_of_the_run_and_others_are_epochs() -> None:
    clock = Clock(epoch=3, step=30, steps_per_epoch=10, steps=100)
    assert time_of({0: 0.99, 0.27: 0.999}, clock, "teacher.decay") == pytest.approx(0.3)
    assert time_of({0: 0.99, 2: 0.999}, clock, "teacher.decay") == 3
    assert time_of({0: 0.99, 1: 0.999}, clock, "teacher.decay") == 3
    assert time_of({0: 0.99}, clock, "teacher.decay") == 3
    assert time_of(0.99, Clock(epoch=3), "teacher.decay") == 3
    with pytest.raises(ConfigError, match=r"teacher.decay is a share of the run, but the run has no end"):
        time_of({0: 0.99, 0.27: 0.999}, Clock(epoch=3), "teacher.decay")


@pytest.mark.parametrize(
    ("milestones", "epochs", "expected"),
    [
        ([0.5, 0.75], 300, [150, 225]),
        ([0.5, 0.75], 5, [3, 4]),  # rounded up, so that no stage is lost
        ([0.1, 0.3], 10, [1, 3]),  # 0.3 * 10 is a little above 3
        ([0, 0.01], 10, [0, 1]),
        ([0.5, 0.75], 1, [1, 1]),  # not 0, which would begin with the last rate
        ([0.29, 0.57], 100, [29, 57]),
        ([30, 60.0], 10, [30, 60]),
    ],
)
def test_milestones_as_shares_are_rounded_up_to_epochs(
    milestones: list[float], epochs: int, expected: list[int]
) -> None:
    assert milestones_in_epochs(milestones, epochs) == expected


@pytest.mark.parametrize(
    ("length", "batches"), [(0, 0), (20, 20), ("1epoch", 19), ("3epochs", 57), ("3 epochs", 57), ("0.5epochs", 10)]
)
def test_a_length_may_be_given_in_batches_or_in_epochs(length: int | str, batches: int) -> None:
    assert TeacherSettings(init_steps=length).batches_of_initialisation(19) == batches


def test_a_length_in_epochs_needs_epochs_of_a_known_length() -> None:
    with pytest.raises(ConfigError, match=r"teacher\.init_steps=1epoch, but the training loader does not say how long"):
        TeacherSettings(init_steps="1epoch").batches_of_initialisation(math.inf)


def test_the_rate_of_a_time_constant() -> None:
    assert ema_rate(1000) == pytest.approx(0.999, rel=1e-12)
    assert ema_rate(1) == 0.0
    assert ema_rate(0.5) == 0.0
    assert ema_rate(0) == 0.0
