"""Exporting: write, open as a receiver would, compare, and only then give the file its name."""

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
- Checked on {images} images when it was written: its logits differ from those of the trained network by at most
  {difference:.2g} (the largest is {largest:.3g}).
- The terms of the training data hold for the weights too.
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

    The file is opened as its receiver would open it and compared with the deployed network before it takes its name;
    an earlier export stays if they differ.

    Args:
        module: trained; it is put on the CPU and into eval mode.
        folder: made if missing.
        preprocessing: how images become the network's input.
        format: one of FORMATS.
        network: `teacher`, `student` or `ensemble`; by default as the module deploys.
        peer: an index, or `best` of the last validation; by default as the module deploys.
        images: normalised images [N, C, H, W] to compare on; by default normally distributed ones.
        tolerance: largest difference of two logits, relative to the largest logit if that exceeds 1.
        source: where the weights come from, for the model card.
    """
    formats.check(format)
    folder, module = Path(folder), module.cpu().eval()
    choice = choose(module, network, peer)
    member, deployed = deployed_member(module, choice=choice), deploy(module, choice)
    if images is None:
        images = torch.randn(_IMAGES, *preprocessing.shape, generator=torch.Generator().manual_seed(0))
    if images.dim() != 4 or len(images) < 2 or tuple(images.shape[1:]) != preprocessing.shape:
        raise ConfigError(
            f"The images to compare on are {[*images.shape]}, the preprocessing gives "
            f"[batch, {', '.join(map(str, preprocessing.shape))}]: pass two or more normalised images of that shape."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export", dir=folder) as draft:
        written = formats.write(format, deployed, images[:2], Path(draft))
        classify = formats.open_file(written, lambda: formats.blank_copy(deployed))
        with torch.no_grad():
            expected = logits_of(deployed(images))
        # A batch of one too, which a fixed batch dimension would refuse.
        received = torch.cat([classify(batch) for batch in (images[:1], images[1:])])
        difference, largest = float((received - expected).abs().max()), float(expected.abs().max())
        if not difference <= tolerance * max(1.0, largest):  # nor NaN
            raise CheckpointError(
                f"The exported {written.name} does not give the logits of {member}: they differ by up to "
                f"{difference:.2g}, and {tolerance:g} x {max(1.0, largest):.3g} is allowed. Nothing was written; try "
                "another export.format, or raise export.tolerance if the difference does not matter to you."
            )
        for path in Path(draft).iterdir():  # ONNX above 2 GiB has two
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
    """Return what rebuilds the networks by name; None if that needs something of the user's own."""
    recipe = module.recipe or {}
    return recipe if recipe.get("backbone") is not None and recipe.get("method") is not None else None
