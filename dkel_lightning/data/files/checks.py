"""Reading files that nobody vouches for: within bounds, never outside their folder, and named where they are wrong."""

from __future__ import annotations

import os
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from dkel_lightning.errors import DataError

BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""What `zipfile` raises for a file that is torn, encrypted or of a kind it does not know."""

# The others unpack a whole block at once, whatever size is asked for.
_BOUNDED_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system says of `path`, or of a file in it, into a DataError that names the file."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise DataError(
            f"{where} cannot be read ({error.strerror or error}): check that it is there and that you may read it"
        ) from error


def regular_files(folder: Path, skip: str = "") -> Iterator[tuple[Path, os.stat_result]]:
    """Yield all files below `folder`, through links too, except what is hidden or in folders called `skip`.

    Raises:
        DataError: Something is neither file nor folder (reading a pipe would wait for ever), or a link leads round in
            a circle.
        OSError: A folder cannot be read: going on would leave its files out without a word.
    """

    def stop(error: OSError) -> None:
        raise error

    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            raise DataError(f"{place} is a link to a folder that is read already: remove the link")
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if name != skip and not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                path = Path(place, name)
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise DataError(f"{path} is no regular file but a pipe, socket or device: remove it")
                yield path, status


def file_bytes(path: Path, most: int) -> bytes:
    """Read a regular file of at most `most` bytes.

    Raises:
        DataError: It cannot be read, is larger, or is a pipe or device, which might never end.
    """
    with reading(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is no regular file: remove it")
        with path.open("rb") as file:
            content = file.read(most + 1)
    if len(content) > most:
        raise DataError(f"{path} holds more than {most} bytes: remove or shrink it")
    return content


def refuse_lookalikes(names: Iterable[str], where: str) -> None:
    """Raise a DataError if two names are equal, or would be where capitals or the spelling of accents do not count.

    On such a file system (macOS, Windows) two folders would be one.
    """
    seen: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            other = seen[key]
            alike = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)
            what = f"the spelling of accents ({other!a}, {name!a})" if alike else "capitals"
            how = "is there twice" if other == name else f"and {other!r} differ only in {what}"
            raise DataError(f"{where}: the class {name!r} {how}; rename one or merge them")
        seen[key] = name


def check_members(archive: zipfile.ZipFile, where: Path) -> None:
    """Raise a DataError if a zip holds a link, a name twice, or one that leads out of the folder it is unpacked to."""
    seen: set[str] = set()
    for info in archive.infolist():
        if _climbs(info.filename):
            raise _refused(where, info.filename, "leads out of the archive's folder")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _refused(where, info.filename, "is a link")
        if info.filename in seen:
            raise _refused(where, info.filename, "is there twice")
        seen.add(info.filename)


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: Path, most: int) -> IO[bytes]:
    """Open a member of a zip; read it with a size, never with a bare `read()`.

    Only the former is bounded whatever the archive says: a bare one unpacks all it finds and cuts it off afterwards.

    Raises:
        DataError: It claims to unpack to more than `most` bytes, or is packed by a method without such a bound.
    """
    if info.file_size > most:
        raise DataError(f"{where}: {info.filename} unpacks to {info.file_size} bytes, more than {most}")
    if info.compress_type not in _BOUNDED_METHODS:
        raise DataError(f"{where}: {info.filename} is neither stored nor deflated: pack the archive again with zip")
    return archive.open(info)


def _climbs(name: str) -> bool:
    # A zip made on Windows may hold backslashes and drive letters.
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or name[1:2] == ":"


def _refused(where: Path, name: str, why: str) -> DataError:
    return DataError(f"{where}: {name} {why}; nothing was unpacked. Get the archive from a place that you trust")
