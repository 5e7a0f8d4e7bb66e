"""Whatever is typed after `dkel` is taken or answered with one error, before anything is imported or written."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dkel_lightning.app.cli import composition, main
from dkel_lightning.app.config import schema
from dkel_lightning.errors import DkelError
from tests.compose import prepare
from tests.fuzz.runs import each_composed_once, reproducible
from tests.fuzz.space import INTERNALS, options
from tests.reliability.record import record

NODES = (
    *("method", "method.rampup", "method.ensemble", "teacher", "data", "data.label_noise", "deploy", "callbacks"),
    *("callbacks.extra", "logger", "logger.extra", "trainer", "optimizer", "scheduler", "task"),
    *("protocol", "protocol.rampup", "execution", "precision", "backbone", "hydra", "hydra.run", "experiment", "debug"),
)
VALUES = (
    *("", "1", "null", "{}", "[]", "x", "{x:1}", "{scale:1}", "nan", "-1", "1e999", "0x10", "1_000", "'", '"', "''"),
    *("a b", "'a b'", '"a b"', "a'b", "'a", "\\", "a\\,b", "a,b", "1,2", "=", "==1", "a=b", "?", "???", "$", "${"),
    "${x}",
    *("${seed}", "${name}", "${oc.env:NO_SUCH_VARIABLE}", "${hydra.job.num}", "${now:%Y}", "{a:1", "[1", "]", "}", "("),
    *("range(1,3)", "choice(1,2)", "interval(0,1)", "glob(*)", "glob(nothing*)", "shuffle(1,2)", "int(x)", "sort(2,1)"),
    *("tag(a,1)", "extend_list(1)", "float(1)", "str(1)", "ä", "'ä'", "\u0661", "🙂", "'🙂'", "\udcff", "\t", "\n"),
    *("a\nb", " 1"),
    *("[" * 60 + "]" * 60, "x" * 5000, "'" + "x" * 5000 + "'", "-", "--", "../..", "a/b", ".", "*", "#", "!", "@", "%"),
    "&",
)
WHOLE = (
    *("", " ", "=", "==", "=1", "seed", "seed=", "seed==1", " seed=1", "seed =1", "seed= 1", "se ed=1", "seed.x=1"),
    *("+", "~", "++", "~~", "+=1", "~=1", "+seed", "~seed", "~seed=0", "++seed=1", "+++seed=1", "~trainer"),
    "~trainer=cpu",
    *("+trainer=cpu", "++trainer=cpu", "+nothing=1", "++nothing.else=1", "+trainer.nothing=1", "trainer.x.y=1"),
    "/seed=1",
    *("method@x=pcl", "+method@x=pcl", "method@_global_=pcl", "/method=pcl", "method/=pcl", "method/x=pcl"),
    "method=/pcl",
    *("method=pcl,dkel", "method=../method/pcl", "method=pcl.yaml", "data=[digits]", "hydra/launcher=nothing"),
    "hydra=x",
    *("hydra.mode=MULTIRUN", "hydra.mode=x", "hydra.nothing=1", "+hydra.nothing=1", "experiment=nothing"),
    "debug=nothing",
    *("-x", "--x", "--cfg", "--cfg=job", "-m", "--multirun", "--resolve", "--config-dir=nowhere", "--config-name=x"),
    "-cd",
    *("--package=x", "--run", "checkpoint=nowhere", "resume=last", "resume=nowhere", "task=compare", "task=evaluate"),
    *("task=nothing", "compare.seeds=[]", "compare.methods=[x]", "scale=0.1"),
    "ünï=1",
    *("optimizer._target_=x", "optimizer._target_=", "+optimizer.x=1", "+callbacks.extra.x=1", "callbacks.extra.x=1"),
)


def misspelt(key: str, draws: random.Random) -> str:
    """Make one slip of the finger."""
    at = draws.randrange(len(key))
    letter = draws.choice("abcdefghijklmnopqrstuvwxyz._-0 ")
    return draws.choice(
        (key[:at] + key[at + 1 :], key[:at] + letter + key[at:], key[:at] + letter + key[at + 1 :], key.upper())
    )


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Draw one to three arguments."""
    draws = draw(st.randoms(use_true_random=True))
    return [_argument(draw, draws) for _ in range(draws.choice((1, 1, 1, 2, 3)))]


def _argument(draw: st.DrawFn, draws: random.Random) -> str:
    kind, keys = draws.random(), [key for key in schema.KEYS if not key.endswith("*")]
    if kind < 0.3:
        return f"{misspelt(draws.choice(keys), draws)}={draws.choice(VALUES)}"
    if kind < 0.5:
        return f"{draws.choice(keys)}={draws.choice(VALUES)}"
    if kind < 0.6:
        return f"{draws.choice(('+', '++', '~', ''))}{draws.choice(NODES)}={draws.choice(VALUES)}"
    if kind < 0.7:
        group = draws.choice(("method", "teacher", "data", "optimizer", "trainer"))
        return f"{group}={misspelt(draws.choice(options(group)), draws)}"
    if kind < 0.9:
        return draws.choice(WHOLE)
    return draw(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20))


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, each_composed_once():
        patch.chdir(folder)
        yield


def answer(arguments: list[str]) -> str:
    """Do what is done before Hydra runs; return the error's message, or "" where the arguments are taken.

    What is taken must compose.
    """
    try:
        prepared = main.prepared(arguments)
    except DkelError as error:
        message = str(error)
        assert message.strip(), arguments
        assert not INTERNALS.search(message), (arguments, message)
        return message
    if not any(item.startswith("-") for item in arguments) and not prepared.multirun:
        composition.resolved(composition.compose([*prepared.arguments]))
    return ""


def explore(examples: int, folder: Path) -> dict[str, int]:
    """Try so many command lines, the same ones every time."""
    counts = {"taken": 0, "answered": 0}

    @reproducible(examples)
    @given(command_lines())
    def each(arguments: list[str]) -> None:
        counts["answered" if answer(arguments) else "taken"] += 1

    with working_in(folder):
        each()
    return counts


@pytest.mark.slow
def test_hundreds_of_odd_command_lines_are_taken_or_answered(tmp_path: Path) -> None:
    counts = explore(250, tmp_path)
    assert counts["answered"] > 150, counts
    assert counts["taken"] > 3, counts


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_thousands_of_odd_command_lines(tmp_path: Path) -> None:
    counts = explore(5000, tmp_path)
    record("command_lines", **counts)
    assert counts["taken"] > 50, counts


@pytest.mark.slow
def test_a_node_that_becomes_a_value_is_named(tmp_path: Path) -> None:
    with working_in(tmp_path):
        for node, value in itertools.product(NODES, ("null", "1", "[]")):
            said = answer([f"{node}={value}"])
            assert node in said, (node, value, said)


def test_a_plus_that_is_not_needed_is_taken_off_before_hydra_sees_it(tmp_path: Path) -> None:
    with working_in(tmp_path):
        assert "seed=3" in prepare(["+seed=3"])
        assert composition.resolved(composition.compose(prepare(["+seed=3"])))["seed"] == 3
        assert "seed=3" in prepare(["+seed=3", "--cfg", "job"])


def test_brackets_without_end_are_one_error(tmp_path: Path) -> None:
    with working_in(tmp_path):
        assert "Cannot read" in answer([f"data.mean={'[' * 3000}"])
