"""The command line: mistakes answered before anything heavy is imported, and what a resumed run may change."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.conf import HydraConf

from dkel_lightning.app.cli import composition, jobs, keys, main, saved_settings
from dkel_lightning.app.cli.folders import find_resume, folder_of
from dkel_lightning.app.cli.invocation import Invocation
from dkel_lightning.app.cli.jobs import Job
from dkel_lightning.app.cli.refusals import refusal
from dkel_lightning.app.cli.saved_settings import check_values
from dkel_lightning.app.config import checks, choices
from dkel_lightning.app.runs.folder import Run, newest_checkpoint, saved_values, values_in
from dkel_lightning.errors import CheckpointError, ConfigError, DkelError
from dkel_lightning.runtime import command_lines
from tests.commands import dkel
from tests.compose import check_arguments, compose, prepare
from tests.disks import as_root, small_disk


def refused(*arguments: str, multirun: bool = False, config_dir: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        check_arguments(list(arguments), config_dir, multirun)
    return str(caught.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trainer.max_epoch=3", "Unknown key trainer.max_epoch. Did you mean trainer.max_epochs?"),
        ("methd=pcl", "Unknown key methd. Did you mean method?"),
        ("+method.temprature=3", "Unknown key method.temprature. Did you mean method.temperature?"),
        ("+nonsense=1", "Unknown key nonsense."),
        (
            "method=dkell",
            "Unknown choice method=dkell. Did you mean dkel? Choices: baseline, ",
        ),
        ("experiment=cifar", "Unknown choice experiment=cifar."),
        ("precision=32", "Unknown choice precision=32. Did you mean fp32? Choices: auto, bf16, fp16, fp32."),
        ("method=dkel,pcl", "method=dkel,pcl gives several values: add -m"),
        ("compare.methods=dkel,pcl", "gives several values: write compare.methods=[dkel,pcl]."),
        ("foo bar", "Cannot read 'foo bar': write key=value"),
        ("data.root", "Cannot read 'data.root': write key=value"),
        ("~teacher", "~teacher: a group cannot be removed"),
        ("~seed", "~seed: keys cannot be removed"),
        ("+method=pcl", "+method=pcl: a group is chosen without a plus: method=CHOICE"),
        ("method.name=pcl", "method.name=pcl: choose it as a group, method=pcl"),
        ("+trainer.logger=false", "trainer.logger is decided by this library"),
        ("name=../elsewhere", "name must be the name of a folder, without slashes"),
        ("teacher.update=none", "teacher.update=none: choose teacher=none"),
        ("scheduler.interval=step", "scheduler.interval=step counts milestones in steps"),
        ("protocol.milestones=[0.5,150]", "give rising epochs (150, 225) or rising shares (0.5, 0.75)"),
        ("trainer.limit_test_batches=0", "nothing would be tested"),
        ("logger.extra=foo", "logger.extra must hold entries name: {_target_: ...}"),
        ("execution.threads=1000000", "execution.threads must be a whole number between 1 and 1024"),
        ("seed=abc", "seed must be a whole number between 0 and 9223372036854775807, got 'abc'."),
    ],
)
def test_a_mistake_is_named_with_its_cure(argument: str, message: str) -> None:
    assert message in refused(argument)


def test_a_cosine_over_epochs_that_max_steps_cuts_off_is_refused() -> None:
    said = refused("scheduler=cosine", "trainer.max_steps=6")
    assert said.startswith("scheduler.T_max is the length of trainer.max_epochs, and trainer.max_steps is set")
    check_arguments(["scheduler=cosine", "trainer.max_steps=6", "scheduler.T_max=2"], None, False)
    check_arguments(
        ["scheduler=cosine", "trainer.max_steps=6", "scheduler.T_max=6", "scheduler.interval=step"], None, False
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=" + "x" * 5000], f"Unknown choice data={'x' * 200}..."),
        (["d-ata.limit=1", "data=" + "x" * 5000], f"Unknown choice data={'x' * 200}..."),
        (["x.y=1", "+task=[[]]"], "+task=[[]]: a group is chosen without a plus: task=CHOICE."),
        (["hydra/launcher=[[1]]"], "Cannot compose hydra/launcher=[[1]]: a group takes the name of one choice"),
        (["experiment=" + "x" * 300], f"Unknown choice experiment={'x' * 200}..."),
        (["optimizer." + "x" * 5000 + "=1"], "is too long for the name of a file: shorten it."),
        (["resume=" + "x" * 5000], "is too long for the name of a file: shorten it."),
        (["name=" + "x" * 201], "name must be the name of a folder, without slashes and of at most 200 bytes"),
        (["name='" + "ü" * 101 + "'"], "name must be the name of a folder, without slashes and of at most 200 bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_too_long_for_a_file_or_no_name_is_one_error(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        prepare(arguments)
    assert len(str(caught.value)) < 1000


def test_a_glob_means_the_choices_of_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepared = prepare(["-m", "backbone=glob(tiny*)", "seed=0,1"])
    assert prepared == ["-m", "backbone=tiny_resnet18,tiny_resnet34", "seed=0,1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=glob(dk*)"], "method=dkel,dkel_released gives several values: add -m"),
        (["-m", "seed=range(1000000000)"], "seed=range(1000000000) gives more than 10,000 jobs: sweep over fewer"),
        (["-m", "seed=range(0,1,1e-12)"], "seed=range(0,1,1e-12) gives more than 10,000 jobs"),
        (["-m", "seed=range(200)", "data.split_seed=range(200)"], "data.split_seed=range(200) gives more than 10,000"),
        (["-m", "method=glob(zz*)"], "method=glob(zz*) matches none of baseline, "),
        (["-m", "seed=glob(*)"], "glob lists choices of a group, and seed is none"),
        (["-m", "hydra=glob(*)"], "glob lists choices of a group, and hydra is none"),
    ],
)
def test_values_of_a_sweep_without_sense_are_one_error(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        prepare(arguments)


def test_a_key_of_another_choice_is_told_from_a_misspelt_one() -> None:
    assert "method.temperature means nothing with method=baseline" in refused("method=baseline", "method.temperature=4")
    assert "teacher.decay means nothing with teacher=none" in refused(
        "method=baseline", "teacher=none", "teacher.decay=0.9"
    )


def test_a_composition_that_is_changed_changes_no_later_one() -> None:
    first = keys.composed(["method=pcl"])
    first.seed = 5
    assert keys.composed(["method=pcl"]).seed == 0


@pytest.mark.parametrize(
    "given",
    [
        ["method=pcl", "seed=3", "optimizer.lr=0.5"],
        ["trainer.devices=[0,1]", "deploy.peer=best", "callbacks.early_stopping=null"],
        ["teacher.decay={0:0.9,10:0.99}", "data.root='a b'", "seed=${trainer.max_epochs}"],
        ["+callbacks.extra.mine={_target_: my.Callback}", "method.rampup={epochs:3}"],
    ],
)
def test_keys_over_a_composition_are_what_hydra_composes(given: list[str]) -> None:
    assert keys.composed(given) == composition.compose(given)


def test_a_package_on_a_key_is_refused_as_hydra_refuses_it() -> None:
    with pytest.raises(ConfigError, match="looks like a config group override"):
        keys.composed(["seed@foo=3"])


def test_several_misspelt_keys_come_in_one_message() -> None:
    message = refused("trainer.max_epoch=3", "method.temprature=3")
    assert "trainer.max_epochs" in message
    assert "method.temperature" in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["seed=3"],
        ["+seed=3"],
        ["+trainer.benchmark=true"],
        ["teacher.decay_share=null", "teacher.decay={0:0.99,10:0.999}"],
        ["+callbacks.extra.mine._target_=lightning.pytorch.callbacks.DeviceStatsMonitor"],
        ["hydra.run.dir=somewhere"],
    ],
)
def test_right_arguments_pass(arguments: list[str]) -> None:
    check_arguments(arguments, None, False)


def test_every_value_of_a_sweep_is_checked_before_the_first_job_starts() -> None:
    assert "Unknown choice method=pcll" in refused("method=dkel,pcll", "seed=0,1", multirun=True)
    assert "seed must be a whole number" in refused("seed=0,-1", multirun=True)
    check_arguments(["method=dkel,pcl", "seed=range(0,3)", "teacher.init_steps=0,2"], None, True)


def test_a_sweep_of_process_groups_is_refused_because_each_process_would_repeat_it() -> None:
    cure = "hydra/launcher=submitit_slurm, or leave out -m and start each job with torchrun"
    assert cure in refused("trainer=ddp_cpu", "seed=0,1", multirun=True)
    # Lightning takes plain DDP by itself for several devices.
    assert cure in refused("trainer=cpu", "trainer.devices=2", "seed=0,1", multirun=True)
    check_arguments(["trainer=ddp_cpu"], None, False)
    check_arguments(["trainer=cpu", "trainer.devices=auto", "seed=0,1"], None, True)


@pytest.mark.parametrize("name", ["conf", "my conf", "mücke", "a%20b", "it's"])
def test_a_folder_of_the_users_own_adds_choices(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "experiment").mkdir(parents=True)
    (tmp_path / name / "experiment" / "mine.yaml").write_text("# @package _global_\nname: mine\nseed: 7\n")
    check_arguments(["experiment=mine"], tmp_path / name, False)
    assert "Did you mean mine?" in refused("experiment=mini", config_dir=tmp_path / name)


def test_a_choice_of_ones_own_does_not_say_which_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nresume: outputs/first\n")
    assert "resume= is typed" in refused("experiment=mine", config_dir=tmp_path)


def resumed(folder: Path, saved: dict[str, Any], *overrides: str) -> dict[str, Any]:
    (folder / "config.yaml").write_text(Run(saved, folder).settings)
    return saved_settings.resumed(folder, compose(*overrides), ["resume=last", *overrides])


def test_resume_refuses_what_would_change_the_trajectory(tmp_path: Path) -> None:
    saved = compose("seed=1")
    for override in ("seed=2", "trainer.max_epochs=3", "optimizer.lr=1", "method=pcl", "data.batch_size=8"):
        with pytest.raises(ConfigError, match=f"{override.split('=')[0]} would change a run that is being resumed"):
            resumed(tmp_path, saved, override)


def test_resume_lays_device_and_place_over_the_saved_configuration(tmp_path: Path) -> None:
    values = resumed(tmp_path, compose("seed=1", "trainer.max_epochs=7"), "trainer=cpu", "data.root=/elsewhere")
    assert values["seed"] == 1
    assert values["trainer"]["max_epochs"] == 7
    assert values["trainer"]["accelerator"] == "cpu"
    assert values["data"]["root"] == "/elsewhere"


def test_resume_refuses_another_number_of_processes_which_would_change_the_batches(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another number of processes changes the batches"):
        resumed(tmp_path, compose("trainer=cpu"), "trainer=ddp_cpu")


def test_resume_of_a_configuration_that_lacks_keys_names_them(tmp_path: Path) -> None:
    saved = compose()
    del saved["seed"]
    with pytest.raises(ConfigError, match=r"The saved config\.yaml lacks seed: "):
        resumed(tmp_path, saved)


def test_resume_fills_in_keys_that_came_after_the_run_and_leaves_its_own(tmp_path: Path) -> None:
    saved = compose("callbacks.monitor=val/acc/ensemble")
    del saved["callbacks"]["checkpoint_every_n_steps"]
    values = resumed(tmp_path, saved)
    assert values["callbacks"]["checkpoint_every_n_steps"] is None
    assert values["callbacks"]["monitor"] == "val/acc/ensemble"


def test_resume_takes_the_folder_of_a_run_and_begins_anew_where_it_has_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert find_resume(str(tmp_path)) == tmp_path
    assert folder_of(tmp_path) == tmp_path
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has ended, and its checkpoints are gone: start a new run"):
        find_resume(str(tmp_path))
    (tmp_path / "summary.json").unlink()
    stage, checkpoints = tmp_path / "teacher" / "checkpoints", tmp_path / "checkpoints"
    for folder in (stage, checkpoints):
        folder.mkdir(parents=True)
    (stage.parent / "config.yaml").write_text("seed: 0\n")
    for path in (stage / "last.ckpt", checkpoints / "best.ckpt", checkpoints / "last.ckpt"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", b"x" * 1000)
        if path.parent == stage:
            assert find_resume(str(tmp_path)) == path
            (tmp_path / "summary.json").write_text("{}")
            with pytest.raises(CheckpointError, match="has ended, and its checkpoints are gone: start a new run"):
                find_resume(str(tmp_path))
            with pytest.raises(CheckpointError, match=r"No last\.ckpt of a run"):
                newest_checkpoint(tmp_path)
            (tmp_path / "summary.json").unlink()
            shutil.rmtree(stage.parent)
    assert find_resume(str(tmp_path)) == checkpoints / "last.ckpt"
    whole = (checkpoints / "last.ckpt").read_bytes()
    for torn in (whole[:500], whole[:200] + b"y" + whole[201:]):
        (checkpoints / "last.ckpt").write_bytes(torn)
        assert find_resume(str(tmp_path)) == checkpoints / "best.ckpt"
    (checkpoints / "best.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"best\.ckpt, .*last\.ckpt are torn\. Start the run again"):
        find_resume(str(tmp_path))


def test_a_resume_of_a_comparison_takes_none_of_its_members_for_it(tmp_path: Path) -> None:
    checkpoints = tmp_path / "dkel" / "seed_0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for folder, task in ((tmp_path, "compare"), (checkpoints.parent, "train")):
        (folder / "config.yaml").write_text(Run(compose(f"task={task}"), folder).settings)
    with zipfile.ZipFile(checkpoints / "last.ckpt", "w") as archive:
        archive.writestr("data", b"x" * 1000)
    assert find_resume(str(tmp_path)) == tmp_path
    with pytest.raises(ConfigError, match=r"A comparison goes on by compare\.folder=PATH"):
        prepare([f"resume={tmp_path}"])
    assert find_resume(str(checkpoints.parent)) == checkpoints / "last.ckpt"


@pytest.mark.parametrize("name", ["it's", "my run (é)", "a\\", 'a "b"'])
def test_the_command_that_is_advised_finds_the_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints = tmp_path / "outputs" / name / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints.parent / "config.yaml").write_text(Run(compose(), checkpoints.parent).settings)
    for file in ("last.ckpt", "best.ckpt"):
        with zipfile.ZipFile(checkpoints / file, "w") as archive:
            archive.writestr("data", b"x" * 1000)
    (checkpoints / "best.ckpt").write_bytes(b"")
    last = command_lines.override("resume", checkpoints / "last.ckpt")
    folder = command_lines.override("hydra.run.dir", checkpoints.parent)
    assert prepare([last]) == [last, folder]
    # What is looked for is looked for once, and named.
    for other in ("resume=last", command_lines.override("resume", checkpoints.parent)):
        capsys.readouterr()
        assert prepare([other]) == [last, folder]
        assert capsys.readouterr().out.count("is torn: going on from") == 1


def test_a_run_goes_on_in_its_own_folder_only(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(Run(compose(), tmp_path).settings)
    resume = f"resume={tmp_path / 'run'}"
    with pytest.raises(
        ConfigError, match=rf"its own folder: leave out hydra\.run\.dir, or copy {tmp_path}/run and resume"
    ):
        prepare([resume, f"hydra.run.dir={tmp_path / 'elsewhere'}"])
    assert prepare([resume, f"hydra.run.dir={tmp_path / 'run'}"])[0] == resume


@pytest.mark.parametrize("typed", ["hydra.run.dir=~/my runs", "hydra.run.dir='~/my runs'"])
def test_a_path_from_home_is_one_in_any_key(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepare([typed]) == [f"hydra.run.dir='{tmp_path}/my runs'"]


def test_a_sign_that_the_terminal_lacks_ends_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["dkel", "--version"])
    main.main()
    print("93.1 ± 0.2", flush=True)
    assert written.getvalue().endswith(b"93.1 \\xb1 0.2\n")


def test_a_change_of_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hydra\.job\.chdir=true would look for relative paths in the run's folder"):
        prepare(["hydra.job.chdir=true"])


def test_an_evaluation_refuses_to_be_told_what_the_checkpoint_decides() -> None:
    with pytest.raises(ConfigError, match=r"method, teacher\.decay: the checkpoint decides this"):
        saved_settings.of_checkpoint(compose(), compose(), ["method=pcl", "teacher.decay=0.5"], Path())


def evaluated(folder: Path, *overrides: str, checkpoint: str = "run/checkpoints/best.ckpt") -> Path:
    """Take the folder of an evaluation that nobody has named."""
    cfg = composition.compose(["task=evaluate", f"checkpoint={folder / checkpoint}", *overrides])
    job = Job(cfg, folder / "evaluation_best", [*overrides], Invocation(()), None, HydraConf())
    return jobs._claim_by_settings(job, job.values)


def test_an_evaluation_replaces_its_own_and_another_one_stays_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def claimed(*overrides: str, checkpoint: str = "run/checkpoints/best.ckpt", **environment: str) -> str:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            return evaluated(tmp_path, *overrides, checkpoint=checkpoint).name

    assert claimed() == "evaluation_best"
    changes = ["deploy.peer=1", "precision=bf16", "data.root=other", "trainer.limit_test_batches=1"]
    beside = [f"evaluation_best_{number}" for number in (1, 2, 3, 4)]
    assert [claimed(change) for change in changes] == beside
    assert claimed(checkpoint="run/copies/best.ckpt") == "evaluation_best_5"
    # What changes no figure, and a run that was moved, are the same evaluation.
    assert claimed("callbacks.progress=none", checkpoint="moved/checkpoints/best.ckpt") == "evaluation_best"
    assert [claimed(change) for change in reversed(changes)] == beside[::-1]
    # One of several processes, which writes nothing, and claims nothing either.
    assert claimed("seed=1", LOCAL_RANK="1") == "evaluation_best"
    assert len([*tmp_path.iterdir()]) == 6


def test_what_may_be_the_result_of_another_evaluation_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "evaluation_best").mkdir()
    (tmp_path / "evaluation_best" / "evaluation.json").touch()  # of a copy that left hidden files out
    (tmp_path / "evaluation_best_1").mkdir()
    (tmp_path / "evaluation_best_1" / ".claimed").touch()  # of a process that has just begun, or was killed
    assert evaluated(tmp_path) == tmp_path / "evaluation_best_2"


def test_a_peer_of_a_checkpoint_is_not_counted_among_those_of_the_defaults() -> None:
    checks.check(compose("task=evaluate", "checkpoint=of_four_peers.ckpt", "deploy.peer=3"))


# What lies where the config.yaml of a run should, and what is said of it.
ODD = {
    "nothing": ("", "holds no settings"),
    "null": ("null", "holds no settings"),
    "a word": ("word", "holds no settings"),
    "a list": ("[1, 2]", "holds no settings"),
    "torn": ("data: {name: dig", r"line 1: expected ',' or '}'"),
    "a group that is none": ("data: null\nseed: 1", "holds None for data, which has keys of its own"),
    "the environment": ("method: ${oc.env:HOME}", r"method holds '\$\{oc\.env:HOME\}', and no run writes"),
    "the environment, deeper": ("data: {mean: ['${oc.env:HOME}']}", r"data\.mean\.0 holds '\$\{oc\.env:HOME\}'"),
    "an alias of itself": ("a: &x [*x]", "uses YAML aliases"),
    "too deep": ("a: " + "[" * 5000, "cannot be read"),
    "a data set alone": ("data: {name: nope}", "lacks method.name, method.peers, backbone.name, teacher.update"),
    "no root": (
        "{data: {name: nope}, method: {name: pcl, peers: 2}, backbone: {name: resnet8}, teacher: {update: ema}}",
        r"lacks data\.root: it is of another version, or damaged",
    ),
    "half a method": (
        "{data: {name: digits, root: data}, method: {name: pcl, peers: 2, rampup: {scale: 1}}, backbone: {name: "
        "resnet8}, teacher: {update: none}, deploy: {network: teacher, peer: [1]}}",
        r"deploy\.peer must be ",
    ),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("task", ["evaluate", "export", "predict"])
def test_an_odd_config_beside_a_checkpoint_is_one_error(what: str, task: str, tmp_path: Path) -> None:
    text, message = ODD[what]
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    (tmp_path / "config.yaml").write_text(text)
    given = (f"task={task}", f"checkpoint='{checkpoint}'", *(["predict.images=here"] if task == "predict" else []))
    with pytest.raises(DkelError, match=message) as caught:
        check_values(saved_settings.of_checkpoint(saved_values(checkpoint), compose(*given), given, tmp_path), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", [what for what in ODD if what != "half a method"])
def test_an_odd_config_of_a_run_to_resume_is_one_error(what: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(ODD[what][0])
    with pytest.raises(DkelError) as caught:
        saved_settings.resumed(tmp_path, compose(), ["resume=last"])
    assert "\n" not in str(caught.value)


def test_what_a_run_has_written_is_read_as_it_stands(tmp_path: Path) -> None:
    Run(values := compose("method=pcl", "data.root='a - *b'"), tmp_path).describe()
    assert values_in(tmp_path) == values


def test_of_values_that_the_check_stumbles_over_the_file_is_named(tmp_path: Path) -> None:
    values = compose()
    del values["data"]["mean"]
    with pytest.raises(CheckpointError, match=r"config\.yaml is of another version, or damaged \(KeyError: 'mean'"):
        check_values(values, tmp_path)
    with pytest.raises(KeyError):
        check_values(values, None)


def test_evaluation_takes_networks_method_and_data_from_the_run_and_nothing_that_is_run_by_name() -> None:
    saved = compose("experiment=cifar100", "method=pcl")
    saved["optimizer"]["_target_"] = "os.system"
    saved["trainer"]["_target_"] = "os.system"
    given = compose("data.eval_batch_size=7")
    values = saved_settings.of_checkpoint(saved, given, ["data.eval_batch_size=7"], Path())
    assert values["data"]["name"] == "cifar100"
    assert values["data"]["eval_batch_size"] == 7
    assert values["method"]["name"] == "pcl"
    assert values["optimizer"]["_target_"] == "torch.optim.SGD"
    assert values["trainer"]["_target_"] == "lightning.pytorch.Trainer"


def test_resume_of_nothing_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"No checkpoint at gone\.ckpt"):
        find_resume("gone.ckpt")
    with pytest.raises(CheckpointError, match=r"No last\.ckpt of a run under"):
        find_resume("last")
    (tmp_path / "alone.ckpt").touch()
    with pytest.raises(CheckpointError, match=r"its run's config\.yaml should lie at"):
        find_resume("alone.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["trainer.max_epoch=3"], ["method=dkell"], ["seed=abc"], ["-m", "seed=0,x"]])
def test_a_mistake_ends_with_one_message_exit_code_2_and_nothing_written(
    arguments: Sequence[str], tmp_path: Path
) -> None:
    done = dkel(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    assert "HYDRA_FULL_ERROR" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_traceback_is_there_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert "Traceback" in dkel("method=dkell", cwd=tmp_path).stderr


def test_missing_data_ends_with_one_message_exit_code_1_and_no_empty_folder(tmp_path: Path) -> None:
    done = dkel("experiment=own_data", "data.root=nowhere", cwd=tmp_path)
    assert done.returncode == 1
    assert "Error: data.root: nowhere is no folder: name the folder that holds train/<class>/" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.rglob("20*")) == []


def test_help_explains_groups_and_shows_examples(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "of_my_own.yaml").write_text("# @package _global_\nname: mine\n")
    done = dkel("--help", f"--config-dir={tmp_path}")
    assert done.returncode == 0
    for expected in (
        "experiment=cifar100 method=pcl",
        "how peers and teacher learn from each other\n    baseline cl_ilr consistent",
        "hydra/sweeper=optuna 'optimizer.lr=interval(0.01,0.3)'",
        'eval "$(dkel -sc install=bash)"',
        " of_my_own ",
        "temperature: 3.0",
    ):
        assert expected in done.stdout


@pytest.mark.parametrize(
    ("arguments", "unbuffered"), [(["--help"], ""), (["--help"], "1"), (["--version"], ""), (["--cfg", "job"], "1")]
)
def test_output_that_nobody_reads_ends_quietly(
    arguments: list[str], unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "dkel_lightning", *arguments]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_pipe_of_another_kind_is_no_end_of_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise BrokenPipeError(errno.EPIPE, "a tracker has gone")

    monkeypatch.setattr(main, "_main", broken)
    with pytest.raises(BrokenPipeError, match="a tracker has gone"):
        main.main()


@pytest.mark.parametrize(
    ("number", "file", "message"),
    [
        (errno.ENOSPC, "place/x", r"^Could not write place/x \(No space left on device\): free some space\."),
        (errno.ENOSPC, None, r"^Could not write outputs \(No space left on device\): free some space\."),
        (errno.EDQUOT, "x", r"^Could not write x \(Disk quota exceeded\): free some space\."),
        (errno.EROFS, "outputs/x", r"outputs/x \(Read-only .*\): choose another folder with hydra\.run\.dir=PATH\."),
        (errno.EACCES, "place/x", r"/place/x \(Permission denied\): choose another folder\. What was written before"),
    ],
)
def test_what_the_system_refuses_is_named_with_its_cure(number: int, file: str | None, message: str) -> None:
    assert re.search(message, str(refusal(OSError(number, os.strerror(number), file))))


def test_a_file_that_cannot_be_read_is_no_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.F_OK)
    refused = refusal(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "x")))
    assert str(refused) == f"Cannot read {tmp_path / 'x'} (Permission denied): make it readable."


@as_root
def test_of_a_folder_that_may_only_be_read_the_key_that_moves_the_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    with small_disk(tmp_path / "disk", "1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        monkeypatch.chdir(disk)
        for arguments, key in (
            (["seed=1"], "hydra.run.dir"),
            (["-m", "seed=0,1"], "hydra.sweep.dir"),
            (["-m", "seed=0,1", f"hydra.run.dir={tmp_path}/elsewhere"], "hydra.sweep.dir"),
            ([f"hydra.sweep.dir={tmp_path}/elsewhere"], "hydra.run.dir"),
        ):
            with pytest.raises(DkelError, match=rf"Cannot write to {disk}/outputs .*choose one with {key}=PATH"):
                prepare(arguments)
        assert prepare(["seed=1", f"hydra.run.dir={tmp_path}/elsewhere"])
        assert prepare(["-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}/elsewhere"])
        monkeypatch.undo()


@as_root
def test_a_disk_without_room_for_the_folder_of_a_run_is_one_error(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m,nr_inodes=20") as disk:
        (disk / "outputs").mkdir()
        with contextlib.suppress(OSError):
            for number in range(20):
                (disk / str(number)).touch()
        done = dkel("seed=1", cwd=disk)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert done.stderr.startswith("Error: Could not write outputs/")


def test_a_folder_whose_name_hydra_composes_is_not_made_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(["hydra.run.dir='a/b_${name}/c'"])
    prepare(["-m", "seed=0,1", "hydra.sweep.dir='d/${name}'"])
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["a", "d"]


START = """
import resource, sys
from dkel_lightning.app.cli import main as cli
sys.argv = ["dkel", *sys.argv[1:]]
try:
    cli.main()
