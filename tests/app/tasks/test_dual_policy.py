"""task=dual_policy: what it writes, and that a resumed run ends as it would have."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from dkel_lightning.app.loggers.metrics_file import read_rows
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tasks import dual_policy as task
from dkel_lightning.checkpoints import file_format
from dkel_lightning.errors import CheckpointError, ConfigError
from tests.compose import compose

pytest.importorskip("gymnasium", reason="the extra rl is not installed")
pytest.importorskip("stable_baselines3", reason="the extra rl is not installed")

SMALL = (
    *("task=dual_policy", "rl.algorithm=ppo", "rl.env=CartPole-v1", "rl.envs=2", "rl.turn=32", "rl.steps=128"),
    *("rl.evaluations=2", "rl.episodes=3", "rl.frames=3", "seed=4"),
)


@pytest.fixture(scope="module")
def run(all_drawn: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("dual_policy")
    run, temporary = Run(compose(*SMALL), folder), tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        task.dual_policy(run)
    assert [*temporary.iterdir()] == []  # where Stable-Baselines3 keeps logs of its own
    return run


def test_returns_the_better_policy_figure_and_frames_are_written(run: Run) -> None:
    rows = read_rows(run.folder / "metrics.csv")
    assert [*rows] == [64, 128]
    means = [rows[128]["return_0"], rows[128]["return_1"]]
    result = json.loads((run.folder / "result.json").read_text(encoding="utf-8"))
    assert means[0] != means[1]
    assert result["better"] == means.index(max(means))
    assert result["evaluated"] == max(means)
    assert result["episodes"] == 3
    with Image.open(run.folder / "figures" / "returns.png") as image:
        assert image.size == (840, 480)
    with Image.open(run.folder / "figures" / "frames.png") as image:
        assert image.size == (3 * 300, 200)
    assert (run.folder / "better_policy.zip").is_file()


def test_a_run_that_was_stopped_goes_on_as_it_would_have(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dkel_lightning.policies.dual import DualPolicy

    begun, advance = Run(run.values, tmp_path), DualPolicy.advance

    def stopped(dual: DualPolicy) -> object:
        if dual.stage == 1:
            raise KeyboardInterrupt
        return advance(dual)

    monkeypatch.setattr(DualPolicy, "advance", stopped)
    with pytest.raises(KeyboardInterrupt):
        task.dual_policy(begun)
    monkeypatch.undo()
    assert not (tmp_path / "result.json").exists()
    task.dual_policy(Run(run.values, tmp_path, tmp_path / "checkpoints" / "last.ckpt"))
    for name in ("metrics.csv", "result.json"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (run.folder / name).read_text(encoding="utf-8")


def test_an_edited_run_and_one_of_another_task_are_not_gone_on_with(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    shutil.copy(run.checkpoints / "last.ckpt", path)
    edited = Run({**run.values, "rl": {**run.values["rl"], "alpha": 2.0}}, tmp_path, path)
    (tmp_path / "config.yaml").write_text(edited.settings)
    with pytest.raises(CheckpointError, match=r"edited since the run began \(rl\.alpha: 2.0, and it was 1.0\)"):
        task.dual_policy(edited)
    file_format.AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="was not written by task=dual_policy"):
        task.dual_policy(Run(run.values, tmp_path, path))


def test_a_missing_extra_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "dkel-lightning\[rl\]"'):
        task.dual_policy(Run(run.values, tmp_path))
