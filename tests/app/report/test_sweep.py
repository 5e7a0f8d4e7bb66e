"""The page of a sweep: what was varied, groups over seeds, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dkel_lightning.app.report import of_groups
from dkel_lightning.app.runs import notes
from dkel_lightning.app.runs.groups import Sweep, read_sweep
from tests.app.report.pages import Drawn, Reader, read, write_run


def sweep(folder: Path, *jobs: tuple[float, list[str]], search: bool = False) -> Path:
    for number, (accuracy, overrides) in enumerate(jobs):
        where = write_run(folder / str(number), *overrides, accuracy=accuracy)
        notes.note(where, overrides, "finished", search=search)
    return folder


def page(folder: Path) -> Reader:
    return read(of_groups.write_sweep(folder, folder).read_text(encoding="utf-8"))


def grouped(record: Sweep) -> dict[str, list[int]]:
    return {group.name: [int(run.name) for run in group.runs.values()] for group in record.groups}


TWO_BY_TWO = [
    (0.95, ["optimizer.lr=0.1", "seed=0"]),
    (0.97, ["optimizer.lr=0.1", "seed=1"]),
    (0.90, ["optimizer.lr=0.2", "seed=0"]),
    (0.94, ["optimizer.lr=0.2", "seed=1"]),
]


def test_jobs_are_grouped_over_seeds_with_mean_deviation_and_n(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep", *TWO_BY_TWO)
    record = read_sweep(folder)
    assert grouped(record) == {"lr=0.1": [0, 1], "lr=0.2": [2, 3]}
    said = page(folder).text
    # Means 96 and 92, deviations sqrt(2) and sqrt(8); differences -5 and -3: -4 ± 12.706 * sqrt(2) / sqrt(2)
    assert "0.1 2 95.00 ± 1.41 96.00 ± 1.41" in said
    assert "lr=0.2 2 -4.00 -16.71 to +8.71" in said
    assert [one["class"] for one in page(folder).all("tr") if "class" in one] == ["best"]
    assert "4 of 4 jobs finished. Varied: optimizer.lr." in said
    assert "settings whose interval holds 0 are not told apart" in said


def test_one_seed_a_setting_is_not_taken_for_a_finding(tmp_path: Path) -> None:
    said = page(sweep(tmp_path / "sweep", TWO_BY_TWO[0], TWO_BY_TWO[2])).text
    assert "With one seed a setting nothing tells a difference from the luck of the seed." in said


def test_jobs_that_test_nothing_are_not_called_unfinished(tmp_path: Path) -> None:
    for number in range(2):  # of -m task=export
        notes.note(tmp_path / str(number), [f"checkpoint={number}.ckpt"], "finished")
    said = page(tmp_path).text
    assert "2 of 2 jobs finished" in said
    assert "Finished without test results: 0; 1." in said
    assert "not finished" not in said


def test_a_search_marks_nothing_by_its_test_accuracy_also_before_its_end(tmp_path: Path) -> None:
    found = page(sweep(tmp_path / "sweep", TWO_BY_TWO[0], TWO_BY_TWO[2], search=True))
    assert "Chosen by the accuracy in validation." in found.text
    assert not [one for one in found.all("tr") if "class" in one]
    assert "less that of" not in found.text


def test_what_follows_from_a_chosen_method_is_not_a_variation_of_its_own(tmp_path: Path) -> None:
    jobs = [(0.9, [f"method={method}", f"seed={seed}"]) for method in ("dkel", "pcl", "baseline") for seed in (0, 1)]
    record = read_sweep(sweep(tmp_path / "sweep", *jobs))
    assert record.keys == ("method",)
    assert grouped(record) == {"method=dkel": [0, 1], "method=pcl": [2, 3], "method=baseline": [4, 5]}


def test_further_seeds_repeat_a_setting_and_are_told_apart(tmp_path: Path) -> None:
    jobs = [(0.9, [f"optimizer.lr={lr}", "seed=0", f"data.split_seed={s}"]) for lr in (0.1, 0.2) for s in (1, 2)]
    record = read_sweep(sweep(tmp_path / "sweep", *jobs))
    assert (record.keys, record.seeds) == (("optimizer.lr",), ("data.split_seed",))
    assert [[*group.runs] for group in record.groups] == [["0, data.split_seed=1", "0, data.split_seed=2"]] * 2


def test_two_varied_keys_make_four_settings(tmp_path: Path) -> None:
    jobs = [(0.9, [f"method={m}", f"trainer.max_epochs={e}"]) for m in ("dkel", "pcl") for e in (2, 3)]
    assert [*grouped(read_sweep(sweep(tmp_path / "sweep", *jobs)))] == [
        "method=dkel, max_epochs=2", "method=dkel, max_epochs=3",
        "method=pcl, max_epochs=2", "method=pcl, max_epochs=3",
    ]  # fmt: skip


def test_jobs_of_which_nothing_is_known_are_not_taken_for_repetitions(tmp_path: Path) -> None:
    for number in range(2):
        write_run(tmp_path / "sweep" / str(number), f"seed={number}")
    assert grouped(read_sweep(tmp_path / "sweep")) == {"job=0": [0], "job=1": [1]}


def test_jobs_that_noted_what_they_were_need_no_settings(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep", *TWO_BY_TWO)
    (folder / "4").mkdir()
    for number, overrides in enumerate([*(job[1] for job in TWO_BY_TWO), ["optimizer.lr=9", "seed=0"]]):
        noted = {"overrides": ["callbacks.progress=none", *overrides], "state": "finished"}
        if number == 4:
            noted |= {"state": "failed", "message": "Loss is <NaN>. Do this.\nmore"}
        (folder / str(number) / "job.json").write_text(json.dumps(noted))
    record = read_sweep(folder)
    assert grouped(record) == {"lr=0.1": [0, 1], "lr=0.2": [2, 3], "lr=9": [4]}
    said = page(folder).text
    assert "4 of 5 jobs finished" in said
    assert "Failed: 4 (Loss is <NaN>)." in said
    assert "9 0 n/a" in said


def test_what_was_reached_is_drawn_against_what_was_varied(tmp_path: Path, drawn: Drawn) -> None:
    said = drawn(page(sweep(tmp_path / "sweep", *TWO_BY_TWO)))
    assert [*said] == ["sweep", "accuracies"]  # no course of metrics.csv is one that sweeps are compared by
    assert "optimizer.lr" in said["sweep"]
    assert "test accuracy of the deployed network (%)" in said["sweep"]
    assert "lr=0.2" in said["accuracies"]


def test_jobs_that_failed_or_never_began_are_named(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep", *TWO_BY_TWO)
    (folder / "1" / "summary.json").unlink()
    (folder / "2" / "config.yaml").write_text("a: [")
    (folder / "0" / "collapse.json").write_text('{"x": 1}')
    (folder / "2").rename(folder / "5")
    said = page(folder).text
    assert "Jobs 2, 4 left no folder" in said
    assert "Finished without test results: 1." in said
    assert "reported a collapse (collapse.json): 0." in said
    assert "4 of 6 jobs finished" in said


def test_each_job_has_a_row_with_a_link(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep", *TWO_BY_TWO)
    (folder / "2" / "report.html").write_text("")
    (folder / "figures").mkdir()
    (folder / "figures" / "sweep.png").write_bytes(b"")
    reader = page(folder)
    hrefs = [one["href"] for one in reader.all("a")]
    assert {"./0", "./1", "./3", "./2/report.html"} <= set(hrefs)
    # Files of the jobs are not the sweep's own; its figures are.
    assert "./figures/sweep.png" in hrefs
    assert not any("config.yaml" in href for href in hrefs)
    assert "3 0.2 1 finished 94.00 % 4 93.00 % 57" in reader.text


@pytest.mark.parametrize("config", ["", "seed: <b>\nname: </script>\n"])
def test_jobs_of_a_stranger_do_not_break_the_page(tmp_path: Path, config: str) -> None:
    folder = sweep(tmp_path / "sweep", *TWO_BY_TWO)
    (folder / "3" / "config.yaml").write_text(config)
    page(folder)


def test_an_empty_sweep_says_so(tmp_path: Path) -> None:
    (tmp_path / "multirun.yaml").write_text("hydra: {}")
    assert "No job has written anything so far." in page(tmp_path).text
