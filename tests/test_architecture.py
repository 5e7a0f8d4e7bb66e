"""Imports point one way and make no circle, and the command line starts without torch."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dkel_lightning
from tests.figures import rooms

PACKAGE = Path(dkel_lightning.__file__).parent


def outside(path: Path) -> Iterator[str]:
    """Name the packages that a file imports, in functions and for typing too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def test_every_room_imports_from_the_floors_below_it_alone() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in rooms.graph().items()
        for other in others
        if rooms.room(module) != rooms.room(other) and rooms.floor(module) <= rooms.floor(other)
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert [*graphlib.TopologicalSorter(rooms.graph()).static_order()]


def test_few_modules_lie_flat_at_the_top() -> None:
    flat = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert flat == {"distillation", "ema", "errors", "execution", "functional", "metrics", "schedules"}


def test_no_file_holds_more_than_a_reader_takes_in() -> None:
    assert [
        path.name for path in PACKAGE.rglob("*.py") if len(path.read_text(encoding="utf-8").splitlines()) > 500
    ] == []


def test_only_what_composes_and_builds_imports_hydra() -> None:
    users = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if "hydra" in outside(path)}
    assert {name for name in users if not name.startswith("app/cli/")} == {"app/build.py", "app/config/store.py"}


@pytest.mark.parametrize(
    "module",
    [
        *("app.cli.main", "app.config.schema", "app.tasks.registry", "app.runs.claim"),
        *("errors", "schedules", "__init__"),
    ],
)
def test_the_command_line_starts_without_torch_and_lightning(module: str) -> None:
    name = "dkel_lightning" if module == "__init__" else f"dkel_lightning.{module}"
    code = f"import sys, {name}; print([m for m in ('torch', 'lightning', 'torchvision') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_need_no_torch() -> None:
    for module in (name for name in rooms.modules() if rooms.room(name) == "settings"):
        code = f"import sys, {module}; print([m for m in ('torch', 'lightning') if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]", module


def test_pure_functions_import_no_lightning() -> None:
    pure = [PACKAGE / name for name in ("functional.py", "schedules.py", "ema.py")]
    for path in (*pure, *(PACKAGE / "networks").glob("*.py"), *(PACKAGE / "studies").glob("*.py")):
        assert not {"lightning", "pytorch_lightning"} & {*outside(path)}, path


def test_the_public_names_are_there_and_no_others() -> None:
    assert all(getattr(dkel_lightning, name) is not None for name in dkel_lightning.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Studentmodule'"):
        _ = dkel_lightning.Studentmodule
