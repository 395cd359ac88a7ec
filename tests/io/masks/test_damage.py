"""Damaged masks give one typed error or a mask, never a traceback, and quickly."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medfm.errors import DataError
from medfm.io.masks import load_mask
from medfm.io.masks.labels import label_table
from medfm.types import Image


def damaged(data: bytes, rng: np.random.Generator, start: int) -> bytes:
    """Cut off, with bytes changed, with a wild length, or with bytes missing, within the first 4,500."""
    content, where = bytearray(data), int(rng.integers(start, min(len(data), 4500)))
    how = int(rng.integers(4))
    if how == 0:
        return bytes(content[:where])
    if how == 1:
        content[where : where + 3] = rng.bytes(3)
    elif how == 2:
        content[where : where + 4] = b"\xff\xff\xff\x7f"
    else:
        del content[where : where + int(rng.integers(1, 40))]
    return bytes(content)


@pytest.mark.parametrize("kind", ["seg.dcm", "deflated.dcm", "rt.dcm", "m.nii", "m.nii.gz"])
def test_load_mask__damage_is_typed(
    kind: str, tmp_path: Path, data_dir: Path, blank: Callable[..., Image], write_rtstruct: Callable[..., Path]
) -> None:
    affine, shape = np.diag([-0.810547, -0.810547, 1.0, 1.0]), (512, 512, 3)
    affine[:3, 3] = 235.2, 226.8, -128.69
    if kind.endswith(".dcm") and kind != "rt.dcm":
        name = "liver.dcm" if kind == "seg.dcm" else "liver_deflate.dcm"
        path = data_dir / "dicom" / "pydicom_data" / name
    elif kind == "rt.dcm":
        path = write_rtstruct({n: [np.array([[0, 0, z], [50.0, 0, z], [50, 50, z]]) for z in (-128.69, -127.69)] for n in "ab"})
    else:
        affine, shape, path = np.eye(4), (12, 13, 14), tmp_path / kind
        image = nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 4, shape, np.uint8), affine)
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, label_table({1: "a", 2: "b"})))
        nibabel.save(image, path)
    reference = blank(shape, affine)
    assert load_mask(path, reference).array.any()
    data, rng = path.read_bytes(), np.random.default_rng(7)
    refused = accepted = 0
    for _ in range(60):
        broken = tmp_path / f"broken-{kind}"
        broken.write_bytes(damaged(data, rng, 132 if kind.endswith(".dcm") else 0))
        begin = time.monotonic()
        try:
            mask = load_mask(broken, reference)
        except DataError as error:
            refused += broken.name in str(error)
        else:
            accepted += 1
            assert mask.array.shape == (len(mask.names), *shape)
        assert time.monotonic() - begin < 5
    assert refused + accepted == 60
    assert refused > 10
