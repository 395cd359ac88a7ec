"""Images and masks out, on the geometry of the image they came from: NIfTI, and DICOM SEG for masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medfm.errors import DataError
from medfm.io.geometry import is_singular
from medfm.io.masks.grid import ROUNDING, apart, place
from medfm.io.masks.labels import join, label_table, labels_in
from medfm.io.nifti import is_nifti_name, save_nifti
from medfm.types import Image, Mask

if TYPE_CHECKING:
    from medfm.io.masks.seg_write import Code


def save_image(image: Image | np.ndarray, path: str | Path, like: Image | None = None) -> None:
    """Write an image as .nii or .nii.gz, atomically, with the affine of `like` (or its own).

    Values are written as they are, without scl_slope; colour as RGB24.

    Args:
        image: an Image, or an array (i, j, k), (i, j, k, t) or, uint8, (i, j, k, 3) on the grid of `like`.
        like: the image whose grid it must be on; needed for a bare array.

    Raises:
        DataError: the suffix is another; shape or affine differ from those of `like`; a series in colour.
    """
    path = Path(path)
    if not is_nifti_name(path.name):
        raise DataError(f"'{path}': images are written as .nii or .nii.gz")
    if isinstance(image, Image):
        if like is not None:
            _check_grid(image.shape, image.affine, like, path)
        array, affine, oriented, last = image.array, image.affine, image.oriented, image.last_axis
    else:
        if like is None:
            raise DataError(f"'{path}': a bare array has no place in space; name the image it belongs to with like=")
        array = np.asarray(image)
        _check_grid(array.shape, like.affine, like, path)
        affine, oriented = like.affine, like.oriented
        colour = like.last_axis == "colour" and array.shape == like.shape
        last = "colour" if colour else "time" if array.ndim == 4 else None
    if last == "time, colour" or array.ndim > 4:
        raise DataError(f"'{path}': NIfTI does not hold a series in colour; save its frames one by one")
    if last == "colour":
        if array.dtype != np.uint8 or array.shape[-1] != 3:
            raise DataError(f"'{path}': NIfTI holds colour as 8-bit RGB; this is {array.dtype} of {array.shape[-1]} channels")
        array = np.ascontiguousarray(array).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    save_nifti(array, affine, path, oriented=oriented)


def save_mask(
    mask: Mask | np.ndarray,
    path: str | Path,
    like: Image,
    names: Mapping[int, str] | Sequence[str] | None = None,
    algorithm: str = "medfm",
    version: str = "",
    codes: Mapping[str, tuple[Code, Code]] | None = None,
    description: str = "",
    source_series: str | Path | None = None,
) -> None:
    """Write segments on the grid of `like`, atomically: .nii or .nii.gz, or .dcm as a DICOM SEG.

    `load_mask(path, like)` gives back the same layers and names. A NIfTI file holds one label map with the names in a header
    extension, or, where segments overlap, one binary volume a segment. A SEG refers to the DICOM files of `like.source`, and
    copies patient, study and frame of reference from them, as the standard demands.

    Args:
        mask: a Mask; or (i, j, k) bool or labels, 0 for background; or (S, i, j, k) bool.
        like: the image that the mask belongs to.
        names: for an array: the segments' names, in order of layers or ascending labels, or label -> name.
        algorithm: what drew the segments, recorded in a SEG; "" says that a person did.
        version: of the algorithm; medfm's own by default.
        codes: for a SEG: name -> (category, type), each a code (value, scheme, meaning) such as ("10200004", "SCT", "Liver").
        description: SeriesDescription of the SEG.
        source_series: for a SEG where `like` is no DICOM: the DICOM series that it was converted from.

    Raises:
        DataError: the suffix is another; the mask is not on the grid of `like`; names do not fit the segments; for a SEG: see
            `medfm.io.masks.seg_write.write_seg`.
    """
    path = Path(path)
    nifti = is_nifti_name(path.name)
    if not nifti and path.suffix.lower() != ".dcm":
        raise DataError(f"'{path}': masks are written as .nii, .nii.gz or, as DICOM SEG, .dcm")
    layers, named = _layers(mask, names, like, path)
    if nifti:
        values = join(layers)
        table = label_table(dict(enumerate(named, start=1)))
        if values is None:
            values = np.moveaxis(layers, 0, 3).astype(np.uint8)
        save_nifti(values, like.affine, path, oriented=like.oriented, extension=table)
        return
    from medfm.io.masks.seg_write import Author, medfm_version, write_seg

    if source_series is not None:
        layers, like = _onto_series(layers, like, source_series, path)
    author = Author(algorithm, version or medfm_version(), description or f"Segmentation {algorithm}".strip())
    for text in (*named, author.algorithm, author.description):
        if len(text) > 64 or "\\" in text or any(ord(c) < 32 for c in text):
            raise DataError(
                f"'{path}': a name in DICOM has at most 64 characters, without backslash or line break: {text[:70]!r}"
            )
    write_seg(layers, named, path, like, author, _checked(codes or {}, named, path))


def _checked(codes: Mapping[str, tuple[Code, Code]], names: Sequence[str], path: Path) -> Mapping[str, tuple[Code, Code]]:
    for name, pair in codes.items():
        if name not in names:
            raise DataError(f"'{path}': codes= names '{name}', which is no segment; the segments are {', '.join(names[:10])}")
        terms = list(pair) if isinstance(pair, tuple | list) else []
        if len(terms) != 2 or any(len(t) != 3 or not all(isinstance(v, str) and 0 < len(v) <= 64 for v in t) for t in terms):
            raise DataError(
                f"'{path}': codes= of '{name}' must be a category and a type, each of value, scheme and meaning, for example "
                "(('123037004', 'SCT', 'Anatomical Structure'), ('10200004', 'SCT', 'Liver'))"
            )
    return codes


def _check_grid(shape: tuple[int, ...], affine: np.ndarray, like: Image, path: Path) -> None:
    if is_singular(like.affine):
        raise DataError(f"'{path}': the affine of the image is singular")
    if tuple(shape[:3]) != like.shape[:3]:
        sizes = " and ".join(" x ".join(map(str, s[:3])) for s in (shape, like.shape))
        raise DataError(f"'{path}': its grid and that of the image differ in size ({sizes}); resample it onto the image first")
    off = apart(like.shape, like.affine, affine)
    if off > ROUNDING:
        raise DataError(
            f"'{path}': its affine and that of the image place voxels up to {off:.3g} voxels apart; resample it first"
        )


def _layers(
    mask: Mask | np.ndarray, names: Mapping[int, str] | Sequence[str] | None, like: Image, path: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """((S, i, j, k) bool on the grid of `like`, names)."""
    if isinstance(mask, Mask):
        if names is not None:
            raise DataError(f"'{path}': a Mask has names of its own; leave names= out")
        _check_grid(mask.shape[1:], mask.affine, like, path)
        return _named(np.asarray(mask.array, bool), dict(enumerate(mask.names, start=1)), len(mask.names), path)
    array = np.asarray(mask)
    if array.dtype.kind not in "biu" or array.ndim not in (3, 4):
        raise DataError(
            f"'{path}': a mask is a Mask, labels or bool (i, j, k), or bool (S, i, j, k); this is {array.dtype} {array.shape}"
        )
    if array.ndim == 4 and array.dtype != bool:
        raise DataError(f"'{path}': a mask with one layer a segment (S, i, j, k) is bool; this is {array.dtype}")
    _check_grid(array.shape[-3:], like.affine, like, path)
    if array.ndim == 4 or array.dtype == bool:
        layers = array.reshape(-1, *array.shape[-3:])
        labels = list(range(1, len(layers) + 1))
    else:
        given = set(names) if isinstance(names, Mapping) else set()
        labels = sorted({*labels_in(array, str(path)), *given})
        if 0 in labels:
            raise DataError(f"'{path}': label 0 is the background and has no name")
        layers = np.stack([array == label for label in labels]) if labels else np.zeros((0, *array.shape), bool)
    if isinstance(names, Mapping):
        named = {n: names.get(label, f"label {label}") for n, label in enumerate(labels, start=1)}
        return _named(layers, named, len(labels), path)
    listed = list(names) if names is not None else [f"label {label}" for label in labels]
    return _named(layers, dict(enumerate(listed, start=1)), len(listed), path)


def _named(layers: np.ndarray, names: Mapping[int, str], count: int, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    if not len(layers):
        raise DataError(f"'{path}': the mask has no segments; give an empty one as zeros with its name in names=")
    if count != len(layers) or not all(isinstance(name, str) and name.strip() == name and name for name in names.values()):
        raise DataError(f"'{path}': {len(layers)} segments need as many names, none empty; {count} are given")
    return layers, tuple(names.values())


def _onto_series(layers: np.ndarray, like: Image, series: str | Path, path: Path) -> tuple[np.ndarray, Image]:
    """Layers turned from the grid of `like` onto that of the DICOM series it was converted from; never resampled."""
    from medfm.io.load import load_image
    from medfm.io.masks.grid import shared_lattice

    image = load_image(series)
    lattice = shared_lattice(layers.shape[1:], like.affine, image.shape, image.affine)
    if lattice is None or lattice.stray > 0.25:
        raise DataError(f"'{path}': the image is not on the grid of '{series}'; write the SEG from the image it was drawn on")
    turned, _ = place(layers, like.affine, image.shape, image.affine, str(path))
    if np.count_nonzero(turned) != np.count_nonzero(layers):
        raise DataError(f"'{path}': a part of the mask lies outside of '{series}'")
    return turned, image
