"""Two gloo processes on the CPU: equal teachers, equal students, equal statistics, different data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import workers
from tests.distributed.processes import fork
from tests.modules.toy import build, parameters_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run both processes as torchrun would start them, and return where they wrote."""
    folder = tmp_path_factory.mktemp("two")

    def work(rank: int) -> None:
        os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_WORLD_SIZE="2", GROUP_RANK="0")
        os.environ.update(TORCHELASTIC_RUN_ID="test")
        workers.main(folder)

    assert fork(2, work, seconds=200) == [0, 0]
    return folder


def read(run: Path, case: str) -> list[dict[str, Any]]:
    return [torch.load(run / case / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def unequal(seen: list[dict[str, Any]], key: str, prefix: str = "") -> list[str]:
    ours, theirs = seen[0][key], seen[1][key]
    assert ours.keys() == theirs.keys()
    chosen = [name for name in ours if name.startswith(prefix)]
    assert chosen
    return [name for name in chosen if not torch.equal(ours[name], theirs[name])]


def test_dkel_ends_equal_on_two_processes_that_saw_different_data(run: Path) -> None:
    seen = read(run, "dkel")
    for one, other in zip(seen[0]["images"], seen[1]["images"], strict=True):
        assert not torch.equal(one, other)
    # After the initialisation, and after three optimizer steps, teacher included.
    assert unequal(seen, "before") == []
    assert unequal(seen, "before", "teacher.") == []
    assert unequal(seen, "after") == []
    assert [one["updates"].item() for one in seen] == [one["global_step"] for one in seen] == [3, 3]
    # The initialisation moved the teacher, and training moved both.
    drawn = parameters_of(build("dkel"))
    weights = [name for name in drawn if name.endswith("weight")]
    assert all(not torch.equal(drawn[n], seen[0]["before"][n]) for n in weights if n.startswith("teacher."))
    assert all(torch.equal(drawn[n], seen[0]["before"][n]) for n in weights if n.startswith("student."))
    assert all(not torch.equal(seen[0]["before"][n], seen[0]["after"][n]) for n in weights)
    # Only the trained networks have gradients, averaged over the processes.
    assert not any(name.startswith("teacher.") for name in seen[0]["gradients"])
    assert unequal(seen, "gradients") == []


def test_statistics_are_equal_in_validation_and_checkpoint_though_local_in_training(run: Path) -> None:
    seen = read(run, "dkel_released")
    assert unequal(seen, "statistics_in_training", "teacher.") != []
    assert unequal(seen, "statistics_in_training", "student.") != []
    assert unequal(seen, "statistics_in_validation") == []
    assert unequal(seen, "statistics_before") == []
    for name, value in seen[0]["statistics_in_validation"].items():
        local = (seen[0]["statistics_in_training"][name] + seen[1]["statistics_in_training"][name]) / 2
        torch.testing.assert_close(value, local, rtol=1e-5, atol=1e-6)
    saved = torch.load(run / "dkel_released" / "end.ckpt", weights_only=True)["state_dict"]
    for name, value in seen[1]["statistics_in_validation"].items():
        assert torch.equal(saved[name], value), name
    assert unequal(seen, "metrics") == []


CASES = ["baseline", "pcl", "dkel", "dkel_released", "gradient", "ekd", "iakd", "consistent"]
CASES += ["unlabelled_baseline", "unlabelled_dkel", "unlabelled_mean_teacher"]  # one process has no label at all


@pytest.mark.parametrize("case", CASES)
def test_networks_scores_and_what_a_method_keeps_are_equal_on_both(run: Path, case: str) -> None:
    seen = read(run, case)
    assert unequal(seen, "after") == []
    assert unequal(seen, "metrics") == []
    assert not seen[0]["method"] or unequal(seen, "method") == []


def test_what_soteacher_remembers_of_each_sample_is_gathered(run: Path) -> None:
    seen = read(run, "soteacher")
    assert unequal(seen, "method") == []
    assert torch.equal(seen[0]["method"]["visits"], torch.ones(48))  # each sample was seen by one of the two
    torch.testing.assert_close(seen[0]["method"]["memory"].sum(1), torch.ones(48))


def test_a_teacher_of_the_same_moment_is_the_same_on_both(run: Path) -> None:
    seen = read(run, "online")
    for key in ("before", "after", "gradients"):
        assert unequal(seen, key, "teacher.") == unequal(seen, key) == []
    learnt = [name for name in seen[0]["after"] if name.startswith("teacher.") and name.endswith("weight")]
    assert all(not torch.equal(seen[0]["before"][name], seen[0]["after"][name]) for name in learnt)
