"""One function over many items, on local processes or a Dask cluster: nothing is lost when a worker dies, and a run that was
stopped goes on.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, TimeoutError, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from medfm.data.engine_config import EngineConfig
from medfm.data.journal import Journal
from medfm.errors import ConfigError, MedfmError

T = TypeVar("T")

_FEW = 20  # fewer items need no progress bar
_AHEAD = 4  # items handed out per worker, so that none waits and memory stays bounded


@dataclass(frozen=True)
class Done(Generic[T]):
    """One finished item.

    Attributes:
        result: what the function returned; None where it failed.
        failure: why it failed, in words without patient data; "" where it did not.
        again: taken from the journal, not run now.
    """

    item: T
    key: str
    result: Any
    failure: str = ""
    again: bool = False


def run(
    function: Callable[[T], Any],
    items: Iterable[T],
    config: EngineConfig,
    *,
    key: Callable[[T], str] = str,
    journal: Path | None = None,
    fingerprint: str = "",
    what: str = "",
    progress: bool = False,
    limit_s: float | None = None,
    preload: Sequence[str] = (),
    kept: Callable[[Any], Any] | None = None,
) -> Iterator[Done[T]]:
    """Yield `Done` once for each item, in order of completion; what the journal holds comes first and is not run again.

    An error of the function, a worker that dies (a decoder that crashes, memory) and one that hangs cost their own item, whose
    `failure` says so. With `engine=dask` an item whose worker was lost before its result was fetched runs again on another
    one, so a function that writes must write the same thing to the same place.

    Args:
        function: picklable; `function(item)` gives a picklable result, JSON-able where there is a journal.
        items: distinct by `key`.
        key: an item's name in the journal; without patient data beyond what file names hold.
        journal: file that keeps results between runs. Items that killed their worker or hung are not kept: they get another
            chance.
        fingerprint: of what else decides the results; a journal made under another one is not used.
        what: words for the progress bar.
        limit_s: seconds an item may take, on local processes; then its worker is stopped and the item has failed.
        preload: modules that local workers import once, before they are forked off.
        kept: what of a result the journal holds, for results with patient data; with `again` that part is the result.

    Raises:
        ConfigError: the Dask scheduler cannot be reached, or dask is not installed.
        DataError: the journal cannot be written.
        ValueError: two items have one key.
    """
    items = list(items)
    keys = [key(item) for item in items]
    if len(set(keys)) != len(keys):
        raise ValueError("items of the engine must have distinct keys")
    book = Journal(journal, fingerprint) if journal is not None else None
    try:
        known = book.results if book is not None else {}
        with bar(len(items), what, progress) as advance:
            todo: list[tuple[str, T]] = []
            for name, item in zip(keys, items, strict=True):
                if name in known:
                    before = known.pop(name)  # not held longer than needed: there may be millions
                    advance()
                    yield Done(item, name, before.get("result"), before.get("failure", ""), again=True)
                else:
                    todo.append((name, item))
            for (name, item), (result, failure, keep) in _results(function, todo, config, limit_s, preload):
                if book is not None and keep:
                    part = kept(result) if kept is not None and not failure else result
                    book.add(name, {"failure": failure} if failure else {"result": part})
                advance()
                yield Done(item, name, result, failure)
    finally:
        if book is not None:
            book.close()


Outcome = tuple[Any, str, bool]
"""(result, failure, worth keeping in the journal)."""


def _results(
    function: Callable[[T], Any],
    todo: list[tuple[str, T]],
    config: EngineConfig,
    limit_s: float | None,
    preload: Sequence[str],
) -> Iterator[tuple[tuple[str, T], Outcome]]:
    if not todo:
        return
    if config.engine == "dask":
        yield from _on_dask(function, todo, config.scheduler)
        return
    workers = min(cores() if config.workers is None else config.workers, len(todo))
    if workers == 0:
        for pair in todo:
            yield pair, guarded(function, pair[1])
        return
    yield from _on_processes(function, todo, workers, limit_s, preload)


def guarded(function: Callable[[T], Any], item: T) -> Outcome:
    """`function(item)` with its error as words. Another error than a MedfmError is a fault of medfm's: the words say where,
    and not what, since Python's own texts quote values.
    """
    try:
        return function(item), "", True
    except MedfmError as error:
        return None, str(error), True
    except OSError as error:
        return None, f"cannot be read or written: {error.strerror or type(error).__name__}", False
    except MemoryError:
        return None, "needs more memory than there is", False
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        here = [f for f in frames if f"{os.sep}medfm{os.sep}" in f.filename] or list(frames)
        place = f"{Path(here[-1].filename).stem}.py, line {here[-1].lineno}"
        return None, f"unexpected {type(error).__name__} ({place}); please report it to medfm", False


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _on_processes(
    function: Callable[[T], Any], todo: list[tuple[str, T]], workers: int, limit_s: float | None, preload: Sequence[str]
) -> Iterator[tuple[tuple[str, T], Outcome]]:
    from pebble import ProcessPool

    from medfm.data.workers import worker_context

    context = worker_context(function, ["medfm.data.engine", *preload])
    pool = ProcessPool(max_workers=workers, context=context, initializer=_leave_interrupts_to_the_parent)
    waiting: dict[Future[Any], tuple[str, T]] = {}
    coming = iter(todo)
    try:
        while True:
            for pair in islice(coming, max(0, workers * _AHEAD - len(waiting))):
                waiting[pool.schedule(guarded, args=(function, pair[1]), timeout=limit_s)] = pair
            if not waiting:
                break
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), _outcome(future, limit_s)
        pool.close()
    except BaseException:
        pool.stop()
        raise
    finally:
        pool.join()


def _outcome(future: Future[Any], limit_s: float | None) -> Outcome:
    from pebble import ProcessExpired

    try:
        return future.result()
    except TimeoutError:
        return None, f"took longer than {limit_s:g} s and was stopped", False
    except ProcessExpired as error:
        return None, f"the process that read it died ({_reason(error.exitcode)}); it may be damaged", False
    except CancelledError:
        return None, "was cancelled", False
    except Exception as error:  # a result that cannot be pickled, or the pool itself
        return None, f"its result could not be handed over ({type(error).__name__}); please report it to medfm", False


def _reason(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed: perhaps out of memory"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _on_dask(
    function: Callable[[T], Any], todo: list[tuple[str, T]], scheduler: str
) -> Iterator[tuple[tuple[str, T], Outcome]]:
    try:
        from distributed import Client, as_completed
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise ConfigError("engine=dask needs Dask: pip install 'medfm[dask]'") from None

    try:
        client = Client(scheduler, timeout="20s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Dask scheduler answers at '{scheduler}' ({type(error).__name__}); check scheduler=") from None
    with client:
        coming = iter(todo)
        waiting: dict[Any, tuple[str, T]] = {}
        done = as_completed(loop=client.loop, with_results=False, raise_errors=False)

        def refill() -> None:
            ahead = _AHEAD * max(1, sum(client.nthreads().values()))
            for pair in islice(coming, max(0, ahead - len(waiting))):
                future = client.submit(guarded, function, pair[1], pure=False)
                waiting[future.key] = pair
                done.add(future)

        refill()
        while waiting:
            future = next(done)
            try:
                outcome: Outcome = future.result()
            except KilledWorker:
                outcome = None, "the workers that read it died one after the other; it may be damaged", False
            except Exception as error:  # lost connection, a result that cannot be sent
                outcome = None, f"its result could not be fetched from the cluster ({type(error).__name__})", False
            pair = waiting.pop(future.key)
            future.release()
            refill()
            yield pair, outcome


@contextmanager
def bar(total: int, what: str, show: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on the terminal, and the function that moves it by one; silent for few items or without `show`."""
    if not show or total < _FEW:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(what, total=total)
        yield lambda: shown.advance(task)
