"""Commands that are advised can be typed: the shell and this program read them back as they were meant."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from dkel_lightning.runtime import command_lines

ODD = [
    *("outputs/my run (é)/last.ckpt", "a'b", "a\\b", "a\\'b", "a\\", "a=b", "a,b", "[a]", "{a}", "a:b", "$HOME", "~"),
    *("null",),
]


def read_back(text: str) -> tuple[str, object]:
    (argument,) = shlex.split(command_lines.typed(command_lines.override("resume", text)))[1:]
    parsed = OverridesParser.create().parse_override(argument)
    return parsed.key_or_group, parsed.value()


@pytest.mark.parametrize("text", ODD)
def test_an_odd_path_is_read_back(text: str) -> None:
    key, value = read_back(text)
    assert (key, str(value) if value is not None else "null") == ("resume", text)
    assert command_lines.unquoted(command_lines.override("resume", text).partition("=")[2]) == text


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\n\r\x00", exclude_categories=("Cs", "Cc")), min_size=1)
)
def test_any_path_is_read_back(text: str) -> None:
    key, value = read_back(f"./{text}")
    assert (key, value) == ("resume", f"./{text}")
    assert command_lines.unquoted(command_lines.override("resume", f"./{text}").partition("=")[2]) == f"./{text}"


def test_a_plain_path_is_not_quoted() -> None:
    assert (
        command_lines.typed(command_lines.override("resume", "outputs/q/last.ckpt"))
        == "dkel resume=outputs/q/last.ckpt"
    )
