"""Getting a large file once, whole and unchanged; and taking turns while doing so."""

from __future__ import annotations

import contextlib
import errno
import http.client
import logging
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from dkel_lightning.errors import DataError
from dkel_lightning.runtime import locks
from dkel_lightning.runtime.atomic_files import digest

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_TIMEOUT_S = 60
_TURN_S = 3600.0
# More than any file that is fetched; a server that never stops must not fill the disk.
_MOST_BYTES = 1 << 30
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def taking_turns(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock `.<name>.lock` in `folder` (made if missing), so that two runs do not prepare the same files.

    Raises:
        DataError: The folder cannot be made or written to.
        DkelError: Another process holds it for too long.
    """
    with contextlib.ExitStack() as until_the_end:
        try:
            until_the_end.enter_context(locks.acquire_lock(folder / f".{name}.lock", _TURN_S))
        except OSError as error:
            raise DataError(f"{folder} cannot be written to ({error}): choose a folder that can") from error
        yield


def fetch(url: str, target: Path, md5: str) -> None:
    """Download `url` to `target`, which appears only once it is complete and has this md5.

    What has arrived is kept in `<target>.part`, and a later call goes on from there if the server lets it. The caller
    holds the lock.

    Raises:
        DataError: No network, an interrupted transfer, a full disk, or another content than promised.
    """
    part = target.with_name(target.name + ".part")
    by_hand = f"Or put {target.name} into {target.parent} by hand"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _transfer(url, part)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise DataError(
                f"downloading {url} stopped ({error}): make room in {target.parent} and run again to go on from there, "
                "or set data.root to a folder with room"
            ) from error
        raise DataError(
            f"downloading {url} failed ({error or type(error).__name__}). Run again to go on where it "
            f"stopped. {by_hand}"
        ) from error
    found = digest(part, "md5")
    if found != md5:
        part.unlink()
        raise DataError(f"{url} gave a file with md5 {found} instead of {md5}; it was removed. Try again. {by_hand}")
    part.replace(target)


def _transfer(url: str, part: Path) -> None:
    done = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "dkel_lightning", **({"Range": f"bytes={done}-"} if done else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not done:
            raise
        # What lies there is complete or longer than the file: start over, the md5 decides.
        part.unlink()
        return _transfer(url, part)
    with response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        length = int(response.headers.get("Content-Length", 0))
        start = done if resumed else 0
        with part.open("ab" if resumed else "wb") as file, _progress() as progress:
            task = progress.add_task(part.name.removesuffix(".part"), total=start + length or None, completed=start)
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                if file.tell() > _MOST_BYTES:
                    part.unlink()
                    raise DataError(f"{url} gives more than {_MOST_BYTES} bytes, so it is another file; it was removed")
                progress.advance(task, len(chunk))
    if length and part.stat().st_size != start + length:
        raise ConnectionError(f"only {part.stat().st_size} of {start + length} bytes arrived")


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(file=sys.stderr)
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
