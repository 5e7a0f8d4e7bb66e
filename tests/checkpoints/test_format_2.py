"""Checkpoints of format 2 load, deploy and go on as the version that wrote them did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dkel_lightning import DistillationModule
from tests.fixtures import make_format_2

FIXTURES = Path(make_format_2.__file__).parent
EXPECTED: dict[str, Any] = json.loads((FIXTURES / "format_2.json").read_text(encoding="utf-8"))


def loaded() -> DistillationModule:
    make_format_2.register()
    path = FIXTURES / "format_2.ckpt"
    return DistillationModule.load_from_checkpoint(path, optimizer=make_format_2.OPTIMIZER)


def test_names_in_the_state_dict_and_the_deployed_network_are_what_they_were() -> None:
    now = make_format_2.facts(loaded())
    assert now["keys"] == EXPECTED["saved"]["keys"]
    torch.testing.assert_close(torch.tensor(now["logits"]), torch.tensor(EXPECTED["saved"]["logits"]))


def test_its_training_goes_on_to_the_same_network() -> None:
    module = loaded()
    data = make_format_2.loader()
    make_format_2.trainer(3).fit(module, data, data, ckpt_path=FIXTURES / "format_2.ckpt")
    logits = torch.tensor(make_format_2.facts(module)["logits"])
    torch.testing.assert_close(logits, torch.tensor(EXPECTED["two_epochs_later"]["logits"]), rtol=1e-3, atol=1e-4)
