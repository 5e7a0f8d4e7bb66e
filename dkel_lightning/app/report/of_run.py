"""The page of one run."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dkel_lightning.app.config import checks, reference, schema
from dkel_lightning.app.report import charts, mistakes, panels, shared
from dkel_lightning.app.report.markup import Markup, facts, items, join, page, section, table, tag
from dkel_lightning.app.report.shared import note, on_test_set, percent, show
from dkel_lightning.app.runs import members
from dkel_lightning.app.runs.groups import is_seed
from dkel_lightning.app.runs.parsing import dig, number
from dkel_lightning.app.runs.records import MEMORY_OF, RunRecord, Test
from dkel_lightning.runtime import command_lines
from dkel_lightning.studies import seed_statistics

ABSENT = {
    panels.DIVERSITY: "metrics.csv has no column diversity/...: the diversity monitor did not run.",
    panels.SHARES: "metrics.csv has no column share/...: the shares of the loss terms were not measured.",
    panels.SCHEDULES: "metrics.csv has no column weights/...: no schedule was logged.",
    panels.CURVES: "metrics.csv holds no curve.",
}


def write_page(run: RunRecord, where: Path) -> str:
    """Write the page of a run that will lie in the folder `where`."""
    method, data = (run.setting(key) or run.summary.get(key.split(".")[0]) for key in ("method.name", "data.name"))
    title = f"{method or 'A run'} on {data or 'unknown data'}"
    backbone = run.setting("backbone.name") or run.summary.get("backbone") or "unknown network"
    subtitle = f"{_peers_of(run)}{backbone}, seed {_or_unknown(run.setting('seed'))}. Run {run.name}"
    opening = [items([*_warnings(run)], "warnings"), _headline(run)]
    return page(title, subtitle, opening, [*_sections(run, where)])


def _sections(run: RunRecord, where: Path) -> Iterator[tuple[str, Markup]]:
    """Write the parts of the page."""
    yield section("Networks", _networks(run))
    if run.tested:
        yield section("Mistakes", mistakes.write(run.confusion))
    yield from _charted(run)
    yield section("Speed and memory", _costs(run))
    yield section("Configuration", _configuration(run))
    yield section("Provenance", _provenance(run))
    yield section("Files", shared.files(run.folder, where))


def _peers_of(run: RunRecord) -> str:
    """Say how many peers of which network there are."""
    peers = run.setting("method.peers") or run.summary.get("peers")
    if isinstance(peers, int) and not isinstance(peers, bool):
        return f"{peers} peer{'' if peers == 1 else 's'} of "
    return f"peers {', '.join(map(str, peers))}, " if isinstance(peers, list) else ""


# ---------------------------------------------------------------------- warnings and headline


def _warnings(run: RunRecord) -> Iterator[object]:
    """Say what a reader has to know before the figures."""
    if run.failure is not None:
        yield f"This run failed: {run.failure}"
    if not run.tested:
        planned = run.setting("trainer.max_epochs")
        length = f" of {planned}" if isinstance(planned, int) and planned > 0 else ""
        yield f"Unfinished: no test results. {run.epochs_done}{length} epochs are in metrics.csv."
    if run.collapse is not None:
        yield from _collapses(run.collapse)
    if on_test_set(run):
        yield (
            f"Epoch and peer were {shared.ON_TEST_SET}: the figures are biased upwards. "
            "Compare them only with figures chosen in the same way."
        )
    if run.selected is not None and not run.selected.validated:
        yield "Nothing was validated, so nothing chose an epoch or a peer."
    yield from _non_finite(run)
    yield from run.problems
    yield from (said for said in _configured_warnings(run.config) if not said.startswith("data.selection"))


def _collapses(found: Any) -> Iterator[object]:
    """Say what the collapse guard has written, also if it is of a form that is not known here."""
    events = dig(found, "events")
    for event in events if isinstance(events, list) else [found]:
        epoch = number(dig(event, "epoch"))
        if epoch is None or dig(event, "what") is None:
            yield join(["The collapse guard has reported a collapse (collapse.json):", _json_block(event)])
            continue
        action = dig(event, "action")
        said = f"Collapse in epoch {epoch + 1:.0f}: {event['what']}." + (f" Action: {action}." if action else "")
        alike = " Teacher and student were indistinguishable." if event.get("homogenised") is True else ""
        record = event.get("record")
        replay = command_lines.typed("task=replay", command_lines.override("checkpoint", record))
        yield said + alike + (f" Replay: {replay}" if record else "")


def _configured_warnings(values: Mapping[str, Any]) -> list[str]:
    try:
        return checks.warnings(values)
    except (KeyError, TypeError, AttributeError, ValueError):
        return []  # a configuration that is not whole is reported as such


def _non_finite(run: RunRecord) -> Iterator[str]:
    found = {name: curve.first_non_finite for name, curve in run.curves.items()}
    # A measure of diversity is NaN where it has no meaning, which is no fault of the run.
    bad = {name: e for name, e in found.items() if e is not None and not name.startswith("diversity/")}
    if bad:
        first = min(bad, key=lambda name: bad[name])
        others = f", and {len(bad) - 1} other columns" if len(bad) > 1 else ""
        yield f"{first} is not finite from epoch {bad[first]:.0f} on{others}."


def _headline(run: RunRecord) -> Markup:
    """Show the deployed network's accuracy and what selected it."""
    chosen, last = run.selected, run.last
    if chosen is None:
        return Markup("")
    cards = [_card(percent(chosen.deployed_accuracy), _what(run, chosen, "selected epoch" if run.best else "epoch"))]
    if run.best is not None and last is not None:
        cards.append(_card(percent(last.deployed_accuracy), _what(run, last, "last epoch")))
    cards.append(_card(members.described(chosen.deployed or "unknown"), "is deployed"))
    if chosen.disagreement is not None:
        cards.append(_card(percent(chosen.disagreement), "of test images on which two student peers differ"))
    if chosen.distance is not None:
        cards.append(_card(f"{chosen.distance:.3g}", "relative distance of teacher and student: norm(t - s) / norm(s)"))
    notes = [note(said) for said in (_selection(run), _uncertainty(chosen)) if said]
    return join([tag("div", *cards, class_="cards"), *notes])


