"""The command line: `python -m dkel_lightning` and `dkel`. Torch is imported only when a run begins."""

from __future__ import annotations

import contextlib
import copy
import errno
import itertools
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dkel_lightning import comparison, config
from dkel_lightning.errors import ConfigError, DkelError

FLAGS_WITH_VALUE = ["--config-dir", "-cd", "--package", "-p", "--info", "-i", "--cfg", "-c"]
FLAGS_WITH_VALUE += ["--config-name", "-cn", "--config-path", "-cp", "--experimental-rerun"]
UNCHECKED_FLAGS = ("--hydra-help", "--version", "--shell-completion", "-sc", "--info", "-i")
SHOWING_FLAGS = ("--help", "-h", "--cfg", "-c")

# Of a resumed run only these may change: they do not alter what is computed.
RESUMABLE = (
    "task",
    "resume",
    "trust",
    "trainer",
    "logger",
    "callbacks.progress",
    "data.root",
    "data.download",
    "data.workers",
)
DEVICE_KEYS = ("accelerator", "devices", "strategy", "num_nodes", "profiler", "log_every_n_steps", "_target_")
# What Lightning's Trainer takes and this library decides.
DECIDED = ["logger", "callbacks", "plugins", "precision", "use_distributed_sampler", "default_root_dir"]
DECIDED += ["enable_progress_bar", "enable_model_summary", "enable_checkpointing", "inference_mode", "barebones"]
# Failures of the jobs of a sweep: the others go on, and the sweep ends with their number.
_failed: list[str] = []


def main() -> Any:
    """Run the command line; on a mistake print one message and exit with 2 (configuration) or 1 (anything else)."""
    arguments = sys.argv[1:]
    try:
        if not any(flag in arguments for flag in UNCHECKED_FLAGS):
            sys.argv[1:] = prepare(arguments)
        hydra.main(config_path=str(config.folder()), config_name="config", version_base="1.3")(run)()
    except DkelError as error:
        fail(error)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(130) from None
    if _failed:
        print(f"Error: {len(_failed)} jobs of the sweep failed: {', '.join(_failed)}.", file=sys.stderr)
        raise SystemExit(1)


