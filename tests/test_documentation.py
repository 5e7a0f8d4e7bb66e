"""Links of the pages lead somewhere, their commands compose, and what README and the start page show runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch import LightningDataModule
from torch.utils.data import TensorDataset

from dkel_lightning.app import config
from tests.commands import dkel

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")))
}
SHOWN = [
    name for name in PAGES if not name.startswith(("docs/results", "CHANGELOG"))
]  # results keep commands of their time
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SHORT = (
    *("trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"),
    *("trainer.limit_test_batches=1", "callbacks.progress=none"),
)


def anchors(text: str) -> set[str]:
    """Return the anchors that code hosts and the site give to headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_and_anchors_resolve(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", PAGES[page])):
        if not link.startswith(("http://", "https://")):
            file, _, anchor = link.partition("#")
            target = (ROOT / page).parent / file if file else ROOT / page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_the_site_has_every_page_and_no_others() -> None:
    named = re.findall(r"(?:: |- )([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(name.removeprefix("docs/") for name in PAGES if name.startswith("docs/"))


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of every `dkel` command of a block or a page."""
    for line in re.findall(r"^dkel(?: (.*))?$", text.replace("\\\n", " "), re.MULTILINE):
        yield shlex.split(line, comments=True)


def combinations(overrides: list[str]) -> Iterator[list[str]]:
    """Yield compositions of a multirun that hold each of its values at least once."""
    values = []
    for item in OverridesParser.create().parse_overrides(overrides):
        if item.is_choice_sweep():
            values.append([f"{item.get_key_element()}={value}" for value in item.sweep_string_iterator()])
        elif item.is_sweep_override():
            values.append([f"{item.get_key_element()}={item.value().start}"])
        else:
            values.append([str(item.input_line)])
    for row in zip_longest(*values):
        yield [value or first for value, (first, *_) in zip(row, values, strict=True)]


@pytest.mark.parametrize("page", [name for name in SHOWN if [*commands(PAGES[name])]])
def test_commands_compose(page: str, tmp_path: Path) -> None:
    for _, title, text in BLOCK.findall(PAGES[page]):
        if title:
            (tmp_path / title).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / title).write_text(text, encoding="utf-8")
    for arguments in commands(PAGES[page]):
        overrides = [argument for argument in arguments if "=" in argument]
        if "--config-dir" in arguments or any(override.startswith("modules=") for override in overrides):
            done = dkel(*arguments, "--cfg", "job", cwd=tmp_path)  # registers choices: not in this process
            assert done.returncode == 0, (arguments, done.stderr)
        elif "--help" not in arguments:
            for combination in combinations(overrides):
                cfg = config.compose(combination, with_hydra=True)
                assert config.resolve(cfg)["task"], combination


def shortened(arguments: list[str], folder: Path) -> list[str]:
    """Return a command that does the same on little data."""
    runs = sorted((folder / "outputs" / "quickstart").glob("[0-9]*"))
    arguments = [argument.replace("TIME", runs[-1].name) if runs else argument for argument in arguments]
    if {"--help", "--cfg"} & {*arguments} or any(re.match("task=|resume=", argument) for argument in arguments):
        return arguments
    text = " ".join(arguments)
    small = [
        value for key, value in (("data.root", "data=digits"), ("backbone", "backbone=resnet8")) if key not in text
    ]
    return [*(re.sub("^seed=.*", "seed=0", argument) for argument in arguments), *small, *SHORT]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_what_is_shown_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnxruntime", "onnxscript", "tensorboard", "wandb", "timm"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    images = TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8))
    yours: dict[str, Any] = {"my_datamodule": LightningDataModule.from_datasets(images, images, batch_size=8)}
    if page == "README.md":  # its images are made by the start page
        exec(next(text for language, _, text in BLOCK.findall(PAGES["docs/start.md"]) if language == "python"))
    for language, _, text in BLOCK.findall(PAGES[page]):
        if language == "python":
            exec(re.sub(r"epochs=\d+", "epochs=1", text), {**yours})
        for arguments in commands(text) if language == "sh" else ():
            short = shortened(arguments, tmp_path)
            done = dkel(*short, cwd=tmp_path)
            assert done.returncode == 0, (short, done.stdout, done.stderr)