except SystemExit:
    pass
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = [name for name in ("torch", "lightning", "torchvision", "matplotlib", "scipy", "numpy") if name in sys.modules]
print("heavy:", heavy, "seconds:", used.ru_utime + used.ru_stime)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs the processor time of a process")
@pytest.mark.parametrize("argument", ["--help", "trainer.max_epoch=3", "task=export export.images=0"])
def test_help_and_a_mistake_are_answered_at_once_because_nothing_heavy_is_imported(
    argument: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", START, *argument.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=True)
    heavy, seconds = done.stdout.splitlines()[-1].removeprefix("heavy: ").split(" seconds: ")
    assert heavy == "[]"
    # Processor time, which other programs on the machine do not lengthen: 0.4 to 1.7 s were measured.
    assert float(seconds) < 3


def test_hydras_own_flags_work(tmp_path: Path) -> None:
    done = dkel("--cfg", "job", "--package", "method", "method=pcl", cwd=tmp_path)
    assert done.returncode == 0
    assert "name: pcl" in done.stdout


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("train", "Write task=train in place of train."),
        ("help", "Write --help in place of help."),
        ("--hlep", "Unknown flag --hlep. Did you mean --help?"),
        ("--method=dkel", "Unknown flag --method. Write method=dkel."),
    ],
)
def test_what_is_usual_elsewhere_is_answered_with_what_to_write_here(argument: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}"):
        Invocation.of([argument])


