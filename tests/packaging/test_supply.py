"""What is installed: floors that are tested, pins that fit, and a licence for every package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import requires, version
from itertools import chain
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
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, BUILD = PYPROJECT["project"], PYPROJECT["build-system"]


def pins(name: str) -> dict[str, Version]:
    """Read a constraints file, whatever Python its lines are for."""
    lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {canonicalize_name(r.name): Version(str(r.specifier)[2:]) for r in map(Requirement, lines)}


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in licences.EXTRAS for line in extras[extra])]
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


def of_constraints(name: str) -> bool:
    """Tell whether this environment was made with a constraints file."""
    return version("torch").split("+")[0] == str(pins(name)["torch"])


pinned = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or not of_constraints("constraints.txt"),
    reason="pins and list are of Python 3.11 with constraints.txt",
)


@pinned
def test_the_pins_are_what_is_installed() -> None:
    stated = {canonicalize_name(Requirement(line).name) for line in requires("dkel-lightning") or []}
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["optional-dependencies"]["dev"]}
    assert declared <= stated, "the environment is older than pyproject.toml: make it again"
    unpinned = ("pip", "setuptools", "triton")
    brought = {name for name, _ in licences.needed("dkel-lightning", (*licences.EXTRAS, "dev"))} - {*unpinned}
    pins_ = pins("constraints.txt")
    assert {name for name in brought if not licences.is_cuda(name)} <= pins_.keys()
    assert not {name: version(name) for name in pins_ if Version(version(name)) != pins_[name]}


@pytest.mark.skipif(not of_constraints("constraints-min.txt"), reason="not installed by make test-min")
def test_the_oldest_versions_are_what_is_installed() -> None:
    oldest = pins("constraints-min.txt")
    assert not {name: version(name) for name in oldest if Version(version(name)) != oldest[name]}


PERMISSIVE = r"(MIT|BSD|0BSD|Apache|Python Software|PSF|ISC|Zlib|CC0|HPND|BSL)"


def test_every_installed_package_is_permissive_or_named_in_the_documentation() -> None:
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    for name, _ in licences.needed("dkel-lightning", licences.EXTRAS):
        if not licences.is_cuda(name):
            stated = licences.licence(name)
            permissive = re.search(PERMISSIVE, stated) and not re.search("GPL|MPL|Mozilla", stated)
            assert permissive or f"| {name} |" in page, (name, stated)
            assert not re.search(r"\bA?GPL\b|not stated", stated), name


# ---------------------------------------------------------------------- make audit

ALL_UNKNOWN = {"dependencies": [{"name": "numpy", "skip_reason": "not found"}]}
CLEAN = {"dependencies": [{"name": "numpy", "version": "2.4.6", "vulns": []}, {"name": "x", "skip_reason": ""}]}
WEAK = {"dependencies": [{"name": "numpy", "version": "2.4.6", "vulns": [{"id": "CVE-1", "fix_versions": ["2.4.7"]}]}]}


@pytest.mark.parametrize(
    ("pypi", "osv", "code", "said"),
    [
        (CLEAN, None, 0, "1 packages audited, 0 with known weaknesses.\nNot known to the service: x."),
        (WEAK, None, 1, "numpy 2.4.6: CVE-1, mended in 2.4.7\n"),
        (None, CLEAN, 0, "1 packages audited"),
        (ALL_UNKNOWN, CLEAN, 0, "1 packages audited"),
        (ALL_UNKNOWN, None, 2, "No service could be reached (pypi, osv): nothing of pins.txt was audited."),
        (None, None, 2, "No service could be reached"),
    ],
)
def test_an_audit_says_what_it_found_and_where_nobody_answered(
    pypi: object, osv: object, code: int, said: str, tmp_path: Path
) -> None:
    """A module in the place of pip-audit answers as each service does."""
    (tmp_path / "pins.txt").write_text('numpy==2.4.6; python_version == "3.2"')
    answers = {name: json.dumps(answer) if answer else "" for name, answer in (("pypi", pypi), ("osv", osv))}
    (tmp_path / "pip_audit.py").write_text(
        "import sys, pathlib\n"
        f"answers = {answers!r}\n"
        "assert pathlib.Path(sys.argv[-1]).read_text() == 'numpy==2.4.6'\n"
        "print(answers[sys.argv[sys.argv.index('--vulnerability-service') + 1]])\n"
    )
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "audit.py", "pins.txt"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, "")
    assert said in done.stdout


def test_the_tool_of_the_audit_is_pinned() -> None:
    assert re.search(r"^AUDITOR := pip-audit==\d+\.\d+\.\d+$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
