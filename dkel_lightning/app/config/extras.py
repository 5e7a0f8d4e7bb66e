"""The optional extras of the package, and whether they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

# What each extra of the package brings, by the names under which it is imported.
EXTRAS = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "joblib": ("hydra_plugins.hydra_joblib_launcher",),
    "submitit": ("hydra_plugins.hydra_submitit_launcher",),
    "timm": ("timm",),
    "rl": ("gymnasium", "stable_baselines3"),
    "optuna": ("hydra_plugins.hydra_optuna_sweeper",),
}
# Of Lightning's loggers those whose package is an extra.
TRACKERS = {
    "lightning.pytorch.loggers.TensorBoardLogger": "tensorboard",
    "lightning.pytorch.loggers.WandbLogger": "wandb",
    "lightning.pytorch.loggers.MLFlowLogger": "mlflow",
}


def missing_extra(choice: str, extra: str) -> Iterator[str]:
    """Say of the first package that `choice` needs and that is not installed how it is."""
    for package in EXTRAS[extra]:
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:  # of a package that it lies in
            found = None
        if found is None:
            yield f'{choice} needs {package}, which is not installed: pip install "dkel-lightning[{extra}]".'
            return
