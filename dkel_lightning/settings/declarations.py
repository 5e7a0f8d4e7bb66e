"""Settings as frozen dataclasses that validate their annotated fields.

    @dataclass(frozen=True)
    class RampUp(Settings, node="method.rampup"):
        scale: Annotated[float, number("Weight at the end of the ramp-up.", 0, 1e6)] = 1.0

The declaration gives the error for a wrong value, and the YAML of conf/ with its comments (scripts/write_conf.py).
Imports neither torch nor Lightning.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, ClassVar, TypeVar, get_type_hints

from dkel_lightning.errors import ConfigError

T = TypeVar("T")

SEEDS = 2**63 - 1
"""The largest seed."""

TIME = 1e6
"""The largest epoch of a schedule."""


@dataclass(frozen=True)
class Setting:
    """The values that a field accepts, and its meaning.

    `options` are the words of a choice. `optional` follows from the annotation.
    """

    kind: str
    meaning: str
    accepts: Callable[[Any], bool]
    options: tuple[str, ...] = ()
    optional: bool = False
    follows: str | None = None

    def error(self, key: str, value: Any) -> str | None:
        """Return the error message for `value` under the name `key`, or None."""
        if value is None:
            return None if self.optional else f"{key} must be {self.kind}, got null."
        if self.accepts(value):
            return None
        return f"{key} must be {self.kind}, got {value!r}.{did_you_mean(str(value), self.options)}"


@dataclass(frozen=True)
class Follows:
    """In the YAML, the setting is an interpolation of `key`, which experiments fit to the length of their run."""

    key: str


# ---------------------------------------------------------------------- kinds of values


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, not a boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(meaning: str, low: float, high: float, *, above: bool = False) -> Setting:
    """Declare a number from `low` to `high`; `above` excludes `low`."""
    kind = f"a number above {low:g} and up to {high:g}" if above else f"a number between {low:g} and {high:g}"
    return Setting(kind, meaning, lambda v: is_number(v) and (low < v if above else low <= v) and v <= high)


def whole(meaning: str, low: int, high: int) -> Setting:
    """Declare a whole number from `low` to `high`."""
    kind = f"a whole number between {low} and {high}"
    return Setting(kind, meaning, lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high)


def switch(meaning: str) -> Setting:
    """Declare true or false."""
    return Setting("true or false", meaning, lambda v: isinstance(v, bool))


def text(meaning: str) -> Setting:
    """Declare a non-empty text."""
    return Setting("text", meaning, lambda v: isinstance(v, str) and bool(v))


def choice(meaning: str, *options: str) -> Setting:
    """Declare one of some words."""
    return Setting(f"one of {', '.join(options)}", meaning, lambda v: v in options, options)


def either(first: Setting, second: Setting) -> Setting:
    """Declare a value that one of two declarations accepts, with the meaning of the first."""
    return replace(
        first,
        kind=f"{first.kind}, or {second.kind}",
        accepts=lambda v: first.accepts(v) or second.accepts(v),
        options=first.options + second.options,
    )


def several(meaning: str, item: Setting, *, least: int = 1) -> Setting:
    """Declare a list of at least `least` values that `item` accepts."""

    def accepts(value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) >= least and all(map(item.accepts, value))

    return Setting(f"a list, each {item.kind}", meaning, accepts)


def names(meaning: str = "", *, least: int = 1) -> Setting:
    """Declare a list of at least `least` names."""
    return replace(several(meaning, text(meaning), least=least), kind="a list of names")


def schedule(meaning: str, low: float, high: float) -> Setting:
    """Declare a number, or a mapping {time: number} that begins at time 0."""
    rate = number(meaning, low, high)

    def accepts(value: Any) -> bool:
        if not isinstance(value, Mapping):
            return rate.accepts(value)
        return 0 in value and all(is_number(t) and 0 <= t <= TIME and rate.accepts(v) for t, v in value.items())

    return Setting(f"{rate.kind}, or a schedule {{from: value}} of them that starts at 0", meaning, accepts)


def anything(meaning: str) -> Setting:
    """Declare a value that another library checks."""
    return Setting("any value", meaning, lambda v: True)


# ---------------------------------------------------------------------- dataclasses of settings


class Settings:
    """Base of settings.

    `node` is their place in the configuration, such as `method.rampup`; of the two fields in `one_of` one is None.
    Extend `__post_init__` to check values against each other.
    """

    node: ClassVar[str] = ""
    one_of: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, *, node: str | None = None, one_of: tuple[str, ...] = (), **others: Any) -> None:
        super().__init_subclass__(**others)
        cls.node, cls.one_of = cls.node if node is None else node, one_of or cls.one_of

    def __post_init__(self) -> None:
        prefix = f"{self.node}." if self.node else ""
        declared = settings_of(type(self)).items()
        errors = [setting.error(f"{prefix}{written(name)}", getattr(self, name)) for name, setting in declared]
        if any(errors):
            raise ConfigError("\n".join(filter(None, errors)))
        if self.one_of and [getattr(self, name) is None for name in self.one_of].count(True) != 1:
            first, second = (f"{prefix}{name}" for name in self.one_of)
            raise ConfigError(f"Set one of {first} and {second}, and the other to null.")


def written(name: str) -> str:
    """Return the key of a field in configurations: `lambda` for `lambda_`."""
    return name.rstrip("_")


def _hints(cls: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {item.name: hints[item.name] for item in fields(cls)}


def settings_of(cls: type[Any]) -> dict[str, Setting]:
    """Return the declarations of a dataclass by field, without those of nested dataclasses."""
    declared = {}
    for name, hint in _hints(cls).items():
        if typing.get_origin(hint) is not Annotated:
            continue
        kind, *extras = typing.get_args(hint)
        union = typing.get_origin(kind) in (typing.Union, types.UnionType)
        for setting in (extra for extra in extras if isinstance(extra, Setting)):
            declared[name] = replace(
                setting,
                optional=union and type(None) in typing.get_args(kind),
                follows=next((extra.key for extra in extras if isinstance(extra, Follows)), None),
            )
    return declared


def walk(settings: Any, node: str = "", *, follow: bool = True) -> Iterator[tuple[str, Setting | None, Any]]:
    """Yield (dotted key, declaration, value) of an instance and of nested dataclasses.

    Default values that follow another key are yielded as interpolations, unless a nested dataclass differs from its
    defaults.
    """
    declared = settings_of(type(settings))
    for item in fields(settings):
        key, value = f"{node}.{written(item.name)}".lstrip("."), getattr(settings, item.name)
        setting = declared.get(item.name)
        if is_dataclass(value) and not isinstance(value, type):
            yield from walk(value, key, follow=value == type(value)())
        elif follow and setting is not None and setting.follows is not None and value == item.default:
            yield key, setting, f"${{{setting.follows}}}"
        else:
            yield key, setting, _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def node_of(settings: Any) -> dict[str, Any]:
    """Return the configuration of an instance as nested dicts, see `walk`."""
    node: dict[str, Any] = {}
    for key, _, value in walk(settings):
        *path, last = key.split(".")
        place = node
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return node


# ---------------------------------------------------------------------- mappings


def from_mapping(cls: type[T], values: Mapping[str, Any] | T, where: str, base: Any = None) -> T:
    """Build the (nested) dataclass `cls` from a mapping laid over `base` or the defaults; an instance stays.

    One of two lengths, such as `share`, takes the place of a default `epochs`.
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a mapping of its keys, got {values!r}.")
    hints = {written(name): (name, hint) for name, hint in _hints(cls).items()}
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(unknown_key(f"{where}.{key}", [f"{where}.{name}" for name in hints]))
        name, hint = hints[key]
        if isinstance(hint, type) and is_dataclass(hint):
            usual = _default(cls, name) if base is None else getattr(base, name)
            value = from_mapping(hint, value, f"{where}.{key}", usual)
        arguments[name] = tuple(value) if isinstance(value, list) else value  # lists of YAML
    lengths = getattr(cls, "one_of", ())
    if any(arguments.get(name) is not None for name in lengths):
        arguments = dict.fromkeys(lengths) | arguments
    settings: T = cls(**arguments) if base is None else replace(base, **arguments)
    return settings


