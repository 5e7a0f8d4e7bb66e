"""Charts: ticks, gaps, thinning, and where things lie."""

from __future__ import annotations

import math

import pytest

from dkel_lightning.app.report import charts
from dkel_lightning.app.report.charts import Dots, Line
from dkel_lightning.app.report.markup import raw, tag, text
from tests.app.report.pages import Reader


def drawn(markup: str) -> Reader:
    reader = Reader(markup)
    assert reader.faults == []
    return reader


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (93.2, 97.1, [94, 95, 96, 97]),
        (1, 300, [100, 200, 300]),
        (-0.3, 0.3, [-0.2, 0, 0.2]),
        (5, 5, [5]),
        (0.00012, 0.00031, [0.00015, 0.0002, 0.00025, 0.0003]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert charts.nice_ticks(low, high) == pytest.approx(expected)


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    line = Line("loss", [1, 2, 3, 4, 5], [1, 2, math.nan, 3, 4])
    path = drawn(charts.lines("loss", [line])).all("path")[0]
    assert path["d"].count("M") == 2
    assert path["data-y"] == "1,2,,3,4"


def test_a_single_point_can_be_seen() -> None:
    path = drawn(charts.lines("loss", [Line("loss", [1], [2])])).all("path")[0]
    assert path["d"] == "M211.0 107.0m-3 0l3 -3l3 3l-3 3z"


def test_thinning_keeps_the_ends_and_the_spikes() -> None:
    x = [float(i) for i in range(10_000)]
    y = [0.0] * 10_000
    y[4321], y[8765], y[5000] = 7.0, -3.0, math.nan
    few, values = charts.thin(x, y, 600)
    assert len(few) <= 900
    assert (few[0], few[-1]) == (0, 9999)
    assert {4321.0, 8765.0, 5000.0} <= set(few)
    assert max(v for v in values if math.isfinite(v)) == 7
    assert charts.thin(x[:600], y[:600], 600) == (x[:600], y[:600])


def test_terms_of_very_different_size_share_an_axis_that_shows_zero() -> None:
    lines = [Line("big", [1, 2], [100.0, 10.0]), Line("small", [1, 2], [0.0, 0.1])]
    reader = drawn(charts.lines("terms", lines, scale="symlog"))
    # asinh(v / 0.01) from 0 at the lower edge (204) to 100 at the upper (10), by hand: 194 / asinh(1e4) = 19.589
    assert reader.all("path")[0]["d"] == f"M50.0 10.0L372.0 {204 - 19.589 * math.asinh(1000):.1f}"
    assert reader.all("path")[1]["d"] == f"M50.0 204.0L372.0 {204 - 19.589 * math.asinh(10):.1f}"


def test_dots_of_seeds_lie_over_their_number_on_a_logarithmic_axis_if_it_spans_decades() -> None:
    series = [("", [Dots(0.01, [("seed 0", 1.0)]), Dots(0.1, [("seed 0", 1.0)]), Dots(1.0, [("seed 0", 2.0)])])]
    circles = drawn(charts.numeric_dots("accuracy", series, x_label="lr")).all("circle")
    assert [float(one["cx"]) for one in circles] == [60, 211, 362]


def test_rows_have_a_bar_at_the_mean() -> None:
    entries = [("a", [("seed 0", 1.0), ("seed 1", 3.0)]), ("b", [])]
    reader = drawn(charts.rows("accuracy", entries, x_label="%", marked=0))
    circles = [float(one["cx"]) for one in reader.all("circle")]
    bar = next(one for one in reader.all("line") if one["class"].startswith("mean"))
    assert float(bar["x1"]) == pytest.approx(sum(circles) / 2, abs=0.06)


def test_every_string_is_escaped_but_markup_of_our_own() -> None:
    assert tag("p", "<b>&", raw("<i></i>"), title='"><') == '<p title="&quot;&gt;&lt;">&lt;b&gt;&amp;<i></i></p>'
    assert text("a\x00b\ud800c") == "a\ufffdb\ufffdc"
