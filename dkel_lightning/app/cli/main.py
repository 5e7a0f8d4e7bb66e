"""The command line: `python -m dkel_lightning` and `dkel`. Torch is imported only when a run begins."""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import itertools
import json
import math
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dkel_lightning import __version__
from dkel_lightning.app.compare import plan
from dkel_lightning.app.config import checks, choices, extras, messages, schema, store
from dkel_lightning.app.config.nodes.tasks import ANALYSES, TASKS
from dkel_lightning.errors import FULL, CheckpointError, ConfigError, DiskFullError, DkelError, OtherJobError
from dkel_lightning.runtime import command_lines, failures, locks, ranks, unread_output
from dkel_lightning.runtime.locks import CLAIM
from dkel_lightning.settings.keys import shortened

FLAGS_WITH_VALUE = ["--config-dir", "-cd", "--package", "-p", "--info", "-i", "--cfg", "-c"]
FLAGS_WITH_VALUE += ["--config-name", "-cn", "--config-path", "-cp", "--experimental-rerun"]
UNCHECKED_FLAGS = ("--hydra-help", "--shell-completion", "-sc", "--info", "-i")
SHOWING_FLAGS = ("--help", "-h", "--cfg", "-c")

# What Lightning's Trainer takes and this library decides.
DECIDED = ["logger", "callbacks", "plugins", "precision", "use_distributed_sampler", "default_root_dir"]
DECIDED += ["enable_progress_bar", "enable_model_summary", "enable_checkpointing", "inference_mode", "barebones"]
# Groups of which several choices can be made at once: logger=[tensorboard,wandb].
SEVERAL = ("logger",)
# With it Hydra raises errors, which it would print as a traceback and exit; users set it to see that.
TRACEBACK = "HYDRA_FULL_ERROR"
# Failures of the jobs of a sweep: the others go on, and the sweep ends with their number.
_failed: list[str] = []


def main() -> Any:
    """Run the command line; on a mistake print one message and exit with 2 (configuration) or 1 (anything else).

    Where nobody reads what is printed any more it ends without a word, as other programs do.
    """
    try:
        result = _main()
    except BrokenPipeError as error:
        unread_output.end_if_unread(error)
        raise
    except SystemExit as end:
        unread = unread_output.is_unread()
        if (unread and not end.code) or isinstance(end.__context__, BrokenPipeError):  # rich ends with 1
            raise SystemExit(unread_output.UNREAD) from None
        raise
    if unread_output.is_unread():
        raise SystemExit(unread_output.UNREAD)
    return result


def _main() -> Any:
    arguments = sys.argv[1:]
    if "--version" in arguments:
        print(f"dkel_lightning {__version__}")
        return None
    failed: list[str] = []
    lost = False
    try:
        prefer_own_presets(_config_dir(arguments))
        if not any(flag in arguments for flag in UNCHECKED_FLAGS):
            sys.argv[1:] = prepare(arguments)
        with _hydra_raising(arguments):
            hydra.main(config_path=str(choices.folder()), config_name="config", version_base="1.3")(run)()
    except DkelError as error:
        fail(error)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"Error: {_refused(error)}", file=sys.stderr)
        lost = True
    except Exception as error:
        message = _told_of_jobs(error)
        if message is None:
            raise
        print(f"Error: {message}", file=sys.stderr)
        lost = True
    finally:
        numbers, tabled = _end_sweep()
        failed, lost = failed + numbers, lost or not tabled
    # Jobs that other processes ran have only noted it in their folders.
    failed += [number for number in _failed if number not in failed]
    if failed:
        print(f"Error: {len(failed)} jobs of the sweep failed: {', '.join(failed)}.", file=sys.stderr)
    if failed or lost:
        raise SystemExit(1)


@contextlib.contextmanager
def _hydra_raising(arguments: Sequence[str]) -> Iterator[None]:
    """Have Hydra raise what it fails of while it shows something, and take back what SweepFolder sets for sweeps."""
    before = os.environ.get(TRACEBACK)
    if _shows(arguments):
        os.environ.setdefault(TRACEBACK, "1")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(TRACEBACK, None)


def _shows(arguments: Sequence[str]) -> bool:
    return any(argument.split("=")[0] in (*SHOWING_FLAGS, *UNCHECKED_FLAGS) for argument in arguments)


def _told_of_jobs(error: Exception) -> str | None:
    """Say what a launcher or sweeper means that has lost a job, or has none, or what Hydra itself says."""
    if _shows(sys.argv[1:]) and isinstance(error, CompactHydraException):
        return str(error)
    if not _sweep_folder:
        return None
    if type(error).__module__.split(".")[0] in ("submitit", "joblib", "concurrent"):
        return f"A job of the sweep has ended without a result: {error}"
    if "No trials are completed" in str(error):
        return "No trial of the search has finished."
    return str(error) if isinstance(error, CompactHydraException) else None


def prefer_own_presets(config_dir: Path | None = None) -> None:
    """Declare our own nodes, and let conf/hydra stand for what Hydra's plugins bring under the same names.

    Their defaults are not ours: Optuna's sweeper would minimise the accuracy, unseeded.
    """
    Plugins.instance()  # registers theirs
    store.register(config_dir)
    for group in ("hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler"):
        there: Any = ConfigStore.instance().repo
        for part in group.split("/"):
            there = there.get(part, {})
        for path in (choices.folder() / group).glob("*.yaml"):
            there.pop(path.name, None)


