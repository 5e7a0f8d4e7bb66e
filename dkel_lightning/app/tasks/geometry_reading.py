"""What the numbers of the geometry say, in words that follow from them.

Every sentence is chosen by the numbers of this simulation: other settings give other sentences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from dkel_lightning.studies import geometry
from dkel_lightning.studies.geometry import Bowl, BowlRow, DirectionRow, Geometry, MirrorRow, Pull
from dkel_lightning.studies.recursion import half_way_steps

INVISIBLE_COSINE, INVISIBLE_STEPS = 0.005, 0.01
"""Differences up to which two starts count as the same: in the first cosine, and as a share of the steps."""


def reading(found: Geometry) -> str:
    """Write the reading as Markdown."""
    lines = ["# What these numbers show", "", *_setting(found), "", "## The bowl", ""]
    lines += [f"- {sentence}" for sentence in _bowl(found)]
    lines += ["", "## Two mirror optima", ""]
    lines += [f"- {sentence}" for sentence in _mirror(found)]
    lines += ["", "## Beside the abstract", ""]
    lines += [f"- {sentence}" for sentence in _abstract(found)]
    return "\n".join(lines) + "\n"


def _setting(found: Geometry) -> Iterator[str]:
    memory = 1 / (1 - found.settings.decay)
    yield (
        f"Learning rate {found.settings.lr:g}, EMA rate {found.settings.decay:g} (a memory of {memory:.0f} steps). "
        "Nothing is random. Where no weight is named, the teacher's is "
        f"{_first(found).label}. These are two points of a plane, not networks."
    )


# ---------------------------------------------------------------------- words


def _first(found: Geometry) -> Pull:
    return Pull(found.settings.bowl.weights[0])


def _steps(count: int | None, limit: int) -> str:
    return f"more than {limit:,}" if count is None else f"{count:,}"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _each(found: Geometry) -> str:
    return f"with h = {_and([f'{bowl.curvature:g}' for bowl in found.bowls])}" if len(found.bowls) > 1 else "here"


def _rows(found: Geometry, start: str) -> list[BowlRow]:
    return [bowl.row(start, _first(found)) for bowl in found.bowls]


def _arrivals(rows: Iterable[BowlRow], limit: int) -> str:
    return _and([_steps(row.arrival, limit) for row in rows])


def _late(count: int | None) -> float:
    return float("inf") if count is None else float(count)


def _initialised(found: Geometry) -> list[str]:
    bowl = found.settings.bowl
    return [geometry.initialised_label(int(steps), bowl.init_lr_scale) for steps in bowl.init_steps]


# ---------------------------------------------------------------------- the bowl


def _bowl(found: Geometry) -> Iterator[str]:
    yield _copy(found)
    yield _own(found)
    yield _released(found)
    for label in _initialised(found):
        yield _initialisation(found, label)
    yield _against_alone(found)
    yield from _directions(found)
    yield _keep_or_copy(found)
    yield _decaying(found)


def _copy(found: Geometry) -> str:
    rows = _rows(found, geometry.COPY)
    cosines = _and([f"{row.cosines[1]:.2f}" if row.cosines[1] is not None else "none" for row in rows])
    text = f"A copied teacher: cosine of its pull with the way to the optimum {cosines} at step 5 ({_each(found)}). "
    if all(row.last_helpful is None for row in rows):
        text += "At no step does it point less than 90 degrees off the optimum: it only drags."
    else:
        helped = [f"{row.last_helpful} (h = {row.curvature:g})" for row in rows if row.last_helpful is not None]
        text += f"It points towards the optimum up to step {_and(helped)}."
    line = [row for row in rows if row.swept < 1e-9]
    if line:
        text += " In the round bowl both stay on one line (swept area 0)." if line[0].curvature == 1 else ""
    return text


def _own(found: Geometry) -> str:
    rows = _rows(found, geometry.OWN)
    first = _and([f"{row.cosines[0]:.2f}" if row.cosines[0] is not None else "none" for row in rows])
    text = f"A teacher of its own draw, kept: cosine {first} at step 1. "
    helped = [row.last_helpful for row in rows if row.last_helpful]
    if not helped:
        return text + "It never helps."
    memory = 1 / (1 - found.settings.decay)
    low, high = min(helped) / memory, max(helped) / memory
    share = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
    last = _and([str(row.last_helpful) for row in rows])
    later = [row.cosines[2] for row in rows if row.cosines[2] is not None]
    turned = f" At step {geometry.COSINES_AT[2]} it drags." if later and max(later) < 0 else ""
    return text + f"Its last helpful step is {last}, {share} of its memory.{turned}"


def _compared(found: Geometry, label: str) -> tuple[list[BowlRow], list[BowlRow], bool]:
    """Pair a start with the kept own draw, and say whether the two can be told apart."""
    plain, other = _rows(found, geometry.OWN), _rows(found, label)
    cosines = [abs((a.cosines[0] or 0) - (b.cosines[0] or 0)) for a, b in zip(plain, other, strict=True)]
    steps = [
        0.0 if a.arrival == b.arrival else abs(_late(a.arrival) - _late(b.arrival)) / _late(a.arrival)
        for a, b in zip(plain, other, strict=True)
    ]
    return plain, other, max(cosines) > INVISIBLE_COSINE or max(steps) > INVISIBLE_STEPS


def _released(found: Geometry) -> str:
    label = geometry.initialised_label(geometry.RELEASED_STEPS, geometry.RELEASED_LR_SCALE)
    plain, other, visible = _compared(found, label)
    gain = max((b.cosines[0] or 0) - (a.cosines[0] or 0) for a, b in zip(plain, other, strict=True))
    limit = found.settings.bowl.max_steps
    verdict = "changes the picture" if visible else "changes nothing that can be seen"
    return (
        f"The released initialisation ({label.removeprefix('own draw, ')}) {verdict}: first cosine higher by at most "
        f"{gain:.4f}, arrival after {_arrivals(other, limit)} steps, without it {_arrivals(plain, limit)}."
    )


def _initialisation(found: Geometry, label: str) -> str:
    plain, other, visible = _compared(found, label)
    limit = found.settings.bowl.max_steps
    name = label.removeprefix("own draw, ")
    if not visible:
        return f"An initialisation of {name} changes nothing that can be seen."
    sooner = [_late(b.arrival) < _late(a.arrival) for a, b in zip(plain, other, strict=True)]
    first = _and([f"{row.cosines[0]:.2f}" if row.cosines[0] is not None else "none" for row in other])
    verdict = "sooner" if all(sooner) else "sooner in some bowls, later in others" if any(sooner) else "no sooner"
    return (
        f"An initialisation of {name}: cosine {first} at step 1, last helpful step "
        f"{_and([str(row.last_helpful) for row in other])}; the student arrives {verdict}, after "
        f"{_arrivals(other, limit)} steps instead of {_arrivals(plain, limit)}."
    )


def _sooner(bowl: Bowl, *, decaying: bool) -> list[BowlRow]:
    rows = [row for row in bowl.rows[1:] if (row.pull.time is not None) == decaying]
    return [row for row in rows if _late(row.arrival) < _late(bowl.alone.arrival)]


def _against_alone(found: Geometry) -> str:
    limit = found.settings.bowl.max_steps
    alone = _and([_steps(bowl.alone.arrival, limit) for bowl in found.bowls])
    text = f"Without a teacher the student arrives after {alone} steps ({_each(found)}). "
    for decaying, kind in ((False, "constant"), (True, "decaying")):
        found_sooner = [row for bowl in found.bowls for row in _sooner(bowl, decaying=decaying)]
        if not found_sooner:
            text += f"With a {kind} weight no start arrives sooner. "
            continue
        count = sum((row.pull.time is not None) == decaying for bowl in found.bowls for row in bowl.rows[1:])
        best = _and([f"{r.start}, {r.pull.label}, h = {r.curvature:g}: {r.arrival}" for r in _best(found_sooner)])
        text += f"With a {kind} weight {len(found_sooner)} of {count} pairs arrive sooner; the soonest: {best}. "
    return text.rstrip()


def _best(rows: Sequence[BowlRow]) -> list[BowlRow]:
    """Pick the soonest of each bowl."""
    curvatures = dict.fromkeys(row.curvature for row in rows)
    return [min((r for r in rows if r.curvature == h), key=lambda row: _late(row.arrival)) for h in curvatures]


def _directions(found: Geometry) -> Iterator[str]:
    count = found.settings.bowl.directions
    initialised = _initialised(found)
    yield (
        f"That is one direction of the draw ({found.settings.bowl.teacher_angle:g} degrees). Over {count} directions, "
        "the largest share in which a student arrives sooner than without a teacher (`directions.csv` has all):"
    )
    for bowl in found.bowls:
        rows = [row for row in found.directions if row.curvature == bowl.curvature]
        parts = []
        for decaying, kind in ((False, "constant"), (True, "decaying")):
            for trained, who in ((False, "own draw"), (True, "initialised")):
                some = [
                    row
                    for row in rows
                    if (row.pull.time is not None) == decaying and (row.start in initialised) == trained
                ]
                parts.append(f"{kind} weight, {who} {_share(some)}")
        yield f"h = {bowl.curvature:g}: {'; '.join(parts)}."
    faster = [
        row
        for bowl in found.bowls
        for row in found.directions
        if row.curvature == bowl.curvature and row.median < _late(bowl.alone.arrival)
    ]
    if faster:
        names = _and([f"{r.start}, {r.pull.label}, h = {r.curvature:g} ({r.median:g})" for r in faster])
        yield f"The median over the directions is below the steps without a teacher for {names}."
    else:
        yield "For no start and weight is the median over the directions below the steps without a teacher."


def _share(rows: Sequence[DirectionRow]) -> str:
    best = max(rows, key=lambda row: row.sooner)
    return "0 %" if best.sooner == 0 else f"{100 * best.sooner:.0f} % ({best.start}, {best.pull.label})"


def _keep_or_copy(found: Geometry) -> str:
    limit = found.settings.bowl.max_steps
    own, copy = _rows(found, geometry.OWN), _rows(found, geometry.COPY)
    slower = [_late(a.arrival) > _late(b.arrival) for a, b in zip(own, copy, strict=True)]
    verdict = "later" if all(slower) else "in some bowls later" if any(slower) else "no later"
    return (
        f"An own draw that is kept, without an initialisation, brings the student {verdict} to the optimum than a "
        f"copy: {_arrivals(own, limit)} steps against {_arrivals(copy, limit)}."
    )


def _decaying(found: Geometry) -> str:
    time = found.settings.bowl.weight_time
    pairs = [
        (row, bowl.row(row.start, Pull(row.pull.weight, time)))
        for bowl in found.bowls
        for row in bowl.rows[1:]
        if row.pull.time is None
    ]
    better = sum(_late(decaying.arrival) < _late(constant.arrival) for constant, decaying in pairs)
    return (
        f"The same weight, decaying, brings the student sooner than constant in {better} of {len(pairs)} pairs of "
        "start and weight."
    )


# ---------------------------------------------------------------------- two mirror optima


def _mirror(found: Geometry) -> Iterator[str]:
    limit = found.settings.mirror.steps
    alone = found.mirror.row(geometry.COPY, 0.0).arrival
    yield f"Without weight the student's loss stays below the threshold from step {_steps(alone, limit)} on."
    yield _barrier(found)
    for start in found.mirror.starts:
        yield _mirror_start(found, start, alone)


def _barrier(found: Geometry) -> str:
    row = found.mirror.row(geometry.TRAINED_MIRROR, 0.0)
    half = half_way_steps(found.settings.decay)
    if row.teacher_peak <= row.teacher_first + found.settings.mirror.threshold:
        return "A teacher trained in the mirror branch follows its student without passing a barrier."
    return (
        "A teacher trained in the mirror branch follows its student over the barrier: its loss rises from "
        f"{row.teacher_first:.2f} to {row.teacher_peak:.2f} at step {row.peak_step}. Behind a student that already "
        f"stands in its optimum it would be half way after {half:.0f} steps."
    )


def _mirror_start(found: Geometry, start: str, alone: int | None) -> str:
    rows = [found.mirror.row(start, weight) for weight in found.mirror.weights if weight > 0]
    limit = found.settings.mirror.steps

    def named(some: Sequence[MirrorRow]) -> str:
        return _and([f"W = {row.weight:g} ({_steps(row.arrival, limit)})" for row in some])

    sooner = [row for row in rows if _late(row.arrival) < _late(alone)]
    later = [row for row in rows if _late(row.arrival) >= _late(alone)]
    parts = [f"sooner than without weight for {named(sooner)}"] if sooner else []
    parts += [f"no sooner for {named(later)}"] if later else []
    crossed = [row for row in rows if row.crossed]
    over = f"; it ends in the other branch for {_and([f'W = {row.weight:g}' for row in crossed])}" if crossed else ""
    return f"Teacher {start}: {', '.join(parts)}{over}."


# ---------------------------------------------------------------------- beside the abstract


def _abstract(found: Geometry) -> Iterator[str]:
    own, copy = _rows(found, geometry.OWN), _rows(found, geometry.COPY)
    apart = all(a.distances[1] > b.distances[1] for a, b in zip(own, copy, strict=True))
    step = geometry.DISTANCES_AT[1]
    shown = _and([f"{a.distances[1]:.2f} against {b.distances[1]:.2f}" for a, b in zip(own, copy, strict=True)])
    yield (
        f"An independent teacher stays further from its student than a copy does: {'yes' if apart else 'not always'}. "
        f"Distance at step {step}: {shown}."
    )
    yield from _independence(found)
    same = found.mirror.row(geometry.TRAINED_SAME, found.mirror.weights[-1])
    alone = found.mirror.row(geometry.COPY, 0.0).arrival
    mirrored = [row for row in found.mirror.rows if row.start == geometry.UNTRAINED_MIRROR and row.weight > 0]
    if _late(same.arrival) < _late(alone) and all(_late(row.arrival) >= _late(alone) for row in mirrored):
        yield (
            "Between the mirror optima a teacher that is ahead in its student's branch helps; one that is only apart, "
            "untrained and in the other branch, does not."
        )
    yield "Collapse cannot be seen here: neither landscape lets a student fail. `task=convergence` is about that."


def _independence(found: Geometry) -> Iterator[str]:
    limit = found.settings.bowl.max_steps
    best = _initialised(found)[-1]
    rows, copy = _rows(found, best), _rows(found, geometry.COPY)
    sooner = [_late(a.arrival) < _late(b.arrival) for a, b in zip(rows, copy, strict=True)]
    verdict = "yes" if all(sooner) else "only in some bowls" if any(sooner) else "no"
    yield (
        f"With an initialisation ({best.removeprefix('own draw, ')}) and a constant weight an independent teacher "
        f"brings the student to the optimum sooner than a copied one: {verdict}, {_arrivals(rows, limit)} steps "
        f"against {_arrivals(copy, limit)}."
    )
    beaten = [
        row for bowl, row in zip(found.bowls, rows, strict=True) if _late(row.arrival) < _late(bowl.alone.arrival)
    ]
    if beaten:
        where = _and([f"{row.curvature:g}" for row in beaten])
        yield f"It is then also sooner than without a teacher with h = {where}."
    else:
        yield "In no bowl is that sooner than without a teacher."