def fail(error: DkelError) -> None:
    """Print the message (the traceback too with HYDRA_FULL_ERROR=1) and exit."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    print(f"Error: {error}", file=sys.stderr)
    raise SystemExit(error.exit_code)


# ---------------------------------------------------------------------- before Hydra runs


def prepare(arguments: Sequence[str]) -> list[str]:
    """Check the arguments and add the folder where a resumed run or an evaluation writes.

    Raises:
        ConfigError: with all mistakes of the first composition that has any.
    """
    given = list(_overrides(arguments))
    if "--resolve" in arguments and not any(argument.split("=")[0] in ("--cfg", "-c") for argument in arguments):
        raise ConfigError("--resolve belongs to --cfg: write --cfg job --resolve.")
    for flag in ("--config-name", "-cn", "--config-path", "-cp"):
        if any(argument.split("=")[0] == flag for argument in arguments):
            raise ConfigError(f"{flag} is not supported: put your files into a folder and pass --config-dir FOLDER.")
    multirun = "-m" in arguments or "--multirun" in arguments
    child = "LOCAL_RANK" in os.environ
    if not child:
        check_arguments(given, _config_dir(arguments), multirun)
    if child or any(argument.split("=")[0] in SHOWING_FLAGS for argument in arguments):
        return list(arguments)
    own_folder = [item.split("=", 1)[1] for item in given if item.startswith(("hydra.run.dir=", "hydra.sweep.dir="))]
    added = [] if multirun or own_folder else _folder_override(given)
    named = [*own_folder, *(item.split("=", 1)[1] for item in [*added, *given] if item.startswith(FOLDER_KEYS))]
    _check_writable(Path(named[-1].strip("'\"")) if named else Path("outputs"))
    return [*map(_fixed_resume, arguments), *added]


FOLDER_KEYS = ("hydra.run.dir=", "compare.folder=")


def _fixed_resume(argument: str) -> str:
    """Name the checkpoint that resume=last means now: another run may write a newer one before this one reads it."""
    key, _, value = argument.lstrip("+").partition("=")
    if key != "resume" or value.strip("'\"") != "last":
        return argument
    escaped = str(find_resume("last").resolve()).replace("'", "\\'")
    return f"resume='{escaped}'"


def _check_writable(folder: Path) -> None:
    """Make the folder of all runs, so that Hydra does not fail with a traceback where it cannot."""
    cure = "run in another folder, or choose one with hydra.run.dir=PATH"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
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


def _folder_override(given: Sequence[str]) -> list[str]:
    values = dict(item.lstrip("+").split("=", 1) for item in given if "=" in item)
    if values.get("task") == "report":
        return _report_overrides(values.get("report.of", "null"))
    if "resume" in values and values["resume"] not in ("null", ""):
        folder = find_resume(values["resume"]).resolve().parent.parent
    elif "checkpoint" in values and values["checkpoint"] not in ("null", ""):
        path = Path(values["checkpoint"].strip("'\"")).resolve()
        if not (path.parent.parent / "config.yaml").is_file():
            return []
        folder = path.parent.parent / f"evaluation_{path.stem}"
    else:
        return []
    escaped = str(folder).replace("'", "\\'")
    return [f"hydra.run.dir='{escaped}'"]


def _report_overrides(of: str) -> list[str]:
    """Write a report into the folder that it is about, and settle now which one is the newest."""
    from dkel_lightning.report import folders

    named = None if of == "null" else of.strip("'\"")
    escaped = str(folders.find(named).resolve()).replace("'", "\\'")
    return [*([f"report.of='{escaped}'"] if named is None else []), f"hydra.run.dir='{escaped}'"]


def find_resume(text: str) -> Path:
    """Find the checkpoint that `resume=` names."""
    from dkel_lightning.errors import CheckpointError
    from dkel_lightning.files import newest_checkpoint, run_folder

    text = text.strip("'\"")
    path = newest_checkpoint(Path("outputs")) if text == "last" else Path(text)
    if not path.is_file():
        raise CheckpointError(f"No checkpoint at {path}: give the path of a .ckpt file, or resume=last.")
    if run_folder(path) is None:
        raise CheckpointError(
            f"{path} cannot be resumed: its run's config.yaml should lie at {path.resolve().parent.parent}."
        )
    return path


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
    search = [] if config_dir is None else [f"hydra.searchpath=['{config_dir.as_uri()}']"]
    for combination in _combinations(own):
        _check_combination(combination, search, config_dir, multirun)


def _parse(item: str) -> Override:
    try:
        return OverridesParser.create().parse_overrides([item])[0]
    except (OverrideParseException, CompactHydraException) as error:
        raise ConfigError(
            f"Cannot read {item!r}: write key=value or group=option, with quotes around a value that holds anything "
            "but letters of English, digits and the signs ._-/ (\"key='a value'\")."
        ) from error


def _combinations(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Give every value of every sweep once, beside the first values of the others."""
    values = []
    for item in overrides:
        if item.is_sweep_override() and item.is_discrete_sweep():
            key = item.get_key_element()
            values.append([f"{key}={value}" for value in item.sweep_string_iterator()])
        elif item.is_sweep_override():
            values.append([f"{item.get_key_element()}={item.value().start}"])  # type: ignore[union-attr]
        else:
            values.append([item.input_line or ""])
    first = [options[0] for options in values]
    yield first
    for position, options in enumerate(values):
        for option in options[1:]:
            yield [*first[:position], option, *first[position + 1 :]]


def _check_combination(items: list[str], search: list[str], config_dir: Path | None, multirun: bool) -> None:
    values = resolved(_composed(items, search, config_dir))
    config.check(values)
    if values["task"]["name"] == "compare":
        if multirun:
            raise ConfigError("task=compare runs its methods and seeds itself: leave -m out.")
        planned(values, items, config_dir)
    if values["task"]["name"] == "report" and multirun:
        raise ConfigError("task=report reads what runs have written: leave -m out, and give the folder of a sweep.")
    if multirun and str(values["trainer"]["strategy"]).startswith("ddp") and _launches_processes(values):
        raise ConfigError(
            "A multirun with trainer=ddp would start the whole sweep again in every process: use "
            "trainer=ddp_spawn, or start each job with torchrun."
        )


def _composed(items: list[str], search: list[str], config_dir: Path | None) -> DictConfig:
    parsed = [_parse(item) for item in items]
    groups = [item for item in parsed if _options(item.key_or_group, config_dir)]
    _check_groups(groups, config_dir)
    base = compose([item.input_line or "" for item in groups] + search)
    _check_keys([item for item in parsed if item not in groups], base)
    return compose([_without_plus(item) for item in parsed] + search)