def _default(cls: type[Any], name: str) -> Any:
    item = next(item for item in fields(cls) if item.name == name)
    return item.default if item.default_factory is MISSING else item.default_factory()


# ---------------------------------------------------------------------- names


def import_path(kind: type[Any]) -> str:
    """Return the import path of a class, as in `_target_`."""
    return f"{kind.__module__}.{kind.__qualname__}"


def did_you_mean(name: str, options: Iterable[str], most: int = 1) -> str:
    """Suggest options similar to a name, as a whole or in their last part; empty without any."""

    def likeness(option: str) -> float:
        return max(difflib.SequenceMatcher(None, name, part).ratio() for part in (option, option.rpartition(".")[2]))

    near = [option for option in sorted(options, key=lambda o: (-likeness(o), o))[:most] if likeness(option) >= 0.6]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def unknown_key(key: str, options: Iterable[str], most: int = 1) -> str:
    """Return the message for an unknown key, with similar keys and its siblings."""
    options = sorted(options)
    group = key.rpartition(".")[0]
    siblings = [name.removeprefix(f"{group}.") for name in options if name.startswith(f"{group}.")]
    listed = f" Keys of {group}: {', '.join(siblings)}." if group and siblings else ""
    return f"Unknown key {key}.{did_you_mean(key, options, most)}{listed}"


def unknown_choice(group: str, name: str, options: Iterable[str]) -> str:
    """Return the message for an unknown option of a group."""
    options = sorted(options)
    return f"Unknown choice {group}={name}.{did_you_mean(name, options)} Choices: {', '.join(options)}."
