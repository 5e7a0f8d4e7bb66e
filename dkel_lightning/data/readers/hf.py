"""Data sets of Hugging Face's `datasets`: by name on the Hub, or a folder of theirs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from dkel_lightning.data.datamodule import ImageDataModule
from dkel_lightning.data.files.decode import encoded_images
from dkel_lightning.data.imageset import Images, ImageSet
from dkel_lightning.data.readers.image_folder import image_bytes
from dkel_lightning.data.registry import register_data
from dkel_lightning.errors import ConfigError, DataError
from dkel_lightning.runtime.packages import need
from dkel_lightning.runtime.texts import first_line

SPLITS = {"train": ("train",), "val": ("validation", "val", "valid"), "test": ("test", "validation", "val", "valid")}
"""Names under which a split is looked for; a set without a test split is tested on its validation images."""


def _encoded(rows: Any, column: str, index: int) -> tuple[bytes, str]:
    image = rows[index][column]
    name = f"image {index} ({image['path'] or 'no path'})"
    return image["bytes"] if image["bytes"] is not None else image_bytes(Path(image["path"])), name


@register_data("hf")
class HuggingFaceDataModule(ImageDataModule):
    """A data set that `datasets` reads: `root` is a name on the Hub, a folder that it has saved, or one of its files.

    Splits are found by the usual names, the columns by their types: the image, and the label that is a class. Every
    image becomes RGB: its central square, scaled. No code of a data set is run.

    Args:
        *args: As in `ImageDataModule`.
        image_size: Height and width of the scaled images, in pixels.
        image_column: Name of the images' column; None: the only one of images.
        label_column: Name of the labels' column; None: the only one of classes.
        **kwargs: As in `ImageDataModule`; without `download` only what is in the cache or in a folder is read.
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
        # As it was given: a name on the Hub is no path.
        self._name = str(args[0] if args else kwargs.get("root", "data"))

    def prepare_data(self) -> None:
        """Download the set into the cache of `datasets`, once."""
        self._loaded()

    def read(self) -> ImageSet:
        """Read the splits; images are decoded when they are used."""
        import datasets

        found = self._loaded()
        splits = {name: next((found[each] for each in names if each in found), None) for name, names in SPLITS.items()}
        train, test = splits["train"], splits["test"]
        if train is None or test is None:
            raise DataError(f"{self._name} has the splits {', '.join(found)}: it needs train, and test or validation.")
        image = self._column(train.features, self.columns[0], datasets.Image, "data.image_column", "images")
        label = self._column(train.features, self.columns[1], datasets.ClassLabel, "data.label_column", "classes")

        def images(rows: Any) -> Images:
            encoded = rows.cast_column(image, datasets.Image(decode=False))
            return encoded_images(rows[label], self.image_size, partial(_encoded, encoded, image))

        val = splits["val"] if splits["val"] is not None and "test" in found else None
        names = tuple(train.features[label].names)
        return ImageSet(images(train), images(test), names, None if val is None else images(val))

    def _loaded(self) -> Any:
        import datasets

        root = Path(self._name).expanduser()
        try:
            if (root / "dataset_dict.json").is_file():
                return datasets.load_from_disk(str(root))
            mode = datasets.DownloadMode.REUSE_DATASET_IF_EXISTS
            config = datasets.DownloadConfig(local_files_only=not self.download)
            name = str(root) if root.exists() else self._name
            return datasets.load_dataset(name, download_mode=mode, download_config=config)
        except Exception as error:  # the Hub, the file system and each format fail in their own ways
            raise DataError(
                f"data.root={self._name} cannot be read by datasets ({first_line(error)}): give a name on the Hub, or "
                "a folder that save_to_disk or the Hub has written."
            ) from error

    def _column(self, features: Any, given: str | None, kind: Any, key: str, what: str) -> str:
        of_kind = [name for name, feature in features.items() if isinstance(feature, kind)]
        if given is None and len(of_kind) == 1:
            return str(of_kind[0])
        if given not in of_kind:
            columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
            raise ConfigError(f"{key}={given} is no column of {what} of {self._name}: name one. Columns: {columns}.")
        return str(given)
