"""task=geometry, task=convergence and task=dual_policy: one command each writes tables and figures."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dkel_lightning.errors import ConfigError
from tests.compose import run_task


def run(folder: Path, *overrides: str) -> set[str]:
    """Run a task as the command line does, without data, and return the names of its files."""
    run_task(folder, *overrides, "data=image_folder", "data.root=nowhere")
    for path in (folder / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000
    return {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    }


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


RECORDS = {"config.yaml", "tables.md"}


def test_geometry_writes_its_tables_and_figures(tmp_path: Path) -> None:
    assert run(tmp_path, "task=geometry", "geometry.init_steps=5") == {
        *RECORDS,
        *("bowl.csv", "mirror.csv"),
        *(f"figures/bowl_{name}.png" for name in ("paths", "courses", "steps")),
        *(f"figures/mirror_{name}.png" for name in ("paths", "losses")),
    }
    steps = {row["start"]: row for row in rows(tmp_path / "bowl.csv") if row["curvature"] == "1"}
    assert steps["no teacher"]["steps_to_distance"] == "59"
    assert (steps["no teacher"]["cosine_1"], steps["no teacher"]["weight_time"]) == ("", "")
    assert "own draw, 5 steps at lr" in steps
    mirror = {(row["start"], row["weight"]): row for row in rows(tmp_path / "mirror.csv")}
    assert mirror["trained, mirror branch", "1"]["student_steps"] == "60"
    assert mirror["trained, mirror branch", "1"]["ends_in_other_branch"] == "True"


def test_convergence_writes_its_tables_and_figures(tmp_path: Path) -> None:
    names = ("risks", "homogenisation", "over_fitting", "collapse")
    assert run(tmp_path, "task=convergence", "convergence.runs=20", "convergence.epochs=24", "seed=3") == {
        *RECORDS,
        *(f"{name}.csv" for name in names),
        *(f"figures/{name}.png" for name in ("risk", *names[1:])),
    }
    risks = {row["scheme"]: row for row in rows(tmp_path / "risks.csv")}
    # These columns are of epochs before the learning rate falls: they are those of a run of 300 epochs.
    assert 1000 * float(risks["dkel: k 0.5, own draw, keep"]["student_risk 5"]) == pytest.approx(30, abs=0.51)
    assert 1000 * float(risks["no distillation"]["teacher_risk 1"]) == pytest.approx(261, abs=0.51)
    assert {row["runs"] for row in rows(tmp_path / "collapse.csv")} == {"100"}
    assert [row["step"] for row in rows(tmp_path / "homogenisation.csv")][:5] == ["100", "300", "1000", "3000", "7900"]
    assert "| dkel: k 0.5, own draw, keep |" in (tmp_path / "tables.md").read_text(encoding="utf-8")


def test_dual_policy_writes_returns_figure_and_the_better_policy(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3", reason="the extra rl is not installed")
    small = ("+rl.learner.n_steps=4", "+rl.learner.n_epochs=1", "rl.steps=640", "seed=4")
    assert run(tmp_path, "task=dual_policy", "rl.algorithm=ppo", "rl.env=CartPole-v1", *small) == {
        *(RECORDS - {"tables.md"}),
        *("metrics.csv", "result.json", "better_policy.zip", "figures/returns.png"),
    }
    metrics = rows(tmp_path / "metrics.csv")
    assert [row["step"] for row in metrics] == [str(64 * n) for n in range(1, 11)]
    means = [float(metrics[-1][f"return_{number}"]) for number in (0, 1)]
    result: dict[str, Any] = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert means[0] != means[1]
    assert (result["better"], result["evaluated"]) == (means.index(max(means)), max(means))
    assert (result["env"], result["seed"]) == ("CartPole-v1", 4)


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(ConfigError, match=r'pip install "dkel-lightning\[rl\]"'):
        run_task(tmp_path, "task=dual_policy")


@pytest.mark.parametrize("override", ["geometry.decay=1", "convergence.epochs=2", "rl.policies=3"])
def test_keys_have_bounds(override: str, tmp_path: Path) -> None:
    key = override.partition("=")[0]
    task = {"rl": "dual_policy"}.get(key.partition(".")[0], key.partition(".")[0])
    with pytest.raises(ConfigError, match=f"{key} must be a"):
        run_task(tmp_path, f"task={task}", override)
