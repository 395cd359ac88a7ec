"""Several series of one examination as one image: the MR sequences T1, T2 and FLAIR as channels.

A reference names them with `|` between: `p1/T1.nii.gz|T2.nii.gz|FLAIR.nii.gz`. All but the first are relative to the folder of
the first, so that the whole may be put behind a root like any path. Each part may have selectors of its own
(`brain.nii.gz#volume=0|brain.nii.gz#volume=2`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medfm.errors import DataError
from medfm.io.reference import split_reference
from medfm.types import Image

if TYPE_CHECKING:
    from medfm.io.header import ImageHeader

BETWEEN = "|"


def split_sequences(path: str | Path) -> list[str]:
    """The references of each part, in order; one of a path that names one image. A path that exists as it stands is one."""
    text = os.fspath(path)
    if BETWEEN not in text or os.path.lexists(text):
        return [text]
    first, *others = text.split(BETWEEN)
    folder = os.path.dirname(first)
    return [first, *(os.path.normpath(os.path.join(folder, other)) for other in others)]


def missing_part(path: str | Path) -> str:
    """Says which file or folder that a reference names is not there, or what is wrong with its selectors; "" where all are."""
    parts = split_sequences(path)
    for part in parts:
        try:
            base, _ = split_reference(part)
        except DataError as error:
            return str(error)
        if not base.exists():
            rule = f"; of parts with '{BETWEEN}' between, all but the first start from the folder of the first"
            return f"'{base}' does not exist{rule if len(parts) > 1 else ''}"
    return ""


def join_sequences(paths: Sequence[str]) -> str:
    """The reference that `split_sequences` takes apart; posix paths."""
    folder = os.path.dirname(paths[0])
    return BETWEEN.join([paths[0], *(Path(os.path.relpath(path, folder or ".")).as_posix() for path in paths[1:])])


def stack_sequences(images: Sequence[Image], source: str) -> Image:
    """One image with the last axis "sequence", on the grid of the first; others are resampled onto it, outside is their least
    value.

    Raises:
        DataError: a part is no plain volume, their units differ, or one lies wholly outside of the first.
    """
    first = images[0]
    for image in images:
        if image.last_axis is not None:
            raise DataError(
                f"'{image.source}' of shape {image.shape} cannot be one of several sequences; choose one volume of it"
            )
        if image.intensity_units != first.intensity_units:
            raise DataError(
                f"'{source}' mixes {first.intensity_units} and {image.intensity_units} values; sequences must have one unit"
            )
        if not (image.oriented and first.oriented) and image.shape != first.shape:
            raise DataError(f"'{image.source}' has the shape {image.shape}, '{first.source}' {first.shape}, and no orientation")
    layers, notes = [first.array], list(first.notes)
    for number, image in enumerate(images[1:], start=2):
        placed = image.oriented and first.oriented  # else the affine of one is a stand-in, and the shapes are equal
        same = not placed or (image.shape == first.shape and np.allclose(image.affine, first.affine, rtol=0, atol=1e-3))
        if not (same or _meet(image, first)):
            raise DataError(
                f"'{image.source}' does not overlap '{first.source}': it belongs to another examination, or one of the two "
                "affines is wrong"
            )
        layers.append(image.array if same else _onto(image, first))
        notes += image.notes
        if not placed:
            notes.append(f"sequence {number} was laid voxel on voxel onto the first, as one of them has no orientation")
        elif not same:
            notes.append(f"sequence {number} was resampled onto the grid of the first")
    kind = np.result_type(*layers)
    array = np.stack([layer.astype(kind, copy=False) for layer in layers], axis=-1)
    return replace(first, array=array, last_axis="sequence", source=source, windows=(), notes=tuple(dict.fromkeys(notes)))


def stack_headers(headers: Sequence[ImageHeader]) -> ImageHeader:
    """The header of the first, with the number of sequences as last axis and the first problem of any."""
    first = headers[0]
    shape = None if first.shape is None else (*first.shape, len(headers))
    return replace(first, shape=shape, problem=next((h.problem for h in headers if h.problem), ""))


def _meet(one: Image, other: Image) -> bool:
    """Whether some of the voxels of either, 16 along each axis, lie in the other."""

    def inside(points: Image, box: Image) -> bool:
        axes = [np.linspace(0, n - 1, min(n, 16)) for n in points.shape[:3]]
        index = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        mm = index @ points.affine[:3, :3].T + points.affine[:3, 3]
        found = (mm - box.affine[:3, 3]) @ np.linalg.pinv(box.affine[:3, :3]).T
        return bool(((found > -0.5) & (found < np.array(box.shape[:3]) - 0.5)).all(axis=1).any())

    return inside(one, other) or inside(other, one)


def _onto(image: Image, like: Image) -> np.ndarray:
    """The array of `image` on the grid of `like`, linearly."""
    import SimpleITK

    def itk(array: np.ndarray, affine: np.ndarray) -> SimpleITK.Image:
        made = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
        spacing = np.sqrt((lps[:, :3] ** 2).sum(axis=0))
        made.SetSpacing(spacing.tolist())
        made.SetDirection((lps[:, :3] / spacing).ravel().tolist())
        made.SetOrigin(lps[:, 3].tolist())
        return made

    values = image.array.astype(np.float32)
    reference = itk(np.empty(like.shape, np.uint8), like.affine)
    around = float(values.min())
    kind, how = SimpleITK.sitkFloat32, SimpleITK.sitkLinear
    moved = SimpleITK.Resample(itk(values, image.affine), reference, SimpleITK.Transform(), how, around, kind)
    return SimpleITK.GetArrayFromImage(moved).transpose(2, 1, 0)
