"""The rooms of the package, the floors they stand on, and who imports whom: read from the code, drawn by draw.py.

A room is a folder of the package, or a single file beside them. `tests/test_architecture.py` holds the floors.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "dkel_lightning"
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
"""From the ground up. A room imports from floors below its own, and from itself."""


def modules() -> dict[str, Path]:
    """Find the package's files by their dotted names; the entry points at its top level belong to no room."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in ("conf", "__init__", "__main__"):
            found[".".join((NAME, *parts)).removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Name what a file imports from the package, in functions and for typing too."""
    known = modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == NAME:
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                if whole in known or node.module in known:
                    yield whole if whole in known else node.module


def room(module: str) -> str:
    """Name the room of a module."""
    return module.removeprefix(f"{NAME}.").split(".")[0]


def floor(module: str) -> int:
    """Say on which floor a module stands, from 0 at the ground."""
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


def graph() -> dict[str, set[str]]:
    """Give for each module the modules that it imports."""
    return {module: {each for each in imports(path) if each != module} for module, path in modules().items()}


def arrows() -> set[tuple[str, str]]:
    """Give the pairs of rooms of which the first imports the second, less those that others lead to anyway."""
    below: dict[str, set[str]] = {}
    for module, others in graph().items():
        below.setdefault(room(module), set()).update(room(other) for other in others)
    direct = {name: found - {name} for name, found in below.items()}

    def reached(name: str) -> set[str]:
        return direct.get(name, set()).union(*(reached(each) for each in direct.get(name, ())))

    return {
        (name, other)
        for name, others in direct.items()
        for other in others
        if not any(other in reached(between) for between in others - {other})
    }
