"""A run asks the network for nothing, and writes into its folder, the data and caches that are documented."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pictures import write_noise

ROOT = Path(__file__).parents[2]
RUN = (
    *("experiment=own_data", "data.root=images", "data.image_size=12", "backbone=resnet8", "method=baseline"),
    *("method.peers=1", "trainer=cpu", "trainer.max_epochs=1", "data.batch_size=8", "data.eval_batch_size=8"),
    *("callbacks.progress=none", "logger=mlflow", "hydra.run.dir=outputs/it"),
)
IN_TMP, AT_HOME = ("dkel_lightning_", "torchinductor_"), (".cache/matplotlib", ".config/matplotlib")
"""What may be written in the temporary folder and at home; docs/reliability.md names each."""
SYSTEM = ("/dev/null", "/dev/shm/", "/dev/tty", "/proc/self/")
"""No files: devices, memory that processes share, and the counter of the process's own peak of memory."""

HOOK = """
import os, runpy, sys
out = open(sys.argv.pop(1), "a", buffering=1)
def hook(event, given):
    if event == "open":
        path, mode, flags = given
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not isinstance(path, int):
            out.write(f"write {os.path.abspath(os.fsdecode(path))}\\n")
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.rename", "os.link", "os.symlink"):
        for path in given[:2 if event in ("os.rename", "os.link") else 1]:
            if not isinstance(path, int): out.write(f"write {os.path.abspath(os.fsdecode(path))}\\n")
    elif event == "sqlite3.connect":
        out.write(f"write {os.path.abspath(os.fsdecode(given[0]))}\\n")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        if not (event == "socket.connect" and isinstance(given[1], str | bytes)):
            out.write(f"network {event} {given[:2]}\\n")
            raise OSError("no network here")
sys.addaudithook(hook)
sys.argv[0] = "dkel"
runpy.run_module("dkel_lightning", run_name="__main__", alter_sys=True)
"""
CALLS = "open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,link,linkat,symlink,symlinkat"


def hooked(log: Path) -> list[str]:
    """A command that notes what Python opens, on a machine without a network."""
    return [sys.executable, "-c", HOOK, str(log)]


def traced(log: Path) -> list[str]:
    """A command that notes what the system is asked, by libraries and other processes too."""
    calls = f"trace={CALLS},truncate,connect,sendto"
    return ["strace", "-f", "-y", "-qq", "-e", calls, "-o", str(log), sys.executable, "-m", "dkel_lightning"]


def in_trace(line: str, folder: Path) -> Iterator[str]:
    """Read a line of strace as HOOK writes it."""
    _, _, call = line.partition(" ")
    call = call.strip()
    name = call.partition("(")[0]
    if name in ("connect", "sendto"):
        if "AF_INET" in call:
            yield f"network {call}"
    elif " = -1 " not in call and (not name.startswith("open") or re.search("O_WRONLY|O_RDWR|O_CREAT", call)):
        beside = re.search(r"AT_FDCWD<([^>]*)>|\(\d+<([^>]*)>", call)
        for path in re.findall(r'"([^"]*)"', call):
            yield f"write {Path((beside[1] or beside[2]) if beside else folder, path)}"


def strace_works() -> bool:
    command = ["strace", "-o", os.devnull, "true"]
    return shutil.which("strace") is not None and subprocess.run(command, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "noted",
    [
        hooked,
        pytest.param(traced, marks=[pytest.mark.long, pytest.mark.skipif(not strace_works(), reason="no strace")]),
    ],
)
def test_a_run_writes_nowhere_else_and_asks_nobody(noted: Callable[[Path], list[str]], tmp_path: Path) -> None:
    work, log = tmp_path / "work", tmp_path / "log"
    for name in ("work", "tmp", "home"):
        (tmp_path / name).mkdir()
    write_noise(work / "images", 10, 4)
    # Nothing else of ours: libraries are silent where they see a test.
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    places = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(
        [*noted(log), *RUN], cwd=work, capture_output=True, text=True, timeout=280, check=False,
        env={**kept, **places, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = log.read_text(encoding="utf-8").splitlines()
    said = lines if noted is hooked else [found for line in lines for found in in_trace(line, work)]
    assert [line for line in said if line.startswith("network")] == []
    written = {line.partition(" ")[2] for line in said}
    assert str(work / "outputs/it/metrics.csv") in written
    assert str(work / "outputs/it/mlflow.db") in written
    own = [work / "outputs", work / "images" / "dkel_cache", *(tmp_path / "tmp" / name for name in IN_TMP)]
    own += [each for name in AT_HOME for each in (tmp_path / "home" / name, (tmp_path / "home" / name).parent)]
    assert any(path.startswith(str(tmp_path / "tmp" / IN_TMP[0])) for path in written)
    # Python's tempfile tries by a file of eight letters whether it can write, and removes it.
    probe = re.compile(rf"{tmp_path}/tmp/\w{{8}}")
    elsewhere = [path for path in written if not path.startswith((*map(str, own), *SYSTEM))]
    assert [path for path in elsewhere if not probe.fullmatch(path)] == []
    assert {path.name for path in (tmp_path / "home").glob(".*/*")} <= {"matplotlib"}
    assert all(path.name.startswith(IN_TMP) for path in (tmp_path / "tmp").iterdir())


def test_the_documentation_names_the_caches() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert [name for name in ("TMPDIR", *IN_TMP, *AT_HOME) if name not in page] == []