class SweepFolder(Callback):
    """Take the folder of a sweep, whatever launcher runs its jobs; make that of a single run."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Take the folder that Hydra has composed, which fills in the time, or one beside it."""
        _sweep_folder[:] = [Path(config.hydra.sweep.dir)]
        try:
            _sweep_folder[:] = [_claim_sweep(config.hydra)]
        except (DkelError, OSError) as error:
            refusal = error if isinstance(error, DkelError) else _refused(error)
            _sweep_folder.clear()  # what lies there is another's
            _end(refusal)
        os.environ.setdefault(TRACEBACK, "1")

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Make the folder before Hydra does, which ends with a traceback where it cannot."""
        try:
            Path(config.hydra.run.dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _end(_refused(error))


_sweep_folder: list[Path] = []


def _end(error: DkelError) -> NoReturn:
    """Fail in a callback, of whose exceptions Hydra makes warnings."""
    if os.environ.get(TRACEBACK) != "1":
        fail(error)
    traceback.print_exception(error)
    raise SystemExit(error.exit_code)


def _claim_sweep(own: DictConfig) -> Path:
    """Take a folder for this sweep alone: two that start in the same second must not mix their jobs.

    A folder that was named is gone on with. The jobs compose anew, in whatever process, and learn of any other by an
    override.

    Raises:
        DkelError: another process works on it.
    """
    folder = Path(own.sweep.dir)
    if ranks.is_one_of_several():
        return folder
    if _names(own, "hydra.sweep.dir"):
        _hold_sweep(folder)
        _take_refusals(folder)
        return folder
    folder = _unclaimed(folder)
    _hold_sweep(folder)
    own.sweep.dir = str(folder)
    own.overrides.hydra.append(command_lines.override("++hydra.sweep.dir", folder))  # with ++ it is not the user's
    return folder


def _names(own: Any, key: str) -> bool:
    """Tell whether a key of Hydra's own, such as the folder, was given on the command line."""
    return any(item.startswith(f"{key}=") for item in own.overrides.hydra)


REFUSED = ".refused_"
"""Begins the name of the file by which a job, in whatever process, tells that its folder is another's."""


def _take_refusals(folder: Path) -> list[str]:
    """Give the numbers of the jobs that were refused, and remove their files."""
    found = sorted(folder.glob(f"{REFUSED}*"), key=lambda path: (len(path.name), path.name))
    with contextlib.suppress(OSError):
        for path in found:
            path.unlink()
    return [path.name.removeprefix(REFUSED) for path in found]


