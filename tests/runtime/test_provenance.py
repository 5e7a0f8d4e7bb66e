"""What a run writes down about itself can be used."""

from __future__ import annotations

import sys

import pytest

from dkel_lightning.runtime import provenance


@pytest.mark.parametrize(
    ("program", "typed"),
    [("/venv/lib/dkel_lightning/__main__.py", "python -m dkel_lightning"), ("/venv/bin/dkel", "dkel")],
)
def test_the_command_can_be_typed_again(program: str, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "seed=3", "name=two words"])
    assert provenance.collect()["command"] == f"{typed} seed=3 'name=two words'"
