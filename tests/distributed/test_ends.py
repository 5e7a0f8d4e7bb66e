"""A process that is killed or told to stop ends the others in bounded time; what is saved stands."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from dkel_lightning.app.tasks.train import train
from dkel_lightning.checkpoints import file_format
from dkel_lightning.errors import NonFiniteError
from tests.compose import tiny_run, with_callback
from tests.distributed.processes import TINY, Command, fork, run_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_others_and_the_command_resumes_the_run(rank: int, tmp_path: Path) -> None:
    fault = f"+callbacks.extra.fault={{_target_: faults.Fault, kind: kill, rank: {rank}, step: 14}}"
    command = ("trainer=ddp_cpu", *TINY, "hydra.run.dir=run")
    ended = Command(tmp_path, *command, "modules=[faults]", fault).wait()
    assert ended.code in (1, -signal.SIGKILL), ended.text
    assert file_format.load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 12
    assert ended.seconds is not None
    assert ended.seconds < 45  # Lightning looks every 5 seconds
    (tmp_path / "fault").unlink()
    again = Command(tmp_path, *command).wait()
    assert again.code == 0, again.text
    assert file_format.load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 24
    assert (tmp_path / "run" / "provenance_resumed.json").is_file()


def test_a_loss_that_is_no_number_in_one_process_stops_both_at_the_same_step(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", "trainer=ddp_cpu", "method.peers=2", "data.batch_size=8", "teacher.init_steps=0")
    run = with_callback(run, "tests.distributed.faults.Fault", kind="no_number", rank=1, step=4)

    def work(rank: int) -> None:
        os.chdir(tmp_path)
        try:
            train(run)
        except NonFiniteError as error:
            (tmp_path / f"said{rank}").write_text(str(error))

    assert fork(2, work) == [0, 0]
    said = [(tmp_path / f"said{rank}").read_text() for rank in (0, 1)]
    assert ["became NaN or infinite" in text and "(step 4, epoch 2)" in text for text in said] == [True, True], said
    assert file_format.load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.long)])
def test_a_signal_to_the_first_process_saves_once_and_ends_all(number: signal.Signals, tmp_path: Path) -> None:
    slow = "+callbacks.extra.slow={_target_: faults.Slow}"
    settings = ("trainer=ddp_cpu", *TINY, "modules=[faults]", slow, "trainer.limit_train_batches=30")
    command = Command(tmp_path, *settings)
    command.until("epoch 1/2")
    os.kill(command.process.pid, number)
    ended = command.wait()
    assert ended.code in (128 + number, 128 + signal.SIGTERM), ended.text
    assert ended.text.count("Interrupted. Resume with: dkel resume=") == 1, ended.text
    assert ended.errors == [], ended.text
    step = file_format.load(run_folder(tmp_path) / "checkpoints" / "last.ckpt")["global_step"]
    assert 30 < step <= 60
