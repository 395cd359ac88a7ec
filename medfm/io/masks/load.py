"""`load_mask`: a NIfTI label map, a picture, a DICOM SEG or RTSTRUCT -> `Mask` on an image's grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medfm.errors import DataError
from medfm.io.dataset import DICOM_SUFFIXES, has_magic, read_dataset, series_files
from medfm.io.geometry import is_singular
from medfm.io.masks.grid import check_bytes, place
from medfm.io.masks.labels import check_only, read_label_table, split
from medfm.io.nifti import is_nifti_name, read_nifti
from medfm.io.picture import PICTURE_SUFFIXES, read_picture
from medfm.types import Image, Mask


def load_mask(path: str | Path, reference: Image, names: Mapping[int, str] | None = None, only: Sequence[str] = ()) -> Mask:
    """Read segments onto the grid of `reference`.

    Voxels are laid on voxels where both grids share a lattice, whatever the order and direction of their axes; on any other
    grid the nearest voxel is taken, and `Mask.notes` says so. Segments that overlap keep a layer each, empty ones too.

    Args:
        path: a NIfTI label map (or one binary volume a segment in a fourth axis), a PNG of the image's size, a DICOM SEG
            (binary, fractional, label map) or a DICOM RTSTRUCT; or a folder that directly holds just one such DICOM file, or
            one binary NIfTI file a segment, named by their files as TotalSegmentator writes them.
        reference: the image; its (i, j, k) grid is the mask's.
        names: label, segment or ROI number -> name, over the file's own names. Labels named here have a layer even where they
            do not occur, so that masks of many patients agree.
        only: names of the segments to read; empty reads all. Other files of a folder are then not opened.

    Raises:
        DataError: the file is missing, damaged or no mask; it lies in another frame of reference, or does not overlap the
            image; its contours or frames do not fit the image's slices; a name in `only` is missing; the layers would not fit
            in memory.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"'{path}' does not exist")
    if is_singular(reference.affine):
        raise DataError("the image's affine is singular, so that a mask has no place on it")
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if is_nifti_name(p.name) and not p.name.startswith("."))
        if files:
            return _from_folder(path, files, reference, only)
        path = _only_file(path)
    if path.stat().st_size == 0:
        raise DataError(f"'{path}' is empty")
    names = dict(names or {})
    if is_nifti_name(path.name):
        return _from_nifti(path, reference, names, only)
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return _from_picture(path, reference, names, only)
    if path.suffix.lower() in DICOM_SUFFIXES or has_magic(path):
        return _from_dicom(path, reference, names, only)
    raise DataError(f"'{path}' is no mask that medfm reads: NIfTI (.nii, .nii.gz), PNG, DICOM SEG or RTSTRUCT")


def _only_file(folder: Path) -> Path:
    files = series_files(folder)
    if len(files) != 1:
        raise DataError(f"'{folder}' holds {len(files)} DICOM files; name the one that is the mask")
    return files[0]


def _from_dicom(path: Path, reference: Image, names: dict[int, str], only: Sequence[str]) -> Mask:
    from medfm.io.objects import kind_of
    from medfm.io.quiet import reading

    dataset = read_dataset(path)
    with reading(str(path)):
        kind = kind_of(dataset)[0]
    if kind == "segmentation":
        from medfm.io.masks.seg import read_seg

        return read_seg(dataset, str(path), reference, names, only)
    if kind == "contours":
        from medfm.io.masks.rtstruct import read_rtstruct

        return read_rtstruct(dataset, str(path), reference, names, only)
    raise DataError(f"'{path}' is DICOM, but neither a segmentation (SEG) nor radiotherapy contours (RTSTRUCT)")


def _from_folder(folder: Path, files: list[Path], reference: Image, only: Sequence[str]) -> Mask:
    """One binary NIfTI file a segment."""
    named = {file.name[: file.name.lower().rindex(".nii")]: file for file in files}
    check_only(only, named, str(folder))
    kept = {name: file for name, file in named.items() if not only or name in only}
    check_bytes(len(kept), reference.shape[:3], str(folder))
    array = np.zeros((len(kept), *reference.shape[:3]), bool)
    notes: dict[str, None] = {}
    for layer, file in zip(array, kept.values(), strict=True):
        mask = _from_nifti(file, reference, {}, ())
        if len(mask.names) > 1:
            raise DataError(f"'{file}' holds {len(mask.names)} labels; in a folder of masks each file holds one segment")
        layer |= mask.array.any(axis=0)
        notes.update(dict.fromkeys(mask.notes))
    return Mask(array, tuple(kept), reference.affine.copy(), str(folder), tuple(notes))


