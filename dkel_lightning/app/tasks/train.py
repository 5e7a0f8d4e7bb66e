"""task=train: fit, then test the last and the best checkpoint."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from dkel_lightning.app import build, figures, scores
from dkel_lightning.app.callbacks import (
    AugmentedViews,
    BestCheckpoint,
    EarlyStopping,
    EpochLines,
    EpochProgressBar,
    LastCheckpoint,
    MetricsRow,
    SaveOnSignal,
    SettingsHash,
    Throughput,
)
from dkel_lightning.app.config import Values
from dkel_lightning.app.loggers import MetricsFile, build_loggers
from dkel_lightning.app.records import METRICS, SUMMARY, CheckpointScores, RunRecord
from dkel_lightning.app.run import Run, best_checkpoint, find_checkpoint, is_finished
from dkel_lightning.app.saved import settings_hash
from dkel_lightning.app.tasks.stages import stage_names, stages_before, with_weights
from dkel_lightning.callbacks import CollapseGuard, DiversityMonitor
from dkel_lightning.callbacks.label_noise import LabelNoiseFit
from dkel_lightning.checkpoints import file_format
from dkel_lightning.checkpoints.file_format import AtomicCheckpointIO, is_whole, load
from dkel_lightning.data import ClassificationData
from dkel_lightning.data.own import describe_sizes, size
from dkel_lightning.distillation import DistillationModule
from dkel_lightning.errors import CheckpointError, ConfigError, Interrupted
from dkel_lightning.modules import checkpoint_state
from dkel_lightning.runtime import memory, provenance
from dkel_lightning.runtime.mappings import merge
from dkel_lightning.runtime.processes import broadcast_from_rank_zero, print_once
from dkel_lightning.runtime.seeding import seed_process
from dkel_lightning.settings.callbacks import CallbackSettings
from dkel_lightning.settings.declarations import from_mapping


def train(run: Run) -> RunRecord:
    """Train stage by stage, and write the outputs into the run's folder."""
    # Before the stages, so that a teacher is trained on the images that it sees beside its student.
    constants = build.pretrained_normalisation(run.values).items()
    data = {key: value for key, value in constants if key in run.values["data"]}
    run = replace(run, values=merge(run.values, {"data": data}))
    stages = stages_before(run.values)
    if stages:
        run.write_config()
    weights: Path | None = None
    try:
        for number, (name, values) in enumerate(stages.items(), 1):
            folder = run.folder / name
            if not broadcast_from_rank_zero(is_finished(folder)):
                network = values["backbone"]["name"]
                print_once(f"Stage {number} of {len(stages) + 1}: {network} by {values['method']['name']}")
                _train(replace(run, values=values, folder=folder, resume=find_checkpoint(folder)), weights)
            weights = broadcast_from_rank_zero(best_checkpoint(folder))
        _train(run, weights)
    except (KeyboardInterrupt, Interrupted):
        print_once(f"Interrupted. Resume with: dkel resume={run.folder}")
        raise
    return RunRecord(run.folder)


def _train(run: Run, weights: Path | None = None) -> None:
    """Train one stage, from the teacher's `weights` of the previous stage where there is one."""
    # The folders of torchrun's processes may differ by the time in their names.
    run = replace(run, resume=broadcast_from_rank_zero(run.resume))
    values, step = run.values, None
    settings = from_mapping(CallbackSettings, values["callbacks"], "callbacks")
    if run.resume is not None:
        checkpoint = load(run.resume, mmap=True)
        _check_unedited(run, checkpoint)
        step = int(checkpoint["global_step"])
        values = _without_initial_weights(values, checkpoint, run.resume)
        del checkpoint  # releases the mapped file, which the next checkpoint replaces
    datamodule = prepare_data(run.values)
    if datamodule.normalize is not None:  # an evaluation must not compute it again
        constants = {"mean": list(datamodule.normalize.mean), "std": list(datamodule.normalize.std)}
        run = replace(run, values=merge(run.values, {"data": constants}))
    module = build.distillation(values if weights is None else with_weights(values, weights), datamodule)
    _check_monitor(settings.monitor, module)
    logger = MetricsFile(run.folder / METRICS, step)
    loggers = build_loggers(run, step)
    every = (settings.checkpoint_every_n_epochs, settings.checkpoint_every_n_steps)
    last_checkpoint = LastCheckpoint(run.checkpoints / "last.ckpt", *every)
    throughput = Throughput()
    trainer = build.trainer(
        values,
        loggers=[logger, *loggers],
        callbacks=[
            throughput,
            *_callbacks(run, settings, throughput),
            *_checkpoint_callbacks(run, settings.monitor, logger, last_checkpoint, datamodule),
        ],
        plugins=[AtomicCheckpointIO()],
    )
    run.write_config()
    name = "provenance.json" if run.resume is None else "provenance_resumed.json"
    run.write_json(
        name,
        {
            **provenance.collect(trainer.strategy.root_device),
            "execution": dict(values["execution"]),
            "precision": trainer.precision,
        },
    )
    run.write_json("classes.json", {"classes": list(datamodule.class_names)})
    if broken := dict(getattr(datamodule, "broken", {})):
        run.write_json("broken_images.json", broken)
        print_once(f"Left out {len(broken)} images that cannot be read: {run.folder / 'broken_images.json'}")
    print_once(_heading(values, module, datamodule))
    # Dropout and a user's transforms draw from the global generators; a resume restores their states.
    seed_process(values["seed"], "training", trainer.global_rank)
    memory.begin(trainer.strategy.root_device)
    trainer.fit(module, datamodule, ckpt_path=run.resume, weights_only=True)
    if broadcast_from_rank_zero(_is_behind(last_checkpoint.path, trainer)):
        # Killed after the last epoch's best.ckpt and before its last.ckpt; resumed from the former.
        last_checkpoint.save(trainer)
    cost: dict[str, Any] = {
        "images_per_second": throughput.images_per_second,
        "seconds": throughput.seconds,
        "peak_memory": asdict(memory.peak(trainer.strategy.root_device)),
        "deployed_parameters": sum(parameter.numel() for parameter in module.deploy().parameters()),
    }
    trainer.loggers = []  # what Lightning logs of a test does not say which checkpoint was tested
    last = scores.test(trainer, module, datamodule, trainer.current_epoch)
    best = _test_best(trainer, module, datamodule, run)
    _report(run, last, best, cost, module, datamodule, loggers)


