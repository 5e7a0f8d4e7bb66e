"""The Hugging Face Hub: an exported folder goes there, with its figures in the Hub's metadata, and comes back.

What talks to the Hub is huggingface_hub; it reads the token that `hf auth login` has stored, HF_TOKEN and HF_ENDPOINT.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dkel_lightning.errors import CheckpointError, ConfigError, HubError
from dkel_lightning.export.formats import FOLDER, Exported, open_exported
from dkel_lightning.export.metadata import RECORD
from dkel_lightning.runtime.atomic_files import text_of, write_text
from dkel_lightning.runtime.packages import need
from dkel_lightning.runtime.texts import first_line

_CARD = "README.md"
_TASK = "image-classification"


def check(name: str) -> Any:
    """Return huggingface_hub, where a repository may have this name.

    Raises:
        ConfigError: it may not, or the package is not installed.
    """
    library = need("huggingface_hub", "export.hub", "hub")
    try:
        library.utils.validate_repo_id(name)
        owner, _, own = name.partition("/")
    except ValueError as error:
        raise ConfigError(f"export.hub={name} is no name of a repository ({error}): give user/name.") from error
    if not owner or not own:
        raise ConfigError(f"export.hub={name} names no owner: give user/name.")
    return library


def push(folder: str | Path, name: str) -> str:
    """Send an exported folder to the repository `name`, which is made where there is none; return its address.

    Its model card is given the Hub's metadata first.

    Raises:
        ConfigError: no repository may have this name, or the extra `hub` is not installed.
        CheckpointError: the folder holds no export.
        HubError: the Hub refuses, or cannot be reached. The folder stays.
    """
    library, folder = check(name), Path(folder)
    describe(folder, name)
    again = f"The export lies whole in {folder}; dkel_lightning.export.push({str(folder)!r}, {name!r}) sends it again."
    with _explained(name, "write to", again):
        api = library.HfApi()
        address = str(api.create_repo(name, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of dkel_lightning")
    return address


def pull(name: str, revision: str | None = None) -> Exported:
    """Open the export in the repository `name`. Nothing in it is executed: see `open_exported`.

    Raises:
        ConfigError: no repository may have this name, or the extra `hub` is not installed.
        HubError: the Hub refuses, or cannot be reached.
        CheckpointError: the repository holds no export, or a damaged one.
    """
    library = check(name)
    with _explained(name, "read", "Nothing was changed."):
        folder = library.snapshot_download(name, revision=revision)
    return open_exported(Path(folder))


def describe(folder: Path, name: str) -> None:
    """Give the model card of an export the Hub's metadata: task, library, and each figure of its test as an EvalResult.

    Raises:
        CheckpointError: the folder holds no export.
    """
    library, path = check(name), folder / RECORD
    try:
        written, card = text_of(path), library.ModelCard(text_of(folder / _CARD))
        told = json.loads(written)
        facts, own_form = told["facts"], FOLDER in told["files"]
        data = str(facts["data"].get("set", "unknown"))
        figures = {str(kind): float(value) for kind, value in facts.get("metrics", {}).items()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder} holds no export that can be described ({error}): export again.") from error
    results = [
        library.EvalResult(
            task_type=_TASK, dataset_type=data, dataset_name=data, dataset_split="test", metric_type=kind,
            metric_value=value,
        )
        for kind, value in figures.items()
    ]  # fmt: skip
    card.data = library.ModelCardData(
        library_name="transformers" if own_form else "dkel_lightning",
        pipeline_tag=_TASK,
        tags=[_TASK, "knowledge-distillation"],
        model_name=name.partition("/")[2],
        eval_results=results or None,
    )
    write_text(folder / _CARD, str(card))


@contextlib.contextmanager
def _explained(name: str, what: str, left: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of the library, of what it talks through, and of the system
        status = getattr(getattr(error, "response", None), "status_code", None)
        cure = {
            401: f"log in with `hf auth login`, or set HF_TOKEN, as one who may {what} it",
            403: f"take a token that may {what} it",
            404: "see that the name is right, and that your token may see it",
        }.get(status or 0, "see that there is a network, and that HF_ENDPOINT and HF_HUB_OFFLINE are as you want them")
        raise HubError(f"The Hub does not take {name} ({first_line(error)}): {cure}. {left}") from error
