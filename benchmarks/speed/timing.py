"""Timing that peers share: one thread, candidates in turns, best and median of each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


def one_thread() -> None:
    """Hold this process to one core, and torch, SimpleITK and the numeric libraries to one thread; call it before their use.

    The core is what counts: gdcm decodes JPEG 2000 with as many threads as there are cores, and has no switch for it in Python.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for name in _THREADS:
        os.environ[name] = "1"
    import SimpleITK
    import torch

    torch.set_num_threads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def in_turns(candidates: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """Seconds of each run. Candidates take turns, the order reversed every other round, so that a busy moment of the machine
    hits all alike; one round before warms files, imports and memory.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(runs + 1):
        for name in list(candidates)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            result = candidates[name]()
            elapsed = time.perf_counter() - start
            del result
            if number:
                seconds[name].append(elapsed)
    return seconds


def rows(seconds: Mapping[str, list[float]], reference: str) -> list[tuple[str, str, str, str]]:
    """(name, best ms, median ms, median over the reference's median), slowest last."""
    base = median(seconds[reference])
    ordered = sorted(seconds.items(), key=lambda item: median(item[1]))
    return [(name, _ms(min(s)), _ms(median(s)), f"{median(s) / base:.2f}") for name, s in ordered]


def ratio(seconds: Mapping[str, list[float]], name: str, reference: str) -> float:
    """Median time of `name` over that of `reference`."""
    return median(seconds[name]) / median(seconds[reference])


def versions(*names: str) -> str:
    """'SimpleITK 2.5.7, monai 1.6.1': what the table was measured with."""
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} absent")
    return ", ".join(found)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if seconds < 0.1 else f"{1000 * seconds:.0f}"
