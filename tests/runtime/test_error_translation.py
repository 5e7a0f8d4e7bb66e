"""What torch and the system say of full memory, a full disk or a lost process becomes one line with its cure."""

from __future__ import annotations

import errno

import pytest
import torch

from dkel_lightning.errors import ConfigError, DiskFullError, DkelError, MemoryFullError, ProcessError
from dkel_lightning.runtime.error_translation import errors_named, named_error

GO_ON = "Go on with: dkel resume=last"
LOST = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0"), MemoryFullError,
         "Out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.): lower data.batch_size"),
        (MemoryError(), MemoryFullError, "Out of memory (the system has none left): lower data.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryFullError, "Out of memory ("),
        (OSError(errno.ENOSPC, "No space left on device", "last.ckpt"), DiskFullError, "Could not write last.ckpt"),
        (torch.distributed.DistBackendError("NCCL error"), ProcessError, "Another process of this training has ended"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is"), ProcessError,
         "A process that reads images has ended (DataLoader worker (pid 7) is killed by signal: Bus error"),
        (torch.distributed.DistNetworkError("timed out"), ProcessError, "within trainer.process_timeout"),
    ],
)  # fmt: skip
def test_an_error_that_a_new_start_may_cure_is_named_and_says_how_to_go_on(
    error: Exception, kind: type[DkelError], says: str
) -> None:
    with pytest.raises(kind) as caught, errors_named(lambda: GO_ON):
        raise error
    assert says in str(caught.value)
    assert str(caught.value).endswith(GO_ON)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [ValueError("shape"), RuntimeError(LOST), ConfigError("seed"), OSError(2, "no")])
def test_any_other_error_stays_as_it_is(error: Exception) -> None:
    # Words of the communication count only where there is one.
    with pytest.raises(type(error)) as caught, errors_named(lambda: GO_ON):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(("late", "says"), [(True, "it hangs or is slow"), (False, "has ended")])
def test_a_broken_connection_is_a_lost_process_where_there_are_several(
    late: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    named = named_error(RuntimeError("[gloo] Timed out waiting 45000ms for recv operation" if late else LOST))
    assert isinstance(named, ProcessError)
    assert says in str(named)
