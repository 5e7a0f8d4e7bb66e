"""Imports point one way and make no circle, and the command line starts without torch."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dkel_lightning

PACKAGE = Path(dkel_lightning.__file__).parent
NAME = PACKAGE.name

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("schedules", "runtime"),
    ("settings", "functional", "ema", "checkpoints"),
    ("networks", "data", "metrics", "policies", "studies"),
    ("modules",),
    ("methods", "execution", "callbacks"),
    ("assembly",),
    ("distillation",),
    ("export",),
    ("app",),
)
"""From the ground up. A folder of the package, or a module at its root, imports from the floors below it."""


def modules() -> dict[str, Path]:
    """Return the files of the package by dotted name, without its entry points."""
    paths = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in ("__init__", "__main__"):
            paths[".".join((NAME, *parts)).removesuffix(".__init__")] = path
    return paths


def imports(path: Path) -> Iterator[str]:
    """Yield what a file imports at run time, also in functions, as `package.module.name`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def graph() -> dict[str, set[str]]:
    """Return for each module the modules of the package that it imports."""
    paths = modules()
    edges: dict[str, set[str]] = {}
    for module, path in paths.items():
        names = {name if name in paths else name.rpartition(".")[0] for name in imports(path)}
        edges[module] = (names & paths.keys()) - {module}
    return edges


def room(module: str) -> str:
    return module.removeprefix(f"{NAME}.").split(".")[0]


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


def test_every_room_imports_from_the_floors_below_it_alone() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in others
        if room(module) != room(other) and floor(module) <= floor(other)
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert [*graphlib.TopologicalSorter(graph()).static_order()]


def test_few_modules_lie_flat_at_the_root() -> None:
    flat = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert flat == {"distillation", "ema", "errors", "execution", "functional", "metrics", "schedules"}


def test_no_file_is_longer_than_500_lines() -> None:
    assert [p.name for p in PACKAGE.rglob("*.py") if len(p.read_text(encoding="utf-8").splitlines()) > 500] == []


def test_only_the_application_imports_hydra() -> None:
    users = {p.relative_to(PACKAGE).parts[0] for p in PACKAGE.rglob("*.py") if any("hydra." in n for n in imports(p))}
    assert users == {"app"}


def test_the_command_line_starts_without_torch_and_lightning() -> None:
    names = ("app.main", "app.config", "app.run", "app.saved", "app.sweep", "errors", "schedules")
    loaded = "print([m for m in ('torch', 'lightning', 'torchvision') if m in sys.modules])"
    code = f"import sys, {NAME}, {', '.join(f'{NAME}.{name}' for name in names)}; {loaded}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pure_functions_import_no_lightning() -> None:
    pure = [PACKAGE / name for name in ("functional.py", "schedules.py", "ema.py")]
    for path in (*pure, *(PACKAGE / "networks").glob("*.py"), *(PACKAGE / "studies").glob("*.py")):
        assert not [name for name in imports(path) if name.split(".")[0] == "lightning"], path


def test_the_public_names_are_there_and_no_others() -> None:
    assert all(getattr(dkel_lightning, name) is not None for name in dkel_lightning.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Studentmodule'"):
        _ = dkel_lightning.Studentmodule


@pytest.mark.parametrize("path", sorted((PACKAGE.parent / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_imports_what_the_package_has(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dkel_lightning"):
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module}.{name.name}"
