"""Names that may be a stranger's do nothing where they are written."""

from __future__ import annotations

import pytest

from dkel_lightning.runtime import texts


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"),
        ("Кошка é 猫 👍", "Кошка é 猫 👍"),
        ("\x1b]0;owned\x07\x1b[2J", r"\x1b]0;owned\x07\x1b[2J"),
        ("a\rb\x08\x9bc", r"a\rb\x08\x9bc"),
        ("a\u202egnp.exe", r"a\u202egnp.exe"),
        ("undecodable \udcff", r"undecodable \udcff"),
    ],
)
def test_a_terminal_shows_escapes_and_obeys_none(name: str, shown: str) -> None:
    assert texts.printable(name) == shown


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("tiny_resnet18, 3 peers (0.1)", "tiny_resnet18, 3 peers (0.1)"),
        ("[free](https://x.y)", r"[free\](https\://x.y)"),
        ("![](http://x.y/a.png)", r"![\](http\://x.y/a.png)"),
        ("[a\\](b)", r"[a\\\](b)"),
        ("[a][b]", r"[a\][b]"),
        ("float32 [batch, channels], deploy.*", "float32 [batch, channels], deploy.*"),
        ("see www.x.y", r"see www\.x.y"),
        ("<img src=x>", r"\<img src=x>"),
        ("a|b\n# heading", r"a\|b # heading"),
        ("`code` \\", r"\`code\` \\"),
        ("\x1b[31m", r"\\x1b[31m"),
    ],
)
def test_markdown_holds_neither_markup_nor_links(name: str, written: str) -> None:
    assert texts.markdown(name) == written


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1+cmd", "-x", "@SUM(A1)", "-1+cmd|x"])
def test_a_spreadsheet_computes_no_name_and_it_is_read_as_it_was(name: str) -> None:
    assert texts.csv_cell(name) == f"'{name}"
    assert texts.plain_cell(str(texts.csv_cell(name))) == name


@pytest.mark.parametrize("value", ["cat", "-1.5", "+2", "-inf", "1e-5", -3, 0.5, None, "'tis", "a=b"])
def test_figures_and_other_names_stay_in_a_csv_as_they_are(value: object) -> None:
    assert texts.csv_cell(value) == value
    assert texts.plain_cell(str(value)) == str(value)
