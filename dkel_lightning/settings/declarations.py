"""What follows from the declaration of a setting: its check, its place in a configuration, and its documentation."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from typing import Annotated, Any, ClassVar, TypeVar, cast, get_type_hints

from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.keys import REQUIRED, Flag, Follows, Key, ShareOfRun, anything, unknown_key

T = TypeVar("T")


class Settings:
    """Base of the frozen dataclasses that declare settings: they check themselves and complete their docstring.

    Attributes:
        node: the place in the configuration, such as `method.rampup`, under which messages name the settings.
        further: the meaning of keys that are not declared because another library checks them; None if there are none.
        exclusive: two fields of which exactly one must be given.
        resumable: whether a resumed run may choose the group anew; it takes over what may change, and nothing else.
    """

    node: ClassVar[str] = ""
    further: ClassVar[str | None] = None
    exclusive: ClassVar[tuple[str, str] | None] = None
    resumable: ClassVar[bool] = False

    def __init_subclass__(
        cls, *, node: str | None = None, further: str | None = None, resumable: bool = False, **others: Any
    ) -> None:
        super().__init_subclass__(**others)
        cls.node = cls.node if node is None else node
        cls.further = cls.further if further is None else further
        cls.resumable = cls.resumable or resumable
        meanings = [f"    {name}: {_in_doc(key)}" for name, key in _keys(cls).items() if key.meaning]
        if meanings:
            cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Attributes:", *meanings])

    def __post_init__(self) -> None:
        check(self, self.node)

    def contradictions(self) -> Iterator[str]:
        """Say which of its values, each of which is allowed, do not go together; `exclusive` is said already."""
        return iter(())

    def exclusions(self) -> Iterator[str]:
        """Say that both of `exclusive` are given, or none."""
        if self.exclusive is None:
            return
        node, (first, second) = self.node, self.exclusive
        given = [name for name in self.exclusive if getattr(self, name) is not None]
        if len(given) == 2:
            cure = f"add {node}.{second}=null, or {node}.{first}=null"
            yield f"{node}.{first} and {node}.{second} exclude each other, and both are given: {cure}."
        if not given:
            yield f"One of {node}.{first} and {node}.{second} must be given, and both are null."


def _in_doc(key: Key) -> str:
    return f"{key.meaning[:1].lower()}{key.meaning[1:]}" if key.meaning[1:2].islower() else key.meaning


# ---------------------------------------------------------------------- reading declarations


def _once(read: Callable[[type[Any]], dict[str, T]]) -> Callable[[type[Any]], dict[str, T]]:
    """Read a class once; functools.cache, whose types know no classes as arguments."""
    return cast(Callable[[type[Any]], dict[str, T]], functools.cache(read))


@_once
def _hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _declared(hint: Any) -> Any:
    """Find the `Annotated` in a type, which old versions of Python wrap into an Optional."""
    if typing.get_origin(hint) is typing.Union:
        return next((each for each in typing.get_args(hint) if typing.get_origin(each) is Annotated), hint)
    return hint


def _key(hint: Any) -> Key | None:
    """Read the key of a field from its annotation; None where it declares none."""
    hint = _declared(hint)
    if typing.get_origin(hint) is not Annotated:
        return None
    kind, *declared = typing.get_args(hint)
    key = next((each for each in declared if isinstance(each, Key)), None)
    if key is None:
        return None
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return replace(
        key,
        optional=key.optional or (union and type(None) in typing.get_args(kind)),
        flags=frozenset(each for each in declared if isinstance(each, Flag)),
        follows=next((each.key for each in declared if isinstance(each, Follows)), None),
        instead=next((each.key for each in declared if isinstance(each, ShareOfRun)), None),
    )


@_once
def _keys(cls: type[Any]) -> dict[str, Key]:
    """Read what each field declares, but for its default."""
    read = ((name, _key(hint)) for name, hint in _hints(cls).items())
    return {name: key for name, key in read if key is not None}


def _written(name: str) -> str:
    """Write a field's name as in a configuration; a word of Python's has an underscore behind it."""
    return name.rstrip("_")


def _default(item: Field[Any]) -> Any:
    if item.default_factory is not MISSING:
        return item.default_factory()
    return REQUIRED if item.default is MISSING else item.default


def keys_of(cls: type[Any], node: str | None = None) -> Mapping[str, Key]:
    """Collect the keys that a dataclass declares, with those of nested ones, by their full names.

    Args:
        cls: the dataclass.
        node: the place in the configuration, by default what the class says.
    """
    return _keys_at(cast(Any, cls), cls.node if node is None else node)


@functools.cache
def _keys_at(cls: Any, node: str) -> Mapping[str, Key]:
    return dict(_walk(cls, node, None))


def _walk(cls: type[Any], node: str, instance: Any) -> Iterator[tuple[str, Key]]:
    hints = _hints(cls)
    prefix = f"{node}." if node else ""
    follows = instance is None or instance == cls()  # of a nested one, which a class may begin in its own way
    for item in fields(cls):
        name, default = f"{prefix}{_written(item.name)}", _default(item)
        key = _keys(cls).get(item.name)
        if is_dataclass(hints[item.name]):
            yield from _walk(hints[item.name], name, None if default is REQUIRED else default)
        elif key is not None:
            value = default if instance is None else getattr(instance, item.name)
            yield (
                f"{name}.*" if key.is_open else name,
                replace(key, default=_plain(value), follows=key.follows if follows else None),
            )
    if getattr(cls, "further", None) is not None:
        yield f"{prefix}*", replace(anything(cls.further), optional=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def node_of(cls: type[Any], over: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Make the configuration of a dataclass: its defaults, in the place of some the keys that they follow.

    Args:
        cls: the dataclass.
        over: values that differ from the defaults; what is said of a nested dataclass makes all of it the user's own.
    """
    made: dict[str, Any] = {}
    over = over or {}
    for name, key in _walk(cls, "", None):
        *path, last = name.removesuffix(".*").split(".")
        if last == "*":
            continue
        follows = key.follows is not None and not (path and path[0] in over)
        default = f"${{{key.follows}}}" if follows else key.default
        place = made
        for part in path:
            place = place.setdefault(part, {})
        place[last] = default
    return merge(merge(_undeclared(cls), made), over)


