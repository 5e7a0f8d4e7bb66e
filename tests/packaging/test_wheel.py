"""The built wheel works in an environment of its own, from another directory."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    # Without isolation, so that building needs no network; hatchling is a development dependency.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel; the heavy dependencies are those of the environment that tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    install = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    # A line in a .pth file adds the folder itself and none of its .pth files, so not the checkout's editable install.
    (site / "heavy.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder


def run(environment: Path, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    python = environment / "bin" / "python"
    return subprocess.run(
        [str(python), *command], capture_output=True, text=True, cwd=cwd, timeout=200, check=False,
        env={**clean, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_the_wheel_holds_package_configuration_and_types_and_nothing_of_tests_or_images(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "dkel_lightning/conf/config.yaml" in names
    assert "dkel_lightning/conf/method/dkel.yaml" in names
    assert "dkel_lightning/py.typed" in names
    assert {"dkel_lightning/report/page.css", "dkel_lightning/report/page.js"} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dkel_lightning"}
    assert sum(name.endswith((".png", ".jpg", ".npz", ".JPEG")) for name in names) == 0


@pytest.mark.slow
def test_the_installed_package_runs_from_another_directory(environment: Path, tmp_path: Path) -> None:
    where = run(environment, "-c", "import dkel_lightning; print(dkel_lightning.__file__)", cwd=tmp_path)
    assert str(environment) in where.stdout
    done = run(environment, "-m", "dkel_lightning", "trainer.fast_dev_run=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "teacher peers, mean" in done.stdout


@pytest.mark.slow
def test_the_console_script_is_the_same_program(environment: Path, tmp_path: Path) -> None:
    script = environment / "bin" / "dkel"
    done = run(environment, str(script), "trainer.fast_dev_run=true", "method=pcl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pcl on digits" in done.stdout
    wrong = run(environment, str(script), "method=pcll", cwd=tmp_path)
    assert (wrong.returncode, "Did you mean pcl?" in wrong.stderr) == (2, True)