def _end_sweep() -> tuple[list[str], bool]:
    """Write the tables of a sweep that has ended, also of one that was interrupted, and say how to go on with it.

    Returns:
        the numbers of the jobs that failed, and whether the tables could be written.
    """
    if not _sweep_folder or not ranks.is_first():
        return [], True
    from dkel_lightning.app import sweeps

    folder = _sweep_folder[0]
    refused = _take_refusals(folder)
    sweep = sweeps.read(folder)
    tabled = True
    if any(job.figures for job in sweep.jobs):
        sweeps.show(sweep)
    if sweep.jobs:
        try:
            print(f"The sweep's tables: {', '.join(sweeps.write(sweep))} in {folder}", flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            print(f"Error: {_refused(error)}", file=sys.stderr)
            tabled = False
    if refused:
        free = next(path for path in _numbered(folder) if not path.exists())
        held = f"{folder} holds other jobs under {', '.join(refused)}"
        print(f"{held}: in a folder of its own this sweep is run by: {_again(free)}", flush=True)
    elif not tabled or not all(job.state == "finished" for job in sweep.jobs):
        print(f"What is missing is run by: {_again(folder)}", flush=True)
    failed = [job.number for job in sweep.jobs if job.state == "failed"]
    return failed + [number for number in refused if number not in failed], tabled


def _again(folder: Path) -> str:
    """Write this command for a sweep in a folder."""
    kept = [item for item in sys.argv[1:] if not item.startswith("hydra.sweep.dir=")]
    return command_lines.typed(*kept, command_lines.override("hydra.sweep.dir", folder))


def fail(error: DkelError) -> None:
    """Print the message (the traceback too with HYDRA_FULL_ERROR=1) and exit."""
    if os.environ.get(TRACEBACK) == "1":
        raise error
    if failures.is_child():
        failures.note(error)  # the process that started this one says it
    else:
        print(f"Error: {error}", file=sys.stderr)
    raise SystemExit(error.exit_code)


# ---------------------------------------------------------------------- before Hydra runs


def prepare(arguments: Sequence[str]) -> list[str]:
    """Check the arguments and add the folder where a resumed run or an evaluation writes.

    Raises:
        ConfigError: with all mistakes of the first composition that has any.
    """
    try:
        return _prepared(arguments)
    except OSError as error:
        raise _refused(error) from error


def _prepared(arguments: Sequence[str]) -> list[str]:
    config_dir = _config_dir(arguments)
    arguments = [_listed(argument, config_dir) for argument in arguments]
    given = list(_overrides(arguments))
    if "--resolve" in arguments and not any(argument.split("=")[0] in ("--cfg", "-c") for argument in arguments):
        raise ConfigError("--resolve belongs to --cfg: write --cfg job --resolve.")
    for flag in ("--config-name", "-cn", "--config-path", "-cp"):
        if any(argument.split("=")[0] == flag for argument in arguments):
            raise ConfigError(f"{flag} is not supported: put your files into a folder and pass --config-dir FOLDER.")
    _import_own(given)
    swept = preset_sweep(given, config_dir)
    multirun = "-m" in arguments or "--multirun" in arguments or swept is not None
    child = failures.is_child()  # of a process that has checked the same
    if not child:
        check_arguments([*(swept or ()), *given], config_dir, multirun)
    arguments = without_superfluous_plus(arguments)
    if child or _shows(arguments):
        return arguments
    values = {
        name: command_lines.unquoted(text) for name, _, text in (item.lstrip("+").partition("=") for item in given)
    }
    resumed = _resumed(values, multirun)
    if resumed is not None and not multirun:
        _refuse_elsewhere(values, _folder_of(resumed))
    key = "hydra.sweep.dir" if multirun else "hydra.run.dir"  # of the two only this one is in force
    own_folder = [item.split("=", 1)[1] for item in given if item.startswith(f"{key}=")]
    added = [] if multirun or own_folder else _folder_override(values, resumed)
    keys = (f"{key}=", "compare.folder=")
    named = [command_lines.unquoted(item.split("=", 1)[1]) for item in [*added, *given] if item.startswith(keys)]
    _check_writable(_composed_later(named[-1] if named else "outputs"), key)
    return [*(_fixed_resume(argument, resumed) for argument in arguments), *added, *_analysis_name(given)]


def _import_own(given: Sequence[str]) -> None:
    """Import the user's own modules before anything is composed: methods that they register can be chosen."""
    for text in given:
        item = _parse(text) if text.startswith("modules=") else None
        names = item.value() if item is not None and not item.is_sweep_override() else None
        if names and schema.KEYS["modules"].fault(names) is None:
            from dkel_lightning.app.build import import_modules

            import_modules(cast(list[str], names))


def _resumed(values: Mapping[str, str], multirun: bool) -> Path | None:
    """Find what `resume=` means now, once: it reads whole checkpoints, and another run may write a newer one."""
    text = values.get("resume", "null")
    return None if text in ("null", "") or (multirun and text != "last") else find_resume(text)


def _refuse_elsewhere(values: Mapping[str, str], folder: Path) -> None:
    """Let a run go on in its own folder only: elsewhere it would lack its best epoch, its rows and its settings.

    Raises:
        ConfigError: resume= and hydra.run.dir= name two folders.
    """
    if Path(values.get("hydra.run.dir", folder)).resolve() != folder.resolve():
        raise ConfigError(
            f"A run goes on in its own folder: leave out hydra.run.dir, or copy {folder} and resume the copy."
        )


def _composed_later(folder: str) -> Path:
    """Give the folder that a path lies in whatever Hydra fills into its ${...}."""
    before, interpolation, _ = folder.partition("${")
    return Path(f"{before}x").parent if interpolation else Path(folder)


def _hold_sweep(folder: Path) -> None:
    """Take the folder of a sweep for this process: what lies there is gone on with, and only once."""
    _held.enter_context(locks.held(folder, ".lock"))


_held = contextlib.ExitStack()  # until the process ends


def _analysis_name(given: Sequence[str]) -> list[str]:
    """Name the run of an analysis after its task, unless it is named: the experiment's name says nothing of it."""
    values = dict(item.lstrip("+").split("=", 1) for item in given if "=" in item)
    task = values.get("task")
    return [f"name={task}"] if task in (*ANALYSES, "predict", "benchmark") and "name" not in values else []


def _listed(argument: str, config_dir: Path | None) -> str:
    """Write out the choices that `group=glob(PATTERN)` means: Hydra's own list has files that are no choices.

    Raises:
        ConfigError: there are none.
    """
    item = _parse(argument) if "=glob(" in argument else None
    pattern: Any = item.value() if item is not None else None  # Hydra's hint leaves Glob out
    if item is None or not isinstance(pattern, Glob):
        return argument
    options = choices.options(item.key_or_group, config_dir)
    chosen = pattern.filter(options)
    if not options or item.key_or_group == "hydra":
        raise ConfigError(f"{argument}: glob lists choices of a group, and {item.key_or_group} is none.")
    if not chosen:
        raise ConfigError(f"{argument} matches none of {', '.join(options)}.")
    return f"{item.key_or_group}={','.join(chosen)}"


def _fixed_resume(argument: str, resumed: Path | None) -> str:
    """Name the checkpoint that was found, in the place of `last` or of a run's folder."""
    key, _, value = argument.lstrip("+").partition("=")
    if key != "resume" or resumed is None or Path(command_lines.unquoted(value)) == resumed:
        return argument
    return command_lines.override("resume", resumed.resolve())


def _check_writable(folder: Path, key: str) -> None:
    """Make the folder of all runs, so that Hydra does not fail with a traceback where it cannot."""
    cure = f"run in another folder, or choose one with {key}=PATH"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in FULL:
            raise DiskFullError.of(error) from error
        raise DkelError(f"Cannot write to {folder.absolute()} ({error.strerror}): {cure}.") from error
    if not os.access(folder, os.W_OK):
        raise DkelError(f"Cannot write to {folder.absolute()} (not writable): {cure}.")


def _overrides(arguments: Sequence[str]) -> Iterator[str]:
    follows_flag = False
    for argument in arguments:
        if not follows_flag and not argument.startswith("-"):
            yield argument
        follows_flag = argument in FLAGS_WITH_VALUE and "=" not in argument


def _config_dir(arguments: Sequence[str]) -> Path | None:
    for position, argument in enumerate(arguments):
        for flag in ("--config-dir", "-cd"):
            if argument == flag and position + 1 < len(arguments):
                return Path(arguments[position + 1]).resolve()
            if argument.startswith(f"{flag}="):
                return Path(argument.split("=", 1)[1]).resolve()
    return None


def _folder_override(values: Mapping[str, str], resumed: Path | None) -> list[str]:
    if values.get("task") == "report":
        return _report_overrides(values.get("report.of", "null"))
    if resumed is not None:
        folder = _folder_of(resumed)
    elif "checkpoint" in values and values["checkpoint"] not in ("null", ""):
        path = Path(values["checkpoint"])
        if not (path.resolve().parent.parent / "config.yaml").is_file():
            return []
        folder = _folder_beside(path, values.get("task", ""))
    else:
        return []
    return [command_lines.override("hydra.run.dir", folder)]


def _folder_beside(checkpoint: Path, task: str) -> Path:
    """Give the folder in a checkpoint's run into which a task writes what it makes of it."""
    path = checkpoint.resolve()
    kind = {"replay": "replay", "export": "export", "predict": "predict"}.get(task, "evaluation")
    return path.parent.parent / f"{kind}_{path.stem}"


def _report_overrides(of: str) -> list[str]:
    """Write a report into the folder that it is about, and settle now which one is the newest."""
    from dkel_lightning.app.report import folder_kind

    named = None if of == "null" else of
    found = folder_kind.find(named).resolve()
    return [
        *([command_lines.override("report.of", found)] if named is None else []),
        command_lines.override("hydra.run.dir", found),
    ]


def find_resume(text: str) -> Path:
    """Find the checkpoint that `resume=` names; of the folder of a run that has none yet, the folder itself."""
    from dkel_lightning.app.runs.folder import newest_checkpoint, run_folder

    path = newest_checkpoint(Path("outputs")) if text == "last" else Path(text)
    if (path / "config.yaml").is_file():
        return newest_checkpoint(path) if any(path.rglob("last.ckpt")) or any(path.rglob("best.ckpt")) else path
    if not path.is_file():
        raise CheckpointError(
            f"No checkpoint at {path}: give the path of a .ckpt file, the folder of a run, or resume=last."
        )
    if run_folder(path) is None:
        raise CheckpointError(
            f"{path} cannot be resumed: its run's config.yaml should lie at {path.resolve().parent.parent}."
        )
    return path


def _folder_of(resumed: Path) -> Path:
    return resumed.resolve() if resumed.is_dir() else resumed.resolve().parent.parent


def preset_sweep(given: Sequence[str], config_dir: Path | None) -> list[str] | None:
    """Read what a chosen preset sweeps over, as overrides; None where none makes a sweep by itself."""
    with contextlib.suppress(ConfigError):  # mistakes are named by the check that follows
        parsed = [item for item in map(_parse, given) if not item.is_sweep_override()]
        chosen = [i for i in parsed if i.is_hydra_override() or choices.options(i.key_or_group, config_dir)]
        if not chosen:
            return None
        found = compose([item.input_line or "" for item in chosen] + _search(config_dir), with_hydra=True).hydra
        if found.mode is RunMode.MULTIRUN:
            params = OmegaConf.to_container(found.sweeper.params or OmegaConf.create(), resolve=True)
            assert isinstance(params, dict)
            return [f"{key!s}={value!s}" for key, value in params.items()]
    return None


def _search(config_dir: Path | None) -> list[str]:
    return [] if config_dir is None else [f"hydra.searchpath=['{config_dir.as_uri()}']"]


def _searched(override: str) -> Path | None:
    """Give the folder that `_search` has written into an override, None of any other override."""
    found = re.fullmatch(r"hydra\.searchpath=\['(file:.*)'\]", override)
    return None if found is None else Path(url2pathname(urlsplit(found[1]).path))


def check_arguments(given: Sequence[str], config_dir: Path | None, multirun: bool) -> None:
    """Check every override by itself, then each composition they lead to.

    Raises:
        ConfigError: naming the key and the choices.
    """
    parsed = [_parse(item) for item in given]
    own = [item for item in parsed if not item.is_hydra_override()]
    if not multirun:
        for item in own:
            if item.is_sweep_override():
                raise ConfigError(f"{item.input_line} gives several values: add -m to run one job for each.")
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir {config_dir} is no folder.")
    for_hydra = [item.input_line or "" for item in parsed if item.is_hydra_override()]
    if for_hydra or multirun:
        chosen = [item.input_line or "" for item in own if _chooses_preset(item, config_dir)]
        found = compose([*chosen, *for_hydra, *_search(config_dir)], with_hydra=True).hydra
        if multirun:
            _check_sweep(found, own)
    launcher = found.launcher if multirun else None
    _check_presets(own, config_dir)
    first, others = _combinations(own)
    composed = _composed(first, _search(config_dir), config_dir)
    _check_composed(composed, first, config_dir, launcher)
    for position, option in others:
        items = [*first[:position], option, *first[position + 1 :]]
        item = _parse(option)
        if choices.options(item.key_or_group, config_dir):
            changed = _composed(items, _search(config_dir), config_dir)
        else:  # composing anew would give the same, in a hundred times the time
            changed = copy.deepcopy(composed)
            OmegaConf.update(changed, item.key_or_group, item.value(), merge=False)
        _check_composed(changed, items, config_dir, launcher)


def _chooses_preset(item: Override, config_dir: Path | None) -> bool:
    return not item.is_sweep_override() and bool(choices.options(item.key_or_group, config_dir))


def _check_sweep(found: DictConfig, overrides: Sequence[Override]) -> None:
    """Check what launches the jobs of a sweep, and what chooses them.

    Raises:
        ConfigError: it is not installed, or takes no ranges.
    """
    targets = {"launcher": str(found.launcher.get("_target_")), "sweeper": str(found.sweeper.get("_target_"))}
    for group, target in targets.items():
        for extra, packages in extras.EXTRAS.items():
            if target.startswith(f"{packages[0]}."):
                fault = extras.missing_extra(f"hydra/{group}={extra}", extra)
                if fault is not None:
                    raise ConfigError(fault)
    for item in overrides:
        if item.is_interval_sweep() and "optuna" not in targets["sweeper"]:
            raise ConfigError(f"{item.input_line} is a range to search in: add hydra/sweeper=optuna, or list values.")


def _check_presets(overrides: Sequence[Override], config_dir: Path | None) -> None:
    for item in overrides:
        if item.key_or_group == "experiment" and item.is_sweep_override() and item.is_discrete_sweep():
            for choice in item.sweep_string_iterator():
                if preset_sweep([f"experiment={choice}"], config_dir) is not None:
                    raise ConfigError(f"experiment={choice} is a sweep by itself: give it alone.")


def _parse(item: str) -> Override:
    try:
        return OverridesParser.create().parse_overrides([item])[0]
    except (OverrideParseException, CompactHydraException, RecursionError) as error:
        raise ConfigError(
            f"Cannot read {shortened(item)!r}: write key=value or group=option, with quotes around a value that "
            "holds anything but letters of English, digits and the signs ._-/ (\"key='a value'\")."
        ) from error


def _combinations(overrides: Sequence[Override]) -> tuple[list[str], list[tuple[int, str]]]:
    """Give the first value of every sweep, and each further value with its place; the last word on a key counts."""
    values = []
    for item in {item.get_key_element(): item for item in overrides}.values():
        if item.is_sweep_override() and item.is_discrete_sweep():
            key = item.get_key_element()
            values.append([f"{key}={value}" for value in item.sweep_string_iterator()])
        elif item.is_sweep_override():
            ends = item.value()
            assert isinstance(ends, IntervalSweep)
            values.append([f"{item.get_key_element()}={end}" for end in (ends.start, ends.end)])
        else:
            values.append([item.input_line or ""])
    others = [(position, option) for position, options in enumerate(values) for option in options[1:]]
    return [options[0] for options in values], others


def _check_composed(
    composed: DictConfig, items: list[str], config_dir: Path | None, launcher: DictConfig | None
) -> None:
    """Check one composition; `launcher` is what starts the jobs of a sweep, None for a single run."""
    multirun = launcher is not None
    values = resolved(composed)
    checks.check(values)
    if values["task"]["name"] == "compare":
        if multirun:
            raise ConfigError(
                "task=compare runs its methods and seeds itself: leave out -m, or the preset that sweeps."
            )
        planned(values, items, config_dir)
    if values["task"]["name"] == "report" and multirun:
        raise ConfigError("task=report reads what runs have written: leave -m out, and give the folder of a sweep.")
    if values["task"]["name"] == "benchmark" and multirun:
        raise ConfigError(
            "task=benchmark lets its sides take turns by itself: leave -m out, and run it once a setting."
        )
    if launcher is None or not _launches_processes(values["trainer"]):
        return
    if "SlurmLauncher" in str(launcher.get("_target_")):
        _check_tasks(values["trainer"], launcher)
        return
    raise ConfigError(
        "A multirun with trainer=ddp would start the whole sweep again in every process: use trainer=ddp_spawn, "
        "hydra/launcher=submitit_slurm, or start each job with torchrun."
    )


def _check_tasks(trainer: Mapping[str, Any], launcher: DictConfig) -> None:
    """Demand a task of SLURM for each device: it starts the processes of a job, and not Lightning."""
    tasks, nodes = launcher.tasks_per_node, launcher.nodes
    devices = trainer["devices"]
    count = len(devices) if isinstance(devices, list) else devices
    # -1 and auto are all that the job will see.
    if nodes != trainer["num_nodes"] or (isinstance(count, int) and count > 0 and count != tasks):
        raise ConfigError(
            f"trainer.devices={devices}, trainer.num_nodes={trainer['num_nodes']} need as many tasks of SLURM: "
            f"hydra.launcher.tasks_per_node is {tasks}, hydra.launcher.nodes is {nodes}."
        )


def _composed(items: list[str], search: list[str], config_dir: Path | None) -> DictConfig:
    parsed = [_parse(item) for item in items]
    groups = [item for item in parsed if choices.options(item.key_or_group, config_dir)]
    _check_groups(groups, config_dir)
    base = compose([item.input_line or "" for item in groups] + search)
    _check_keys([item for item in parsed if item not in groups], base)
    return compose([_without_plus(item) for item in parsed] + search)


def planned(values: Mapping[str, Any], given: Sequence[str], config_dir: Path | None) -> plan.Comparison:
    """Compose and check everything that a comparison trains.

    Raises:
        ConfigError: all mistakes, each with its label.
    """

    def settle(composed: DictConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
        changed = copy.deepcopy(composed)
        for key, value in changes.items():
            OmegaConf.update(changed, key, value)
        return resolved(changed)

    def composer(overrides: list[str]) -> plan.Settle:
        return partial(settle, _composed(overrides, _search(config_dir), config_dir))

    repeated = [item for item in sys.argv[1:] if not item.startswith(("compare.folder=", "hydra.run.dir="))]
    go_on = command_lines.typed(*repeated)
    return plan.plan(values, given, choices.options("method", config_dir), composer, go_on)


def _launches_processes(trainer: Mapping[str, Any]) -> bool:
    """Tell whether Lightning would run this command once more for each further process, or with strategy auto might."""
    devices = trainer["devices"]
    one = str(devices) == "1" or (isinstance(devices, list) and len(devices) == 1)
    one_cpu = trainer["accelerator"] == "cpu" and devices == "auto"
    return str(trainer["strategy"]) != "ddp_spawn" and not one and not one_cpu


def groups_explained() -> str:
    """List what can be chosen, for --help."""
    lines = []
    for group, meaning in choices.GROUPS.items():
        options = [option for option in choices.options(group) if "/" not in option]
        if group.startswith("hydra/"):
            options = ["basic", *options]
        lines.append(f"{group:<20}{meaning}")
        lines += textwrap.wrap(" ".join(options), 78, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


OmegaConf.register_new_resolver("dkel_groups", groups_explained, replace=True)


def _check_groups(groups: Sequence[Override], config_dir: Path | None) -> None:
    for item in groups:
        options = choices.options(item.key_or_group, config_dir)
        if item.is_delete():
            raise ConfigError(f"{item.input_line}: a group cannot be removed; choose one of {', '.join(options)}.")
        if item.is_add() or item.is_force_add():
            raise ConfigError(f"{item.input_line}: a group is chosen without a plus: {item.key_or_group}=CHOICE.")
        value = item.value()
        several = isinstance(value, list) and item.key_or_group in SEVERAL
        if several and not value:
            raise ConfigError(f"{item.input_line} names none: choose from {', '.join(options)}.")
        for chosen in map(str, value if several else [value]):  # type: ignore[arg-type]
            if chosen not in options:
                raise ConfigError(messages.unknown_choice(item.key_or_group, chosen, options))


def _check_keys(overrides: Sequence[Override], base: DictConfig) -> None:
    known = [key for key, _ in schema.leaves(resolved(base))]
    mistakes = []
    for item in overrides:
        key = item.key_or_group
        exists = OmegaConf.select(base, key, throw_on_missing=False, default=_MISSING) is not _MISSING
        opened = any(key.startswith(f"{node}.") and OmegaConf.select(base, node) is not None for node in schema.OPEN)
        group, _, name = key.partition(".")
        if name == "name" and choices.options(group):
            mistakes.append(f"{item.input_line}: choose it as a group, {group}={item.value()}.")
        elif group == "trainer" and name in DECIDED:
            mistakes.append(f"{key} is decided by this library; see logger.extra, callbacks.* and precision=.")
        elif not key:
            mistakes.append(f"Cannot read {item.input_line!r}: write key=value.")
        elif item.is_delete():
            mistakes.append(f"{item.input_line}: keys cannot be removed; set {key} to another value.")
        elif not exists and not (opened and item.is_add()):
            mistakes.append(_absent(key, known, opened, base))
    if mistakes:
        raise ConfigError("\n".join(mistakes))


_MISSING: Any = object()


def _absent(key: str, known: list[str], opened: bool, base: DictConfig) -> str:
    if key in schema.KEYS and key.startswith("compare."):
        return f"{key} belongs to a comparison: add task=compare."
    if key in schema.KEYS and key.split(".")[0] in TASKS:
        return f"{key} belongs to task={key.split('.')[0]}: choose that."
    if opened:
        return f"{messages.unknown_key(key, known)} Any other argument goes with a plus: +{key}=VALUE."
    if key in schema.KEYS and "." in key:
        group = key.split(".", 1)[0]
        choice = OmegaConf.select(base, f"{group}.name") or ("none" if group == "teacher" else "this choice")
        return f"{key} means nothing with {group}={choice}: remove it, or choose another {group}."
    return messages.unknown_key(key, known)


def _without_plus(item: Override) -> str:
    line = item.input_line or ""
    # Hydra refuses a plus on a key that exists; here it is only superfluous.
    return line.lstrip("+") if item.is_add() and item.key_or_group in schema.KEYS else line


def without_superfluous_plus(arguments: Sequence[str]) -> list[str]:
    """Take the plus off keys that exist, as the check of the arguments does."""
    own = {item for item in _overrides(arguments) if item.startswith("+")}
    return [_without_plus(_parse(argument)) if argument in own else argument for argument in arguments]


def compose(overrides: list[str], *, with_hydra: bool = False) -> DictConfig:
    """Compose the configuration outside of a run, on request with Hydra's own.

    Raises:
        ConfigError: what Hydra finds wrong, without its hints.
    """
    prefer_own_presets(next((own for item in overrides if (own := _searched(item)) is not None), None))
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(choices.folder()), version_base="1.3", job_name="dkel_lightning"):
            return hydra.compose("config", overrides=overrides, return_hydra_config=with_hydra)
    except (CompactHydraException, OmegaConfBaseException, ValueError) as error:
        if "Could not override 'scale'" in str(error):
            raise ConfigError("scale= belongs to an ablation: choose one with experiment=ablation/NAME.") from error
        raise ConfigError(str(error).split("\nTo append")[0]) from error
    except OSError as error:
        raise _refused(error) from error
    except TypeError as error:  # Hydra joins a list of lists to a path
        given = shortened(" ".join(overrides))
        raise ConfigError(f"Cannot compose {given}: a group takes the name of one choice, group=CHOICE.") from error


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Turn a composed configuration into plain values.

    Raises:
        ConfigError: an interpolation that leads nowhere, or a value that is missing.
    """
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key != "hydra"}


# ---------------------------------------------------------------------- inside Hydra


def run(cfg: DictConfig) -> float | None:
    """Run the task of one composed configuration; returns the objective of a sweep."""
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        return _run_job(cfg)
    try:
        return _run(cfg)
    except DkelError as error:
        _remove_if_empty()
        fail(error)
    except OSError as error:
        unread_output.end_if_unread(error)
        refusal = _refused(error)
        _remove_if_empty()
        fail(refusal)
    raise AssertionError("unreachable")


FORBIDDEN = (errno.EACCES, errno.EROFS)


def _refused(error: OSError) -> DkelError:
    """Name the file that the system refused, and the cure.

    Raises:
        OSError: what is no mistake of the person at the keyboard.
    """
    if error.errno == errno.ENAMETOOLONG:
        return ConfigError(f"{shortened(str(error.filename))} is too long for the name of a file: shorten it.")
    folder, key = _written_folder()
    if error.errno in FULL:
        return DiskFullError.of(error, folder)
    if error.errno in FORBIDDEN:
        path = Path(str(error.filename or folder)).absolute()
        if os.access(path, os.F_OK) and not os.access(path, os.R_OK):
            return DkelError(f"Cannot read {path} ({error.strerror}): make it readable.")
        by = f" with {key}=PATH" if path.is_relative_to(folder.absolute()) else ""
        return DkelError(
            f"Cannot write {path} ({error.strerror}): choose another folder{by}. What was written before is whole."
        )
    raise error


def _written_folder() -> tuple[Path, str]:
    """Give the folder that this command writes into, as far as it is known, and the key that chooses it."""
    if _sweep_folder:
        return _sweep_folder[0], "hydra.sweep.dir"
    if not HydraConfig.initialized():
        return Path("outputs"), "hydra.run.dir"
    own = HydraConfig.get()
    key = "hydra.sweep.dir" if own.mode is RunMode.MULTIRUN else "hydra.run.dir"
    known = not OmegaConf.is_missing(own.runtime, "output_dir")
    return Path(own.runtime.output_dir if known else "outputs"), key


def _run_job(cfg: DictConfig) -> float | None:
    """Run one job of a sweep, and note in its folder what it was and how it ended; another job's is left as it is.

    Whatever it fails of, the others are still wanted. It then has no objective, by which Optuna knows it as failed.
    """
    from dkel_lightning.app import sweeps

    number = str(HydraConfig.get().job.num)
    _claimed.clear()
    if "Joblib" in str(HydraConfig.get().launcher.get("_target_")):
        _end_with_sweep()
    if _is_search() and _continues_sweep() and sweeps.has_failed(Path(HydraConfig.get().runtime.output_dir)):
        # Had it not failed, the search would have gone on in another way than its jobs did.
        print(f"Job {number} has failed before; the search has gone on without it.", flush=True)
        return None
    failure: Exception | None = None
    result: float | None = None
    try:
        result = _run(cfg)
        result = None if result is None or math.isnan(result) else result
    except Exception as error:
        unread_output.end_if_unread(error)  # unfinished, and not failed
        known = isinstance(error, DkelError | OSError)
        failure = error
        if isinstance(error, OSError):
            with contextlib.suppress(OSError):
                failure = _refused(error)
        _failed.append(number)
        print(f"Error in job {number} of the sweep: {failure if known else traceback.format_exc()}", file=sys.stderr)
    folder = _claimed[0] if _claimed else Path(HydraConfig.get().runtime.output_dir)
    with contextlib.suppress(OSError):  # a full disk, as the job has said
        if not ranks.is_first():
            return result
        own = HydraConfig.get()
        overrides = own.overrides.task
        if isinstance(failure, OtherJobError) or (failure and sweeps.is_of_other(folder, overrides)):
            Path(own.runtime.cwd, own.sweep.dir, f"{REFUSED}{number}").touch()
            return result
        sweeps.note(folder, overrides, "failed" if failure else "finished", failure)
    return result


@functools.cache
def _end_with_sweep() -> None:
    """End this process of joblib soon after the one of the sweep: another start would write into the same folder."""
    from dkel_lightning.runtime.process_group import end_with_parent

    end_with_parent()


def _remove_if_empty() -> None:
    """Remove the folder that this run made or claimed, if nothing was written into it."""
    folder = Path(_claimed.pop() if _claimed else HydraConfig.get().runtime.output_dir)
    with contextlib.suppress(OSError):  # rmdir refuses a folder that holds anything
        if {path.name for path in folder.iterdir()} == {CLAIM}:
            (folder / CLAIM).unlink()
        folder.rmdir()


_claimed: list[Path] = []


def _claim(folder: Path) -> Path:
    """Take a folder for this run alone: two runs that start in the same second must not mix their files.

    Processes that Lightning starts for a run share the folder of the process that started them.
    """
    if ranks.is_one_of_several():
        return Path(os.environ.get("DKEL_RUN_FOLDER", folder))
    folder = folder if _continues_sweep() and (folder / CLAIM).exists() else _unclaimed(folder)
    os.environ["DKEL_RUN_FOLDER"] = str(folder)
    _claimed[:] = [folder]
    return folder


def _unclaimed(folder: Path) -> Path:
    """Make and claim the folder, or the first of those beside it that nobody has claimed."""
    for candidate in _numbered(folder):
        candidate.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (candidate / CLAIM).open("x").close()
            return candidate
    raise AssertionError("unreachable")


def _is_own_choice(folder: Path, values: Mapping[str, Any]) -> bool:
    """Tell whether this program has chosen the folder of an evaluation, and nobody named it."""
    own = HydraConfig.get()
    beside = _folder_beside(Path(values["checkpoint"]), "evaluate")
    return own.mode is RunMode.RUN and (not _names(own, "hydra.run.dir") or folder == beside)


def _claim_evaluation(folder: Path, values: Mapping[str, Any]) -> Path:
    """Take a folder for this evaluation: one of the same settings is replaced, any other one stays beside it.

    Of several processes only the first one writes.
    """
    from dkel_lightning.app.tasks.evaluate import settings

    if not ranks.is_first():
        return folder
    mine = json.dumps(settings(values)).encode()  # as a text, in which 1 batch is not 1.0, all of them
    for candidate in _numbered(folder):
        candidate.mkdir(parents=True, exist_ok=True)
        claim = candidate / CLAIM
        if not claim.exists() and any(candidate.iterdir()):
            continue  # of a version that claimed no folder
        try:
            with claim.open("xb") as file:
                file.write(mine)
        except FileExistsError:
            if claim.read_bytes() != mine:
                continue  # of other settings, or not yet written
        _claimed[:] = [candidate]
        return candidate
    raise AssertionError("unreachable")


def _numbered(folder: Path) -> Iterator[Path]:
    """Give the folder, and those beside it with a number behind its name."""
    folder = folder if folder.name.strip(".") else folder.resolve()
    yield folder
    yield from (folder.with_name(f"{folder.name}_{count}") for count in itertools.count(1))


def _continues_sweep() -> bool:
    """Tell whether this is a job of a sweep that goes on with what lies in its folder.

    Its folder was named, or SLURM has put the job back into its queue and starts it again.
    """
    own = HydraConfig.get()
    if own.mode is not RunMode.MULTIRUN:
        return False
    return _names(own, "hydra.sweep.dir") or os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _is_search() -> bool:
    """Tell whether what a job is depends on how those before it ended."""
    return "optuna" in str(HydraConfig.get().sweeper.get("_target_"))


def _is_parallel() -> bool:
    """Tell whether jobs of the sweep run beside each other."""
    return "BasicLauncher" not in str(HydraConfig.get().launcher.get("_target_"))


def _go_on_with_job(folder: Path, values: dict[str, Any]) -> float:
    """Return the objective of a job that has finished before; resume one that was begun."""
    from dkel_lightning.app import sweeps, tasks
    from dkel_lightning.app.runs.folder import Run

    objective = sweeps.objective(folder)
    if objective is not None:
        print(f"Job {HydraConfig.get().job.num} has finished before, in {folder}.", flush=True)
        return objective
    checkpoint = find_resume(str(folder))
    # The values were composed by this command and not read from the folder: nothing foreign to distrust.
    trusted = {**values, "trust": True}
    return tasks.run(Run(trusted, folder, None if checkpoint.is_dir() else checkpoint))


def _run(cfg: DictConfig) -> float | None:
    from dkel_lightning.app import sweeps, tasks
    from dkel_lightning.app.runs.folder import Run, saved_values, values_in

    values = resolved(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    resume = find_resume(values["resume"]) if values["resume"] else None
    source: Path | None = None  # the folder whose config.yaml is laid under what was given
    overrides = list(HydraConfig.get().overrides.task)
    if resume is None and values["task"]["name"] in ("train", "benchmark", *ANALYSES):
        folder = _claim(folder)
    begun = resume is None and _continues_sweep() and (folder / "config.yaml").is_file()
    if begun:
        sweeps.refuse_other(folder, values)
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        if resume is not None and sweeps.is_of_other(folder, overrides):
            raise OtherJobError(f"{folder} holds another job: give another hydra.sweep.dir.")
        if ranks.is_first():
            sweeps.note(folder, overrides, "running")
        if _is_parallel() and values["callbacks"]["progress"] == "auto":
            values["callbacks"] = {**values["callbacks"], "progress": "lines"}  # one terminal has no room for two bars
    if begun:
        return _go_on_with_job(folder, values)
    if resume is not None:
        saved = values_in(_folder_of(resume))
        if saved.get("task", {}).get("name", "train") != "train":
            raise ConfigError(f"{resume} is no training run, so there is nothing to resume.")
        values = {**laid_over(saved, values, overrides), "resume": None, "trust": values["trust"]}
        source = _folder_of(resume)
        # A run that never came to a checkpoint begins anew, which gives what it would have given.
        resume = None if resume.is_dir() else resume
    elif _predicts_with_export(values):
        _refuse_decided(_explicit(overrides), "export")
    elif values["task"]["name"] != "train" and values["checkpoint"]:
        path = Path(values["checkpoint"])
        if (path.resolve().parent.parent / "config.yaml").is_file():
            source = path.resolve().parent.parent
            values = of_checkpoint(saved_values(path), values, overrides)
    _check_values(values, source)
    if values["task"]["name"] == "evaluate" and _is_own_choice(folder, values):
        folder = _claim_evaluation(folder, values)
    plan = planned(values, overrides, _config_dir(sys.argv[1:])) if values["task"]["name"] == "compare" else None
    result = tasks.run(Run(values, folder, resume), plan)
    return None if result is None else float(result)


def _predicts_with_export(values: Mapping[str, Any]) -> bool:
    """Tell whether what predicts says itself all that is known of it; a run around it has nothing to add."""
    from dkel_lightning.export import formats

    given = values["checkpoint"]
    return values["task"]["name"] == "predict" and given is not None and formats.is_exported(Path(given))


def _check_values(values: Mapping[str, Any], source: Path | None) -> None:
    """Check the values of a run; what was read from a run's folder may lack anything that a composition has."""
    try:
        checks.check(values)
    except DkelError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if source is None:
            raise
        raise CheckpointError(
            f"{source / 'config.yaml'} is of another version, or damaged ({type(error).__name__}: {error})."
        ) from error


def laid_over(saved: dict[str, Any], given: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay what may change over the configuration of a resumed run.

    Raises:
        ConfigError: a key that changes the trajectory.
    """
    _refuse_lacking(saved, OF_EVERY_RUN)
    values = schema.completed(saved)
    _refuse_lacking(values, _of_every_composition(given))
    processes = (values["trainer"]["devices"], values["trainer"]["num_nodes"])
    for item in map(_parse, overrides):
        key = item.key_or_group
        if not schema.may_change(key):
            _refuse(key)
        group = key.split(".")[0]
        if group == "trainer":
            changed = given["trainer"].items()
            values["trainer"] |= {name: value for name, value in changed if schema.may_change(f"trainer.{name}")}
        elif key == "execution":  # the rest of it belongs to the experiment
            values["execution"] |= {name: given["execution"][name] for name in ("name", "compile")}
        elif group == "logger":
            values["logger"] = given["logger"]
        elif "." in key:
            group, name = key.split(".", 1)
            values[group][name] = given[group][name]
    if processes != (values["trainer"]["devices"], values["trainer"]["num_nodes"]):
        raise ConfigError(
            f"The run used trainer.devices={processes[0]}, trainer.num_nodes={processes[1]}: another number of "
            "processes changes the batches, so resume with the same."
        )
    return values


def _of_every_composition(given: Mapping[str, Any]) -> list[str]:
    """List the keys of a composition that do not depend on what is chosen."""
    chosen = ("method.", "optimizer.", "scheduler.", "teacher.", "data.", "trust", "task.")
    return [key for key, _ in schema.leaves(given) if not key.startswith(chosen)]


OF_EVERY_RUN = ("method.name", "method.peers", "backbone.name", "teacher.update", "data.name", "data.root")


def _refuse_lacking(values: Mapping[str, Any], keys: Sequence[str]) -> None:
    there = {key for key, _ in schema.leaves(values)}
    missing = [key for key in keys if key not in there]
    if missing:
        raise ConfigError(
            f"The saved config.yaml lacks {', '.join(missing[:5])}: it is of another version, or damaged."
        )


def _refuse(key: str) -> None:
    groups = [group for group in schema.resumable_groups() if group != "task"]
    may = [each for each in schema.KEYS if "." in each and schema.may_change(each)]
    others = [each for each in may if each.split(".")[0] not in (*groups, "task")]
    raise ConfigError(
        f"{key} would change a run that is being resumed: leave it out, or start a new run. "
        f"What may change: {', '.join([*groups, *others])} "
        f"(of trainer: {', '.join(each.split('.')[1] for each in may if each.startswith('trainer.'))})."
    )


def of_checkpoint(saved: dict[str, Any], given: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Take from a checkpoint's run what names networks, method and data; nothing of it is run by name.

    Keys that are given explicitly win.
    """
    explicit = _explicit(overrides)
    _refuse_decided(explicit, "checkpoint")
    taken = [group for group in OF_CHECKPOINT if group not in explicit]
    _refuse_lacking(saved, [key for key in OF_EVERY_RUN if key.split(".")[0] in taken])
    values, completed = dict(given), schema.completed(saved)
    for group in taken:
        node = dict(completed.get(group, given[group] if group == "deploy" else {}))
        node |= {key: value for key, value in given[group].items() if f"{group}.{key}" in explicit}
        values[group] = node
    return {**values, "name": saved.get("name", given["name"])}


def _explicit(overrides: Sequence[str]) -> set[str]:
    return {item.key_or_group for item in map(_parse, overrides)}


def _refuse_decided(explicit: set[str], by: str) -> None:
    """Refuse to choose what the trained network is already."""
    fixed = [key for key in sorted(explicit) if key.split(".")[0] in ("backbone", "method", "teacher", "experiment")]
    if fixed:
        raise ConfigError(f"{', '.join(fixed)}: the {by} decides this; leave it out.")


OF_CHECKPOINT = ("data", "backbone", "method", "teacher", "deploy")
