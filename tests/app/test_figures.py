"""What figures show: the values of metrics.csv, means over seeds, names as they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from dkel_lightning.app import figures
from dkel_lightning.app.records import Curve

pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Keep figures by the name of their file, beside writing them."""
    kept: dict[str, Figure] = {}
    save = figures.save

    def keep(figure: Figure, path: Path) -> None:
        save(figure, path)
        kept[path.stem] = figure

    monkeypatch.setattr(figures, "save", keep)
    return kept


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected)


def curve(*values: float) -> Curve:
    return Curve([float(epoch) for epoch in range(1, len(values) + 1)], [*values])


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}


def test_columns_that_begin_alike_share_a_panel_in_per_cent_with_the_legend_off_the_lines(
    tmp_path: Path, saved: dict[str, Figure]
) -> None:
    names = ["val/acc", "val/acc/student_0", "val/acc/student_1", "val/acc/student_mean", "val/acc/student_best"]
    names += ["weights/rampup", "diversity/distance/student-teacher", "diversity/distance/student-student", "share/x"]
    figures.draw_curves({name: curve(0.25, 0.1 * place) for place, name in enumerate(names)}, tmp_path / "a.png", "a$b")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    found = panels(saved["a"])
    assert [*found] == [
        "validation accuracy (%)", "weights at the end of the epoch", "relative distance of teacher and student",
    ]  # fmt: skip
    accuracy = found["validation accuracy (%)"]
    lines = {line.get_label(): line for line in accuracy.lines if not str(line.get_label()).startswith("_")}
    assert [*lines] == ["deployed", "student mean"]  # single peers are thin behind their mean, and not named
    assert [line.get_alpha() for line in accuracy.lines].count(0.3) == 3  # two peers, and the band of the deployed one
    ways = ("val/acc/student_mean", "val/acc/teacher_mean", "val/acc/student_ensemble", "val/acc/teacher_ensemble")
    figures.draw_curves({name: curve(0.5, 0.5) for name in ways}, tmp_path / "b.png", "b")
    (axes,) = panels(saved["b"]).values()
    assert len({(line.get_color(), line.get_linestyle(), line.get_zorder()) for line in axes.lines}) == 4
    assert len({line.get_zorder() for line in axes.lines}) == 4  # on the same values all of them are seen
    close(lines["student mean"].get_ydata(), [25, 30])
    close(found["weights at the end of the epoch"].lines[0].get_ydata(), [0.25, 0.5])
    assert len(found["relative distance of teacher and student"].lines) == 1
    legend = accuracy.get_legend()
    assert legend is not None
    assert legend.get_window_extent().x0 > accuracy.get_window_extent().x1 - 1
    assert saved["a"].get_suptitle() == r"a\$b; thin: single peers"


def test_bars_have_a_dot_a_seed_the_mean_and_its_interval(tmp_path: Path, saved: dict[str, Figure]) -> None:
    scores = {"accuracy (%)": {"dkel": [0.5, 0.52], "p$l": [0.6, 0.62, float("nan")], "one": [0.4], "failed": []}}
    figures.draw_bars(scores, "dkel", tmp_path / "sweep.png")
    (axes,) = saved["sweep"].axes
    dots, mean, interval, marked, one, one_mean = axes.lines  # of a label with a NaN there is no mean
    close(dots.get_xdata(), [50, 52])
    close(mean.get_xdata(), [51])
    # t(0.975, 1) = 12.706205 standard errors of 1 point.
    close(interval.get_xdata(), [51 - 12.706205, 51 + 12.706205])
    close(marked.get_xdata(), [51, 51])
    close([one.get_xdata(), one_mean.get_xdata()], [[40], [40]])
    assert to_hex(mean.get_color()) == figures.TEACHER
    assert to_hex(one.get_color()) == figures.STUDENT
    assert [text.get_text() for text in axes.get_yticklabels()] == ["dkel", r"p\$l", "one", "failed"]


def test_curves_of_a_sweep_are_thin_behind_their_mean_over_common_epochs(
    tmp_path: Path, saved: dict[str, Figure]
) -> None:
    curves = {
        "accuracy (%)": {"dkel": [curve(0.1, 0.2, 0.9), curve(0.3, 0.4)], "pcl": [curve(0.5)]},
        "distance": {"dkel": [curve(1, 2)]},
    }
    figures.draw_sweep_curves(curves, tmp_path / "curves.png")
    found = panels(saved["curves"])
    accuracy = found["accuracy (%)"].lines
    assert [line.get_linewidth() for line in accuracy] == [0.5, 0.5, 1.8, 1.8]
    close(accuracy[2].get_xydata(), [[1, 20], [2, 30]])
    assert accuracy[3].get_marker() == "."
    assert len({to_hex(line.get_color()) for line in accuracy[:3]}) == 1
    assert to_hex(found["distance"].lines[-1].get_color()) == to_hex(accuracy[0].get_color())
    (legend,) = saved["curves"].legends
    assert [text.get_text() for text in legend.get_texts()] == ["dkel", "pcl"]
    assert legend.get_title().get_text() == "mean of 2 seeds, each seed thin"
    assert legend.get_window_extent().y1 < min(axes.get_window_extent().y0 for axes in found.values())


def test_mistakes_are_counted_and_coloured_by_their_share(tmp_path: Path, saved: dict[str, Figure]) -> None:
    figures.draw_confusion([[3, 1], [0, 0]], ["a$b", "a very long name of a class"], tmp_path / "few.png")
    axes = saved["few"].axes[0]
    close(axes.images[0].get_array(), [[0.75**0.5, 0.5], [0, 0]])
    assert [text.get_text() for text in axes.texts] == ["3", "1"]
    assert [text.get_text() for text in axes.get_yticklabels()] == [r"a\$b", "a very long n…"]
    figures.draw_confusion(np.eye(30, dtype=int).tolist(), [str(number) for number in range(30)], tmp_path / "many.png")
    assert not saved["many"].axes[0].texts


def test_views_lie_in_a_sheet_a_row_a_view(tmp_path: Path) -> None:
    views = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3, 1, 1, 1) * np.ones((1, 1, 1, 40, 40), np.uint8)
    figures.draw_views(views, tmp_path / "views.png")
    sheet = np.asarray(Image.open(tmp_path / "views.png"))
    assert sheet.shape == (3 * 82 - 2, 2 * 82 - 2, 3)
    assert (sheet[[0, 82, 164], 0, 0] == [0, 1, 2]).all()
    assert (sheet[[0, 82, 164], 82, 2] == [3, 4, 5]).all()
    assert (sheet[80:82] == 255).all()
