"""task=geometry: its files and its settings."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from PIL import Image

from dkel_lightning.app import tasks
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tasks.geometry import GeometryResult, geometry
from dkel_lightning.errors import ConfigError
from tests.compose import check_arguments, compose, prepare

SMALL = (
    "task=geometry",
    "geometry.bowl.curvatures=[1]",
    "geometry.bowl.weights=[1]",
    "geometry.bowl.init_steps=[20]",
    "geometry.bowl.max_steps=250",
    "geometry.bowl.directions=2",
    "geometry.mirror.weights=[1]",
    "geometry.mirror.steps=200",
)


@pytest.fixture(scope="module")
def result(all_drawn: None, tmp_path_factory: pytest.TempPathFactory) -> GeometryResult:
    # Neither data nor networks are built: there is no such folder, and nothing is fetched.
    values = compose(*SMALL, "data=image_folder", "data.root=nowhere")
    return geometry(Run(values, tmp_path_factory.mktemp("geometry")))


def table(result: GeometryResult, name: str) -> list[dict[str, str]]:
    with (result.folder / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_tables_hold_what_was_simulated(result: GeometryResult) -> None:
    steps = {(row["start"], row["weight_time"]): row["steps_to_distance"] for row in table(result, "bowl.csv")}
    assert steps["no teacher", ""] == "59"
    assert steps["copy", ""] == "227"
    assert steps["own draw, 20 steps at lr", ""] == "154"
    # Later than the 250 steps that are waited for: no number.
    assert steps["own draw, keep", ""] == ""
    mirror = {(row["start"], row["weight"]): row for row in table(result, "mirror.csv")}
    assert mirror["trained, mirror branch", "1"]["student_steps"] == "60"
    assert mirror["trained, mirror branch", "1"]["ends_in_other_branch"] == "True"
    assert len(table(result, "directions.csv")) == 5 * 2
    assert result.objective == pytest.approx(154 / 59)


def test_the_series_hold_every_drawn_step(result: GeometryResult) -> None:
    rows = table(result, "series.csv")
    assert len(rows) == 13 * 151 + 8 * 201
    path = [row for row in rows if row["landscape"] == "bowl" and row["start"] == "copy" and not row["weight_time"]]
    assert float(path[0]["student_x"]) == pytest.approx(2 * math.cos(math.radians(200)), abs=1e-5)
    # The first step of a copy: pulled by the loss only, as both still coincide.
    assert float(path[1]["student_x"]) == pytest.approx(0.95 * float(path[0]["student_x"]), abs=1e-5)
    assert [row["cosine"] for row in path[:3]] == ["", "", "-1"]


def test_figures_configuration_and_provenance_are_there(result: GeometryResult) -> None:
    names = {path.name for path in result.figures}
    assert names == {
        *(f"bowl_{name}.png" for name in ("paths", "angle", "distance", "losses", "steps")),
        *(f"mirror_{name}.png" for name in ("paths", "losses")),
    }
    for path in result.figures:
        with Image.open(path) as image:
            assert min(image.size) > 200
    assert "geometry:" in (result.folder / "config.yaml").read_text(encoding="utf-8")
    assert (result.folder / "provenance.json").is_file()


def test_a_run_is_named_after_the_task_unless_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare(["task=geometry"]) == ["task=geometry", "name=geometry"]
    assert prepare(["task=geometry", "name=mine"]) == ["task=geometry", "name=mine"]


def test_its_keys_have_bounds() -> None:
    with pytest.raises(ConfigError, match=r"geometry\.decay must be a number between 1e-09 and 0\.999999, got 1"):
        check_arguments(["task=geometry", "geometry.decay=1"], None, multirun=False)


def test_settings_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"geometry\.lr=3 diverges in a direction of curvature 1"):
        tasks.run(Run(compose(*SMALL, "geometry.lr=3"), tmp_path))
    assert list(tmp_path.iterdir()) == []
