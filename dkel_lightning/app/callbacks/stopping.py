"""Early stopping that a resume knows of."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningsEarlyStopping


class EarlyStopping(LightningsEarlyStopping):
    """Lightning's; a run that had stopped stays stopped when it is resumed."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before the first step where the patience was at its end."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True
