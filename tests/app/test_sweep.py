"""The tables of a sweep: labels from the names of folders, the committed table cell by cell, and numbers by hand."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from dkel_lightning.app import config, figures, sweep
from dkel_lightning.app.records import write_failure
from dkel_lightning.app.run import Run
from dkel_lightning.errors import ConfigError, DataError
from tests.app.run_folders import one_test, write_metrics, write_run

CIFAR = Path(__file__).parents[2] / "docs" / "results" / "cifar100"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tables(path: Path) -> list[dict[str, list[str]]]:
    """Read the tables of a Markdown file: cells by what stands in the first column."""
    found: list[dict[str, list[str]]] = []
    before = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append({})
            label, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
            found[-1][label] = cells
        before = line
    return found


def labels(folder: Path) -> list[str]:
    return [*dict.fromkeys(run.label for run in sweep.load_runs(folder))]


def by_seed(folder: Path, accuracies: dict[str, tuple[float, ...]]) -> Path:
    """Write runs of several labels, a seed an accuracy."""
    for label, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            write_run(folder / f"{label},seed={seed}", accuracy, seed)
    return folder


# ---------------------------------------------------------------------- the committed table


@pytest.mark.usefixtures("drawn")
def test_the_table_of_cifar_100_comes_out_of_its_runs_cell_by_cell(tmp_path: Path) -> None:
    committed = rows(CIFAR / "sweep.csv")
    for row in committed:
        shutil.copytree(CIFAR / "runs" / row["label"], tmp_path / row["label"])
    written = sweep.write_tables(tmp_path, "baseline")
    assert written == ["sweep.md", "sweep.csv", "runs.csv", "figures/sweep.png", "figures/curves.png"]

    def cells(folder: Path, name: str, *keys: str) -> dict[tuple[str, ...], dict[str, str]]:
        return {tuple(row[key] for key in keys): row for row in rows(folder / name)}

    assert cells(tmp_path, "sweep.csv", "label") == cells(CIFAR, "sweep.csv", "label")
    assert cells(tmp_path, "runs.csv", "label", "seed") == cells(CIFAR, "runs.csv", "label", "seed")
    assert tables(tmp_path / "sweep.md") == tables(CIFAR / "sweep.md")
    assert len(tables(CIFAR / "sweep.md")) == 3
    for name in written[3:]:
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 700


# ---------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["dkel/seed_0", "dkel/seed_1", "pcl/seed_0"], ["dkel", "pcl"]),
        (["method=dkel,seed=0", "method=dkel,seed=1", "method=pcl,seed=0"], ["dkel", "pcl"]),
        (["method=dkel,seed=0,trainer.max_epochs=2", "method=pcl,seed=0,trainer.max_epochs=2"], ["dkel", "pcl"]),
        (["method=dkel,seed=0", "seed=0,variant=single"], ["dkel", "single"]),  # two commands, one folder
        (["seed=0", "seed=1"], ["default"]),
        (["seed=0", "seed=0,variant=single"], ["single", "default"]),
        (
            ["method=dkel,optimizer.lr=0.1,seed=0", "method=dkel,optimizer.lr=0.02,seed=0", "method=pcl,seed=0"],
            ["method=dkel, optimizer.lr=0.02", "method=dkel, optimizer.lr=0.1", "method=pcl"],
        ),
        (["a=1,seed=0", "b=1,seed=0"], ["a=1", "b=1"]),  # the value alone would not tell them apart
        (["+k='10',seed=0", "+k='9',seed=0"], ["9", "10"]),  # numbers by size
        (["teacher.decay={0:0.99,0.1:0.999},seed=0", "teacher.decay=0.9,seed=0"], ["0.9", "{0:0.99,0.1:0.999}"]),
        (["0", "1"], ["0", "1"]),
    ],
)
def test_a_label_is_what_was_varied(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    assert labels(tmp_path) == expected


def test_what_lies_in_the_folder_of_a_run_is_no_other_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "method=kd,seed=0", 0.9)
    write_run(run / "teacher", 0.8)
    write_run(tmp_path / ".submitit" / "1", 0.7)
    (tmp_path / "config.yaml").touch()  # of the sweep
    assert [found.folder for found in sweep.load_runs(tmp_path)] == [run]
    with pytest.raises(ConfigError, match="There is no run in"):
        sweep.load_runs(run / "teacher")


def test_two_runs_of_one_label_and_seed_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "method=dkel", 0.9, seed=0)
    write_run(tmp_path / "method=dkel,seed=0", 0.9, seed=0)
    with pytest.raises(ConfigError, match=r"are both .*, seed 0: remove one"):
        sweep.write_tables(tmp_path)


def test_the_seed_is_what_the_run_says_and_else_its_name(tmp_path: Path) -> None:
    write_run(tmp_path / "dkel/seed_0", 0.9, seed=7)
    write_failure(tmp_path / "dkel/seed_10", ValueError("x"))
    write_failure(tmp_path / "dkel/seed_9", ValueError("x"))
    assert [run.seed for run in sweep.load_runs(tmp_path)] == ["7", "9", "10"]


# ---------------------------------------------------------------------- numbers


def test_means_and_paired_differences_are_those_of_a_hand_computation(tmp_path: Path) -> None:
    by_seed(tmp_path, {"method=dkel": (0.90, 0.92, 0.91, 0.99), "method=pcl": (0.94, 0.93, 0.95)})
    write_failure(tmp_path / "method=pcl,seed=3", DataError("no images\nat all"))
    sweep.write_tables(tmp_path)
    means, differences, others = tables(tmp_path / "sweep.md")
    # Of pcl: mean 94, deviation 1. The first epochs count for nothing; the ensemble is 60 % in all.
    assert means["pcl"] == [
        "3", "94.00 ± 1.00", "94.00 ± 1.00", "0.5000 ± 0.0000", "3.00 ± 0.00", "60.00 ± 0.00", "20.00 ± 0.00",
        "0.250 ± 0.000", "2", "100 ± 0", "4 ± 0", "1 ± 0", "10",
    ]  # fmt: skip
    # 4, 1 and 4 points: mean 3, deviation sqrt(3), t(0.975, 2) = 4.30265, noncentrality 5.65; seed 3 has no partner.
    assert differences == {
        "label": ["n", "difference (points)", "95 % interval", "smallest detectable"],
        "---": ["---:"] * 4,
        "pcl": ["3", "+3.00", "-1.30 to +7.30", "5.65"],
    }
    assert others["pcl"] == ["+3.00 (-1.30 to +7.30)", "+0.0000 (n/a)", "+0.00 (n/a)", "+0.00 (n/a)", "+0.00 (n/a)"]
    text = (tmp_path / "sweep.md").read_text()
    assert "8 runs: 7 finished, 1 failed." in text
    assert "- pcl, seed 3, failed: DataError: no images at all\n" in text
    assert "## Selected accuracy less that of dkel, over the same seeds" in text
    found = {(row["label"], row["seed"]): row for row in rows(tmp_path / "runs.csv")}
    assert found["pcl", "3"]["state"] == "failed: DataError: no images at all"
    assert (found["pcl", "3"]["NLL"], found["pcl", "2"]["selected accuracy"]) == ("", "0.95")
    assert [row["difference n"] for row in rows(tmp_path / "sweep.csv")] == ["", "3"]


def test_other_runs_are_compared_to_the_reference_that_is_named(tmp_path: Path) -> None:
    by_seed(tmp_path, {"method=dkel": (0.9, 0.92), "method=pcl": (0.93, 0.94), "method=one": (0.5,)})
    sweep.write_tables(tmp_path, "pcl")
    _, differences, _ = tables(tmp_path / "sweep.md")
    # -3 and -2 points: mean -2.5, error 0.5, t(0.975, 1) 12.706, noncentrality 16.33.
    assert differences["dkel"] == ["2", "-2.50", "-8.85 to +3.85", "8.17"]
    assert differences["one"] == ["1", "-43.00", "n/a", "n/a"]
    with pytest.raises(ConfigError, match=r"sweep.reference=pl is not a label in .*: choose one of dkel, one, pcl\."):
        sweep.write_tables(tmp_path, "pl")


def test_a_sweep_of_which_nothing_has_finished_still_has_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_failure(tmp_path / "seed=0", ValueError("x"))
    (tmp_path / "seed=1").mkdir()
    (tmp_path / "seed=1" / "config.yaml").touch()
    assert sweep.write_tables(tmp_path) == ["sweep.md", "sweep.csv", "runs.csv"]
    assert "2 runs: 1 failed, 1 unfinished." in (tmp_path / "sweep.md").read_text()
    assert "n/a" in capsys.readouterr().out


def test_only_columns_that_some_run_has_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, Any] = {}
    monkeypatch.setattr(figures, "draw_bars", lambda scores, reference, path: shown.update(bars=scores))
    monkeypatch.setattr(figures, "draw_sweep_curves", lambda curves, path: shown.update(curves=curves))
    by_seed(tmp_path, {"method=dkel": (0.9, 0.8), "method=pcl": (0.5,)})
    write_metrics(tmp_path / "method=pcl,seed=0", {"train/noise/fit_wrong/student_mean": [0.1, 0.3]})
    write_failure(tmp_path / "method=one,seed=0", ValueError("x"))
    summary = tmp_path / "method=pcl,seed=0" / "summary.json"
    summary.write_text(
        json.dumps(json.loads(summary.read_text()) | {"test": {"last": one_test(0.5, disagreement=None)}})
    )
    sweep.write_tables(tmp_path)
    assert shown["bars"]["accuracy of the deployed network (%)"] == {"dkel": [0.9, 0.8], "pcl": [0.5], "one": []}
    assert shown["bars"]["disagreement of the student peers (%)"] == {"dkel": [0.2, 0.2], "pcl": [], "one": []}
    assert {title: {label: [c.values for c in curves] for label, curves in by_label.items()}
            for title, by_label in shown["curves"].items()} == {
        "student peers, validation accuracy (%)": {"dkel": [[0.45, 0.9], [0.4, 0.8]]},
        "student peers, wrong labels learnt (%)": {"pcl": [[0.1, 0.3]]},
    }  # fmt: skip


def test_the_task_writes_the_tables_of_a_folder_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_seed(tmp_path / "s", {"method=dkel": (0.9, 0.92), "method=[/b]|": (0.93, 0.94)})
    sweep.table(Run({"sweep": {"folder": str(tmp_path / "s"), "reference": "dkel"}}, tmp_path))
    shown = capsys.readouterr().out
    assert "Selected accuracy less that of dkel" in shown
    assert "│ [/b]| " in shown  # no markup
    assert "Written to" in shown
    assert r"| [/b]\| | 2 |" in (tmp_path / "s" / "sweep.md").read_text()


# ---------------------------------------------------------------------- presets


@pytest.mark.parametrize("name", sorted(path.stem for path in (config.conf_dir() / "ablation").glob("*.yaml")))
def test_an_ablation_is_a_sweep_over_keys_and_values_that_exist(name: str) -> None:
    preset = config.compose([f"ablation={name}"], with_hydra=True)
    assert preset.hydra.mode.name == "MULTIRUN"
    overrides = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in preset.hydra.sweeper.params.items()])
    assert [item.key_or_group for item in overrides][-1] == "seed"
    assert all(item.is_sweep_override() for item in overrides)
    last = [f"{item.key_or_group}={[*item.sweep_string_iterator()][-1]}" for item in overrides]
    config.resolve(config.compose([f"ablation={name}", *last]))


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("none", ("dkel", 3, 0.0)),
        ("single", ("baseline", 1, 0.0)),
        ("single_smoothing", ("baseline", 1, 0.1)),
        ("baseline_smoothing", ("baseline", 3, 0.1)),
        ("dkel_released_fitted", ("dkel_released", 3, 0.0)),
    ],
)
def test_a_variant_is_a_label_of_several_keys(variant: str, expected: tuple[str, int, float]) -> None:
    values = config.resolve(config.compose([f"variant={variant}"]))
    assert (values["method"]["name"], values["method"]["peers"], values["targets"]["label_smoothing"]) == expected
