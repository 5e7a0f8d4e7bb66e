"""Pages whose figures are looked at."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.app.report import pages


@pytest.fixture
def drawn(drawn: None) -> Callable[[pages.Reader], dict[str, str]]:
    return pages.drawn
