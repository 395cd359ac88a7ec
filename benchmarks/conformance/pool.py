"""One reader in child processes, one case at a time, each under a limit of time and memory. A crash costs one child."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.conformance.readers import READERS, Unplaced, warm
from benchmarks.conformance.space import Truth, difference

GIB = 2**30


@dataclass(frozen=True)
class Task:
    """What a child does: load `path` and compare with each truth (paths of saved `Truth`s) until one fits.

    `lenient`: a reader that says of its result that it does not know its place is held to what it says alone.
    """

    path: str
    truths: tuple[str, ...] = ()
    lenient: bool = False


@dataclass(frozen=True)
class Answer:
    """What became of it.

    Attributes:
        kind: "equal" (to a truth), "other" (a result that equals none), "refused" (medfm: a MedfmError; others: any
            exception), "untyped" (medfm: another exception), "memory", "crash" or "hang".
        words: the refusal, or how the result differs.
        which: index of the truth that fitted, -1.
        peak: bytes of resident memory above the child's own before the case.
        seconds: by the wall clock.
    """

    kind: str
    words: str = ""
    which: int = -1
    peak: int = 0
    seconds: float = 0.0


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    return 0


def _attempt(reader: str, task: Task) -> Answer:
    from medfm.errors import MedfmError

    try:
        array, affine = READERS[reader](task.path)
        words = []
        for which, saved in enumerate(task.truths):
            truth = Truth.load(Path(saved))
            if task.lenient and isinstance(affine, Unplaced) and truth.placed != "nothing":
                truth = replace(truth, placed=affine.knows)
            why = difference(array, affine, truth)
            if not why:
                return Answer("equal", which=which)
            words.append(why)
        return Answer("other", "; ".join(words) or f"a result of shape {tuple(array.shape)}")
    except MedfmError as error:
        return Answer("refused", str(error))
    except MemoryError as error:
        return Answer("memory", str(error)[:200])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # Rust's panics are no Exceptions
        kind = "untyped" if reader == "medfm" else "refused"
        if re.search(r"bad_alloc|(unable|failed|not|cannot) (to )?allocate", str(error), re.IGNORECASE):
            kind = "memory"
        return Answer(kind, f"{type(error).__name__}: {str(error)[:300]}")


def _read(reader: str, task: Task) -> Answer:
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    begin = time.perf_counter()
    answer = _attempt(reader, task)
    seconds = time.perf_counter() - begin
    return Answer(answer.kind, answer.words, answer.which, max(0, _status("VmHWM") - before), seconds)


def _child(work: Callable[[Any], Any], setup: Callable[[], None], pipe: Connection, memory: int) -> None:
    # Readers' libraries print to both: C++ warnings, progress, pydicom's warnings.
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the child lives
    setup()
    # Private writable memory, mapped libraries aside: a request above it fails at once, before anything is touched.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    while True:
        pipe.send(work(pipe.recv()))


class Child:
    """A child process that does `work(task)` for one task after another."""

    def __init__(self, work: Callable[[Any], Any], setup: Callable[[], None], memory: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_child, args=(work, setup, theirs, memory), daemon=True)
        self.process.start()
        theirs.close()
        if not self.pipe.poll(120) or self.pipe.recv() != "ready":
            raise RuntimeError("the child did not start")

    def run(self, task: Any, limit_s: float) -> Any:
        """What `work` gives, or an Answer of kind "hang" or "crash"; the child is then gone."""
        self.pipe.send(task)
        if not self.pipe.poll(limit_s):
            self.close()
            return Answer("hang", f"over {limit_s:g} s", seconds=limit_s)
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(5)
            code = self.process.exitcode
            self.close()
            return Answer("crash", f"the process died (exit code {code})")

    def close(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join(5)
        self.pipe.close()


def each(
    work: Callable[[Any], Any], setup: Callable[[], None], tasks: Sequence[Any], limit_s: float, memory: int = 2 * GIB
) -> Iterator[Any]:
    """work(task) for each task, in order; an Answer of kind "hang" or "crash" where a child did not come back."""
    child: Child | None = None
    try:
        for task in tasks:
            child = child or Child(work, setup, memory)
            answer = child.run(task, limit_s)
            if isinstance(answer, Answer) and answer.kind in ("hang", "crash"):
                child = None
            yield answer
    finally:
        if child is not None:
            child.close()


def run(reader: str, tasks: Sequence[Task], limit_s: float = 10.0, memory: int = 2 * GIB) -> Iterator[Answer]:
    """What a reader makes of each task, in order."""
    return each(partial(_read, reader), partial(warm, reader), tasks, limit_s, memory)
