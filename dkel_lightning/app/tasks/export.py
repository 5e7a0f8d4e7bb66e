"""task=export: write the deployed network of a checkpoint as files for use elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dkel_lightning.app import build
from dkel_lightning.app.run import Run, run_of
from dkel_lightning.app.tasks.evaluate import class_names, load_module
from dkel_lightning.distillation import DistillationModule
from dkel_lightning.errors import ConfigError
from dkel_lightning.export import Exported, Preprocessing, export, formats


def export_checkpoint(run: Run) -> Exported:
    """Export the network of a checkpoint to `export.to`, by default `<member>_<format>` in the task's folder."""
    settings, path = run.values["export"], Path(run.values["checkpoint"])
    formats.check(settings["format"])
    module = load_module(path, run.values)
    folder = Path(settings["to"] or run.folder / f"{module.deployed_member()}_{settings['format']}")
    exported = export(
        module,
        folder,
        preprocessing_of(module, path, run.values),
        format=settings["format"],
        tolerance=settings["tolerance"],
        source=str(path),
    )
    print(f"{exported.record.member} of {path}, written to {folder}: {exported.path.name}, export.json, README.md")
    return exported


def preprocessing_of(module: DistillationModule, path: Path, values: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing of images that the run of a checkpoint used."""
    recipe, data = module.recipe or {}, values["data"]
    mean, std, size = data["mean"], data["std"], recipe.get("image_size")
    if mean is None or std is None or size is None:
        raise ConfigError(
            f"The run of {path} does not define how images are normalised: set data.mean=[...] and data.std=[...] (of "
            "images in [0, 1], one value per channel), or attributes mean and std of the data module."
        )
    margin = getattr(build.data_class(data), "margin", 1.0)
    height, width = size
    return Preprocessing(
        int(recipe["in_channels"]), height, width, tuple(mean), tuple(std), class_names(run_of(path)), margin
    )