def planned(values: Mapping[str, Any], given: Sequence[str], config_dir: Path | None) -> comparison.Comparison:
    """Compose and check everything that a comparison trains.

    Raises:
        ConfigError: all mistakes, each with its label.
    """
    search = [] if config_dir is None else [f"hydra.searchpath=['{config_dir.as_uri()}']"]

    def settle(composed: DictConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
        changed = copy.deepcopy(composed)
        for key, value in changes.items():
            OmegaConf.update(changed, key, value)
        return resolved(changed)

    def composer(overrides: list[str]) -> comparison.Settle:
        return partial(settle, _composed(overrides, search, config_dir))

    repeated = [item for item in sys.argv[1:] if not item.startswith(("compare.folder=", "hydra.run.dir="))]
    go_on = shlex.join(["python", "-m", "dkel_lightning", *repeated])
    return comparison.plan(values, given, _options("method", config_dir), composer, go_on)


def _launches_processes(values: Mapping[str, Any]) -> bool:
    return "spawn" not in values["trainer"]["strategy"] and values["trainer"]["devices"] not in (1, "1")


def _options(group: str, config_dir: Path | None) -> list[str]:
    found: set[str] = set()
    for root in (config.folder(), config_dir):
        if root is not None and (root / group).is_dir():
            found |= {path.stem for path in (root / group).glob("*.yaml") if not path.stem.startswith("_")}
    return sorted(found)


def _check_groups(groups: Sequence[Override], config_dir: Path | None) -> None:
    for item in groups:
        options = _options(item.key_or_group, config_dir)
        if item.is_delete():
            raise ConfigError(f"{item.input_line}: a group cannot be removed; choose one of {', '.join(options)}.")
        if item.is_add() or item.is_force_add():
            raise ConfigError(f"{item.input_line}: a group is chosen without a plus: {item.key_or_group}=CHOICE.")
        chosen = str(item.value())
        if chosen not in options:
            raise ConfigError(config.unknown_choice(item.key_or_group, chosen, options))


def _check_keys(overrides: Sequence[Override], base: DictConfig) -> None:
    known = [key for key, _ in config.leaves(resolved(base))]
    mistakes = []
    for item in overrides:
        key = item.key_or_group
        exists = OmegaConf.select(base, key, throw_on_missing=False, default=_MISSING) is not _MISSING
        opened = any(key.startswith(f"{node}.") and OmegaConf.select(base, node) is not None for node in config.OPEN)
        group, _, name = key.partition(".")
        if name == "name" and (config.folder() / group).is_dir():
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
    if key in config.KEYS and key.startswith("compare."):
        return f"{key} belongs to a comparison: add task=compare."
    if opened:
        return f"{config.unknown_key(key, known)} Any other argument goes with a plus: +{key}=VALUE."
    if key in config.KEYS and "." in key:
        group = key.split(".", 1)[0]
        choice = OmegaConf.select(base, f"{group}.name") or ("none" if group == "teacher" else "this choice")
        return f"{key} means nothing with {group}={choice}: remove it, or choose another {group}."
    return config.unknown_key(key, known)


def _without_plus(item: Override) -> str:
    line = item.input_line or ""
    # Hydra refuses a plus on a key that exists; here it is only superfluous.
    return line.lstrip("+") if item.is_add() and item.key_or_group in config.KEYS else line


def compose(overrides: list[str]) -> DictConfig:
    """Compose the configuration outside of a run.

    Raises:
        ConfigError: what Hydra finds wrong, without its hints.
    """
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(config.folder()), version_base="1.3", job_name="dkel_lightning"):
            return hydra.compose("config", overrides=overrides)
    except (CompactHydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error).split("\nTo append")[0]) from error


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
    plain = {str(key): value for key, value in values.items() if key != "hydra"}
    # A method of the user's own may leave out what all methods have.
    plain["method"] = {"peers": 3, "sharing": "trunk", "views": "per_peer", "classifiers": "own", **plain["method"]}
    return plain


# ---------------------------------------------------------------------- inside Hydra


def run(cfg: DictConfig) -> float | None:
    """Run the task of one composed configuration; returns the objective of a sweep."""
    try:
        return _run(cfg)
    except DkelError as error:
        _remove_if_empty()
        if HydraConfig.get().mode is not RunMode.MULTIRUN:
            fail(error)
        _failed.append(str(HydraConfig.get().job.num))
        print(f"Error in job {_failed[-1]} of the sweep: {error}", file=sys.stderr)
        return float("nan")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        where = error.filename or HydraConfig.get().runtime.output_dir
        full = DkelError(f"Cannot write {where}: {error.strerror}. What was written before is whole.")
        if HydraConfig.get().mode is not RunMode.MULTIRUN:
            fail(full)
        _failed.append(str(HydraConfig.get().job.num))
        print(f"Error in job {_failed[-1]} of the sweep: {full}", file=sys.stderr)
    return None


