"""A training step as it stands in the code, observed by whoever asks for it."""

from __future__ import annotations

from dkel_lightning.errors import DataError
from dkel_lightning.modules.batch import Batch
from dkel_lightning.modules.interface import Coordinator
from dkel_lightning.modules.outputs import StepResult


def compute_eagerly(module: Coordinator, batch: Batch, batch_idx: int) -> StepResult:
    """Compute a step with its graph, and show it to the module's observers.

    Raises:
        DataError: a batch of one image that BatchNorm cannot normalise.
    """
    try:
        result = module.compute_step(batch)
    except ValueError as error:
        if len(batch.labels) == 1 and "more than 1 value per channel" in str(error):
            raise DataError(
                f"Batch {batch_idx} holds a single image, which BatchNorm cannot normalise where it is 1x1: "
                "pass drop_last=True to the DataLoader, or choose another batch size."
            ) from error
        raise
    assert result.inputs is not None
    for observe in module.observers:
        observe(result.inputs, result.terms, result.loss)
    return result
