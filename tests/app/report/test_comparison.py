"""The page of a comparison: the tables that it wrote, its figure and its members."""

from __future__ import annotations

import re
from pathlib import Path

from dkel_lightning.app.report import of_groups
from tests.app.report.pages import Drawn, Reader, read, write_run

RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results" / "digits"
TABLE = """# Comparison

All 2 runs, 1 failed. Mean ± sample deviation over n seeds.

- digits, resnet8 <b>

| label | n | last accuracy (%) |
| --- | ---: | ---: |
| dkel | 1 | 94.86 |

## Selected accuracy less that of dkel, over the same seeds

| label | n | difference (points) |
| --- | ---: | ---: |
| pcl | 0 | n/a |
"""


def page(folder: Path) -> Reader:
    return read(of_groups.write_comparison(folder, folder).read_text(encoding="utf-8"))


def test_the_tables_are_those_of_the_runs_with_the_notes_of_compare_md(tmp_path: Path) -> None:
    write_run(tmp_path / "dkel" / "seed_0", "method=dkel", accuracy=0.9486)
    pcl = write_run(tmp_path / "pcl" / "seed_0", "method=pcl", summary=False)
    (pcl / "failed.txt").write_text("Traceback\nOSError: <disk> full\n")
    (tmp_path / "compare.md").write_text(TABLE)
    reader = page(tmp_path)
    assert "All 2 runs, 1 failed. Mean ± sample deviation over n seeds. digits, resnet8 <b>" in reader.text
    assert "label n last accuracy (%) selected accuracy (%)" in reader.text
    assert "dkel 1 93.86 94.86" in reader.text
    assert "pcl 0 n/a" in reader.text
    assert "Failed: pcl, seed 0 (OSError: <disk> full)." in reader.text
    assert "dkel, seed 0 dkel 0 finished 94.86 % 4" in reader.text
    assert {"./dkel/seed_0", "./pcl/seed_0"} <= {one["href"] for one in reader.all("a")}


def test_labels_and_reference_are_those_of_the_table(tmp_path: Path, drawn: Drawn) -> None:
    (tmp_path / "compare.csv").write_text((RESULTS / "compare.csv").read_text())
    for seed, accuracy in enumerate((0.9806, 0.975)):
        write_run(tmp_path / "dkel" / f"seed_{seed}", f"seed={seed}", accuracy=accuracy)
    groups, reference = of_groups.read_comparison(tmp_path)
    assert reference is groups[0]
    assert groups[0].name == "dkel"
    assert len(groups) == len((RESULTS / "compare.csv").read_text().splitlines()) - 1
    reader = page(tmp_path)
    assert "Compared to dkel." in reader.text
    assert "Selected deployed accuracy less that of dkel, over the same seeds" in reader.text
    assert re.search("dkel, seed 0 dkel 0 finished 98.06 %", reader.text)
    said = drawn(reader)["compare"]
    assert all(group.name in said for group in groups)


def test_what_the_labels_set_differently_is_listed(tmp_path: Path) -> None:
    write_run(tmp_path / "dkel" / "seed_0", "method=dkel")
    write_run(tmp_path / "slow" / "seed_0", "method=dkel", "optimizer.lr=0.01")
    (tmp_path / "compare.md").write_text("# Comparison\n")
    assert "1 settings differ between the labels. key dkel slow optimizer.lr 0.1 0.01" in page(tmp_path).text


def test_a_comparison_of_which_nothing_has_ended_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "dkel" / "seed_0", "method=dkel", summary=False)
    said = page(tmp_path).text
    assert "No compare.md: no run of this comparison has ended." in said
    assert "Begun and not finished: dkel, seed 0." in said
