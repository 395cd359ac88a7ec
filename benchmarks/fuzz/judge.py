"""What an answer to a damaged input is worth."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.conformance.pool import GIB, Answer, Task, run
from benchmarks.fuzz.corpus import Input

OK, REFUSED, WRONG, GOOD_REFUSED = "read rightly", "refused", "WRONG", "good input refused"
UNTYPED, CRASH, HANG, MEMORY = "untyped error", "crash", "hang", "memory"
OUTCOMES = (OK, REFUSED, WRONG, GOOD_REFUSED, UNTYPED, CRASH, HANG, MEMORY)
FAILURES = (WRONG, GOOD_REFUSED, UNTYPED, CRASH, HANG, MEMORY)
LIMIT_S = 10.0


def outcome(given: Input, answer: Answer) -> str:
    """One of OUTCOMES. A peer's refusals are any exceptions, medfm's only its own: others are untyped errors."""
    if answer.kind in ("crash", "hang", "memory"):
        return answer.kind
    if answer.peak > 2 * GIB:
        return MEMORY
    if answer.kind == "untyped":
        return UNTYPED
    if answer.kind == "refused":
        return GOOD_REFUSED if given.mutant.good else REFUSED
    return OK if answer.kind == "equal" else WRONG


def answers(reader: str, inputs: Sequence[Input], limit_s: float = LIMIT_S) -> list[Answer]:
    """What one reader makes of each input, in child processes of at most 2 GiB."""
    return list(run(reader, [Task(str(i.path), i.truths, lenient=not i.mutant.good) for i in inputs], limit_s))
