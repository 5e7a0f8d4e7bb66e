"""What figures show: the values of metrics.csv, means in a band over seeds, names as they stand."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from PIL import Image

from dkel_lightning.app import drawing, figures
from dkel_lightning.app.runs.groups import Group
from dkel_lightning.app.runs.parsing import Curve
from dkel_lightning.app.runs.records import RunRecord
from tests.app.run_files import write_metrics

pytestmark = pytest.mark.usefixtures("drawn")


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected)


def curve(*values: float) -> Curve:
    return Curve([float(epoch) for epoch in range(1, len(values) + 1)], values)


def panels(curves: dict[str, Curve]) -> dict[str, Axes]:
    figure = figures.run_figure(curves)
    assert figure is not None
    return {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}


def test_columns_that_begin_alike_share_a_panel_in_per_cent_with_the_legend_off_the_lines() -> None:
    names = ["val/acc", "val/acc/student_0", "val/acc/student_1", "val/acc/student_mean", "weights/rampup", "own"]
    found = panels({name: curve(0.25, 0.5, 0.1 * place) for place, name in enumerate(names)})
    assert [*found] == ["validation accuracy (%)", "weights in force at the end of the epoch", "own"]
    accuracy = found["validation accuracy (%)"]
    lines = {line.get_label(): line for line in accuracy.lines if not str(line.get_label()).startswith("_")}
    assert [*lines] == ["student mean", "deployed"]  # single peers are thin behind their mean, and not named
    assert [line.get_alpha() for line in accuracy.lines].count(0.3) == 2
    close(lines["student mean"].get_ydata(), [25, 50, 30])
    close(found["own"].lines[0].get_ydata(), [0.25, 0.5, 0.5])
    figure = accuracy.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    legend = accuracy.get_legend()
    assert legend is not None
    assert legend.get_window_extent().x0 > accuracy.get_window_extent().x1 - 1


def test_terms_of_very_different_size_share_an_axis_that_shows_zero() -> None:
    (axes,) = panels({"train/ce": curve(100, 10), "train/consistency": curve(0, 0.1)}).values()
    assert axes.get_yscale() == "symlog"
    assert [line.get_label() for line in axes.lines] == ["labels to peers", "teacher to student"]


def test_values_that_are_not_finite_leave_a_gap_and_a_single_epoch_can_be_seen(tmp_path: Path) -> None:
    figures.draw_curves({"train/loss": curve(1, np.nan, np.inf, 2)}, tmp_path / "curves.png", "t")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = panels({"train/loss": curve(1)}).values()
    assert axes.lines[0].get_marker() == "."


def test_columns_that_nobody_draws_make_no_figure(tmp_path: Path) -> None:
    left_out = {name: curve(1) for name in ("train/loss_per_peer", "val/acc/student_best")}
    assert figures.run_figure(left_out) is None
    figures.draw_curves({"diversity/kl/x": curve(1)}, tmp_path / "curves.png", "of how alike networks are")
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(
    ("label", "kind"),
    [("student_0", "student"), ("teacher_mean", "teacher"), ("ensemble", "ensemble"), ("teacher_ensemble",) * 2,
     ("student_0-teacher_1", "student-teacher"), ("rampup",) * 2],
)  # fmt: skip
def test_members_are_coloured_by_what_they_are_one_of(label: str, kind: str) -> None:
    assert figures.kind_of(label) == kind


def groups(folder: Path, *values: tuple[str, ...]) -> list[Group]:
    """Make a group a setting of two finished runs, whose validation accuracies lie 0.1 apart."""
    found = []
    for place, setting in enumerate(values):
        runs = {}
        for seed in range(2):
            run = folder / f"{place}_{seed}"
            run.mkdir()
            test = {"epoch": 2, "deployed": "student_0", "deployed_accuracy": 0.5 + 0.1 * place + 0.02 * seed,
                    "accuracy": {"student_0": 0.5}}  # fmt: skip
            (run / "summary.json").write_text(json.dumps({"test": {"last": test, "best": test}}))
            write_metrics(run, {"val/acc/student_mean": [0.1 * seed, 0.2 + 0.1 * seed]})
            runs[str(seed)] = RunRecord(run)
        found.append(Group(", ".join(setting), setting, runs))
    return found


def test_courses_are_means_in_a_band_from_the_lowest_to_the_highest_seed(tmp_path: Path) -> None:
    figure = figures.courses(groups(tmp_path, ("0", "a"), ("0", "b"), ("1", "a")), ("lr", "draw"))
    assert figure is not None
    first, second = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["draw=a", "draw=b"]
    close(first.lines[0].get_ydata(), [5, 25])
    (corners,) = (path.vertices for path in first.collections[0].get_paths())
    assert {(1, 0), (1, 10), (2, 20), (2, 30)} <= {(round(x), round(y)) for x, y in np.asarray(corners)}
    # One colour a value of the first key, in every column.
    colours = [[to_hex(line.get_color()) for line in axes.lines] for axes in (first, second)]
    assert len({*itertools.chain(*colours)}) == 2
    assert colours[1] == colours[0][:1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0", "1"]
    assert figure.legends[0].get_title().get_text() == "lr: mean of 2 seeds, from the lowest to the highest"


def test_courses_of_one_key_lie_two_in_a_row_and_the_lowest_of_each_column_has_the_epochs(tmp_path: Path) -> None:
    found = groups(tmp_path, ("dkel",), ("pcl",))
    for run in (run for group in found for run in group.runs.values()):
        of = {"student_mean": [0.1, 0.2], "teacher_mean": [0.2, 0.3], "student_ensemble": [0.3, 0.4]}
        write_metrics(run.folder, {f"val/acc/{name}": values for name, values in of.items()})
    figure = figures.courses(found, ("label",))
    assert figure is not None
    assert [axes.get_visible() for axes in figure.axes] == [True, True, True, False]
    assert [axes.get_xlabel() for axes in figure.axes[:3]] == ["", "epoch", "epoch"]
    # Labels have no order, so their colours are no shades of one.
    assert [to_hex(line.get_color()) for line in figure.axes[0].lines] == ["#1f77b4", "#ff7f0e"]


def test_up_to_twenty_labels_have_colours_of_their_own_and_the_first_keep_theirs() -> None:
    many = [to_hex(drawing.colour(number, 20)) for number in range(20)]
    assert len({*many}) == 20
    assert many[:3] == [to_hex(drawing.colour(number, 3)) for number in range(3)]


def test_a_comparison_has_a_dot_a_seed_and_a_bar_at_the_mean(tmp_path: Path) -> None:
    found = groups(tmp_path, ("dkel",), ("pcl",))
    figure = figures.comparison(found, found[1])
    assert figure is not None
    lines = figure.axes[0].lines
    close([lines[0].get_xdata(), lines[2].get_xdata()], [[50, 52], [60, 62]])
    close([lines[place].get_xdata() for place in (1, 3)], [[51], [61]])
    close(lines[4].get_xdata(), [61, 61])  # dashed, of the marked one
    assert len(figure.axes) == 1  # none for what these runs do not know


def test_a_comparison_draws_a_panel_a_figure_that_is_known(tmp_path: Path) -> None:
    found = groups(tmp_path, ("dkel",), ("pcl",))
    first = found[0].runs["0"].folder / "summary.json"
    said = json.loads(first.read_text())
    said["test"]["best"]["accuracy"]["student_ensemble"] = 0.7
    first.write_text(json.dumps(said))
    figure = figures.comparison(found, None)
    assert figure is not None
    assert [axes.get_xlabel() for axes in figure.axes] == [
        figures.FIGURES[name] for name in ("selected deployed accuracy", "selected students' ensemble accuracy")
    ]
    close(figure.axes[1].lines[0].get_xdata(), [70])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["dkel", "pcl"]


def test_a_sweep_joins_the_means_of_a_number_and_of_nothing_else(tmp_path: Path) -> None:
    found = groups(tmp_path, ("0.2",), ("0.1",))
    figure = figures.sweep(found, ("lr",), figures.FIGURES)
    assert figure is not None
    line = figure.axes[0].lines[-1]
    close(line.get_xydata(), [[0.1, 61], [0.2, 51]])
    assert line.get_linestyle() == "-"
    words = [Group(value, (value,), group.runs) for value, group in zip(("keep", "copy"), found, strict=True)]
    figure = figures.sweep(words, ("start",), figures.FIGURES)
    assert figure is not None
    assert figure.axes[0].lines[-1].get_linestyle() == "None"


def test_a_name_is_no_formula_and_whatever_it_holds_can_be_drawn(tmp_path: Path) -> None:
    assert drawing.plain("a$x_$\x00\ud800") == "a\\$x_\\$\ufffd\ufffd"
    odd = "$\\frac{$ <b>\x00"
    (run,) = groups(tmp_path, (odd,))
    for figure in (
        figures.run_figure({f"{odd}/x": curve(1), odd: curve(2)}, odd),
        figures.comparison([run], run),
        figures.courses([run], (odd,)),
        figures.sweep([run], (odd,), figures.FIGURES),
        figures.confusion([[1]], [odd]),
    ):
        assert figure is not None
        assert "&lt;b&gt;" in drawing.encoded(figure, "svg").decode("utf-8")


@pytest.mark.parametrize("form", ["pdf", "svg"])
def test_a_figure_gives_the_same_file_again_with_no_date_in_it(form: str, tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        figures.draw_curves({"train/loss": curve(1, 2)}, tmp_path / f"{name}.png", "t", [form])
        written.append((tmp_path / f"{name}.{form}").read_bytes())
        assert (tmp_path / f"{name}.png").is_file()
    assert written[0] == written[1]
    assert not re.search(rb"CreationDate|dc:date", written[0])


def test_views_lie_in_a_sheet_a_row_a_view(tmp_path: Path) -> None:
    views = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3, 1, 1, 1) * np.ones((1, 1, 1, 40, 40), np.uint8)
    figures.draw_views(views, tmp_path / "views.png")
    sheet = np.asarray(Image.open(tmp_path / "views.png"))
    assert sheet.shape == (3 * 82 - 2, 2 * 82 - 2, 3)
    assert (sheet[[0, 82, 164], 0, 0] == [0, 1, 2]).all()
    assert (sheet[[0, 82, 164], 82, 2] == [3, 4, 5]).all()
    assert (sheet[80:82] == 255).all()
