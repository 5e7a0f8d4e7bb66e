"""task=train: fit, then test the last and the best checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from dkel_lightning.app import build, figures
from dkel_lightning.app.callbacks import EpochLines, EpochProgressBar, Throughput
from dkel_lightning.app.callbacks.pictures import AugmentedViews
from dkel_lightning.app.callbacks.saving import (
    BestCheckpoint,
    LastCheckpoint,
    RowBeforeCheckpoint,
    SaveOnSignal,
    SettingsKept,
    ended_by_signals,
)
from dkel_lightning.app.callbacks.stopping import EarlyStopping
from dkel_lightning.app.config import checks, schema
from dkel_lightning.app.config.schema import Values
from dkel_lightning.app.loggers import trackers
from dkel_lightning.app.loggers.metrics_file import MetricsFile
from dkel_lightning.app.runs import members, scores
from dkel_lightning.app.runs.folder import Run, values_in
from dkel_lightning.app.runs.records import RunRecord, Test
from dkel_lightning.app.tasks import stages
from dkel_lightning.callbacks import CollapseGuard, DiversityMonitor
from dkel_lightning.callbacks.label_noise import LabelNoiseFit
from dkel_lightning.checkpoints import file_format
from dkel_lightning.checkpoints.archive import is_whole
from dkel_lightning.data import ClassificationData
from dkel_lightning.data.own import describe_sizes
from dkel_lightning.distillation import DistillationModule
from dkel_lightning.errors import CheckpointError, ConfigError, Interrupted
from dkel_lightning.modules import resume
from dkel_lightning.runtime import locks, memory, ranks
from dkel_lightning.runtime.memory import PeakMemory
from dkel_lightning.runtime.processes import broadcast_from_rank_zero, print_once
from dkel_lightning.runtime.seeding import seed_process


@dataclass(frozen=True)
class TrainResult:
    """What a training gave.

    Attributes:
        folder: where everything lies.
        last: test of the last epoch.
        best: test of the epoch that validation chose; None where no checkpoint was written.
        images_per_second: training throughput, all processes together.
        seconds: wall time of the fit, also before a resume.
        memory: its peak memory.
        deployed_parameters: parameters of the network that is deployed.
    """

    folder: Path
    last: Test
    best: Test | None
    images_per_second: float | None
    seconds: float
    memory: PeakMemory
    deployed_parameters: int

    @property
    def objective(self) -> float:
        """The deployed network's accuracy in the validation that chose it: what a search may maximise.

        Where nothing was validated, its test accuracy.
        """
        return (self.best or self.last).objective


def train(run: Run) -> TrainResult:
    """Train as configured and write the outputs into the run's folder.

    Raises:
        DkelError: with the thing at fault and its cure; the last good checkpoint stays whole.
    """
    with contextlib.ExitStack() as until_the_end:
        if ranks.is_first():  # two runs in one folder would mix their checkpoints and rows
            until_the_end.enter_context(locks.held(run.folder, locks.CLAIM, locks.PATIENCE))
        return _in_stages(run)


def _in_stages(run: Run) -> TrainResult:
    earlier = stages.before(run.values) if run.resume is None else {}
    if not earlier:
        return _train(run)
    for settings in earlier.values():
        checks.check(settings)
    run.describe()  # what is resumed of a stage is this run
    weights: Path | None = None
    for number, (name, settings) in enumerate(earlier.items(), 1):
        teacher = f"the teacher, {settings['backbone']['name']}"
        what = teacher if name == stages.TEACHER else f"{name} on the frozen teacher"
        print_once(f"Stage {number} of {len(earlier) + 1}: {what}")
        folder = run.folder / name
        _train(replace(run, values=settings, folder=folder, resume=stages.last_checkpoint(folder)), weights)
        weights = broadcast_from_rank_zero(stages.trained_weights(folder))
    print_once(f"Stage {len(earlier) + 1} of {len(earlier) + 1}: the student, {run.values['backbone']['name']}")
    return _train(run, weights)


def _train(run: Run, weights: Path | None = None) -> TrainResult:
    """Train one stage; begin with `weights`, what the one before has given, else with what the settings say."""
    # Processes that torchrun starts may have other folders: all go on from what the first one sees.
    run = replace(run, resume=broadcast_from_rank_zero(run.resume))
    values = run.values
    step: int | None = None
    if run.resume is not None:
        checkpoint = file_format.load(run.resume)
        kept = checkpoint.get("callbacks", {}).get(SettingsKept.__name__, {})
        refuse_edited(run, kept.get("text", ""))  # here, before anything is prepared
        step, holds_teacher = int(checkpoint["global_step"]), resume.holds_teacher(checkpoint["state_dict"])
        del checkpoint  # Lightning loads it again, on the device
    images = prepared(values)
    # What was found in the images belongs to the run: an evaluation must not compute it anew.
    run = replace(run, values={**values, "data": {**values["data"], **_constants(images)}})
    begun = values
    if run.resume is not None:
        begun = stages.with_weights(values, None)  # they are in the checkpoint, but for a teacher from elsewhere
        begun |= {} if holds_teacher else {"teacher": values["teacher"]}
    elif weights is not None:
        begun = stages.with_weights(values, weights)
    module = build.distillation(begun, images)
    _check_monitor(values["callbacks"]["monitor"], module)
    throughput, last_checkpoint = Throughput(), _last_checkpoint(run)
    logger = MetricsFile(run.folder / "metrics.csv", step)
    others = trackers.configured(run, step)
    trainer = build.trainer(
        values,
        loggers=[logger, *others.values()],
        callbacks=[
            throughput,
            *usual_callbacks(run, throughput),
            *_pictures(run, others),
            *_checkpoints(run, logger, last_checkpoint),
        ],
        plugins=[file_format.AtomicCheckpointIO()],
    )
    run.describe()
    run.note_execution({**asdict(module.execution), "precision": trainer.precision})
    run.write_json("classes.json", {"classes": list(images.class_names)})
    print_once(_opening(run, module, images))
    with interruptible(run), trackers.opened(others, run):
        device = trainer.strategy.root_device
        memory.begin(device)
        # Dropout and a user's transforms draw from the global generators; a resume puts them where they were.
        seed_process(values["seed"], "training", trainer.global_rank)
        with build.trainer_settings_named():
            trainer.fit(module, images, ckpt_path=run.resume, weights_only=True)
        where = {"precision": trainer.precision, "images": getattr(images, "chosen_residency", "own")}
        run.note_execution({**asdict(module.execution), **where})
        # Processes that torchrun starts have folders of their own names: what lies there is asked of the first.
        if last_checkpoint is not None and broadcast_from_rank_zero(_is_behind(last_checkpoint.path, trainer)):
            # Killed after the last epoch's best.ckpt, before its last.ckpt or with a torn one; resumed from the former.
            last_checkpoint.save(trainer)
        seconds, peak = throughput.seconds, memory.peak(device)
        there = RunRecord(run.folder)
        # A run that was made longer has figures of its first end.
        told = there.whole and there.last is not None and there.last.epoch == trainer.current_epoch
        complete = run.resume is not None and throughput.measured == 0 and told
        if complete:
            print_once(
                f"The run was complete already; nothing was trained, and the figures in {run.folder} stay as they are."
            )

        trainer.loggers = []  # what Lightning logs of a test does not say which checkpoint was tested
        last = scores.test(trainer, module, images, trainer.current_epoch)
        best = _test_best(trainer, module, images)
        if not complete:
            _tell_tests(run, others, module, images, last, best)
        deployed = sum(parameter.numel() for parameter in module.deploy().parameters())
        result = TrainResult(run.folder, last, best, throughput.images_per_second, seconds, peak, deployed)
        _report(run, result, keep=complete)
        return result


MOVES = ("callbacks.extra", "modules")


def refuse_edited(run: Run, text: str) -> None:
    """Refuse to go on where config.yaml says what the run was not begun with: its records would be wrong.

    Args:
        run: that goes on.
        text: of config.yaml, as its checkpoint has it; empty of a process that does not see the folder.

    Raises:
        CheckpointError: it was edited.
    """
    path = run.folder / "config.yaml"
    if not text or not path.is_file():
        return
    given: Any = OmegaConf.to_container(OmegaConf.create(text))
    begun, now = dict(schema.leaves(given)), dict(schema.leaves(values_in(run.folder)))
    for key in [*begun, *(now.keys() - begun.keys())]:
        before, after = begun.get(key), now.get(key)
        # Callbacks of a user's own are code, which moves; and a run that was made longer has had it written there.
        may = schema.may_change(key) or schema.lengthens(key, before, after) or key.startswith(MOVES)
        if before != after and not may:
            raise CheckpointError(
                f"{path} has been edited since the run began ({key}: {after}, and it was {before}): "
                "put it back, or begin another run."
            )


def _constants(images: ClassificationData) -> dict[str, Any]:
    normalize = images.normalize
    return {} if normalize is None else {"mean": list(normalize.mean), "std": list(normalize.std)}


def prepared(values: Values) -> ClassificationData:
    """Build the data module, prepare its files and read it; processes of one machine take turns."""
    images = build.datamodule(values)
    if type(images).prepare_data is not LightningDataModule.prepare_data:
        place = str(Path(values["data"]["root"] or values["data"]["name"]).expanduser().resolve())
        # Not beside the data, which may lie where nothing can be written.
        key = hashlib.sha256(place.encode()).hexdigest()[:16]
        with locks.taking_turns(locks.own_folder(), f"{key}.lock", f"the data {place}"):
            images.prepare_data()
    return build.set_up(images, values)


@contextlib.contextmanager
def interruptible(run: Run) -> Iterator[None]:
    """End on signals before, in and after the training, and say how to go on."""
    try:
        with ended_by_signals():
            yield
    except (KeyboardInterrupt, SystemExit) as stop:
        why = "Interrupted"
        if isinstance(stop, Interrupted):
            why = f"Stopped by {stop.signal}{'' if stop.step is None else f' after step {stop.step}, and saved'}"
        if not run.part:
            print_once(f"{why}. Go on with: {stages.go_on(run)}")
        raise


def _pictures(run: Run, loggers: trackers.Loggers) -> list[Callback]:
    if run.values["trainer"]["fast_dev_run"]:
        return []
    data = run.values["data"]
    if data["mean"] is None:
        return []  # of a data module that does not say how its images become pictures
    send = partial(trackers.log_picture, loggers, "views")
    return [AugmentedViews(run.folder / "figures" / "views.png", data["mean"], data["std"], send)]


@rank_zero_only
def _tell_tests(
    run: Run,
    loggers: trackers.Loggers,
    module: DistillationModule,
    images: ClassificationData,
    last: Test,
    best: Test | None,
) -> None:
    """Write the confusion matrix, and send it and the final scores to the loggers."""
    step = module.trainer.global_step
    figure = scores.write_confusion(module, images.class_names, run.folder, run.values["figures"]["also"])
    if figure is not None:
        trackers.log_picture(loggers, "confusion", figure, step)
    trackers.log_tests(loggers, run.values, last.logged("test/last") | (best.logged("test/best") if best else {}), step)


def _check_monitor(monitor: str, module: DistillationModule) -> None:
    known = ["val/acc", *(f"val/{kind}/{name}" for kind in ("acc", "nll") for name in module.scores.names)]
    if monitor not in known:
        raise ConfigError(f"callbacks.monitor is {monitor!r}: choose one of {', '.join(known)}.")


def usual_callbacks(run: Run, throughput: Throughput | None = None) -> list[Callback]:
    """Make what watches and shows every training; checkpoints are apart."""
    settings = run.values["callbacks"]
    found: list[Callback] = [
        CollapseGuard(
            settings["on_collapse"],
            grace=settings["collapse_grace"],
            validations=settings["collapse_validations"],
        ),
        DiversityMonitor(settings["diversity"]),
    ]
    if run.values["data"].get("label_noise", {}).get("kind", "none") != "none":
        found.append(LabelNoiseFit())
    if settings["early_stopping"] is not None:
        found.append(
            EarlyStopping(settings["monitor"], mode=_mode(settings["monitor"]), patience=settings["early_stopping"])
        )
    progress = settings["progress"]
    if progress == "auto":
        progress = "bar" if sys.stdout.isatty() or "ipykernel" in sys.modules else "lines"
    if progress == "bar":
        found.append(EpochProgressBar())
    elif progress == "lines":
        found.append(EpochLines(throughput))
    return found


def _last_checkpoint(run: Run) -> LastCheckpoint | None:
    if run.values["trainer"]["fast_dev_run"]:
        return None
    settings = run.values["callbacks"]
    return LastCheckpoint(
        run.checkpoints / "last.ckpt", settings["checkpoint_every_n_epochs"], settings["checkpoint_every_n_steps"]
    )


def _checkpoints(run: Run, rows: MetricsFile, last: LastCheckpoint | None) -> list[Callback]:
    """Make what writes checkpoints, in the order in which it must run at the end of an epoch."""
    if last is None:
        return []
    monitor = run.values["callbacks"]["monitor"]
    best = BestCheckpoint(
        run.checkpoints,
        filename="best",
        monitor=monitor,
        mode=_mode(monitor),
        save_top_k=1,
        # At the end of the epoch rather than of validation: what the epoch logged is then in the checkpoint.
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    # The last one comes last, so that it knows which epoch was the best.
    return [SaveOnSignal(last), SettingsKept(run.folder / "config.yaml"), RowBeforeCheckpoint(rows), best, last]


def _mode(monitor: str) -> str:
    return "min" if "/nll/" in monitor else "max"


def _is_behind(path: Path, trainer: Trainer) -> bool:
    if not path.is_file():
        return False
    # A torn one, which the resumed run has stepped over, is not worth more than none.
    return not is_whole(path) or int(file_format.load(path)["global_step"]) < trainer.global_step


def _test_best(trainer: Trainer, module: DistillationModule, images: ClassificationData) -> Test | None:
    kept = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    # Processes that torchrun starts may have named folders of their own; only the first one writes.
    path = broadcast_from_rank_zero(kept[0].best_model_path if kept else "")
    if not path:
        return None
    checkpoint = file_format.load(path, module.device)
    resume.load(module, checkpoint, path)
    return scores.test(trainer, module, images, int(checkpoint["epoch"]) + 1)


def _overflow(column: str, tested: Test) -> str:
    return (
        f"in the test of the {column} the outputs of {', '.join(tested.without_number)} overflow, and likelihood and "
        "calibration are no numbers: lower optimizer.lr, or clip gradients (trainer.gradient_clip_val=1)."
    )


@rank_zero_only
def _report(run: Run, result: TrainResult, *, keep: bool) -> None:
    values = run.values
    columns = {f"last epoch ({result.last.epoch})": result.last}
    if result.best is not None:
        columns[f"best epoch ({result.best.epoch})"] = result.best
    summary: dict[str, Any] = {
        "experiment": values["name"],
        "data": values["data"]["name"],
        "method": values["method"]["name"],
        "backbone": values["backbone"]["name"],
        "peers": values["method"]["peers"],
        "seed": values["seed"],
        "selection": values["data"]["selection"],
        "test": {"last": asdict(result.last), "best": asdict(result.best) if result.best is not None else None},
        "images_per_second": result.images_per_second,
        "seconds": result.seconds,
        "peak_memory": asdict(result.memory),
        "deployed_parameters": result.deployed_parameters,
    }
    stages_before = [RunRecord(run.folder / name) for name in stages.folders_before(values)]
    if stages_before:
        summary["seconds_before"] = sum(record.figure("seconds") or 0.0 for record in stages_before)
    warnings = [_overflow(column, tested) for column, tested in columns.items() if tested.without_number]
    if warnings:
        summary["warnings"] = warnings
        print("\n".join(f"Warning: {warning}" for warning in warnings))
    note = _note(values, result)
    if not run.part:
        scores.show(columns, f"Test accuracy, {values['method']['name']} on {values['data']['name']}", note)
    if not keep:
        run.write_json("summary.json", summary)
    title = (
        f"{values['method']['name']} on {values['data']['name']}, {values['backbone']['name']}, seed {values['seed']}"
    )
    curves = RunRecord(run.folder).curves
    figures.draw_curves(curves, run.folder / "figures" / "curves.png", title, values["figures"]["also"])
    speed = f", {result.images_per_second:,.0f} training images/s" if result.images_per_second else ""
    there = [
        item
        for item in ("summary.json", "metrics.csv", "confusion.csv", "figures", "checkpoints")
        if (run.folder / item).exists()
    ]
    print(f"{result.seconds:.0f} s{speed}. Outputs in {run.folder}: {', '.join(there)}")


def _note(values: Values, result: TrainResult) -> str:
    """Say what is deployed and what chose it."""
    tested = f"{result.last.images} test images."
    if not result.last.validated:
        return f"* deployed. Nothing was validated, so nothing chose an epoch or a peer. {tested}"
    where = "the test set itself" if values["data"]["selection"] == "paper" else "a held-out part of the training set"
    if "_target_" in values["data"]:
        where = "the validation images of the data module"
    what = "Epoch and network were" if result.last.was_chosen else "The network was set beforehand, the epoch was"
    shown = result.best or result.last
    return f"* deployed. {what} chosen on {where}. {tested}{_passed_over(shown)}"


def _passed_over(tested: Test) -> str:
    """Say that the network that the method itself deploys would be worse, and by how much."""
    if tested.passed_over is None or tested.validation_accuracy is None:
        return ""
    own = tested.passed_over
    return (
        f"\n{members.described(tested.deployed).capitalize()} had {tested.validation_accuracy:.1%} in validation, "
        f"and {members.described(own['network'])}, which the method itself deploys, {own['validation_accuracy']:.1%}."
    )


def _opening(run: Run, module: DistillationModule, images: ClassificationData) -> str:
    values = run.values
    lines = [f"Warning: {warning}" for warning in checks.warnings(values)]
    channels, height, width = images.image_shape
    size = sum(parameter.numel() for parameter in module.student.peer(0).parameters())
    lines.append(
        f"{values['method']['name']}: {_peers(values)} "
        f"({size:,} parameters each) on {values['data']['name']} "
        f"({describe_sizes(images)} images of "
        f"{channels}x{height}x{width}, {images.num_classes} classes)"
    )
    if values["precision"]["name"] == "auto":
        lines.append(f"precision: {build.precision(values)}")
    return "\n".join(lines)


def _peers(values: Values) -> str:
    peers = values["method"]["peers"]
    if not isinstance(peers, int):
        return f"peers {', '.join(peers)}"
    return f"{peers} peer{'' if peers == 1 else 's'} of {values['backbone']['name']}"
