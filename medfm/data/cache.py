"""Preprocessed images in shared memory: decoded once, by whichever loader process comes first."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from medfm.errors import ConfigError

_SHARED_MEMORY = Path("/dev/shm")


class MemoryCache:
    """(N, C, *size) of one dtype and a flag for each row, in shared memory: loader processes fill and read the same pages.

    Two processes may decode the same image at the same time; they write the same values. The flag is set after the values.

    Args:
        n: rows.
        shape: (C, *size) of one image.
        dtype: "uint8" or "float32".
        limit_gb: largest size, 10^9 bytes.

    Raises:
        ConfigError: it would be larger than `limit_gb`, or than the machine's shared memory; says the size that is needed.
    """

    def __init__(self, n: int, shape: Sequence[int], dtype: str, limit_gb: float) -> None:
        size = n * math.prod(shape) * np.dtype(dtype).itemsize
        what = f"data.cache=memory needs {size / 1e9:.2f} GB for {n:,} images of {' x '.join(map(str, shape))} {dtype}"
        if size > limit_gb * 1e9:
            raise ConfigError(f"{what}; data.cache_gb is {limit_gb:g}: raise it, or set data.cache=none")
        # Writing past a full /dev/shm kills the process without a message, as in containers that allow 64 MB.
        if sys.platform == "linux" and _SHARED_MEMORY.is_dir():
            free = shutil.disk_usage(_SHARED_MEMORY).free
            if size > free:
                raise ConfigError(
                    f"{what}; {_SHARED_MEMORY} has {free / 1e9:.2f} GB free: enlarge it (docker: --shm-size) "
                    "or set data.cache=none"
                )
        self.data = torch.empty((n, *shape), dtype=getattr(torch, dtype)).share_memory_()
        self.filled = torch.zeros(n, dtype=torch.uint8).share_memory_()

    def get(self, row: int) -> torch.Tensor | None:
        """(C, *size), a view that must not be changed; None where the row is not filled yet."""
        return self.data[row] if self.filled[row] else None

    def put(self, row: int, image: torch.Tensor) -> torch.Tensor:
        self.data[row] = image
        self.filled[row] = 1
        return self.data[row]

    def __len__(self) -> int:
        """Rows filled so far."""
        return int(self.filled.sum())
