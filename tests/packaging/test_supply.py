"""What is installed: floors that are tested, pins that fit, and a licence for every package."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.packaging import licences

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(name: str) -> dict[str, Version]:
    """Read a constraints file, whatever Python its lines are for."""
    lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {canonicalize_name(r.name): Version(str(r.specifier)[2:]) for r in map(Requirement, lines)}


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in licences.EXTRAS for line in extras[extra])]
    return [Requirement(line) for line in lines]


def test_the_oldest_tested_versions_are_the_floors_of_the_project() -> None:
    floors = {
        canonicalize_name(r.name): next(Version(s.version) for s in r.specifier if s.operator == ">=")
        for r in requirements()
    }
    tested = pins("constraints-min.txt")
    assert tested.keys() == floors.keys()
    for name, floor in floors.items():
        assert tested[name].release[: len(floor.release)] == floor.release, name


def test_every_package_of_development_is_pinned_within_what_the_project_admits() -> None:
    pinned = pins("constraints.txt")
    for requirement in (*requirements(), *map(Requirement, PROJECT["optional-dependencies"]["dev"])):
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier


def of_constraints(name: str) -> bool:
    """Tell whether this environment was made with a constraints file."""
    return version("torch").split("+")[0] == str(pins(name)["torch"])


pinned = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or not of_constraints("constraints.txt"),
    reason="pins and list are of Python 3.11 with constraints.txt",
)


@pinned
def test_the_pins_are_what_is_installed() -> None:
    unpinned = ("pip", "setuptools", "triton")
    brought = {name for name, _ in licences.needed("dkel-lightning", (*licences.EXTRAS, "dev"))} - {*unpinned}
    pins_ = pins("constraints.txt")
    assert {name for name in brought if not licences.is_cuda(name)} <= pins_.keys()
    assert not {name: version(name) for name in pins_ if Version(version(name)) != pins_[name]}


@pytest.mark.skipif(not of_constraints("constraints-min.txt"), reason="not installed by make test-min")
def test_the_oldest_versions_are_what_is_installed() -> None:
    oldest = pins("constraints-min.txt")
    assert not {name: version(name) for name in oldest if Version(version(name)) != oldest[name]}


@pinned
def test_every_installed_package_has_a_listed_licence() -> None:
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| ([\w.-]+) \| (.+?) \| .+ \|$", page, re.M))
    for name, _ in licences.needed("dkel-lightning", licences.EXTRAS):
        if not licences.is_cuda(name):
            assert listed[name] == licences.licence(name)


def test_no_installed_package_has_a_licence_that_reaches_the_code_that_uses_it_or_none() -> None:
    for name, _ in licences.needed("dkel-lightning", licences.EXTRAS):
        if not licences.is_cuda(name):
            assert not re.search(r"\bA?GPL\b|not stated", licences.licence(name)), name
