"""How the engine's local processes start: without running the caller's script again."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import context as contexts
from types import ModuleType
from typing import Any

_lock = threading.Lock()


def worker_context(function: Callable[..., Any], preload: Sequence[str]) -> contexts.BaseContext:
    """The multiprocessing context for workers that run `function`.

    Not fork: this process may hold threads (torch, a progress bar), and a forked lock stays locked. A worker of Python's own
    forkserver or spawn first runs the caller's `__main__` again, which fails in a notebook or where the script comes from a
    pipe, and repeats a script without `if __name__ == "__main__"`. It is left out unless `function` is defined there.

    Args:
        preload: modules imported once, before workers are forked off.
    """
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    from_main = getattr(inner, "__module__", "") == "__main__"
    if os.name != "posix":
        return multiprocessing.get_context("spawn") if from_main else _SpawnContext()
    context = multiprocessing.get_context("forkserver") if from_main else _ForkServerContext()
    context.set_forkserver_preload(list(preload))
    _start_server(context)
    return context


def _start_server(context: Any) -> None:
    """Start the fork server and wait until it has imported what it must: Ctrl-C would end it with a traceback of its own.

    A Ctrl-C of that second is minded when it is over.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        return  # signals are the main thread's
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        resource_tracker.ensure_running()  # it would lift the block below, if the server started it
        # Blocked, not ignored: the server and its workers inherit that as well, and here nothing is lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        first = context.Process(target=_nothing)
        first.start()
        first.join()
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        signal.raise_signal(signal.SIGINT)


def _nothing() -> None: ...


def _start(popen: Callable[[Any], Any], process: Any) -> Any:
    """Start a process with an empty module in the place of `__main__`, which is what it is told to run."""
    with _lock:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return popen(process)
        finally:
            sys.modules["__main__"] = main


class _SpawnProcess(contexts.SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _start(contexts.SpawnProcess._Popen, process_obj)


class _SpawnContext(contexts.SpawnContext):
    Process = _SpawnProcess


if os.name == "posix":
    from multiprocessing import forkserver, resource_tracker

    class _ForkServerProcess(contexts.ForkServerProcess):
        @staticmethod
        def _Popen(process_obj: Any) -> Any:
            return _start(contexts.ForkServerProcess._Popen, process_obj)

    class _ForkServerContext(contexts.ForkServerContext):
        Process = _ForkServerProcess
