"""A new user's path: what docs/start.md shows, done with the built wheel in an empty folder."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "start.md"


def blocks(language: str) -> list[str]:
    start, _, _ = PAGE.read_text(encoding="utf-8").partition("## The command line")
    return re.findall(rf"^```{language}\n(.*?)^```", start, re.MULTILINE | re.DOTALL)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_five_minute_start_leads_from_a_folder_of_images_to_a_network_that_names_them(
    environment: Path, tmp_path: Path
) -> None:
    python = str(environment / "bin" / "python")
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command: str) -> str:
        done = subprocess.run(
            [python, *command], cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False,
            env={**clean, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    making, _, using = blocks("python")
    run("-c", making)
    assert len(list((tmp_path / "my_images" / "train").rglob("*.png"))) == 200
    commands = [line.split("#")[0] for block in blocks("sh") for line in block.splitlines() if line.strip()]
    assert [re.findall(r"task=(\w+)", command) for command in commands] == [[], ["export"], ["predict"]]
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "dkel"
        run(str(environment / "bin" / program), *arguments)

    summary = json.loads((tmp_path / "outputs" / "first" / "summary.json").read_text(encoding="utf-8"))
    shipped = json.loads((tmp_path / "shipped" / "export.json").read_text(encoding="utf-8"))
    assert summary["test"]["best"]["deployed_accuracy"] > 0.6  # chance is 0.1
    assert shipped["largest_difference"] < 1e-3
    with (tmp_path / "answers" / "predictions.csv").open(encoding="utf-8") as file:
        first = [row for row in csv.DictReader(file) if row["rank"] == "1"]
    assert len(first) == len(list((tmp_path / "my_images" / "test" / "digit_3").glob("*.png")))
    named = run("-c", using).strip()
    assert named in {f"digit_{i}" for i in range(10)}
    # The page's own code prepares an image as the command does: both must name the same class.
    shown = re.search(r'Image\.open\("([^"]+)"\)', using)
    assert shown is not None
    (answer,) = [row["class"] for row in first if row["file"] == shown[1]]
    assert named == answer
    assert np.asarray(Image.open(tmp_path / shown[1])).shape == (32, 32)
