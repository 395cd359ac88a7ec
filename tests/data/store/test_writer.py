from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfm.data.store.records import shard_path
from medfm.data.store.writer import ALIGNMENT, ShardWriter


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=12), limit=st.integers(1, 1000))
def test_add__every_array_is_found_again_aligned_and_within_the_limit(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-1000, 1000, (1, n)).astype(np.int16) for n in sizes]
    writer = ShardWriter(folder, limit)
    places = [writer.add(a) for a in arrays]
    writer.close()
    for array, (shard, offset, crc) in zip(arrays, places, strict=True):
        data = shard_path(folder, writer.writer, shard).read_bytes()
        assert data[offset : offset + array.nbytes] == array.tobytes()
        assert crc == zlib.crc32(array.tobytes())
        assert offset % ALIGNMENT == 0
        assert len(data) <= limit or places.count((shard, 0, crc)) == 1
    files = sorted(p.name for p in folder.iterdir())
    assert len(files) == places[-1][0] + 1


def test_add__two_writers_never_share_a_file(tmp_path: Path) -> None:
    first, second = ShardWriter(tmp_path, 100), ShardWriter(tmp_path, 100)
    for writer in (first, second, first):
        writer.add(np.arange(4))
    first.close()
    second.close()
    assert len(list(tmp_path.iterdir())) == 2
