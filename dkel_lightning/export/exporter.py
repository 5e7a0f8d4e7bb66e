"""Write an export, open it, compare it with the network, and rename it into place."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dkel_lightning.distillation import DistillationModule
from dkel_lightning.errors import CheckpointError, ConfigError
from dkel_lightning.export import formats
from dkel_lightning.export.formats import Exported
from dkel_lightning.export.metadata import RECORD, Preprocessing, Record
from dkel_lightning.modules.deployment import choose, deploy, deployed_member
from dkel_lightning.networks import logits_of
from dkel_lightning.runtime.atomic_files import write_text

_IMAGES = 16

CARD = """\
# {member} of {method}

`{file}` classifies images [B, {channels}, {height}, {width}] into {classes} classes. Open it by

```python
from dkel_lightning.export import open_exported

exported = open_exported("{folder}")
logits = exported.classify(exported.record.preprocessing.normalised(images))  # uint8 [B, C, H, W]
```

- Backbone: {backbone}. Trained from: {source}.
- Preprocessing: {steps}.
- Verified on {images} images: its logits differ from those of the trained network by at most {difference:.2g} (the
  largest logit is {largest:.3g}).
- The terms of the training data also apply to the weights.
"""


def export(
    module: DistillationModule,
    folder: str | Path,
    preprocessing: Preprocessing,
    *,
    format: str = "safetensors",
    network: str | None = None,
    peer: int | str | None = None,
    images: Tensor | None = None,
    tolerance: float = 1e-4,
    source: str = "a module in memory",
) -> Exported:
    """Write one network of a trained module into a folder, with `export.json` and a model card.

    The file is opened again and compared with the deployed network. If they differ, an earlier export is kept.

    Args:
        module: a trained module; it is moved to the CPU and set to eval mode.
        folder: created if missing.
        preprocessing: of the images.
        format: one of FORMATS.
        network: `teacher`, `student` or `ensemble`; by default as configured in the module.
        peer: an index, or `best` in the last validation; by default as configured in the module.
        images: normalised images [N, C, H, W] for the comparison; Gaussian noise by default.
        tolerance: largest difference of two logits, relative to the largest logit if that exceeds 1.
        source: origin of the weights, for the model card.
    """
    formats.check(format)
    folder, module = Path(folder), module.cpu().eval()
    choice = choose(module, network, peer)
    member, deployed = deployed_member(module, choice=choice), deploy(module, choice)
    if images is None:
        images = torch.randn(_IMAGES, *preprocessing.shape, generator=torch.Generator().manual_seed(0))
    if images.dim() != 4 or len(images) < 2 or tuple(images.shape[1:]) != preprocessing.shape:
        raise ConfigError(
            f"The images to compare on are {[*images.shape]}, but the preprocessing gives "
            f"[batch, {', '.join(map(str, preprocessing.shape))}]: pass at least two normalised images of that shape."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export", dir=folder) as draft:
        written = formats.write(format, deployed, images[:2], Path(draft))
        classify = formats.open_file(written, lambda: formats.blank_copy(deployed))
        with torch.no_grad():
            expected = logits_of(deployed(images))
        # Batches of different size, to detect a fixed batch dimension.
        received = torch.cat([classify(batch) for batch in (images[:1], images[1:])])
        difference, largest = float((received - expected).abs().max()), float(expected.abs().max())
        if not difference <= tolerance * max(1.0, largest):  # nor NaN
            raise CheckpointError(
                f"The logits of the exported {written.name} and of {member} differ by up to {difference:.2g}, but "
                f"{tolerance:g} x {max(1.0, largest):.3g} is allowed. Nothing was written; try another "
                "export.format, or raise export.tolerance."
            )
        for path in Path(draft).iterdir():  # ONNX above 2 GiB has two files
            path.replace(folder / path.name)
    record = Record(format, written.name, member, module.student.num_classes, preprocessing, _recipe(module))
    write_text(folder / RECORD, json.dumps({**record.as_dict(), "largest_difference": difference}, indent=2) + "\n")
    channels, height, width = preprocessing.shape
    card = CARD.format(
        member=member, method=type(module.method).__name__, file=written.name, folder=folder.name, source=source,
        channels=channels, height=height, width=width, classes=record.num_classes, steps=preprocessing.steps,
        backbone=(module.recipe or {}).get("backbone") or "a network of its own", images=len(images),
        difference=difference, largest=largest,
    )  # fmt: skip
    write_text(folder / "README.md", card)
    return Exported(folder / written.name, record, classify)


def _recipe(module: DistillationModule) -> Mapping[str, Any] | None:
    """Return the recipe of the networks; None if backbone or method is the user's own."""
    recipe = module.recipe or {}
    return recipe if recipe.get("backbone") is not None and recipe.get("method") is not None else None
