"""Data sets of Hugging Face's `datasets`: by name on the Hub, or in a folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dkel_lightning.data.datamodule import ImageDataModule
from dkel_lightning.data.decode import EncodedImages
from dkel_lightning.data.imageset import Images, ImageSet
from dkel_lightning.errors import ConfigError, DataError
from dkel_lightning.runtime.packages import need

VAL_NAMES = ("validation", "val", "valid")


class HuggingFaceDataModule(ImageDataModule):
    """A data set that `datasets` reads: `root` is a name on the Hub, a folder that it has saved, or a folder of files.

    Splits are identified by name (without a test split, the validation split serves as the test set), columns by their
    types: the image, and the label that is a class; of a training image it may be -1 or None: not known. Every image
    becomes RGB: its central square, scaled. No code of a data set is run.

    Args:
        *args: As in `ImageDataModule`.
        image_size: Height and width of the scaled images, in pixels.
        image_column: Name of the images' column; None: the only one of images.
        label_column: Name of the labels' column; None: the only one of classes.
        **kwargs: As in `ImageDataModule`; with `download=False` only the cache or a folder is read.
    """

    def __init__(
        self,
        *args: Any,
        image_size: int = 64,
        image_column: str | None = None,
        label_column: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        need("datasets", "data=hf", "datasets")
        self.image_size = image_size
        self.columns = (image_column, label_column)
        self._name = str(args[0] if args else kwargs.get("root", "data"))  # a name on the Hub is no path

    def prepare_data(self) -> None:
        self._load()

    def read(self) -> ImageSet:
        import datasets

        splits = self._load()
        val = next((splits[name] for name in VAL_NAMES if name in splits), None)
        test = splits.get("test", val)
        if "train" not in splits:
            raise DataError(f"{self._name} has the splits {', '.join(splits)}: none is named train.")
        features = splits["train"].features
        image = self._column(features, self.columns[0], datasets.Image, "data.image_column", "images")
        label = self._column(features, self.columns[1], datasets.ClassLabel, "data.label_column", "classes")

        def images(rows: Any) -> Images:
            encoded = rows.cast_column(image, datasets.Image(decode=False))
            return Images(
                EncodedImages(len(rows), self.image_size, partial(_encoded, encoded, image)),
                np.asarray([-1 if value is None else value for value in rows[label]], dtype=np.int64),
            )

        names = tuple(features[label].names)
        others = [None if rows is None else images(rows) for rows in (test, val if val is not test else None)]
        return ImageSet(images(splits["train"]), others[0], names, others[1])

    def _load(self) -> Any:
        import datasets

        root = Path(self._name).expanduser()
        try:
            if (root / "dataset_dict.json").is_file():
                return datasets.load_from_disk(str(root))
            config = datasets.DownloadConfig(local_files_only=not self.download)
            return datasets.load_dataset(str(root) if root.exists() else self._name, download_config=config)
        except Exception as error:  # the Hub, the file system and each format have errors of their own
            raise DataError(
                f"data.root={self._name} cannot be read by datasets ({error}): give a name on the Hub, or a folder "
                "that save_to_disk or the Hub has written."
            ) from error

    def _column(self, features: Any, name: str | None, kind: Any, key: str, what: str) -> str:
        candidates = [column for column, feature in features.items() if isinstance(feature, kind)]
        if name is None and len(candidates) == 1:
            return str(candidates[0])
        if name not in candidates:
            columns = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
            given = "" if name is None else f"{key}={name}: "
            raise ConfigError(
                f"{given}{self._name} needs one {kind.__name__} column of {what}, and has {columns}: set {key}, or "
                "cast a column with cast_column."
            )
        return str(name)


def _encoded(rows: Any, column: str, index: int) -> tuple[bytes, str]:
    image = rows[index][column]
    data = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
    return data, f"image {index} ({image['path'] or 'no path'})"