def _card(figure: str, meaning: str) -> Markup:
    return tag("div", tag("b", figure), tag("span", meaning), class_="card")


def _what(run: RunRecord, test: Test, which: str) -> str:
    return f"test accuracy of the deployed network, {which} ({_or_unknown(test.epoch)})"


def _selection(run: RunRecord) -> str:
    if run.best is None:
        return "No checkpoint was selected: the figures are those of the last epoch."
    where = "the test set itself" if on_test_set(run) else "held-out training images"
    monitor = run.setting("callbacks.monitor") or "validation"
    asked = run.setting("deploy.peer"), run.setting("deploy.network")
    settings = f"deploy.network={_or_unknown(asked[1])}, deploy.peer={_or_unknown(asked[0])}"
    return f"Epoch {_or_unknown(run.best.epoch)} was selected by {monitor} on {where}; the network by {settings}."


def _uncertainty(test: Test) -> str:
    """Say how far the number of test images alone leaves the accuracy open."""
    if not test.images or test.deployed_accuracy is None or not 0 <= test.deployed_accuracy <= 1:
        return ""
    right = round(test.deployed_accuracy * test.images)
    low, high = seed_statistics.wilson(right, test.images)
    return (
        f"{test.images:,} test images: if they alone were drawn anew, the 95 % interval is {100 * low:.2f} to "
        f"{100 * high:.2f} % (Wilson). Another seed adds to that."
    )


def _or_unknown(value: object) -> str:
    return "unknown" if value is None else str(value)


# ---------------------------------------------------------------------- networks


def _networks(run: RunRecord) -> Markup:
    columns = [(name, test) for name, test in (("selected", run.best), ("last", run.last)) if test is not None]
    if not columns:
        return note("Nothing was tested.")
    heading = ["network"]
    for name, test in columns:
        heading += [f"accuracy, {name} ({_or_unknown(test.epoch)})", "NLL", "ECE"]
    tested = sorted(dict.fromkeys(m for _, test in columns for m in test.accuracy), key=members.order)
    rows: list[list[str]] = []
    marked: list[int] = []
    for member in tested:
        if member.endswith("_best") and not all(test.validated for _, test in columns):
            continue
        if any(test.deployed == member for _, test in columns[:1]):
            marked.append(len(rows))
        cells = [cell for _, test in columns for cell in _cells(test, member)]
        rows.append([members.described(member), *cells])
    said = (
        "* deployed. In brackets the epoch. NLL: negative log-likelihood in nats; ECE: expected "
        "calibration error, 15 bins."
    )
    return join([table(heading, rows, marked=marked), note(said)])


def _cells(test: Test, member: str) -> list[str]:
    star = " *" if test.deployed == member else ""
    nll = test.nll.get(member)
    return [
        percent(test.accuracy.get(member)) + star,
        "n/a" if nll is None else f"{nll:.4f}",
        percent(test.calibration.get(member)),
    ]


# ---------------------------------------------------------------------- charts


def _charted(run: RunRecord) -> Iterator[tuple[str, Markup]]:
    """Write a section of charts for each kind of metric, or that there is none."""
    found = panels.panels([name for name, curve in run.curves.items() if curve.epochs])
    for name in panels.SECTIONS:
        drawn = [panels.draw(panel, run.curves) for panel in found if panel.section == name]
        notes = [note(said) for said in _notes(run, name)]
        if drawn:
            yield section(name, *notes, charts.grid(drawn))
        elif name == panels.NOISE:
            yield section(name, note(_noise(run)))
        elif name in ABSENT:
            absent = ABSENT[name] if run.curves else "Nothing was logged."
            yield section(name, *notes, note(absent))


