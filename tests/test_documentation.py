"""Every command and code block that README and docs show is run or checked here."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dkel_lightning.app.cli.saved_settings import of_checkpoint
from dkel_lightning.app.runs.folder import Run, saved_values
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch.distributed import run
from torch.utils.data import DataLoader, TensorDataset

from dkel_lightning import methods
from dkel_lightning.app.config import choices, reference, schema
from tests.commands import dkel
from tests.compose import compose, prepare
from tests.own_code import forgotten
from tests.pictures import write_noise

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in any of the languages, without their titles."""
    return [body for language, _, body in fenced(page) if language in languages]


def fenced(page: Path) -> list[tuple[str, str, str]]:
    """The fenced blocks of a page: language, title (a file's name) and text."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    titles = [re.search(r'title="([^"]+)"', rest) for _, _, rest, _ in found]
    return [
        (language, title[1] if title else "", textwrap.dedent(body))
        for (_, language, _, body), title in zip(found, titles, strict=True)
    ]


PROGRAMS = ("python", "dkel", "make", "torchrun", "pip", "sbatch", "srun", "git", "tensorboard", "mlflow", "wandb")


@functools.cache
def commands(page: Path) -> list[str]:
    """The commands that a page shows, in blocks of shell and in the middle of its text."""
    return [*_commands(page)]


def _commands(page: Path) -> Iterator[str]:
    for block in blocks(page, "sh", "bash", "console", "shell"):
        joined = block.replace("\\\n", " ")
        lines = (line.split(" #")[0].strip() for line in joined.splitlines() if not line.startswith("#"))
        yield from (re.sub(r" +", " ", line) for line in lines if line)
    prose = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`]+)`", prose):
        words = code.split()
        if len(words) > 1 and words[0] in PROGRAMS:
            yield " ".join(words)


SHOWN = sorted({command for page in PAGES for command in commands(page)})


SHELL = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "scripts").glob("*.sh")}
SCRIPTS_OF_OURS = [name for name, text in SHELL.items() if "arguments=(trainer=ddp" in text]
"""Those that pass on what they are given as it is."""


def without_setting(command: str) -> list[str]:
    """The words of a command, without the variables set before it, `$ ` of a session, and `srun`."""
    words = shlex.split(command.removeprefix("$ "))
    while words and (re.fullmatch(r"\w+=.*", words[0]) or words[0] == "srun"):
        words = words[1:]
    return words


def arguments_of(command: str) -> list[str] | None:
    """What a command passes to this library's program; None if it starts another."""
    words = without_setting(command)
    if words[:1] == ["sbatch"]:
        words = [word for word in words[1:] if not word.startswith("--")]
    if words and words[0] in SCRIPTS_OF_OURS:  # run in tests/distributed/test_scripts.py
        return ["trainer=ddp", *words[1:]]
    if words[:3] == ["python", "-m", "dkel_lightning"]:
        return words[3:]
    if words[:1] == ["dkel"]:
        return words[1:]
    if words[:1] == ["torchrun"]:
        # torchrun's own parser says whether its options are right, and what it would start.
        parsed = run.get_args_parser().parse_args(words[1:])
        if parsed.module and parsed.training_script == "dkel_lightning":
            return list(parsed.training_script_args)
    return None


OURS = [command for command in SHOWN if arguments_of(command) is not None]


def test_the_documents_show_commands() -> None:
    assert "make run" in SHOWN
    assert "python -m dkel_lightning experiment=tinyimagenet" in SHOWN
    assert "dkel experiment=cifar100" in SHOWN
    # In the middle of a sentence.
    assert any(command.startswith("torchrun --nproc-per-node=4") for command in OURS)


@pytest.mark.slow
@pytest.mark.parametrize("command", OURS)
def test_each_shown_command_is_one_that_the_program_accepts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = arguments_of(command)
    assert arguments is not None
    if "--help" in arguments:
        return  # run in test_cli.py
    if any("$" in argument for argument in arguments):
        return  # what the shell puts in is set in the script around it: see the test of scripts
    # Files of the reader's own: what the page tells to write, and a run to resume or to evaluate.
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        if command in commands(page):
            write_titled(page, tmp_path)
    typed = [item for item in arguments if item.startswith("data.root=")]
    newest = compose("experiment=own_data", *typed) if typed else compose("experiment=quickstart")
    first = compose("experiment=own_data", "data.root=my_images")
    for folder, values in {"long": compose("experiment=cifar100"), "first": first, "quickstart/TIME": newest}.items():
        checkpoints = tmp_path / "outputs" / folder / "checkpoints"
        checkpoints.mkdir(parents=True)
        for name in ("last.ckpt", "best.ckpt"):
            torch.save({}, checkpoints / name)
        (checkpoints.parent / "config.yaml").write_text(Run(values, checkpoints.parent).settings)
    with forgotten():
        prepared = prepare(arguments)
    arguments = [item.replace("data._target_=", "data=") for item in arguments]
    read = [Path(item.removeprefix("checkpoint=")) for item in arguments if item.startswith("checkpoint=outputs/")]
    for path in filter(Path.is_file, read):
        of_checkpoint(saved_values(path), compose(*arguments), arguments, path.parents[1])
    # What is resumed is replaced by what it means at this moment; its keys are those of its run, and so forced.
    assert [item.lstrip("+") for item in prepared[: len(arguments)] if not item.startswith("resume=")] == [
        item.lstrip("+") for item in arguments if not item.startswith("resume=")
    ]


