"""What the command line was given, read once and passed down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Glob, Override
from hydra.types import RunMode
from omegaconf import DictConfig

from dkel_lightning.app.cli import user_code
from dkel_lightning.app.cli.composition import options
from dkel_lightning.app.cli.overrides import forced, is_given, parse, split, values_of
from dkel_lightning.app.config import choices
from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime import command_lines
from dkel_lightning.settings.keys import did_you_mean, shortened

FLAGS_WITH_VALUE = ["--config-dir", "-cd", "--package", "-p", "--info", "-i", "--cfg", "-c"]
FLAGS_WITH_VALUE += ["--config-name", "-cn", "--config-path", "-cp", "--experimental-rerun"]
UNCHECKED_FLAGS = ("--hydra-help", "--shell-completion", "-sc", "--info", "-i")
SHOWING_FLAGS = ("--help", "-h", "--cfg", "-c")
FLAGS = {*FLAGS_WITH_VALUE, *UNCHECKED_FLAGS, *SHOWING_FLAGS}
FLAGS |= {"--version", "--resolve", "--run", "-r", "--multirun", "-m"}
UNSUPPORTED_FLAGS = ("--config-name", "-cn", "--config-path", "-cp")


@dataclass(frozen=True)
class Invocation:
    """The arguments of a command.

    Attributes:
        arguments: as they are handed to Hydra.
        overrides: those of them that are no flags.
        config_dir: the user's folder of choices.
        hydra: Hydra's own settings; None where nothing chosen could change them.
    """

    arguments: tuple[str, ...]
    overrides: tuple[Override, ...] = ()
    config_dir: Path | None = None
    hydra: DictConfig | None = None

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Invocation:
        """Read the arguments.

        `group=glob(PATTERN)` is written out: Hydra's own list has files that are no choices. A plus on a key that
        exists is taken off; on a resume, whose keys are those of its run, each of a group has two.

        Raises:
            ConfigError: flags that are not supported, or something that is no override.
        """
        if any(flag in arguments for flag in UNCHECKED_FLAGS):
            return cls(tuple(arguments))
        flags = {argument.split("=")[0] for argument in arguments if argument.startswith("-")}
        for flag in sorted(flags - FLAGS):
            given = next(argument for argument in arguments if argument.split("=")[0] == flag)
            meant = f" Write {given.lstrip('-')}." if "=" in given else did_you_mean(flag, FLAGS)
            raise ConfigError(f"Unknown flag {shortened(flag)}.{meant} The flags: --help, --hydra-help.")
        for flag in UNSUPPORTED_FLAGS:
            if flag in flags:
                raise ConfigError(
                    f"{flag} is not supported: put your files into a folder and pass --config-dir FOLDER."
                )
        if "--resolve" in flags and not flags & {"--cfg", "-c"}:
            raise ConfigError("--resolve belongs to --cfg: write --cfg job --resolve.")
        config_dir = _config_dir(arguments)
        if config_dir is not None and not config_dir.is_dir():
            raise ConfigError(f"--config-dir {config_dir} is no folder.")
        for taken in [] if config_dir is None else choices.hidden_by(config_dir):
            raise ConfigError(f"{taken} would hide what is shipped under its name: give it another.")
        arguments = user_code.load([*map(_at_home, arguments)], config_dir)
        read, overrides = [*arguments], []
        for position in _positions(arguments):
            item = _listed(parse(arguments[position]), config_dir)
            read[position] = item.input_line or ""
            overrides.append(item)
        made = cls(tuple(read), tuple(overrides), config_dir)
        if made.resumes:  # of the choices of the run that goes on Hydra knows nothing
            keys = [item for item in made.for_run if "." in item.key_or_group and not made.chooses(item)]
            written = {item.input_line: forced(item) for item in keys}
            made = replace(made, arguments=tuple(written.get(argument, argument) for argument in read))
        return made

    def with_arguments(self, arguments: Sequence[str]) -> Invocation:
        """Give the same with other arguments."""
        return replace(self.of(arguments), hydra=self.hydra)

    @property
    def swept(self) -> tuple[str, ...] | None:
        """What a chosen preset sweeps over, as overrides; None where it makes no sweep by itself."""
        return None if self.hydra is None else swept_by(self.hydra)

    @property
    def resumes(self) -> bool:
        """Whether one run is gone on with."""
        return is_given(self.values.get("resume")) and not self.multirun

    @property
    def unchecked(self) -> bool:
        """Whether Hydra alone answers, such as for completion in a shell."""
        return any(flag in self.arguments for flag in UNCHECKED_FLAGS)

    @property
    def shows(self) -> bool:
        """Whether something is shown and nothing run."""
        return any(argument.split("=")[0] in (*SHOWING_FLAGS, *UNCHECKED_FLAGS) for argument in self.arguments)

    @property
    def multirun(self) -> bool:
        """Whether it is a sweep."""
        return self.swept is not None or "-m" in self.arguments or "--multirun" in self.arguments

    @property
    def for_run(self) -> list[Override]:
        """Overrides of this library's keys and groups."""
        return [item for item in self.overrides if not item.is_hydra_override()]

    @property
    def for_hydra(self) -> list[Override]:
        """Overrides of Hydra's own settings."""
        return [item for item in self.overrides if item.is_hydra_override()]

    @property
    def varied(self) -> dict[str, int]:
        """How many values each key has that jobs of a sweep differ in; the last word on a key counts."""
        given = {item.get_key_element().lstrip("+"): item for item in (*map(parse, self.swept or ()), *self.for_run)}
        return {key: len(values_of(item)) for key, item in given.items() if item.is_sweep_override()}

    @property
    def values(self) -> Mapping[str, str]:
        """What was given for each key, as text."""
        return dict(split(item.input_line or "") for item in self.overrides)

    def chooses(self, item: Override) -> bool:
        """Tell whether an override chooses in a group."""
        return bool(options(item.key_or_group, self.config_dir))


