"""Supervision complexity while training: what is looked at and when, and that looking changes nothing."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F

from dkel_lightning import DistillationModule
from dkel_lightning.app.tasks import requirements
from dkel_lightning.app.tasks.complexity import complexity
from dkel_lightning.callbacks import SupervisionComplexity
from dkel_lightning.studies.complexity import centred, gradient_kernel, supervision_complexity
from tests.compose import compose, tiny_run
from tests.modules.toy import CLASSES, build, images_and_labels, parameters_of, same, train_loader, trainer

IMAGES, LABELS = images_and_labels(6, seed=3)


def online() -> DistillationModule:
    return build("online_checkpoints", 1, teacher={"backbone": "resnet8"})


def watched(epochs: int, module: DistillationModule, path: Path | None = None) -> SupervisionComplexity:
    watch = SupervisionComplexity(IMAGES, LABELS)
    fit = trainer(watch, max_epochs=epochs)
    fit.fit(module, train_loader(), ckpt_path=path, weights_only=True if path else None)
    assert fit.callback_metrics["complexity/online"].item() == pytest.approx([*watch.rows(CLASSES)][-1][1]["online"])
    return watch


def test_each_epoch_has_its_kernel_and_its_teacher_and_looking_changes_nothing() -> None:
    module, unwatched = online(), online()
    first = gradient_kernel(module.deploy("student"), IMAGES, CLASSES)
    trainer(max_epochs=2).fit(unwatched, train_loader())
    rows = dict(watched(2, module).rows(CLASSES))
    assert same(parameters_of(module), parameters_of(unwatched))
    assert [*rows] == [0, 1, 2]
    labels = centred(F.one_hot(LABELS, CLASSES))
    assert rows[0]["labels"] == pytest.approx(supervision_complexity(first, labels), rel=1e-9)
    last = gradient_kernel(module.deploy("student"), IMAGES, CLASSES)
    taught = centred(module.deploy("teacher")(IMAGES).detach().double().softmax(-1))
    assert rows[2]["online"] == rows[2]["offline"] == pytest.approx(supervision_complexity(last, taught), rel=1e-6)
    assert rows[0]["offline"] == pytest.approx(supervision_complexity(first, taught), rel=1e-6)
    assert rows[0]["online"] != rows[0]["offline"]
    assert rows[0]["random"] != rows[0]["labels"]


def test_a_resumed_run_has_the_rows_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = [*watched(2, online()).rows(CLASSES)]
    half = trainer(SupervisionComplexity(IMAGES, LABELS), max_epochs=1)
    half.fit(online(), train_loader())
    half.save_checkpoint(tmp_path / "x.ckpt")
    assert [*watched(2, online(), tmp_path / "x.ckpt").rows(CLASSES)] == whole


def test_without_a_teacher_labels_remain() -> None:
    module = build("baseline", 2, teacher={"update": "none"})
    watch = SupervisionComplexity(IMAGES, LABELS, every_n_epochs=2)
    trainer(watch, max_epochs=3).fit(module, train_loader())
    rows = [*watch.rows(CLASSES)]
    assert [epoch for epoch, _ in rows] == [0, 2, 3]
    assert rows[0][1].keys() == {"random", "labels"}


def test_the_task_writes_a_table_and_a_figure_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("task=complexity", "method=online_checkpoints", "complexity.images=12", "complexity.every_n_epochs=2")
    result = complexity(tiny_run(tmp_path, *given))
    with (tmp_path / "complexity.csv").open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert [row["epoch"] for row in rows] == ["0", "2"]
    assert float(rows[-1]["online"]) == pytest.approx(result.objective, rel=1e-5)
    assert rows[-1]["online"] == rows[-1]["offline"]
    assert {path.name for path in tmp_path.iterdir()} == {"complexity.csv", "figures", "config.yaml", "provenance.json"}
    assert (tmp_path / "figures" / "complexity.png").is_file()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("method=one",), "there is none: choose method=online_checkpoints"),
        (("method=kd",), "trains in one stage: give teacher.weights"),
        (("trainer.devices=2",), "trains on one device"),
    ],
)
def test_the_task_refuses_what_it_cannot_measure(given: tuple[str, ...], message: str) -> None:
    values: dict[str, Any] = compose("task=complexity", *given)
    assert any(message in mistake for mistake in requirements.of_complexity(values))
