"""What a process owes the one that started it: to end soon after it, and to let it speak first.

Lightning and torchrun end all processes when one of them has failed, but nothing ends those whose starter was killed.
Imports neither torch nor Lightning.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from dkel_lightning.runtime import ranks

GRACE = 5.0
"""Seconds to end in good order once the parent is gone."""

PATIENCE = 10.0
"""Seconds that an error waits for the first process, which may have met the same, to report it and end."""

PAUSE = 0.2
"""Seconds between two looks at the parent."""


def end_with_parent() -> None:
    """End this process soon after the one that started it: what it would wait for never comes."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True, name="watch-parent").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PAUSE)
    time.sleep(GRACE)  # to end in good order, as after the last test
    os._exit(1)


@contextlib.contextmanager
def one_of_several() -> Iterator[None]:
    """Run what may be one of several processes: it ends with the one that started it, and errors are reported once.

    What all processes meet, the first one reports; they are ended with it while the others wait here. A process that
    is not ended has met something alone, and reports it.

    Raises:
        SystemExit: the first process has ended meanwhile.
    """
    launched, parent = ranks.is_launched_by_lightning(), os.getppid()
    if launched or ranks.is_launched_by_torchrun():
        end_with_parent()
    try:
        yield
    except BaseException as error:
        # Ended before the first process, one that was asked to stop would pass for a failure, by which Lightning
        # kills the first, too. Under torchrun and srun all of them are asked, and end as they were asked.
        if launched or (isinstance(error, Exception) and not ranks.is_first()):
            deadline = time.monotonic() + PATIENCE
            while os.getppid() == parent and time.monotonic() < deadline:
                time.sleep(PAUSE)
            if os.getppid() != parent:
                raise SystemExit(1) from None
        raise
