"""Data: readers, splits, augmentation, loaders and the Lightning data modules that join them."""

from dkel_lightning.data.augment import CropFlip
from dkel_lightning.data.datamodules import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    DigitsDataModule,
    ImageDataModule,
    ImageFolderDataModule,
    NpzDataModule,
    TinyImageNetDataModule,
)
from dkel_lightning.data.device_loaders import DeviceLoader

__all__ = [
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "CropFlip",
    "DeviceLoader",
    "DigitsDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "NpzDataModule",
    "TinyImageNetDataModule",
]
