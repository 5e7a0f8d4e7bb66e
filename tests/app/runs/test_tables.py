"""Names that may be a stranger's, in tables on the terminal, in Markdown and in CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from dkel_lightning.app.runs import records, scores
from dkel_lightning.app.runs.parsing import parse_confusion
from dkel_lightning.app.runs.tables import markdown_table, print_table, write_csv

NAMES = ("[/b]", "[link=https://x.y]here[/link]", "\x1b[2Jgone")


def on_terminal() -> tuple[Console, io.StringIO]:
    shown = io.StringIO()
    return Console(file=shown, width=200, force_terminal=True, color_system="truecolor"), shown


@pytest.mark.parametrize("name", NAMES)
def test_a_table_on_the_terminal_shows_names_as_they_are(name: str) -> None:
    console, shown = on_terminal()
    print_table(f"runs of {name}", [name, "n"], [[name, "1"]], console)
    assert shown.getvalue().count(name.replace("\x1b", r"\x1b")) == 3
    assert "\x1b[2J" not in shown.getvalue()
    assert "\x1b]8;" not in shown.getvalue()  # no link


@pytest.mark.parametrize("name", NAMES)
def test_so_does_the_closing_table_of_a_run(name: str) -> None:
    found = records.Test(0.5, {"student_0": 0.5}, {"student_0": 1.0}, {"student_0": 0.1}, epoch=1, deployed="student_0")
    console, shown = on_terminal()
    scores.show({name: found}, f"Test accuracy of outputs/{name}/last.ckpt", name, console)
    assert shown.getvalue().count(name.replace("\x1b", r"\x1b")) == 3
    assert "\x1b[2J" not in shown.getvalue()


def test_a_table_in_markdown_keeps_its_columns_and_holds_no_link() -> None:
    assert markdown_table(["label", "n"], [["a|b [x](https://y.z)", "1"]])[2] == (r"| a\|b [x\](https\://y.z) | 1 |")


def test_a_class_that_is_called_like_a_formula_is_computed_by_no_spreadsheet(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "-7", "cat"]
    path = tmp_path / "confusion.csv"
    write_csv(path, [["true class", *names], *([name, 1, 2, 3] for name in names)])
    with path.open(newline="", encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)] == ["true class", "'=cmd|' /C calc'!A0", "-7", "cat"]
    read = parse_confusion(path.read_text(encoding="utf-8"))
    assert read is not None
    assert [*read.names] == names