def _notes(run: RunRecord, name: str) -> Iterator[str]:
    if name == panels.SCHEDULES:
        logged = any(panel.key == "learning rate" for panel in panels.panels([*run.curves]))
        if not logged and run.config:
            scheduler = run.setting("scheduler")
            kept = dict(scheduler) if isinstance(scheduler, Mapping) else {}
            form = str(kept.pop("_target_", "none")).rsplit(".", 1)[-1]
            said = ", ".join([form, *(f"{key} {show(value)}" for key, value in kept.items())])
            rate = show(run.setting("optimizer.lr"))
            yield f"The learning rate was not logged. It starts at {rate}; schedule: {said}."


def _noise(run: RunRecord) -> str:
    noise = run.setting("data.label_noise")
    if isinstance(noise, Mapping) and noise.get("kind") not in (None, "none"):
        said = ", ".join(f"{key} {show(value)}" for key, value in noise.items())
        return f"The training labels carry noise ({said}), and metrics.csv has no column about it."
    return "No noise was added to the training labels, as far as the settings say." if run.config else "Not known."


# ---------------------------------------------------------------------- costs, settings, provenance, files


def _costs(run: RunRecord) -> Markup:
    speed, memory, size = (run.costs[name] for name in ("images per second", "peak memory", "parameters deployed"))
    seconds = number(run.summary.get("seconds"))
    of = MEMORY_OF.get(str(dig(run.summary, "peak_memory", "of")), "")
    pairs = [
        ("training images a second", None if speed is None else f"{speed:,.0f} (without validation)"),
        ("wall time of the fit", None if seconds is None else f"{seconds:,.1f} s"),
        ("peak memory while fitting", None if memory is None else f"{memory / 2**20:,.0f} MiB, {of}".rstrip(", ")),
        ("parameters deployed", None if size is None else f"{size:,.0f}"),
        ("epochs in metrics.csv", str(run.epochs_done)),
    ]
    return facts((name, value or "n/a") for name, value in pairs)


def _configuration(run: RunRecord) -> Markup:
    if not run.config:
        return note("The settings cannot be read.")
    rows = [[tag("code", key), show(value), show(default)] for key, value, default in changed(run)]
    said = "What differs from the default of the file that defines the key (docs/configuration.md), seed included."
    table_of = table(["key", "value", "default"], rows, text_columns=3) if rows else tag("p", "Nothing differs.")
    whole = tag("details", tag("summary", "All settings (config.yaml)"), tag("pre", run.config_text or ""))
    return join([note(said), table_of, whole])


NO_DEFAULT = "(none)"
_defaults = functools.cache(reference.defaults)


def changed(run: RunRecord) -> Iterator[tuple[str, Any, Any]]:
    """Give the settings that differ from their defaults, with these; interpolated defaults are followed."""
    defaults = _defaults()
    for key, value in schema.leaves(run.config):
        if key.endswith(("_target_", "_partial_")) and key not in defaults:
            continue
        default = defaults.get(key, NO_DEFAULT)
        default = NO_DEFAULT if default == "???" else default
        if isinstance(default, str) and default.startswith("${") and default.endswith("}"):
            default = run.setting(default[2:-1])
        if value != default:
            yield key, value, default


def _provenance(run: RunRecord) -> Markup:
    found = run.provenance
    if not found:
        return note("No provenance.json.")
    packages = found.get("packages")
    versions = packages.items() if isinstance(packages, Mapping) else []
    seeds = [(key, value) for key, value in schema.leaves(run.config) if is_seed(key)]
    git = found.get("git")
    commit = "not a checkout"
    if isinstance(git, Mapping):
        commit = f"{git.get('commit')}{', with uncommitted changes' if git.get('dirty') else ''}"
    device = found.get("device")
    names = dig(device, "names")
    pairs: list[tuple[object, object]] = [
        ("command", tag("code", _command(found.get("command")))),
        ("seeds", ", ".join(f"{key}={show(value)}" for key, value in seeds) or "unknown"),
        ("device", f"{dig(device, 'kind')}: {', '.join(map(str, names if isinstance(names, list) else []))}"),
        ("processors, threads", f"{found.get('cpu_count')}, {found.get('threads')}"),
        ("commit of dkel_lightning", commit),
        ("Python, platform", f"{found.get('python')}, {found.get('platform')}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions)),
    ]
    if (run.folder / "provenance_resumed.json").is_file():
        pairs.append(("resumed", "yes, see provenance_resumed.json"))
    return facts(pairs)


def _command(command: object) -> str:
    if not isinstance(command, str):
        return "unknown"
    return f"python -m dkel_lightning {command.removeprefix('__main__.py')}" if "__main__.py" in command else command


def _json_block(content: Any) -> Markup:
    return tag("pre", json.dumps(content, indent=1, default=str)[:4000])
