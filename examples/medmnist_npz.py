"""Train on a file in the MedMNIST layout: `train_images`, `train_labels`, `val_...`, `test_...` in one .npz.

    python examples/medmnist_npz.py [FILE.npz]

This reads your file, or creates one from scikit-learn's digits (28x28 grey images in uint8, labels [N, 1]), trains
three peers and writes the weights of the deployed ResNet-8 to `weights.pt`. It takes about two minutes on a CPU. The
same on the command line:

    dkel experiment=own_data data=npz data.root=FILE.npz backbone=resnet8 trainer.max_epochs=15
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits

from dkel_lightning import DistillationModule
from dkel_lightning.data import NpzDataModule
from dkel_lightning.export import Preprocessing, export


def medmnist_like(path: Path) -> Path:
    """Write the digits in the MedMNIST layout."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) * (255 / 16)
    images = torch.nn.functional.interpolate(images, size=(28, 28), mode="bilinear").round()
    images, labels = images[:, 0].to(torch.uint8).numpy(), digits.target.astype(np.uint8)[:, None]
    splits = {"train": slice(0, 1200), "val": slice(1200, 1400), "test": slice(1400, 1797)}
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"{name}_images": images[part] for name, part in splits.items()}
    arrays |= {f"{name}_labels": labels[part] for name, part in splits.items()}
    np.savez_compressed(path, **arrays)
    return path


def main(file: str | None = None, epochs: int = 15, folder: str = "outputs/examples", **settings: Any) -> float:
    """Train, test and export; return the largest difference of the exported logits. `settings` go to the Trainer."""
    path = Path(file) if file else medmnist_like(Path(folder, "digits_28.npz"))
    # Digits must not be flipped. Each peer gets a different view.
    datamodule = NpzDataModule(path, batch_size=64, views=3, padding=2, flip=False)
    datamodule.setup("fit")
    channels, height, width = datamodule.image_shape
    module = DistillationModule.build(
        "resnet8",
        num_classes=datamodule.num_classes,
        in_channels=channels,
        image_size=(height, width),
        schedules="shares",
    )
    best = ModelCheckpoint(monitor="val/acc", mode="max")
    trainer = Trainer(max_epochs=epochs, callbacks=[best], default_root_dir=folder, log_every_n_steps=10, **settings)
    trainer.fit(module, datamodule)
    trainer.test(module, datamodule, ckpt_path="best")

    images = torch.cat([batch[0] for batch in datamodule.test_dataloader()]).cpu()
    normalize = datamodule.augment.normalize
    prepared = Preprocessing(channels, height, width, normalize.mean, normalize.std, tuple(datamodule.class_names))
    exported = export(module, Path(folder, "shipped"), prepared, format="weights", images=images[:256])
    with torch.no_grad():
        difference = float((exported.classify(images) - module.deploy()(images)).abs().max())
    print(f"{exported.record.member} in {exported.path}: logits differ by {difference:.1g} at most")
    return difference


if __name__ == "__main__":
    main(*sys.argv[1:2])
