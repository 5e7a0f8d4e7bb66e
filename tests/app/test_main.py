"""The command line: its three answers (a run, a sweep, a mistake named), and code of the user's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dkel_lightning.app import main
from dkel_lightning.app.records import RunRecord, write_failure
from dkel_lightning.app.run import lock
from dkel_lightning.errors import ConfigError, FolderInUseError
from tests.commands import dkel
from tests.compose import compose, tiny_run

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "debug=smoke",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "callbacks.progress=none",
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method.temprature=2"], "Unknown key method.temprature. Did you mean method.temperature"),
        (["methd=dkel"], "Unknown key methd. Did you mean method"),
        (["epochs=2"], "or trainer.max_epochs?"),
        (["trainer.profiler=simple"], "Another argument of the class: +trainer.profiler=VALUE."),
        (["method=dkle"], "Could not find 'method/dkle'"),
        (["method.temperature=-1"], "method.temperature must be a number between 0.01 and 100, got -1"),
        (["method.peers=1"], "DKEL needs at least 2 peers, got 1"),
        (["teacher=none"], "needs a teacher"),
        (["experiment=own_data", "data.root=no_such_folder"], "no_such_folder"),
        (["backbone.name=resnet7"], "resnet7"),
        (["data.limit=1"], "data.limit"),
        (["callbacks.monitor=val/banana"], "callbacks.monitor is 'val/banana': choose one of val/acc, "),
        (["callbacks.progress=linse"], "Did you mean lines"),
        (["resume=nowhere.ckpt"], "nowhere.ckpt"),
        (["resume=last"], "there is no run in"),
        (["task=evaluate"], "task=evaluate needs checkpoint=PATH"),
        (["task=export", "checkpoint=nowhere.ckpt"], "nowhere.ckpt"),
        (["checkpoint=nowhere.ckpt"], "task=train reads no checkpoint: backbone.weights=PATH starts from one"),
        (["modules=[no_such_module]"], "no_such_module"),
        (["precision=fp16"], "precision=fp16 needs a GPU"),
        (["teacher.weights=missing.ckpt", "method=kd"], "missing.ckpt"),
    ],
)
def test_a_mistake_is_named_without_a_traceback_and_leaves_nothing(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = dkel(*SMALL, *arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not [*tmp_path.rglob("config.yaml")]


def test_a_sweep_ends_in_a_table_and_goes_on_where_it_was_ended(tmp_path: Path) -> None:
    command = ["-m", *SMALL, "sweep.folder=compared", "method=baseline,dml", "seed=0,1"]
    done = dkel(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folders = sorted(path.name for path in (tmp_path / "compared").iterdir() if path.is_dir() and "=" in path.name)
    assert folders == ["method=baseline,seed=0", "method=baseline,seed=1", "method=dml,seed=0", "method=dml,seed=1"]
    table = (tmp_path / "compared" / "sweep.md").read_text()
    assert "| baseline |" in table
    assert "| dml |" in table
    shutil.rmtree(tmp_path / "compared" / "method=dml,seed=1")
    before = (tmp_path / "compared" / "method=dml,seed=0" / "summary.json").read_bytes()
    again = dkel(*command[:-1], "seed=0,1,2", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already finished") == 3
    assert (tmp_path / "compared" / "method=dml,seed=0" / "summary.json").read_bytes() == before
    assert (tmp_path / "compared" / "method=dml,seed=2" / "summary.json").is_file()
    other = dkel(*command, "optimizer.lr=0.01", cwd=tmp_path)
    assert other.returncode == 2
    assert "contains a run with other settings (optimizer.lr: 0.1, now 0.01)" in other.stderr
    assert not [*tmp_path.rglob("failed.txt")]


def test_a_job_that_fails_is_noted_and_the_others_run(tmp_path: Path) -> None:
    command = ["-m", *SMALL, "sweep.folder=s", "sweep.reference=10", "method=baseline", "optimizer.lr=0.1,-1"]
    done = dkel(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert "sweep.reference=10 is not a label" in done.stderr
    assert "1 jobs failed: method=baseline,optimizer.lr=-1" in done.stderr
    (failure,) = (tmp_path / "s").rglob("failed.txt")
    assert "Invalid learning rate: -1" in failure.read_text()
    assert (tmp_path / "s" / "method=baseline,optimizer.lr=0.1" / "summary.json").is_file()


def test_a_failed_job_that_is_resumed_by_hand_has_finished(tmp_path: Path) -> None:
    run = tmp_path / "s" / "method=baseline,seed=0"
    done = dkel("-m", *SMALL, "sweep.folder=s", "method=baseline", "seed=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run / "summary.json").unlink()
    write_failure(run, ValueError("x"))
    done = dkel(f"resume={run}", "trainer=cpu", cwd=tmp_path)  # Hydra needs quotes around the path's equals signs
    assert done.returncode == 0, done.stderr
    assert RunRecord(run).state == "finished"


def test_the_jobs_of_an_ablation_have_a_folder_each(tmp_path: Path) -> None:
    done = dkel("ablation=draw", *SMALL, "hydra.sweeper.params.seed=0", "sweep.folder=a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.parent.name for path in sorted((tmp_path / "a").glob("*/summary.json"))] == [
        "seed=0,teacher.draw=independent",
        "seed=0,teacher.draw=student",
    ]


def test_a_study_resumes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task=geometry resumes nothing"):
        main.execute({**compose("task=geometry"), "resume": "outputs/run"}, tmp_path, set())


@pytest.mark.slow
def test_a_run_of_own_images_is_read_and_resumed_without_naming_them_again(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("test", 2)):
        for label, shade in (("dark", 40), ("light", 200)):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (20, 16), (shade, shade + number, shade)).save(folder / f"{number}.png")
    own = ["experiment=own_data", "data.root=pictures", "data.image_size=16", "data.batch_size=4", "backbone=resnet8"]
    done = dkel(*own, "data.validation=0.4", "trainer=cpu", "trainer.max_epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "own_data").iterdir()
    best = f"checkpoint={run / 'checkpoints' / 'best.ckpt'}"
    photo = "predict.images=pictures/test/dark/0.png"
    for command in (["resume=last"], ["task=evaluate", best], ["task=export", best], ["task=predict", best, photo]):
        done = dkel(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    tests = json.loads((run / "summary.json").read_text())["test"]
    assert json.loads((run / "evaluation_best" / "evaluation.json").read_text())["test"] == tests["best"]
    assert "dark" in (run / "predict_best" / "predictions.csv").read_text()
    tuned = [*own, "trainer=cpu", "trainer.max_epochs=1", f"backbone.weights={run}/checkpoints/best.ckpt"]
    first = [*tuned, "hydra.run.dir=tuned"]
    for number, command in enumerate((first, first, ["resume=tuned"], ["resume=tuned", *tuned])):
        if number == 2:
            (run / "checkpoints" / "best.ckpt").unlink()  # a resume needs no initial weights
        done = dkel(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_a_folder_in_use_is_refused_and_a_sweep_skips_its_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = dict(tiny_run(tmp_path).values)
    with lock(tmp_path):
        with pytest.raises(FolderInUseError, match="is in use by another process"):
            main.execute(values, tmp_path, set())
        assert main._run_in_sweep(values, tmp_path, set()) is None
    assert "skipped: another process is running it" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == []


def test_a_sweep_of_several_processes_needs_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ConfigError, match="A sweep with trainer=ddp would start in every process: use hydra/launcher="):
        main._run_in_sweep(compose("trainer=ddp"), tmp_path, set())


# ---------------------------------------------------------------------- code of the user's own


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "tests" / "fixtures" / "my_code.py", tmp_path)
    return tmp_path


def test_a_registered_method_is_a_choice_and_data_sets_and_tasks_are_files_of_a_folder(project: Path) -> None:
    files = {
        "data/stripes": "defaults: [_base]\nname: stripes\n_target_: my_code.Stripes\nwidth: 2\n",
        "data/noise": "{name: noise, _target_: my_code.Noise, root: null, selection: validation, count: 48}",
        "task/greet": "# @package _global_\ntask: {name: greet, _target_: my_code.greet, folder: null}\n"
        "greet: {times: 3}\n",
    }
    for name, content in files.items():
        (project / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "conf" / f"{name}.yaml").write_text(content)
    command = [
        "--config-dir=conf",
        "trainer=cpu",
        "trainer.max_epochs=1",
        "callbacks.progress=none",
        "hydra.run.dir=run",
    ]
    own = ["modules=[my_code]", "data=stripes", "data.width=3", "method=own_teacher", "backbone.name=tiny"]
    done = dkel(*command, *own, "data.batch_size=8", cwd=project)
    assert done.returncode == 0, done.stderr
    summary = json.loads((project / "run" / "summary.json").read_text())
    assert (summary["method"], summary["backbone"], summary["data"]) == ("own_teacher", "tiny", "stripes")
    # The length of the ramp-up follows the experiment's, as for the methods that ship.
    assert "share: 0.27" in (project / "run" / "config.yaml").read_text()
    done = dkel(*command[:-1], "data=noise", "hydra.run.dir=other", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "48 training" in done.stdout
    greeted = dkel("--config-dir=conf", "task=greet", "seed=5", cwd=project)
    assert greeted.stdout == "hello, 5\n" * 3, greeted.stderr


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "conf" / "experiment").glob("*.yaml"))])
@pytest.mark.parametrize("method", ["dkel", "kd", "mean_teacher"])
def test_every_experiment_composes_with_every_kind_of_method(name: str, method: str) -> None:
    values = compose(f"experiment={name}", f"method={method}")
    assert values["method"]["name"] == method
    assert "???" not in str(values)
