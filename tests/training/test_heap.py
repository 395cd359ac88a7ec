"""Memory that a step frees is there for the next."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
import torch
from medfm.training.heap import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def step():
    x = torch.ones(12_000_000)  # 48 MB: above what glibc ever takes from its heap by itself
    del x

for _ in range(30):  # an aligned block fits a freed one only where several of them have grown together
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_keep_freed_memory__no_page_is_cleared_twice() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("plain", "keep")
    }
    assert faults["keep"] < 0.05 * faults["plain"]
