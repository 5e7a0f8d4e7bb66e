"""Data: readers, splits, augmentation, loaders and Lightning data modules."""

from dkel_lightning.data.augment import CropFlip
from dkel_lightning.data.batch import Batch, WithIndices
from dkel_lightning.data.datamodule import ImageDataModule
from dkel_lightning.data.imageset import Images, ImageSet
from dkel_lightning.data.own import ClassificationData
from dkel_lightning.data.readers.cifar import CIFAR10DataModule, CIFAR100DataModule
from dkel_lightning.data.readers.digits import DigitsDataModule
from dkel_lightning.data.readers.hf import HuggingFaceDataModule
from dkel_lightning.data.readers.image_folder import ImageFolderDataModule
from dkel_lightning.data.readers.imagenet import ImageNetDataModule
from dkel_lightning.data.readers.npz import NpzDataModule
from dkel_lightning.data.readers.tinyimagenet import TinyImageNetDataModule

__all__ = [
    "Batch",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "ClassificationData",
    "CropFlip",
    "DigitsDataModule",
    "HuggingFaceDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "ImageSet",
    "Images",
    "NpzDataModule",
    "TinyImageNetDataModule",
    "WithIndices",
]
