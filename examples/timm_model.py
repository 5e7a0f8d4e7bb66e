"""Train a vision transformer of timm, split between two blocks, on batches that are dicts.

    pip install "dkel-lightning[timm]"
    python examples/timm_model.py

This trains a small ViT on scikit-learn's digits; its last two blocks become three peers. It uses AdamW with a per-step
schedule, gradient accumulation over two batches and, on a GPU, bfloat16, and prints the test accuracy of all networks
and the first predictions of `Trainer.predict`. It takes a few minutes on a CPU.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset

from dkel_lightning import DistillationModule


class Digits(Dataset):
    """Samples are dicts, as in Hugging Face data sets."""

    def __init__(self, start: int, stop: int) -> None:
        digits = load_digits()
        self.images = torch.tensor(digits.images[start:stop], dtype=torch.float32).unsqueeze(1) / 8 - 1
        self.labels = torch.tensor(digits.target[start:stop])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def main(epochs: int = 30, folder: str = "outputs/examples", **settings: Any) -> float:
    """Train, test the best epoch, predict; return the test accuracy. `settings` go to the Trainer."""
    seed_everything(0)
    train = DataLoader(Digits(0, 1200), 32, shuffle=True, drop_last=True)
    val, test = DataLoader(Digits(1200, 1400), 200), DataLoader(Digits(1400, 1797), 200)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=64, depth=6, num_heads=4
    )
    accumulated = 2
    module = DistillationModule.build(
        backbone=vit,
        split_at="blocks.4",  # blocks 0 to 3 are shared; each peer has its own blocks 4 and 5, norm and head
        num_classes=10,
        in_channels=1,
        image_size=(8, 8),
        schedules="shares",
        optimizer=partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05),
        scheduler=partial(OneCycleLR, max_lr=1e-3, total_steps=epochs * -(-len(train) // accumulated), pct_start=0.1),
        interval="step",
    )
    trainer = Trainer(
        max_epochs=epochs,
        precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
        accumulate_grad_batches=accumulated,
        gradient_clip_val=1.0,
        callbacks=[ModelCheckpoint(monitor="val/acc", mode="max")],
        default_root_dir=folder,
        log_every_n_steps=10,
        **settings,
    )
    trainer.fit(module, train, val)
    (results,) = trainer.test(module, test, ckpt_path="best")
    logits = torch.cat(trainer.predict(module, test))
    print("predicted", logits[:10].argmax(1).tolist(), "of", [test.dataset[i]["labels"].item() for i in range(10)])
    return results["test/acc"]


if __name__ == "__main__":
    main()
