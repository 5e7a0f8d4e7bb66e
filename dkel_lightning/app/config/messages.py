"""What is said of a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable

from dkel_lightning.settings.keys import did_you_mean, shortened


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Say that a key does not exist, with the nearest ones and its siblings."""
    known = list(known)
    group = key.rsplit(".", 1)[0] + "." if "." in key else ""
    siblings = sorted(name for name in known if name.startswith(group) and not name.endswith("*"))
    groups = {name.split(".")[0] for name in known}
    hint = did_you_mean(key, known if group else [*groups, *known])
    listed = (
        f" Keys of {group[:-1]}: {', '.join(name[len(group) :] for name in siblings)}." if group and siblings else ""
    )
    return f"Unknown key {key}.{hint}{listed}"


def unknown_choice(group: str, name: str, options: Iterable[str]) -> str:
    """Say that a group has no such option."""
    options = sorted(options)
    return f"Unknown choice {group}={shortened(name)}.{did_you_mean(name, options)} Choices: {', '.join(options)}."
