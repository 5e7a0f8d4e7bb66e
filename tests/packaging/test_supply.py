"""What is installed: floors that are tested, and pins that fit."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, BUILD = PYPROJECT["project"], PYPROJECT["build-system"]


def pins(name: str) -> dict[str, Version]:
    """Read a constraints file, whatever Python its lines are for."""
    lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {canonicalize_name(r.name): Version(str(r.specifier)[2:]) for r in map(Requirement, lines)}


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    lines = [
        *PROJECT["dependencies"],
        *(line for extra, given in extras.items() if extra not in ("dev", "docs") for line in given),
    ]
    return [Requirement(line) for line in lines]


def bounds() -> list[tuple[str, str, Version]]:
    """Read every bound of pyproject.toml: package, operator, version."""
    lines = [*PROJECT["dependencies"], *chain.from_iterable(PROJECT["optional-dependencies"].values())]
    found = [*map(Requirement, lines), *map(Requirement, BUILD["requires"])]
    return [(canonicalize_name(r.name), s.operator, Version(s.version)) for r in found for s in r.specifier]


def newest(version: Version, digits: int) -> tuple[int, ...]:
    """Give the bound below which a version is the newest: of 1.3.8 with two digits 1.4."""
    return (*version.release[: digits - 1], version.release[digits - 1] + 1)


@pytest.mark.parametrize(("name", "operator", "bound"), sorted(set(bounds())), ids=str)
def test_every_bound_is_of_a_version_that_a_constraints_file_has_us_test(
    name: str, operator: str, bound: Version
) -> None:
    tested = [file[name] for file in map(pins, ("constraints.txt", "constraints-min.txt")) if name in file]
    digits = len(bound.release)
    found = {
        ">=": any(version.release[:digits] == bound.release for version in tested),
        "<": any(newest(version, digits) == bound.release for version in tested),
        "!=": bool(tested) and bound not in tested,
    }
    assert found[operator]


def test_the_oldest_of_what_users_install_are_tested_together() -> None:
    floors = {canonicalize_name(r.name): s for r in requirements() for s in r.specifier if s.operator == ">="}
    tested = pins("constraints-min.txt")
    assert tested.keys() >= floors.keys()
    for name, floor in floors.items():
        assert tested[name].release[: len(Version(floor.version).release)] == Version(floor.version).release, name


def test_the_compromised_versions_of_lightning_are_refused() -> None:
    (lightning,) = (r for r in requirements() if r.name == "lightning")
    assert [*lightning.specifier.filter(["2.6.0", "2.6.1", "2.6.2", "2.6.3", "2.6.4"])] == ["2.6.0", "2.6.1", "2.6.4"]


def test_every_package_of_development_is_pinned_within_what_the_project_admits() -> None:
    pinned = pins("constraints.txt")
    for requirement in (*requirements(), *map(Requirement, PROJECT["optional-dependencies"]["dev"])):
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier
