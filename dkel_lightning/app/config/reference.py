"""The reference of all configuration keys as Markdown, made from the configuration itself.

python -m dkel_lightning.app.config.reference > docs/configuration.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from dkel_lightning.app.config import schema
from dkel_lightning.app.tasks import registry

ORDER = [
    "experiment",
    "scale",
    "data",
    "backbone",
    "method",
    "teacher",
    "optimizer",
    "scheduler",
    "trainer",
    "precision",
]
ORDER += ["precision", "execution", "logger", "callbacks", "debug", "task"]


def lines() -> Iterator[str]:
    """Write the page line by line."""
    yield "# Configuration"
    yield ""
    yield "Made by `python -m dkel_lightning.app.config.reference`; do not edit. Choose a group with"
    yield "`group=choice`, set a key with `key=value`. Defaults are those of the file that defines the key; an"
    yield "experiment may override them."
    yield ""
    yield "## Groups"
    yield ""
    yield "| group | choice | what it is |"
    yield "| --- | --- | --- |"
    for group in ORDER:
        for path in sorted((schema.folder() / group).rglob("*.yaml")):
            if not path.stem.startswith("_"):
                choice = path.relative_to(schema.folder() / group).with_suffix("").as_posix()
                yield f"| `{group}` | `{choice}` | {_comment(path.read_text(encoding='utf-8'))} |"
    yield ""
    yield "## Keys"
    yield ""
    yield "| key | default | may be | meaning |"
    yield "| --- | --- | --- | --- |"
    by_key = defaults()
    for name, key in schema.KEYS.items():
        value = f"`{_show(by_key[name])}`" if name in by_key else ""
        kind = key.kind + (", or null" if key.optional else "")
        yield f"| `{name}` | {value} | {kind.replace('|', '/')} | {key.meaning} |"


def defaults() -> dict[str, Any]:
    """Gather each key's default from the file that defines it, unresolved."""
    found: dict[str, Any] = {}
    root = schema.folder()
    sources = [(root / "config.yaml", "")]
    sources += [(path, f"{path.parent.name}.") for path in sorted(root.glob("*/_base.yaml"))]
    sources += [(root / group / f"{name}.yaml", f"{group}.") for group, name in _FIRST.items()]
    sources += [(root / "method" / "dkel.yaml", ""), (root / "data" / "image_folder.yaml", "data.")]
    sources += [(path, "") for path in sorted((root / "method").glob("*.yaml"))]
    sources += [(root / "task" / f"{name}.yaml", "") for name in registry.TASKS]
    for path, prefix in sources:
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        assert isinstance(loaded, dict)
        plain = {str(name): value for name, value in loaded.items() if name not in ("defaults", "hydra")}
        for name, value in schema.leaves(plain, prefix):
            found.setdefault(name, value)
    return found


_FIRST = {
    "task": "train",
    "optimizer": "sgd",
    "scheduler": "multistep",
    "precision": "fp32",
    "execution": "auto",
    "logger": "csv",
    "callbacks": "default",
}


def _comment(text: str) -> str:
    comments = [line[1:].strip() for line in text.splitlines() if line.startswith("# ")]
    said = [line for line in comments if not line.startswith(("@package", "python -m"))]
    return said[0] if said else ""


def _show(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    print("\n".join(lines()))
