"""Distil a trained network into a tiny one on a folder of images, most of them without labels.

    pip install "dkel-lightning[export]"
    python examples/unlabelled_folder.py [FOLDER BACKBONE WEIGHTS]

FOLDER contains labelled images in train/CLASS/ and test/CLASS/, and the others in unlabelled/. WEIGHTS is a checkpoint
or state_dict of BACKBONE, a network trained on the same classes. A ResNet-8 learns from its predictions for all images
and is exported to `tiny/model.onnx`. Without arguments the folder is made from scikit-learn's digits, 100 of them
labelled, and a ResNet-20 is first trained on all of them with labels. This takes about a minute on a CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from sklearn.datasets import load_digits

from dkel_lightning import DistillationModule, StudentModule
from dkel_lightning.data import ImageFolderDataModule, NpzDataModule
from dkel_lightning.export import Preprocessing, export
from dkel_lightning.networks import create

SIZE = 8  # pixels


def distil(folder: Path, backbone: str, weights: Path, epochs: int, out: Path, **settings: Any) -> float:
    """Train the tiny network and export it; return its test accuracy."""
    images = ImageFolderDataModule(folder, image_size=SIZE, batch_size=64, padding=1, flip=False)
    images.prepare_data()
    images.setup()
    module = DistillationModule.build(
        "resnet8",
        images.num_classes,
        {"name": "kd", "ce_weight": 0.0, "weight": 1.0, "temperature": 2.0},  # no supervised loss
        teacher={"backbone": backbone, "weights": str(weights)},
        image_size=(SIZE, SIZE),
    )
    best = ModelCheckpoint(monitor="val/acc", mode="max")
    trainer = Trainer(max_epochs=epochs, callbacks=[best], default_root_dir=out, log_every_n_steps=10, **settings)
    trainer.fit(module, images)
    (results,) = trainer.test(module, images, ckpt_path="best")
    constants = images.augment.normalize
    prepared = Preprocessing(*images.image_shape, constants.mean, constants.std, images.class_names)
    exported = export(module, out / "tiny", prepared, format="onnx")
    print(f"{results['test/acc']:.1%} of {images.test_size} test images: {exported.path}")
    return results["test/acc"]


def digits_folder(folder: Path) -> Path:
    """Write digits as PNG files: 100 labelled, 1,097 unlabelled, 300 for the test."""
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images[:1497], digits.target, strict=False)):
        place = f"train/{label}" if index < 100 else "unlabelled" if index < 1197 else f"test/{label}"
        (folder / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(folder / place / f"{index}.png")
    return folder


def trained_network(path: Path, epochs: int, **settings: Any) -> Path:
    """Train a ResNet-20 on the first 1,197 digits with labels, and save its state_dict."""
    digits = load_digits()
    images = (np.repeat(digits.images[..., None], 3, -1) * 255 / 16).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path.with_suffix(".npz"), train_images=images[:1197], train_labels=digits.target[:1197])
    student = StudentModule(create("resnet20", 10, 1))
    trainer = Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False, **settings)
    trainer.fit(student, NpzDataModule(path.with_suffix(".npz"), batch_size=64, padding=1))
    torch.save(student.peer(0).state_dict(), path)
    return path


def main(*arguments: str, epochs: int = 15, out: str = "outputs/examples/unlabelled", **settings: Any) -> float:
    """Distil from a folder, backbone and weights, or from digits. `settings` go to the Trainer."""
    if arguments:
        folder, backbone, weights = arguments
        return distil(Path(folder), backbone, Path(weights), epochs, Path(out), **settings)
    folder, weights = digits_folder(Path(out, "digits")), trained_network(Path(out, "trained.pth"), epochs, **settings)
    return distil(folder, "resnet20", weights, epochs, Path(out), **settings)


if __name__ == "__main__":
    main(*sys.argv[1:4])
