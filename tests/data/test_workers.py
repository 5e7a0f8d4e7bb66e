"""Worker processes that cannot hand over their batches, or do not answer, end a training with one error."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from dkel_lightning.data import worker_loaders
from dkel_lightning.data.batch import Batch
from dkel_lightning.data.device_loaders import EvaluationLoader
from dkel_lightning.data.imageset import StoredImages
from dkel_lightning.data.readers.digits import DigitsDataModule
from dkel_lightning.errors import ConfigError, DataError
from tests.data.test_loaders import AUGMENT, COUNT, arrays, in_workers, stored


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for seconds rather than minutes."""
    monkeypatch.setattr(worker_loaders, "PATIENCE", 3.0)
    monkeypatch.setattr(worker_loaders, "TURN", 0.5)


def test_a_batch_for_which_shared_memory_has_no_room_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_room(worker: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # stands for a full /dev/shm, whose files are these

    monkeypatch.setattr(worker_loaders, "_begin", without_room)
    before = {*Path("/dev/shm").glob("torch_*")}
    with pytest.raises(DataError, match=r"a batch of [\d,]+ bytes in shared memory .*--shm-size.*data\.workers=0"):
        list(in_workers(workers=1))
    assert not multiprocessing.active_children()
    assert not [path for path in {*Path("/dev/shm").glob("torch_*")} - before if not path.stat().st_size]


@pytest.mark.slow
def test_a_stopped_worker_is_waited_for_no_longer_than_it_may_take_and_leaves_no_process() -> None:
    batches = iter(in_workers(workers=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(DataError, match=r"The 1 workers have made no batch in 3 seconds: .*data\.workers=0"):
        list(batches)
    assert not worker.is_alive()


def test_the_time_in_which_this_process_was_stopped_is_no_waiting() -> None:
    asked = iter([RuntimeError("DataLoader timed out after 0.5 seconds")] * 5)

    made = DataError("at last")

    class Slow(Iterator[Batch | DataError]):
        def __next__(self) -> DataError:
            for error in asked:
                raise error
            return made

    assert worker_loaders.WorkerImages(stored(), AUGMENT)._next(Slow()) is made


class Slow(StoredImages):
    """Images that take longer to read than one look lasts."""

    def read(self, indices: Tensor) -> Tensor:
        time.sleep(0.2)
        return super().read(indices)


def test_what_is_still_being_made_when_a_pass_is_cut_short_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_loaders, "PATIENCE", 60.0)
    monkeypatch.setattr(worker_loaders, "TURN", 0.1)
    slow = Slow(arrays()[0].numpy(), arrays()[1].numpy(), np.arange(COUNT))
    loader = EvaluationLoader(worker_loaders.WorkerImages(slow, AUGMENT, workers=1), batch_size=11)
    for _ in range(2):
        assert [len(batch.labels) for batch in islice(loader, 1)] == [11]


def test_a_broken_image_that_a_worker_meets_is_one_error_without_its_traceback() -> None:
    class Broken(StoredImages):
        def read(self, indices: Tensor) -> Tensor:
            raise DataError("7.png is no readable image: replace or remove it")

    broken = Broken(arrays()[0].numpy(), arrays()[1].numpy(), np.arange(COUNT))
    with pytest.raises(DataError, match=r"^7\.png is no readable image: replace or remove it$"):
        list(EvaluationLoader(worker_loaders.WorkerImages(broken, AUGMENT, workers=1), batch_size=11))
    assert not multiprocessing.active_children()


def test_a_worker_that_was_stopped_keeps_no_process_from_its_end() -> None:
    loader = in_workers(workers=1)
    list(loader)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    worker_loaders._end_all()
    assert not worker.is_alive()


def test_more_workers_than_a_machine_can_feed_are_refused() -> None:
    data = DigitsDataModule(residency="workers", workers=1000)
    data.setup()
    with pytest.raises(ConfigError, match=r"data\.workers=1000, and this machine has \d+ cores: give \d+ at most"):
        data.train_dataloader()
