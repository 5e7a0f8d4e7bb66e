"""Make tables, runs.csv and curves.png from the sweeps: `python docs/results/dual_policy/table.py FOLDER...`."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from dkel_lightning.app import drawing
from dkel_lightning.app.loggers.metrics_file import read_rows
from dkel_lightning.app.records import RunRecord
from dkel_lightning.app.tables import markdown_table, write_csv
from dkel_lightning.studies.seed_statistics import paired, sample

HERE = Path(__file__).parent
NAMES = {1: "single", 2: "dual"}
COLUMNS = ("env", "steps", "distil_lr", "policies", "seed", "evaluated", "return", "deviation", "episodes")


def runs(folders: list[str]) -> list[dict[str, Any]]:
    """Read every run below the folders, with its curve: by step the best policy's mean return."""
    found = []
    for path in (path for folder in folders for path in Path(folder).rglob("result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        rate = RunRecord(path.parent).setting("rl.distil_lr") or 1e-5  # PPO's default
        rows = read_rows(path.parent / "metrics.csv")
        numbers = range(result["policies"])
        curve = {step: max(row[f"return_{number}"] for number in numbers) for step, row in rows.items()}
        found.append({**result, "distil_lr": rate, "curve": curve})
    return sorted(found, key=lambda run: [run[key] for key in COLUMNS[:5]])


def main(folders: list[str]) -> None:
    """Write the files and print the tables."""
    found = runs(folders)
    write_csv(HERE / "runs.csv", [COLUMNS, *([run[key] for key in COLUMNS] for run in found)])
    groups: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for run in found:
        groups[f"{run['env']}, {run['steps']:,} steps, imitation {run['distil_lr']:g}"][run["policies"]].append(run)
    reached, differences = [], []
    figure, panels = drawing.grid(2, 2, 11, 8)
    for panel, (name, by) in zip((axes for row in panels for axes in row), groups.items(), strict=True):
        scores = {policies: [run["return"] for run in each] for policies, each in by.items()}
        for policies, values in scores.items():
            each = sample(values)
            reached.append([name, NAMES[policies], str(each.n), f"{each.mean:.1f} ± {each.deviation:.1f}"])
            for place, run in enumerate(by[policies]):
                label = NAMES[policies] if place == 0 else None
                panel.plot(
                    [*run["curve"]], [*run["curve"].values()], color=drawing.colour(policies - 1, 2), label=label
                )
        less = paired(scores[2], scores[1])
        interval = f"{less.low:+.1f} to {less.high:+.1f}"
        differences.append([name, str(less.n), f"{less.mean:+.1f}", interval, f"{less.detectable:.1f}"])
        drawing.name(panel, name, "environment steps, all policies together", "mean return, better policy")
        panel.legend(loc="lower right")
    print("\n".join(markdown_table(["task", "learners", "seeds", "return of the better policy"], reached)), "\n")
    heading = ["task", "pairs", "dual less single", "95 % interval", "smallest detectable"]
    print("\n".join(markdown_table(heading, differences)))
    drawing.save(figure, HERE / "curves.png")


if __name__ == "__main__":
    main(sys.argv[1:])