def _remove_if_empty() -> None:
    """Remove the folder that this run made or claimed, if nothing was written into it."""
    folder = Path(_claimed.pop() if _claimed else HydraConfig.get().runtime.output_dir)
    with contextlib.suppress(OSError):  # rmdir refuses a folder that holds anything
        if {path.name for path in folder.iterdir()} == {CLAIM}:
            (folder / CLAIM).unlink()
        folder.rmdir()


_claimed: list[Path] = []


CLAIM = ".claimed"


def _claim(folder: Path) -> Path:
    """Take a folder for this run alone: two runs that start in the same second must not mix their files.

    Processes that Lightning starts for a run share the folder of the process that started them.
    """
    if "LOCAL_RANK" in os.environ:
        return Path(os.environ.get("DKEL_RUN_FOLDER", folder))
    for count in itertools.count():
        candidate = folder if count == 0 else folder.with_name(f"{folder.name}_{count}")
        candidate.mkdir(parents=True, exist_ok=True)
        try:
            (candidate / CLAIM).open("x").close()
        except FileExistsError:
            continue
        os.environ["DKEL_RUN_FOLDER"] = str(candidate)
        _claimed[:] = [candidate]
        return candidate
    raise AssertionError("unreachable")


def _run(cfg: DictConfig) -> float | None:
    from dkel_lightning import tasks
    from dkel_lightning.files import Run, saved_values

    values = resolved(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    resume = find_resume(values["resume"]) if values["resume"] else None
    overrides = list(HydraConfig.get().overrides.task)
    if resume is None and values["task"]["name"] == "train":
        folder = _claim(folder)
    if resume is not None:
        values = {**laid_over(saved_values(resume), values, overrides), "resume": None, "trust": values["trust"]}
    elif values["task"]["name"] != "train" and values["checkpoint"]:
        path = Path(values["checkpoint"])
        if (path.resolve().parent.parent / "config.yaml").is_file():
            values = of_checkpoint(saved_values(path), values, overrides)
    config.check(values)
    plan = planned(values, overrides, _config_dir(sys.argv[1:])) if values["task"]["name"] == "compare" else None
    result = tasks.run(Run(values, folder, resume), plan)
    return None if result is None else float(result)


def laid_over(saved: dict[str, Any], given: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay what may change over the configuration of a resumed run.

    Raises:
        ConfigError: a key that changes the trajectory.
    """
    values: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(saved), resolve=True)  # type: ignore[assignment]
    _check_complete(values, given)
    processes = (values["trainer"]["devices"], values["trainer"]["num_nodes"])
    for item in map(_parse, overrides):
        key = item.key_or_group
        if key.startswith("trainer.") and key.split(".")[1] not in DEVICE_KEYS:
            _refuse(key)
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in RESUMABLE):
            _refuse(key)
        if key == "trainer" or key.startswith("trainer."):
            values["trainer"] |= {name: given["trainer"][name] for name in DEVICE_KEYS if name in given["trainer"]}
        elif key in ("logger",) or key.startswith("logger."):
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


def _check_complete(values: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse a saved configuration from which keys that every run has are missing."""
    common = [key for key, _ in config.leaves(given) if not key.startswith(("method.", "optimizer.", "scheduler."))]
    common = [key for key in common if not key.startswith(("teacher.", "data.", "trust", "task."))]
    there = {key for key, _ in config.leaves(values)}
    missing = [key for key in [*common, "method.name", "method.peers", "data.name", "data.root"] if key not in there]
    if missing:
        raise ConfigError(
            f"The saved config.yaml lacks {', '.join(missing[:5])}: it is of another version, or damaged."
        )


def _refuse(key: str) -> None:
    raise ConfigError(
        f"{key} would change a run that is being resumed: leave it out, or start a new run. "
        f"What may change: {', '.join(RESUMABLE[3:])} (of trainer: {', '.join(DEVICE_KEYS[:4])})."
    )


def of_checkpoint(saved: dict[str, Any], given: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Take from a checkpoint's run what names networks, method and data; nothing of it is run by name.

    Keys that are given explicitly win.
    """
    plain: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(saved), resolve=True)  # type: ignore[assignment]
    explicit = {item.key_or_group for item in map(_parse, overrides)}
    fixed = [key for key in sorted(explicit) if key.split(".")[0] in ("backbone", "method", "teacher", "experiment")]
    if fixed:
        raise ConfigError(f"{', '.join(fixed)}: the checkpoint decides this; leave it out.")
    values = dict(given)
    for group in ("data", "backbone", "method", "teacher", "deploy"):
        if group in explicit:
            continue
        node = dict(plain.get(group, {}))
        node |= {key: value for key, value in given[group].items() if f"{group}.{key}" in explicit}
        values[group] = node
    return {**values, "name": plain.get("name", given["name"])}