def _from_nifti(path: Path, reference: Image, names: dict[int, str], only: Sequence[str]) -> Mask:
    image = read_nifti(path)
    notes = list(image.notes)
    table, every = read_label_table(path)
    always = {*names, *(table if every else ())}
    names = {**table, **names}
    if image.last_axis == "colour":
        raise DataError(f"'{path}' holds colours, not labels")
    values, note = _whole(image.array, str(path))
    notes += [note] if note else []
    if values.ndim == 4:
        layers, names_ = _from_volumes(values, names, only, str(path))
    else:
        layers, names_ = split(values, names, always, only, str(path))
    if not (image.oriented and reference.oriented):
        notes.append(_same_shape(layers.shape[1:], reference, str(path)))
    else:
        layers, more = place(layers, image.affine, reference.shape, reference.affine, str(path))
        notes += more
    return Mask(array=layers, names=names_, affine=reference.affine.copy(), source=str(path), notes=tuple(notes))


def _whole(array: np.ndarray, path: str) -> tuple[np.ndarray, str]:
    """(whole numbers, a note): floats that are whole, or probabilities cut at 0.5."""
    if array.dtype.kind != "f":
        return array, ""
    whole = np.rint(array)
    if np.array_equal(whole, array):
        if float(np.abs(array).max(initial=0)) >= 2**31:
            raise DataError(f"'{path}' holds values of 2^31 and more: it is an image, not a mask")
        return whole.astype(np.int32), ""
    if float(array.min()) >= 0 and float(array.max()) <= 1:
        return (array >= 0.5).astype(np.uint8), "values between 0 and 1 were read as probabilities and cut at 0.5"
    raise DataError(f"'{path}' holds fractions beyond [0, 1]: it is an image, not a mask")


def _from_volumes(
    values: np.ndarray, names: Mapping[int, str], only: Sequence[str], path: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """One binary volume a segment, (i, j, k, S)."""
    count = values.shape[3]
    if int(values.min(initial=0)) < 0 or int(values.max(initial=0)) > 1:
        raise DataError(f"'{path}' has four dimensions, but its volumes are not binary: it is no mask of one segment a volume")
    named = [names.get(n) or f"label {n}" for n in range(1, count + 1)]
    check_only(only, named, path)
    kept = [n for n, name in enumerate(named) if not only or name in only]
    check_bytes(len(kept), values.shape[:3], path)
    return np.moveaxis(values[..., kept] == 1, 3, 0), tuple(named[n] for n in kept)


def _same_shape(shape: tuple[int, ...], reference: Image, path: str) -> str:
    """A note; refuses another shape where the image or the mask has no orientation to go by."""
    if shape != reference.shape[:3]:
        sizes = " and ".join(" x ".join(map(str, s)) for s in (shape, reference.shape[:3]))
        raise DataError(f"'{path}': mask and image differ in size ({sizes}), and one of them has no orientation")
    return "orientation is unknown, so that the mask was laid voxel on voxel"


def _from_picture(path: Path, reference: Image, names: dict[int, str], only: Sequence[str]) -> Mask:
    if path.suffix.lower() != ".png":
        raise DataError(f"'{path}': JPEG changes values, so that it holds no labels; save the mask as PNG")
    image = read_picture(path)
    values = image.array
    if image.last_axis == "colour":
        if not (values == values[..., :1]).all():
            raise DataError(f"'{path}' holds colours, not labels; save one grey value a segment")
        values = values[..., 0]
    if values.ndim != 3:
        raise DataError(f"'{path}' has the shape {values.shape}; a mask is one picture")
    highest = int(values.max(initial=0))
    if highest > 0 and highest not in names and not ((values != 0) & (values != highest)).any():
        values = (values != 0).astype(np.uint8)  # black and white, whatever stands for white
    layers, names_ = split(values, names, names, only, str(path))
    note = _same_shape(layers.shape[1:], reference, str(path))
    return Mask(array=layers, names=names_, affine=reference.affine.copy(), source=str(path), notes=(*image.notes, note))