def write_titled(page: Path, folder: Path) -> list[str]:
    """Write the blocks that a page shows under the name of a file."""
    titled = [(title, body) for _, title, body in fenced(page) if title]
    for title, body in titled:
        (folder / title).parent.mkdir(parents=True, exist_ok=True)
        (folder / title).write_text(body, encoding="utf-8")
    return [title for title, _ in titled]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_data.md", "own_model.md", "own_method.md"])
def test_files_of_ones_own_run_by_the_command_that_the_page_shows(name: str, tmp_path: Path) -> None:
    page = ROOT / "docs" / name
    assert write_titled(page, tmp_path)
    command = next(command for command in commands(page) if "modules=" in command)
    done = dkel(*arguments_of(command) or (), "trainer.fast_dev_run=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = {
        "own_data.md": "dkel on stripes",
        "own_model.md": "dkel on digits",
        "own_method.md": "own_teacher on digits",
    }
    assert shown[name] in done.stdout


@pytest.mark.parametrize("command", [c for c in SHOWN if c.startswith("make ")])
def test_each_shown_target_of_make_exists(command: str) -> None:
    targets = shlex.split(command)[1:]
    done = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Splits:
    """Stands for the reader's own data."""

    @staticmethod
    def loader(channels: int, size: int) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(16, channels, size, size, generator=generator)
        return DataLoader(TensorDataset(images, torch.arange(16) % 10), batch_size=8)


# The blocks of the start belong between its commands: tests/packaging/test_start.py runs both in their order.
RUN_HERE = [page for page in PAGES if blocks(page, "python") and page.name not in ("start.md", "index.md")]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_HERE, ids=lambda page: page.name)
def test_python_blocks_run_as_they_stand(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    channels, size = (3, 64) if page.name == "README.md" else (1, 8)
    # 300 epochs of the reader's data are one step here.
    original = Trainer.__init__

    def short(self: Trainer, *args: Any, **kwargs: Any) -> None:
        kwargs |= {"max_epochs": 1, "limit_train_batches": 1, "accelerator": "cpu", "logger": False}
        saves = any(isinstance(callback, Checkpoint) for callback in kwargs.get("callbacks", []))
        original(self, *args, **{**kwargs, "enable_checkpointing": saves, "enable_progress_bar": False})

    monkeypatch.setattr(Trainer, "__init__", short)
    if page.name == "README.md":
        write_noise(tmp_path / "my_images", 10, 2, size=64, classes=("class_0", "class_1"))
    names: dict[str, Any] = {"my_datamodule": Splits.loader(channels, size), "__name__": page.stem}
    try:
        with forgotten():
            for block in blocks(page, "python"):
                sys.modules[page.stem] = type(sys)(page.stem)
                exec(compile(block, str(page), "exec", dont_inherit=True), names)
    finally:
        sys.modules.pop(page.stem, None)
    if page.name == "README.md":
        assert blocks(ROOT / "docs" / "index.md", "python") == blocks(page, "python")
        assert names["network"](torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    if page.name == "own_method.md":
        assert names["module"].method.terms == ("ce", "kd")
    if page.name == "choose.md":
        assert_costs_are_those_of_the_table(page, names["operations"], names["alone"])


def settings_in_text(page: Path) -> Iterator[tuple[str, str]]:
    """The settings `key=value` that a page names in the middle of its text."""
    prose = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", prose):
        for word in code.split():
            found = re.fullmatch(r"([a-z]\w*(?:\.\w+)*)=([^=]*)", word)
            if found:
                yield found[1], found[2]


GROUPS = {path.parent.relative_to(choices.folder()).as_posix() for path in choices.folder().rglob("*.yaml")}
GROUPS |= choices.GROUPS.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_settings_that_are_named_in_the_text_exist(page: Path) -> None:
    unknown = []
    for key, value in settings_in_text(page):
        if key in GROUPS and "." not in key:
            named = [part for part in re.split(r"[,|]", value) if re.fullmatch(r"[\w/]+", part)]
            unknown += [f"{key}={name}" for name in named if name not in choices.options(key) and not name.isupper()]
        elif "." in key and key.split(".")[0] != "hydra" and schema.describe(key) is None:
            unknown.append(key)
    assert not unknown


def test_the_configuration_reference_is_up_to_date() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == "\n".join(reference.lines()) + "\n", "run: python -m dkel_lightning.app.config.reference"


def assert_costs_are_those_of_the_table(page: Path, operations: Any, alone: float) -> None:
    rows = re.findall(r"^\| (`.+?) \| (\d\.\d\d) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    stated = {name: cost for label, cost in rows for name in re.findall(r"`(\w+)`", label)}
    assert stated.keys() == set(methods.METHODS) - {"heads", "sftn", "soteacher"}  # which prepare a teacher
    assert {name: f"{operations(name) / alone:.2f}" for name in stated} == stated
    assert f"{operations('dkel', views='shared') / alone:.1f}" == "2.2"


def anchors(page: Path) -> set[str]:
    """The anchors that code hosts give the headings of a page."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(
            slug if slug not in found else next(f"{slug}-{i}" for i in range(1, 99) if f"{slug}-{i}" not in found)
        )
    return found


def test_links_between_documents_lead_to_files_and_headings_also_on_a_code_host() -> None:
    broken = []
    for page in PAGES:
        text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
        for target in targets:
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_the_project_names_no_path_of_the_machine_it_was_made_on() -> None:
    # Brackets keep the pattern from finding itself.
    pattern = r"\.\./[s]hared|/[w]ork/|/[t]mp/bash"
    done = subprocess.run(["git", "grep", "-nE", pattern], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == []
