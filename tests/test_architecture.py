"""Imports point one way, and the command line starts without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dkel_lightning

PACKAGE = Path(dkel_lightning.__file__).parent


def imports(path: Path, *, inside_functions: bool = True) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if inside_functions else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def files(*parts: str) -> list[Path]:
    found = [path for part in parts for path in PACKAGE.glob(part)]
    assert found
    return found


def test_only_cli_and_build_import_hydra() -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == "hydra" for name in imports(path))
    }
    assert {user for user in users if not user.startswith("app/cli/")} == {"app/build.py"}


@pytest.mark.parametrize(
    "module",
    [
        "app.cli.main",
        "app.config.schema",
        "app.tasks.registry",
        "app.runs.claim",
        "app.report.of_run",
        "errors",
        "schedules",
        "__init__",
    ],
)
def test_the_command_line_starts_without_torch_and_lightning(module: str) -> None:
    name = "dkel_lightning" if module == "__init__" else f"dkel_lightning.{module}"
    code = f"import sys, {name}; print([m for m in ('torch', 'lightning', 'torchvision') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


LAYERS = {
    "the pure core": (
        ["functional.py", "schedules.py", "ema.py", "seeding.py", "errors.py", "networks/*.py"],
        ("modules", "methods", "callbacks", "data", "build", "tasks", "cli", "config", "files"),
    ),
    "the analyses": (
        ["analysis/*.py"],
        ("modules", "methods", "callbacks", "data", "build", "tasks", "cli", "config", "files"),
    ),
    "modules, methods, callbacks and data": (
        ["modules/*.py", "methods/*.py", "callbacks/*.py", "data/*.py", "metrics.py", "checkpoints.py"],
        ("build", "tasks", "cli", "config", "files"),
    ),
    "exports": (["export/*.py"], ("callbacks", "build", "tasks", "cli", "config", "files")),
    "build": (["build.py"], ("tasks", "cli", "files")),
    "reports": (["report/*.py"], ("modules", "methods", "callbacks", "data", "build", "tasks", "cli", "files")),
    "benchmarks": (["benchmark/*.py"], ("cli", "tasks.benchmark")),
    "the loop written by hand": (
        ["benchmark/plain.py"],
        ("functional", "modules", "methods", "callbacks", "ema", "metrics", "build", "tasks", "cli", "config", "files"),
    ),
    "tasks": (["tasks/*.py", "files.py"], ("cli",)),
}


@pytest.mark.parametrize("layer", list(LAYERS))
def test_imports_point_one_way(layer: str) -> None:
    patterns, above = LAYERS[layer]
    forbidden = tuple(f"dkel_lightning.{name}" for name in above)
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in files(*patterns)
        for name in imports(path)
        if any(name == module or name.startswith(f"{module}.") for module in forbidden)
    ]
    assert wrong == []


def test_pure_functions_import_no_lightning() -> None:
    for path in files("functional.py", "schedules.py", "ema.py", "networks/*.py", "analysis/*.py"):
        assert not any(name.split(".")[0] in ("lightning", "pytorch_lightning") for name in imports(path)), path


def test_the_public_names_are_there_and_no_others() -> None:
    assert all(getattr(dkel_lightning, name) is not None for name in dkel_lightning.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Studentmodule'"):
        _ = dkel_lightning.Studentmodule