def _undeclared(cls: type[Any]) -> dict[str, Any]:
    """Give the defaults of plain fields, which a method of the user's own may have: nothing is said of them."""
    found: dict[str, Any] = {}
    for item in fields(cls):
        nested, default = _hints(cls)[item.name], _default(item)
        if is_dataclass(nested):
            found |= {item.name: inside} if (inside := _undeclared(cast(type[Any], nested))) else {}
        elif item.name not in _keys(cls) and default is not REQUIRED:
            found[item.name] = _plain(default)
    return found


# ---------------------------------------------------------------------- checking values


def check(settings: Any, node: str) -> None:
    """Check a dataclass that has been built, under the place `node`.

    Raises:
        ConfigError: naming every mistake.
    """
    hints, keys, mistakes = _hints(type(settings)), _keys(type(settings)), []
    for item in fields(settings):
        name, value, hint = f"{node}.{_written(item.name)}", getattr(settings, item.name), hints[item.name]
        if item.name in keys:
            mistakes.append(keys[item.name].mistake(name, value))
        elif is_dataclass(hint) and not isinstance(value, hint):  # type: ignore[arg-type]
            inside = ", ".join(_written(each.name) for each in fields(hint))
            mistakes.append(f"{name} must hold its keys ({inside}), got {value!r}.")
    if not any(mistakes) and isinstance(settings, Settings):
        mistakes += [*settings.exclusions(), *settings.contradictions()]
    if any(mistakes):
        raise ConfigError("\n".join(filter(None, mistakes)))


# ---------------------------------------------------------------------- from and to mappings


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested mapping `over` over `base`."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def at(values: Any, key: str) -> Any:
    """Give what nested mappings hold at a dotted key; None where one of them is missing, or is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build the (nested) dataclass `cls` from a mapping of primitives.

    Raises:
        ConfigError: an unknown key, with the nearest known ones; or a value of the wrong kind.
    """
    known = {_written(item.name): item.name for item in fields(cls)}  # type: ignore[arg-type]
    hints = _hints(cls)
    arguments: dict[str, Any] = {}
    mistakes: list[str] = []
    for key, value in values.items():
        if key not in known:
            raise ConfigError(unknown_key(f"{where}.{key}", [f"{where}.{name}" for name in known]))
        nested = hints[known[key]]
        if is_dataclass(nested) and isinstance(value, Mapping):
            try:
                value = from_mapping(nested, value, f"{where}.{key}")  # type: ignore[arg-type]
            except ConfigError as error:
                mistakes.append(str(error))
        arguments[known[key]] = value
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    try:
        made = cls(**arguments)
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"{where} has a value of the wrong kind: {error}.") from error
    if not isinstance(made, Settings):  # which has checked itself
        check(made, where)
    return made


def contradictions_in(cls: type[Any], values: Mapping[str, Any], where: str) -> Iterator[str]:
    """Say what does not go together in a mapping whose values are allowed; other keys may stand beside its own."""
    known = {_written(item.name) for item in fields(cls)}
    try:
        from_mapping(cls, {key: value for key, value in values.items() if key in known}, where)
    except ConfigError as error:
        yield str(error)
