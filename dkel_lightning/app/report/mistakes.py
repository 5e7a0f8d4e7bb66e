"""The part of a run's page that says which classes the deployed network takes for which."""

from __future__ import annotations

from dkel_lightning.app.report.markup import Markup, join, table, tag
from dkel_lightning.app.runs.parsing import Confusion
from dkel_lightning.app.runs.records import CONFUSION

SHOWN_WHOLE = 25
"""Classes up to which the matrix is shown; of more, the most frequent mistakes alone."""
LISTED = 20


def write(confusion: Confusion | None) -> Markup:
    """Show the most frequent mistakes, and of few classes the whole matrix."""
    if confusion is None:
        return tag("p", f"No {CONFUSION}: the mistakes were not counted.", class_="note")
    names, counts = confusion.names, confusion.counts
    mistakes = [
        (counts[true][given], true, given) for true in range(len(names)) for given in range(len(names)) if true != given
    ]
    mistakes = sorted((m for m in mistakes if m[0]), key=lambda m: (-m[0], m[1], m[2]))
    rows = [
        [names[true], names[given], count, f"{100 * count / max(1, sum(counts[true])):.1f} %"]
        for count, true, given in mistakes[:LISTED]
    ]
    more = f" The {LISTED} most frequent of {len(mistakes)} pairs." if len(mistakes) > LISTED else ""
    note = f"Of the deployed network on the test set, selected epoch where there is one.{more}"
    parts: list[Markup] = [tag("p", note, class_="note")]
    if len(names) <= SHOWN_WHOLE:
        matrix = [[name, *(count or "" for count in row)] for name, row in zip(names, counts, strict=True)]
        parts.append(table(["true class, then given", *names], matrix))
    if rows:
        parts.append(table(["true class", "given class", "images", "share of the true class"], rows, text_columns=2))
    else:
        parts.append(tag("p", "There was none."))
    return join(parts)