def _without_initial_weights(values: Values, checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return settings that read no initial weights: those of the checkpoint replace them."""
    lr_scale = file_format.recipe(checkpoint, path).get("lr_scale")
    changed: dict[str, Any] = {"backbone": {"weights": None, "pretrained": False, "lr_scale": lr_scale}}
    if "weights" in values["teacher"] and checkpoint_state.holds_teacher(checkpoint["state_dict"]):
        changed["teacher"] = {"weights": None}
    return merge(values, changed)


def _check_unedited(run: Run, checkpoint: Mapping[str, Any]) -> None:
    """Refuse settings that were edited since the run started."""
    saved_hash = checkpoint.get("callbacks", {}).get(SettingsHash.__name__, {}).get("hash")
    if saved_hash not in (None, settings_hash(run.values)):
        raise CheckpointError(
            f"{run.folder / 'config.yaml'} has been edited since {run.resume} was written: restore it, or start "
            "a new run."
        )


def prepare_data(values: Values) -> ClassificationData:
    """Build and set up the data module; one process at a time downloads and decodes."""
    datamodule = build.datamodule(values)
    if type(datamodule).prepare_data is not LightningDataModule.prepare_data:
        root = Path(values["data"].get("root") or ".").expanduser()
        with FileLock(_data_lock(root)):
            datamodule.prepare_data()
    return build.set_up(datamodule, values)


def _data_lock(root: Path) -> Path:
    """Return this user's lock file for a data root, in the temporary folder, since the root may be read-only."""
    digest = hashlib.sha256(f"{Path.home()}:{root.resolve()}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"dkel_{digest}.lock"


def _callbacks(run: Run, settings: CallbackSettings, throughput: Throughput) -> list[Callback]:
    """Build the monitoring and progress callbacks."""
    data = run.values["data"]
    callbacks: list[Callback] = [CollapseGuard(settings.on_collapse), DiversityMonitor(settings.diversity)]
    if data.get("label_noise", {}).get("rate", 0) > 0:
        callbacks.append(LabelNoiseFit())
    if settings.early_stopping is not None:
        patience, mode = settings.early_stopping, _mode(settings.monitor)
        callbacks.append(EarlyStopping(settings.monitor, mode=mode, patience=patience))
    progress = settings.progress
    if progress == "auto":
        progress = "bar" if sys.stdout.isatty() or "ipykernel" in sys.modules else "lines"
    if progress == "bar":
        bar = EpochProgressBar()
        callbacks += [EpochLines(throughput, bar), bar]  # the last line must be printed before the bar closes
    elif progress == "lines":
        callbacks.append(EpochLines(throughput))
    if data.get("mean") is not None:
        callbacks.append(AugmentedViews(run.folder / "figures" / "views.png", data["mean"], data["std"]))
    return callbacks


def _checkpoint_callbacks(
    run: Run, monitor: str, rows: MetricsFile, last: LastCheckpoint, data: ClassificationData
) -> list[Callback]:
    """Build the callbacks that write checkpoints, in the order in which they must run."""
    chance = "nll" not in monitor and run.values["data"].get("selection") != "paper"  # papers take the very best epoch
    best = BestCheckpoint(
        run.checkpoints,
        images=size(data, "val") if chance else None,
        filename="best",
        monitor=monitor,
        mode=_mode(monitor),
        save_top_k=1,
        # After the epoch rather than after validation, so that the checkpoint holds the epoch's metrics.
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    # last.ckpt comes last, so that it holds the state of best.ckpt.
    return [SaveOnSignal(last), SettingsHash(settings_hash(run.values)), MetricsRow(rows), best, last]


def _check_monitor(monitor: str, module: DistillationModule) -> None:
    known = ["val/acc", *(f"val/{kind}/{name}" for kind in ("acc", "nll") for name in module.scores.names)]
    if monitor not in known:
        raise ConfigError(f"callbacks.monitor is {monitor!r}: choose one of {', '.join(known)}.")


def _mode(monitor: str) -> str:
    return "min" if "nll" in monitor else "max"


def _is_behind(path: Path, trainer: Trainer) -> bool:
    return path.is_file() and (not is_whole(path) or load(path, mmap=True)["global_step"] < trainer.global_step)


def _test_best(
    trainer: Trainer, module: DistillationModule, data: ClassificationData, run: Run
) -> CheckpointScores | None:
    path = broadcast_from_rank_zero(run.checkpoints / "best.ckpt")
    if not broadcast_from_rank_zero(path.is_file()):
        return None
    checkpoint = load(path, module.device)
    checkpoint_state.load(module, checkpoint)
    return scores.test(trainer, module, data, int(checkpoint["epoch"]) + 1)


# ---------------------------------------------------------------------- console output and results


def _heading(values: Values, module: DistillationModule, data: ClassificationData) -> str:
    peers = values["method"]["peers"]
    backbone = values["backbone"]["name"]
    what = f"{peers} x {backbone}" if isinstance(peers, int) else ", ".join(peers)
    channels, height, width = data.image_shape
    count = sum(parameter.numel() for parameter in module.student.peer(0).parameters())
    heading = (
        f"{values['method']['name']}: {what} ({count:,} parameters each) on {values['data']['name']} "
        f"({describe_sizes(data)} images of {channels}x{height}x{width}, {data.num_classes} classes)"
    )
    if values["data"].get("selection") == "paper":
        return f"Warning: data.selection=paper selects epoch and peer on the test set: for comparison only.\n{heading}"
    return heading


@rank_zero_only
def _report(
    run: Run,
    last: CheckpointScores,
    best: CheckpointScores | None,
    cost: dict[str, Any],
    module: DistillationModule,
    data: ClassificationData,
    loggers: list[Logger],
) -> None:
    """Write summary.json, the curves and the confusion matrix, and print the closing table."""
    values = run.values
    tests = {f"last epoch ({last.epoch})": last}
    if best is not None:
        tests[f"best epoch ({best.epoch})"] = best
    summary: dict[str, Any] = {
        "experiment": values["name"],
        "data": values["data"]["name"],
        "method": values["method"]["name"],
        "backbone": values["backbone"]["name"],
        "peers": values["method"]["peers"],
        "seed": values["seed"],
        "selection": values["data"].get("selection"),
        "test": {"last": asdict(last), "best": asdict(best) if best is not None else None},
        **cost,
    }
    stages = [RunRecord(run.folder / name) for name in stage_names(values)]
    if stages:
        summary["seconds_before"] = sum(stage.seconds or 0.0 for stage in stages)
    title = f"{values['method']['name']} on {values['data']['name']}"
    scores.print_scores(tests, f"Test accuracy, {title}", _note(values, last, best or last))
    for column, test in tests.items():
        if test.overflowing:
            print(f"Warning: {column}: outputs of {', '.join(test.overflowing)} overflow: lower optimizer.lr.")
    if module.scores.tested_confusion is not None:
        scores.write_confusion(module.scores.tested_confusion.tolist(), data.class_names, run.folder)
    heading = f"{title}, {values['backbone']['name']}, seed {values['seed']}"
    figures.draw_curves(RunRecord(run.folder).curves, run.folder / "figures" / "curves.png", heading)
    final = {f"final/{name}/acc": test.deployed_accuracy for name, test in {"last": last, "best": best}.items() if test}
    for logger in loggers:
        logger.log_metrics(final, module.trainer.global_step)
        logger.finalize("success")
    run.write_json(SUMMARY, summary)  # last, since it marks the run as finished
    speed = f", {cost['images_per_second']:,.0f} training images/s" if cost["images_per_second"] else ""
    print(f"{cost['seconds']:.0f} s{speed}. Outputs in {run.folder}")


def _note(values: Values, last: CheckpointScores, selected: CheckpointScores) -> str:
    """Explain how the deployed network was selected."""
    images = f"{last.images} test images."
    if not last.validated:
        return f"* deployed. Without validation, no epoch or peer was selected. {images}"
    where = "the test set itself" if values["data"].get("selection") == "paper" else "validation images"
    what = "Epoch and network were" if last.was_chosen else "The epoch was"
    note = f"* deployed. {what} selected on {where}. {images}"
    if selected.passed_over is None or selected.validation_accuracy is None:
        return note
    other = selected.passed_over
    return (
        f"{note}\n{scores.describe(selected.deployed).capitalize()} had {selected.validation_accuracy:.1%} in "
        f"validation, and {scores.describe(other['network'])}, the default of the method, "
        f"{other['validation_accuracy']:.1%}."
    )
