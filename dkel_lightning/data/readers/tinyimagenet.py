"""TinyImageNet in its official layout."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from dkel_lightning.data.readers.image_folder import ImageFolderDataModule, Listing, images_in
from dkel_lightning.errors import DataError

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
FOLDER = "tiny-imagenet-200"


class TinyImageNetDataModule(ImageFolderDataModule):
    """TinyImageNet: 100,000 training and 10,000 test images `[3, 64, 64]` of 200 classes.

    The test set is the official validation set, since the official test set has no labels. `root` is, or holds, the
    folder `tiny-imagenet-200`, or holds its official zip. Arguments: `ImageFolderDataModule`.
    """

    default_mean = (0.4802, 0.4481, 0.3975)
    default_std = (0.2302, 0.2265, 0.2262)

    def prepare_data(self) -> None:
        if not self._folder().is_dir():
            self._unpack()
        super().prepare_data()

    def list_images(self) -> tuple[dict[str, Listing], tuple[str, ...]]:
        folder = self._folder()
        try:
            wnids = (folder / "wnids.txt").read_text(encoding="utf-8").split()
            annotations = (folder / "val" / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"{folder} does not have the layout of TinyImageNet ({error}). {self._hint()}") from error
        number = {wnid: index for index, wnid in enumerate(wnids)}
        train = [(file, number[wnid]) for wnid in wnids for file in images_in(folder / "train" / wnid / "images")]
        fields = [line.split("\t") for line in annotations]
        test = [(str(folder / "val" / "images" / image), number[wnid]) for image, wnid, *_ in fields]
        splits = {name: Listing(*zip(*pairs, strict=True)) for name, pairs in (("train", train), ("test", test))}
        return splits, _class_names(folder, wnids)

    def _folder(self) -> Path:
        return self.root if (self.root / "wnids.txt").is_file() else self.root / FOLDER

    def _unpack(self) -> None:
        archive = self.root / f"{FOLDER}.zip"
        if not self.download and not check_integrity(str(archive), MD5):
            raise DataError(f"no TinyImageNet in {self.root}. {self._hint()}")
        try:
            download_url(URL, str(self.root), md5=MD5)  # keeps a file with this md5
            with tempfile.TemporaryDirectory(dir=self.root) as place:  # an interrupted extraction is never read
                extract_archive(str(archive), place)
                (Path(place) / FOLDER).replace(self.root / FOLDER)
        except (OSError, RuntimeError) as error:
            raise DataError(f"TinyImageNet cannot be fetched into {self.root} ({error}). {self._hint()}") from error

    def _hint(self) -> str:
        return (
            f"Put {FOLDER}.zip ({URL}, 237 MB, md5 {MD5}) or its unpacked folder into {self.root}, or set "
            "data.download=true on a machine with a network"
        )


def _class_names(folder: Path, wnids: list[str]) -> tuple[str, ...]:
    words = folder / "words.txt"
    lines = words.read_text(encoding="utf-8").splitlines() if words.is_file() else []
    meaning = dict(line.split("\t", 1) for line in lines if "\t" in line)
    full = tuple(meaning.get(wnid, wnid) for wnid in wnids)
    short = tuple(name.split(",")[0].strip() for name in full)
    return short if len(set(short)) == len(short) else full
