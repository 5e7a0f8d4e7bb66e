"""The page of a run: its figures are those of the files, whatever these hold, and nothing of them becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from pathlib import Path
from urllib.parse import unquote

import pytest

from dkel_lightning.app.report import of_run
from dkel_lightning.app.runs import notes, parsing
from dkel_lightning.app.runs.records import RunRecord
from tests.app.report.pages import Drawn, Reader, a_test, read, write_metrics, write_run

HOSTILE = "</title></style></script><script>alert(1)</script><img src=x onerror=alert(1)>\"' & {}"


def written(folder: Path, where: Path | None = None) -> str:
    return of_run.write(RunRecord(folder), where or folder).read_text(encoding="utf-8")


def page(folder: Path) -> Reader:
    return read(written(folder))


def test_the_figures_are_those_of_summary_json(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "seed=7")
    said = page(folder).text
    assert "96.11 % test accuracy of the deployed network: teacher peer 1, epoch 4." in said
    assert "accuracy, selected epoch (4) NLL ECE accuracy, last epoch (6) NLL ECE" in said
    # accuracy, NLL, ECE of both tests, a row a network
    assert "student peer 0 90.00 % 0.1000 1.00 % 90.00 % 0.1000 1.00 %" in said
    assert "ensemble classifier 90.44 % 0.1492 1.68 %" in said
    assert "teacher peer 1 96.11 % * 0.1738 2.02 % 95.11 % * 0.1738 2.02 %" in said
    assert "On 1.23 % of the test images two student peers differ." in said
    assert "norm(t - s) / norm(s): 0.456." in said
    assert "training images a second 1,234 (without validation)" in said
    assert "wall time of the fit 56.8 s" in said
    assert "3 MiB, resident set of the process" in said
    assert "77,754" in said
    # 346 of 360: Wilson's (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.96, by hand
    assert "the 95 % interval is 93.58 to 97.67 % (Wilson)" in said
    assert "Epoch 4 was selected by val/acc on held-out training images" in said
    assert "Unfinished" not in said


def test_whatever_is_logged_is_drawn_and_lies_beside_the_page_as_svg_and_pdf(tmp_path: Path, drawn: Drawn) -> None:
    names = ["val/acc/student_0", "train/ce", "weights/ema_rate", "lr-SGD", "diversity/cka/student-teacher"]
    names += ["share/loss/ce", "train/noise/fit_wrong/student_mean", "something/else"]
    folder = write_run(tmp_path / "run", curves={name: [0.1, 0.2] for name in names})
    reader = page(folder)
    said = drawn(reader)
    for name in ("validation accuracy (%)", "ema rate", "lr-SGD", "something", "labels to peers", "student mean"):
        assert name in said["curves"]
    assert "linear CKA of the features" in said["diversity"]
    assert "share of each term in the loss (%)" in said["diversity"]
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"{name}.{form}" for name in ("curves", "diversity") for form in ("svg", "pdf")
    }
    assert (folder / "figures" / "curves.pdf").read_bytes().startswith(b"%PDF")


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    assert "the diversity monitor did not run" in page(write_run(tmp_path / "run")).text


def test_settings_that_differ_from_their_defaults_come_with_them(tmp_path: Path) -> None:
    run = RunRecord(write_run(tmp_path / "run", "optimizer.lr=0.25", "teacher.init_steps=5", "seed=7"))
    found = {key: (value, default) for key, value, default in of_run.changed(run)}
    assert found["optimizer.lr"] == (0.25, 0.1)
    assert found["teacher.init_steps"] == (5, 2)
    assert found["seed"] == (7, 0)
    assert "optimizer.momentum" not in found
    # teacher.decay_share is an interpolation of what the experiment sets: not a difference of its own.
    assert "protocol.ema.decay_share" in found
    assert "teacher.decay_share" not in found


def test_nothing_of_a_strangers_files_becomes_markup(tmp_path: Path, drawn: Drawn) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "config.yaml").write_text(json.dumps({"method": {"name": HOSTILE, HOSTILE: HOSTILE}, "seed": HOSTILE}))
    test = a_test(3, 0.5, deployed=HOSTILE) | {"accuracy": {HOSTILE: 0.5}, "nll": {HOSTILE: 1}}
    (folder / "summary.json").write_text(json.dumps({"data": HOSTILE, "test": {"last": test}, "selection": HOSTILE}))
    provenance = {"command": HOSTILE, "packages": {HOSTILE: HOSTILE}, "device": {"kind": HOSTILE, "names": [HOSTILE]}}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    (folder / "collapse.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    (folder / "failed.txt").write_text(HOSTILE)
    write_metrics(folder, {HOSTILE: [1.0, 2.0], f"val/acc/{HOSTILE}": [0.1, 0.2], f"diversity/{HOSTILE}/x-y": [1, 2]})
    (folder / "javascript:alert(1)").write_text("")
    (folder / "<b>").write_text("")
    reader = page(folder)
    assert HOSTILE in "".join(reader.said)
    assert not {name for name, _ in reader.elements} & {"b", "script"}
    assert len(reader.all("img")) == len(drawn(reader)) == 2
    hrefs = [one["href"] for one in reader.all("a") if not one["href"].startswith("#")]
    assert all(href.startswith("./") for href in hrefs)
    assert "./javascript:alert(1)" in map(unquote, hrefs)


def test_no_script_may_run_and_nothing_may_be_fetched(tmp_path: Path) -> None:
    text = written(write_run(tmp_path / "run"))
    policy = next(one["content"] for one in read(text).all("meta") if "http-equiv" in one)
    style = text.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'"


def test_names_that_are_no_text_are_written_all_the_same(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / os.fsdecode(b"odd\xff\x07name")).write_text("")
    (folder / "summary.json").write_text('{"data": "lone \\ud800 half \\u0000", "test": {"last": null}}')
    text = written(folder)
    assert "\x07" not in text
    assert "odd\ufffd\ufffdname" in text
    assert 'href="./odd%FF%07name"' in text
    text.encode("utf-8")


DAMAGE = {
    "config.yaml": ["", "a: [", "- 1\n- 2", "\x00", "a: &x [1]\nb: *x\n", "method: 3\ntrainer: []\nseed: {}\n"],
    "summary.json": ["", "{", "[]", "{}", '{"test": 3}', '{"test": {"last": {"accuracy": [1], "epoch": NaN}}}',
                     '{"test": {"last": {"deployed_accuracy": 7, "images": 3, "deployed": []}}}'],
    "provenance.json": ["", "null", '{"packages": 3, "git": [], "device": "cpu", "command": 4}'],
    "metrics.csv": ["", "epoch,step\n", "a,b\n1,2\n", "epoch,step,val/acc\nx,1,2\n0,1,nan\n1,2,inf\n2,3,\n3,,abc\n",
                    'epoch,step,"x\n1', "\x00\x01", "epoch,step,x\n0,1,1,2,3,4\n"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), [(name, text) for name, texts in DAMAGE.items() for text in texts])
def test_a_damaged_file_is_named_and_the_rest_is_shown(tmp_path: Path, name: str, content: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(content)
    text = written(folder)
    said = read(text).text
    partly = {'{"packages": 3, "git": [], "device": "cpu", "command": 4}', "method: 3\ntrainer: []\nseed: {}\n"}
    valid_but_odd = content in partly or '"deployed_accuracy": 7' in content or content.startswith("epoch,step,x")
    assert valid_but_odd or name in said
    if name != "summary.json":
        assert "96.11 %" in said
    if name != "metrics.csv":
        assert 'alt="curves"' in text


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "provenance.json", "metrics.csv"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).unlink()
    assert f"No {name}" in page(folder).text


def test_a_run_under_way_is_called_unfinished(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "trainer.max_epochs=20", summary=False)
    assert "Unfinished: no test results. 2 of 20 epochs are in metrics.csv." in page(folder).text


@pytest.mark.parametrize("job", [False, True])
def test_a_run_that_is_being_made_longer_is_called_unfinished(tmp_path: Path, job: bool) -> None:
    folder = write_run(tmp_path / "run", "trainer.max_epochs=20", curves={"val/acc": [0.5] * 8})
    if job:
        notes.note(folder, [], "finished")
    said = "Unfinished: no test results but those of epoch 6. 8 of 20 epochs are in metrics.csv."
    assert said in page(folder).text
    assert (RunRecord(folder).state, RunRecord(folder).figures) == ("unfinished", {})


def test_warnings_come_first(tmp_path: Path) -> None:
    curves = {"train/loss": [1.0, float("nan")], "diversity/cka/student-teacher": [float("nan")] * 2}
    folder = write_run(tmp_path / "run", "data.selection=paper", curves=curves)
    event = {"kind": "chance", "epoch": 3, "what": "student_0 at chance", "action": "warned", "homogenised": True}
    (folder / "collapse.json").write_text(json.dumps({"events": [event, {"of": "another version"}]}))
    (folder / "failed.txt").write_text("Traceback\n  x\nOSError: disk full\n\n")
    said = page(folder).text
    before = said.split("96.11 %")[0]
    assert "This run failed: OSError: disk full" in before
    assert "Collapse in epoch 4: student_0 at chance. Action: warned. Teacher and student" in before
    assert '"of": "another version"' in before
    assert "chosen on the test set (data.selection=paper)" in before
    assert "train/loss is not finite from epoch 2 on." in before


def test_files_are_linked_relative_to_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"x" * 2048)
    (folder / ".claimed").write_text("")
    elsewhere = read(written(folder, tmp_path / "pages"))
    hrefs = {one["href"] for one in elsewhere.all("a")}
    assert "./../run/checkpoints/best.ckpt" in hrefs
    assert not any("claimed" in href for href in hrefs)
    assert "2.0 KiB" in elsewhere.text


def test_a_long_run_gives_a_small_page_in_seconds(tmp_path: Path, drawn: Drawn) -> None:
    curves = {f"val/acc/student_{i}": [((7 * i + e) % 97) / 97 for e in range(300)] for i in range(60)}
    folder = write_run(tmp_path / "run", curves=curves)
    started = time.process_time()
    text = written(folder)
    assert time.process_time() - started < 15
    assert len(text.encode()) < 2 * 2**20
    read(text)


def test_a_file_that_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", summary=False)
    os.mkfifo(folder / "summary.json")
    assert "No summary.json" in page(folder).text


def test_a_file_beyond_all_measure_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run")
    monkeypatch.setattr(parsing, "LARGEST", 10)
    assert "summary.json is larger than 0 MiB and was not read." in page(folder).text


def test_the_page_shows_which_classes_are_taken_for_which(tmp_path: Path, drawn: Drawn) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "confusion.csv").write_text('true class,cat,"<b>dog"\ncat,7,3\n"<b>dog",0,10\n')
    reader = page(folder)
    assert "cat <b>dog 3 30.0 %" in reader.text
    assert "<b>dog" in drawn(reader)["confusion"]


def test_a_damaged_confusion_matrix_is_named_and_the_page_still_written(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for content in ("", "true class,a,b\na,1,2\n", "true class,a\na,x\n", "true class,a\na,-1\n", "\x00"):
        (folder / "confusion.csv").write_text(content)
        assert "confusion.csv is damaged: it is no table of counts." in page(folder).text
