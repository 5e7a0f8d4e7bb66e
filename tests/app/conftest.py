"""Pages and sweeps are written without drawing, which takes most of their time, unless a test asks for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dkel_lightning.app import drawing
from tests.app.report import pages


@pytest.fixture
def drawn() -> Callable[[pages.Reader], dict[str, str]]:
    return pages.drawn


@pytest.fixture
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave drawing out, unless the test asks for what is `drawn`."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(drawing, "encoded", lambda *_: b"<svg xmlns='http://www.w3.org/2000/svg'/>")
