"""The reference of all configuration keys as Markdown, made from their declarations.

python -m dkel_lightning.app.config.reference > docs/configuration.md
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from dkel_lightning.app.config import choices, schema
from dkel_lightning.settings.keys import REQUIRED, Key

ORDER = ["experiment", "scale", "data", "backbone", "method", "teacher", "optimizer", "scheduler", "recipe", "trainer"]
ORDER += ["precision", "execution", "logger", "callbacks", "debug", "task"]

FIRST = {"optimizer": "sgd", "scheduler": "multistep", "precision": "fp32"}
"""What config.yaml chooses in the groups whose keys have no default of their own."""


def lines() -> Iterator[str]:
    """Write the page line by line."""
    yield "# Configuration"
    yield ""
    yield "Made by `python -m dkel_lightning.app.config.reference`; do not edit. Choose a group with"
    yield "`group=choice`, set a key with `key=value`. Defaults are those of the declaration, or of the file that"
    yield "defines the key; an experiment may override them. On a resumed run the keys with a star may change."
    yield ""
    yield "## Groups"
    yield ""
    yield "| group | choice | what it is |"
    yield "| --- | --- | --- |"
    for group in ORDER:
        for choice in schema.SHIPPED if group == "method" else choices.options(group):
            yield f"| `{group}` | `{choice}` | {choices.meaning(group, choice)} |"
    yield ""
    yield "## Keys"
    yield ""
    yield "| key | default | may be | meaning |"
    yield "| --- | --- | --- | --- |"
    by_key = defaults()
    for name, key in schema.KEYS.items():
        yield row(name, key, by_key.get(name, REQUIRED))


def row(name: str, key: Key, default: Any) -> str:
    """Write the row of a key."""
    value = "" if default == REQUIRED or key.is_open else f"`{_show(default)}`"
    kind = key.kind + (", or null" if key.optional else "")
    star = " *" if key.resumable else ""
    return f"| `{name}`{star} | {value} | {kind.replace('|', '/')} | {key.meaning} |"


@functools.cache
def defaults() -> dict[str, Any]:
    """Gather each key's default, unresolved; of groups that declare none, that of their first choice."""
    found: dict[str, Any] = {"method.name": "dkel"}  # which config.yaml chooses too
    for name, key in schema.KEYS.items():
        default = f"${{{key.follows}}}" if key.follows else key.default
        if default != REQUIRED:
            found[name] = default
    for group, choice in FIRST.items():
        loaded = OmegaConf.to_container(OmegaConf.load(choices.folder() / group / f"{choice}.yaml"), resolve=False)
        assert isinstance(loaded, dict)
        found |= dict(schema.leaves({str(name): value for name, value in loaded.items()}, f"{group}."))
    return found


def _show(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    print("\n".join(lines()))