def swept_by(hydra: DictConfig) -> tuple[str, ...] | None:
    """Give what Hydra's own settings sweep over by themselves, as overrides; None where they make no sweep."""
    if hydra.mode is not RunMode.MULTIRUN:
        return None
    return tuple(f"{key!s}={value!s}" for key, value in (hydra.sweeper.params or {}).items())


def _at_home(argument: str) -> str:
    """Write out the ~ of a path, which no shell does behind a key."""
    key, _, value = argument.partition("=")
    path = command_lines.unquoted(value)
    return command_lines.override(key, Path(path).expanduser()) if path.startswith("~/") else argument


def _positions(arguments: Sequence[str]) -> Iterator[int]:
    """Find what is neither a flag nor a flag's value."""
    follows_flag = False
    for position, argument in enumerate(arguments):
        if not follows_flag and not argument.startswith("-"):
            yield position
        follows_flag = argument in FLAGS_WITH_VALUE and "=" not in argument


def _config_dir(arguments: Sequence[str]) -> Path | None:
    for position, argument in enumerate(arguments):
        for flag in ("--config-dir", "-cd"):
            if argument == flag and position + 1 < len(arguments):
                return Path(arguments[position + 1]).resolve()
            if argument.startswith(f"{flag}="):
                return Path(argument.split("=", 1)[1]).resolve()
    return None


def _listed(item: Override, config_dir: Path | None) -> Override:
    """Write out the choices that a glob means.

    Raises:
        ConfigError: there are none.
    """
    pattern: Any = item.value()  # Hydra's hint leaves Glob out
    if not isinstance(pattern, Glob):
        return item
    there = options(item.key_or_group, config_dir)
    chosen = pattern.filter(there)
    if not there or item.key_or_group == "hydra":
        raise ConfigError(f"{item.input_line}: glob lists choices of a group, and {item.key_or_group} is none.")
    if not chosen:
        raise ConfigError(f"{item.input_line} matches none of {', '.join(there)}.")
    return parse(f"{item.key_or_group}={','.join(chosen)}")
