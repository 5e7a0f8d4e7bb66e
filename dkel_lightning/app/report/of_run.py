"""The page of one run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dkel_lightning.app import figures
from dkel_lightning.app.config import checks, reference, schema
from dkel_lightning.app.report import page
from dkel_lightning.app.report.page import Section, Table, on_test_set, percent, show
from dkel_lightning.app.runs import members
from dkel_lightning.app.runs.groups import is_seed
from dkel_lightning.app.runs.parsing import Confusion, number
from dkel_lightning.app.runs.records import CONFUSION, MEMORY_OF, RunRecord, Test
from dkel_lightning.runtime import command_lines
from dkel_lightning.settings.declarations import at
from dkel_lightning.studies import seed_statistics

MISTAKES = 20
"""The most frequent mistakes that are listed."""


def write(run: RunRecord, where: Path) -> Path:
    """Write the page of a run into the folder `where`."""
    method, data = (run.setting(key) or run.summary.get(key.split(".")[0]) for key in ("method.name", "data.name"))
    backbone = run.setting("backbone.name") or run.summary.get("backbone") or "unknown network"
    subtitle = f"{_peers_of(run)}{backbone}, seed {_or_unknown(run.setting('seed'))}. Run {run.name}"
    return page.write(where, f"{method or 'A run'} on {data or 'unknown data'}", subtitle, _warnings(run), (
        _networks(run), *([_mistakes(run.confusion)] if run.tested else []), *_curves(run), _costs(run),
        _configuration(run), _provenance(run), page.files(run.folder, where),
    ))  # fmt: skip


def _peers_of(run: RunRecord) -> str:
    peers = run.setting("method.peers") or run.summary.get("peers")
    if isinstance(peers, int) and not isinstance(peers, bool):
        return f"{peers} peer{'' if peers == 1 else 's'} of "
    return f"peers {', '.join(map(str, peers))}, " if isinstance(peers, list) else ""


def _or_unknown(value: object) -> str:
    return "unknown" if value is None else str(value)


# ---------------------------------------------------------------------- warnings


def _warnings(run: RunRecord) -> Iterator[str]:
    """Say what a reader has to know before the figures."""
    if run.failure is not None:
        yield f"This run failed: {run.failure}"
    if not run.tested:
        planned = run.setting("trainer.max_epochs")
        length = f" of {planned}" if isinstance(planned, int) and planned > 0 else ""
        earlier = "" if run.last is None else f" but those of epoch {run.last.epoch}"
        yield f"Unfinished: no test results{earlier}. {run.epochs_done}{length} epochs are in metrics.csv."
    if run.collapse is not None:
        yield from _collapses(run.collapse)
    if on_test_set(run):
        yield f"Epoch and peer were {page.ON_TEST_SET}: the figures are biased upwards, for comparison with such only."
    if run.selected is not None and not run.selected.validated:
        yield "Nothing was validated, so nothing chose an epoch or a peer."
    found = {name: curve.first_non_finite for name, curve in run.curves.items()}
    # A measure of diversity is NaN where it has no meaning, which is no fault of the run.
    bad = {name: e for name, e in found.items() if e is not None and not name.startswith("diversity/")}
    if bad:
        first = min(bad, key=lambda name: bad[name])
        others = f", and {len(bad) - 1} other columns" if len(bad) > 1 else ""
        yield f"{first} is not finite from epoch {bad[first]:.0f} on{others}."
    yield from run.problems
    yield from (said for said in _configured_warnings(run.config) if not said.startswith("data.selection"))


def _collapses(found: Any) -> Iterator[str]:
    """Say what the collapse guard has written, also if it is of a form that is not known here."""
    events = at(found, "events")
    for event in events if isinstance(events, list) else [found]:
        epoch = number(at(event, "epoch"))
        if epoch is None or at(event, "what") is None:
            said = json.dumps(event, default=str)[:4000]
            yield f"The collapse guard has reported a collapse (collapse.json): {said}"
            continue
        action, record = at(event, "action"), event.get("record")
        said = f"Collapse in epoch {epoch + 1:.0f}: {event['what']}." + (f" Action: {action}." if action else "")
        alike = " Teacher and student were indistinguishable." if event.get("homogenised") is True else ""
        replay = command_lines.typed("task=replay", command_lines.override("checkpoint", record))
        yield said + alike + (f" Replay: {replay}" if record else "")


def _configured_warnings(values: Mapping[str, Any]) -> list[str]:
    try:
        return checks.warnings(values)
    except (KeyError, TypeError, AttributeError, ValueError):
        return []  # a configuration that is not whole is reported as such


# ---------------------------------------------------------------------- scores


def _networks(run: RunRecord) -> Section:
    columns = [(name, test) for name, test in (("selected", run.best), ("last", run.last)) if test is not None]
    chosen = run.selected
    if chosen is None:
        return Section("Networks", ["Nothing was tested."])
    heading = ["network"]
    for name, test in columns:
        heading += [f"accuracy, {name} epoch ({test.epoch or 'unknown'})", "NLL", "ECE"]
    tested = sorted(dict.fromkeys(m for _, test in columns for m in test.accuracy), key=members.order)
    validated = all(test.validated for _, test in columns)
    shown = [member for member in tested if validated or not member.endswith("_best")]
    rows = [[members.described(m), *(cell for _, test in columns for cell in _cells(test, m))] for m in shown]
    marked = next((i for i, member in enumerate(shown) if member == columns[0][1].deployed), None)
    notes = [
        f"{percent(chosen.deployed_accuracy)} test accuracy of the deployed network: "
        f"{members.described(chosen.deployed or 'unknown')}, epoch {chosen.epoch or 'unknown'}.",
        _selection(run),
        _uncertainty(chosen),
        "* deployed. NLL: negative log-likelihood in nats; ECE: expected calibration error, 15 bins.",
    ]
    if chosen.disagreement is not None:
        notes.append(f"On {percent(chosen.disagreement)} of the test images two student peers differ.")
    if chosen.distance is not None:
        notes.append(f"Relative distance of teacher and student, norm(t - s) / norm(s): {chosen.distance:.3g}.")
    return Section("Networks", [said for said in notes if said], [Table(heading, rows, marked=marked)])


def _cells(test: Test, member: str) -> list[str]:
    star = " *" if test.deployed == member else ""
    nll = test.nll.get(member)
    calibration = percent(test.calibration.get(member))
    return [percent(test.accuracy.get(member)) + star, "n/a" if nll is None else f"{nll:.4f}", calibration]


def _selection(run: RunRecord) -> str:
    if run.best is None:
        return "No checkpoint was selected: the figures are those of the last epoch."
    where = "the test set itself" if on_test_set(run) else "held-out training images"
    monitor = run.setting("callbacks.monitor") or "validation"
    asked = ", ".join(f"deploy.{key}={_or_unknown(run.setting(f'deploy.{key}'))}" for key in ("network", "peer"))
    return f"Epoch {run.best.epoch or 'unknown'} was selected by {monitor} on {where}; the network by {asked}."


def _uncertainty(test: Test) -> str:
    """Say how far the number of test images alone leaves the accuracy open."""
    if not test.images or not 0 <= test.deployed_accuracy <= 1:
        return ""
    low, high = seed_statistics.wilson(round(test.deployed_accuracy * test.images), test.images)
    return (
        f"{test.images:,} test images: if they alone were drawn anew, the 95 % interval is {100 * low:.2f} to "
        f"{100 * high:.2f} % (Wilson). Another seed adds to that."
    )


def _mistakes(confusion: Confusion | None) -> Section:
    """Show which classes the deployed network takes for which."""
    if confusion is None:
        return Section("Mistakes", [f"No {CONFUSION}: the mistakes were not counted."])
    names, counts = confusion.names, confusion.counts
    pairs = [(counts[t][g], t, g) for t in range(len(names)) for g in range(len(names)) if t != g and counts[t][g]]
    pairs.sort(key=lambda found: (-found[0], found[1], found[2]))
    rows = [[names[t], names[g], n, f"{100 * n / sum(counts[t]):.1f} %"] for n, t, g in pairs[:MISTAKES]]
    said = f"Of the deployed network on the test set: the most frequent of {len(pairs)} pairs of classes."
    table = Table(["true class", "given class", "images", "share of the true class"], rows, text=2)
    return Section("Mistakes", [said], [table], {"confusion": figures.confusion(counts, names)})


def _curves(run: RunRecord) -> Iterator[Section]:
    """Draw every column of metrics.csv."""
    alike = {name: curve for name, curve in run.curves.items() if name.startswith(figures.ALIKE)}
    others = {name: curve for name, curve in run.curves.items() if name not in alike}
    for title, curves, absent in (
        ("Curves", others, "metrics.csv holds no curve."),
        ("Diversity", alike, "metrics.csv has no column diversity/...: the diversity monitor did not run."),
    ):
        figure = figures.run_figure(curves)
        yield Section(title, [absent]) if figure is None else Section(title, figures={title.lower(): figure})


# ---------------------------------------------------------------------- costs, settings, provenance


def _facts(title: str, pairs: Mapping[str, object], *notes: str) -> Section:
    return Section(title, notes, [Table([], [*pairs.items()], text=2)])


def _costs(run: RunRecord) -> Section:
    speed, memory, size = (run.costs[name] for name in ("images per second", "peak memory", "parameters deployed"))
    seconds = number(run.summary.get("seconds"))
    of = MEMORY_OF.get(str(at(run.summary, "peak_memory.of")), "")
    pairs = {
        "training images a second": None if speed is None else f"{speed:,.0f} (without validation)",
        "wall time of the fit": None if seconds is None else f"{seconds:,.1f} s",
        "peak memory while fitting": None if memory is None else f"{memory / 2**20:,.0f} MiB, {of}".rstrip(", "),
        "parameters deployed": None if size is None else f"{size:,.0f}",
        "epochs in metrics.csv": run.epochs_done,
    }
    return _facts("Speed and memory", {name: "n/a" if value is None else value for name, value in pairs.items()})


def _configuration(run: RunRecord) -> Section:
    if not run.config:
        return Section("Configuration", ["The settings cannot be read."])
    rows = [[key, show(value), show(default)] for key, value, default in changed(run)]
    said = "What differs from the default of the file that defines the key (docs/configuration.md), seed included."
    table = Table(["key", "value", "default"], rows, text=3)
    return Section("Configuration", [said], [table], folded=("All settings (config.yaml)", run.config_text or ""))


NO_DEFAULT = "(none)"


def changed(run: RunRecord) -> Iterator[tuple[str, Any, Any]]:
    """Give the settings that differ from their defaults, with these; interpolated defaults are followed."""
    defaults = reference.defaults()
    for key, value in schema.leaves(run.config):
        if key.endswith(("_target_", "_partial_")) and key not in defaults:
            continue
        default = defaults.get(key, NO_DEFAULT)
        default = NO_DEFAULT if default == "???" else default
        if isinstance(default, str) and default.startswith("${") and default.endswith("}"):
            default = run.setting(default[2:-1])
        if value != default:
            yield key, value, default


def _provenance(run: RunRecord) -> Section:
    found = run.provenance
    if not found:
        return Section("Provenance", ["No provenance.json."])
    packages, git, device = (at(found, key) for key in ("packages", "git", "device"))
    versions = packages.items() if isinstance(packages, Mapping) else []
    seeds = ", ".join(f"{key}={show(value)}" for key, value in schema.leaves(run.config) if is_seed(key))
    names = at(device, "names")
    commit = f"{at(git, 'commit')}{', with uncommitted changes' if at(git, 'dirty') else ''}"
    resumed = (run.folder / "provenance_resumed.json").is_file()
    pairs = {
        "command": str(found.get("command")),
        "seeds": seeds or "unknown",
        "device": f"{at(device, 'kind')}: {', '.join(map(str, names if isinstance(names, list) else []))}",
        "processors, threads, their waiting": ", ".join(
            str(found.get(key)) for key in ("cpu_count", "threads", "threads_wait")
        ),
        "commit of dkel_lightning": commit if isinstance(git, Mapping) else "not a checkout",
        "Python, platform": f"{found.get('python')}, {found.get('platform')}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions),
    }
    return _facts("Provenance", pairs, *(["Resumed, see provenance_resumed.json."] if resumed else []))
