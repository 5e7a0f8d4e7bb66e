"""What is built holds what it must, and works in an environment of its own, from another directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import dkel_lightning

ROOT = Path(__file__).resolve().parents[2]


def run(environment: Path, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    python = environment / "bin" / "python"
    return subprocess.run(
        [str(python), *command], capture_output=True, text=True, cwd=cwd, timeout=280, check=False,
        env={**clean, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_the_wheel_holds_package_configuration_and_types_and_nothing_of_tests_or_images(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "dkel_lightning/conf/config.yaml" in names
    assert "dkel_lightning/conf/optimizer/sgd.yaml" in names
    assert "dkel_lightning/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dkel_lightning"}
    assert sum(name.endswith((".png", ".jpg", ".npz", ".JPEG")) for name in names) == 0


@pytest.mark.slow
def test_the_installed_package_runs_from_another_directory(environment: Path, tmp_path: Path) -> None:
    where = run(environment, "-c", "import dkel_lightning; print(dkel_lightning.__file__)", cwd=tmp_path)
    assert str(environment) in where.stdout
    done = run(environment, "-m", "dkel_lightning", "debug=smoke", "method=pcl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pcl on digits" in done.stdout
    assert "teacher peers, mean" in done.stdout


def test_the_source_holds_all_that_its_own_make_and_tests_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    own = {"dkel_lightning", "conf", "tests", "docs", "examples", "scripts"}
    kept = {name for name in listed if name.partition("/")[0] in own}
    kept |= {"Makefile", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "CITATION.cff", "pyproject.toml"}
    kept |= {"constraints.txt", "constraints-min.txt", ".pre-commit-config.yaml"}
    missing = kept - names - {""}
    # What a checkout deletes before it is committed is still listed.
    assert {name for name in missing if (ROOT / name).exists()} == set()
    assert {name.partition("/")[0] for name in names} & {"outputs", "data", "build", ".git", ".ci", "site"} == set()


def test_the_metadata_is_that_of_this_version(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    assert f"\nVersion: {dkel_lightning.__version__}\n" in metadata
    assert "\nLicense-Expression: MIT\n" in metadata
    assert "\nLicense-File: LICENSE\n" in metadata
    assert "\nRequires-Python: >=3.10\n" in metadata
    assert {"timm", "export", "dev"} <= set(re.findall(r"^Provides-Extra: (\w+)$", metadata, re.MULTILINE))
    # A page of a package index is the README, whose links must not be those of a file beside it alone.
    assert "\nDescription-Content-Type: text/markdown\n" in metadata


def test_version_changes_and_citation_agree(tmp_path: Path) -> None:
    version = dkel_lightning.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in citation
    assert "arXiv:2312.11218" in citation
    shown = subprocess.run(
        [sys.executable, "-m", "dkel_lightning", "--version"], capture_output=True, text=True, cwd=tmp_path, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert shown.stdout == f"dkel_lightning {version}\n"