def test_help_explains_every_group_that_there_is() -> None:
    root = choices.folder()
    groups = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_dir()}
    declared = {"method", "teacher", "task"}  # in code
    assert (groups | declared) - {"hydra", "hydra/sweeper/sampler"} == choices.GROUPS.keys()


def test_several_loggers_are_chosen_at_once_and_no_other_group_is() -> None:
    check_arguments(["logger=[tensorboard,csv]"], None, False)
    assert "Unknown choice logger=tensorbord. Did you mean tensorboard?" in refused("logger=[csv,tensorbord]")
    assert "Unknown choice method=" in refused("method=[dkel,pcl]")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("dkel method=p", "method=pcl"),
        ("dkel -m hydra/launcher=job", "hydra/launcher=joblib"),
        ("dkel logger=w", "logger=wandb"),
        ("dkel data.label", "data.label_noise."),
    ],
)
def test_the_shell_completes_groups_and_keys(line: str, offered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    done = dkel("-sc", "query=bash")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, offered, "")


@pytest.mark.parametrize(
    ("group", "name", "text", "chosen", "message"),
    [
        ("method", "dkel", "name: dkel", (), r"method/dkel.yaml would hide what is shipped under its name"),
        ("teacher", "independent", "decay: 0.7", (), r"teacher/independent.yaml would hide"),
        (
            "teacher",
            "mine",
            "decay: 0.7",
            ("teacher=mine",),
            r"no `update`: begin its file",
        ),
        ("method", "mine", "temperature: 6", ("method=mine",), r"no `name`: begin its file with `defaults: .dkel"),
        ("method", "hot", "name: dkel\ntemperature: 6", ("method=hot",), r"no method\.\S+: begin .*dkel"),
    ],
)
def test_a_choice_of_the_users_own_builds_on_a_shipped_one_and_hides_none(
    group: str, name: str, text: str, chosen: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / group).mkdir()
    (tmp_path / group / f"{name}.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        check_arguments(chosen, tmp_path)
