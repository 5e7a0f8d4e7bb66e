"""CIFAR-10 and CIFAR-100 by torchvision."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from dkel_lightning.data.datamodule import ImageDataModule
from dkel_lightning.data.imageset import Images, ImageSet
from dkel_lightning.errors import DataError


def _images(dataset: Any) -> Images:
    images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))
    return Images(images, np.asarray(dataset.targets, dtype=np.int64))


class _CIFARDataModule(ImageDataModule):
    _name: ClassVar[str]

    def prepare_data(self) -> None:
        self._load(train=True, download=self.download)

    def read(self) -> ImageSet:
        train, test = self._load(train=True), self._load(train=False)
        return ImageSet(_images(train), _images(test), tuple(train.classes))

    def _load(self, train: bool, download: bool = False) -> Any:
        official: Any = getattr(import_module("torchvision.datasets"), self._name)
        try:
            # torchvision compares the md5 of every file before it unpickles any.
            return official(self.root, train=train, download=download)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{self._name} in {self.root}: {error} Set data.download=true on a machine with a network, or put "
                f"{official.filename} ({official.url}, md5 {official.tgz_md5}) there and set data.download=true."
            ) from error


class CIFAR10DataModule(_CIFARDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images `[3, 32, 32]`. Arguments: `ImageDataModule`."""

    _name = "CIFAR10"
    default_mean = (0.4914, 0.4822, 0.4465)
    default_std = (0.2470, 0.2435, 0.2616)


class CIFAR100DataModule(_CIFARDataModule):
    """CIFAR-100: 50,000 training and 10,000 test images `[3, 32, 32]`. Arguments: `ImageDataModule`."""

    _name = "CIFAR100"
    default_mean = (0.5071, 0.4866, 0.4409)
    default_std = (0.2675, 0.2565, 0.2761)
