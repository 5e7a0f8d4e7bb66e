"""The networks of a run, student_0 to teacher_ensemble: how tables call them, and in which order."""

from __future__ import annotations

_NAMES = {
    "ensemble": "ensemble classifier",
    "student_ensemble": "students, mean of probabilities",
    "teacher_ensemble": "teachers, mean of probabilities",
}
_KINDS = {"student": 0, "ensemble": 1, "teacher": 2}


def described(member: str) -> str:
    """Write the name of a network."""
    kind, _, last = member.partition("_")
    if last.isdecimal():
        return f"{kind} peer {last}"
    named = {"mean": f"{kind} peers, mean", "best": f"{kind} peer, best in validation"}
    return _NAMES.get(member) or named.get(last) or member.replace("_", " ")


def order(member: str) -> tuple[int, int, int, str]:
    """Give what to sort networks by: students, ensemble, teachers; within these peers by number, then their mean."""
    kind, _, last = member.partition("_")
    rank = (0, int(last[:9])) if last.isdecimal() else ({"mean": 1, "best": 2}.get(last, 3), 0)
    return (_KINDS.get(kind, len(_KINDS)), *rank, member)
