"""The NIfTI header: parsed by nibabel, and refused wherever it contradicts itself or the file.

A header whose parts disagree (bitpix and data type, dimensions, spacing and affine) is damaged, and nothing in it tells which
part: whatever were returned could be a wrong volume.

Sources: the NIfTI-1 and NIfTI-2 standards (nifti1.h, nifti2.h).
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from medfm.errors import DataError
from medfm.io.geometry import is_singular

if TYPE_CHECKING:
    from nibabel import Nifti1Header

# Codes of sform_code and qform_code in the standard.
_FORM_CODES = range(6)
# A corner of the volume may lie this far off, in voxels, before two affines count as different.
_SLACK = 0.1
# mm; scanner coordinates reach a few metres, and stereotactic ones not much farther.
_FARTHEST = 1e6
_VECTOR_INTENTS = {1004: "matrices", 1005: "symmetric matrices", 1006: "displacements", 1007: "vectors"}


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read_header(file: Readable, path: str) -> tuple[Nifti1Header, int]:
    """(the header, where the voxels begin), of a file at its beginning; `file` is then somewhere before the voxels.

    Raises:
        DataError: it is no NIfTI file, half of a pair, Analyze, truncated, or its header or extensions are damaged.
    """
    import nibabel

    start = file.read(348)
    if len(start) < 348:
        raise DataError(f"'{path}': truncated: {len(start)} bytes are no NIfTI header")
    sizes = {struct.unpack(order + "i", start[:4])[0] for order in "<>"}
    second = 540 in sizes
    start += file.read(192) if second else b""
    magic = start[4:12] if second else start[344:348]
    if not sizes & {348, 540}:
        raise DataError(f"'{path}' is not a NIfTI file")
    if magic[:2] == b"ni":
        raise DataError(f"'{path}' is one half of a .hdr/.img pair; save it as one .nii or .nii.gz file")
    if not second and magic == bytes(4):
        raise DataError(f"'{path}' is Analyze 7.5, which does not say left from right; convert it to NIfTI from its source")
    if magic not in (b"n+1\x00", b"n+2\x00\r\n\x1a\n"):
        raise DataError(f"'{path}' is not a NIfTI file")
    size, kind = (540, nibabel.Nifti2Header) if second else (348, nibabel.Nifti1Header)
    if len(start) < size:
        raise DataError(f"'{path}': truncated: {len(start)} bytes are no NIfTI-2 header")
    try:
        # nibabel would guess the byte order from dim[0], which may be what is damaged.
        little = int.from_bytes(start[:4], "little") in (348, 540)
        header = kind(start[:size], "<" if little else ">", check=False)
    except Exception as error:  # nibabel's own kinds have no common base
        raise DataError(f"'{path}': its NIfTI header is damaged ({type(error).__name__})") from None
    return header, _offset(header, size, file, path)


def _offset(header: Nifti1Header, size: int, file: Readable, path: str) -> int:
    """The place of the voxels, behind the header and its extensions; `file` stands right after the header."""
    value = float(header["vox_offset"])
    if not math.isfinite(value) or value != int(value) or not size + 4 <= value < 2**40:
        raise DataError(f"'{path}': its NIfTI header gives no valid place of the voxels (vox_offset)")
    offset = int(value)
    more = file.read(4)
    if more[:1] > b"\x00":
        more = file.read(8)
        # The first extension alone: the walk through all of them would buy nothing but time.
        length = int.from_bytes(more[:4], "little" if header.endianness == "<" else "big", signed=True)
        if length < 16 or length % 16 or size + 4 + length > offset:
            raise DataError(f"'{path}': a header extension overlaps the voxels; vox_offset or the extension is damaged")
    return offset


def shape_of(header: Nifti1Header, path: str) -> tuple[int, ...]:
    """(i, j, k) or (i, j, k, t).

    Raises:
        DataError: dim contradicts itself, or there are more dimensions than a volume with time has.
    """
    dim = [int(n) for n in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise DataError(f"'{path}': its NIfTI header claims {dim[0]} dimensions (dim[0])")
    shape, beyond = dim[1 : dim[0] + 1], dim[dim[0] + 1 :]
    if min(shape) < 1:
        raise DataError(f"'{path}': its NIfTI header gives the shape {tuple(shape)}")
    if any(n not in (0, 1) for n in beyond):
        raise DataError(f"'{path}': its NIfTI header claims {dim[0]} dimensions but gives sizes for more (dim)")
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) > 4:
        kind = _VECTOR_INTENTS.get(int(header["intent_code"]))
        holds = f"holds {kind} (intent_code {int(header['intent_code'])})" if kind else f"has {len(shape)} dimensions"
        raise DataError(f"'{path}' {holds} {tuple(shape)}; 3 dimensions (a volume) and 4 (with time) are readable")
    return (*shape, *[1] * (3 - len(shape)))


def dtype_of(header: Nifti1Header, path: str) -> np.dtype[Any]:
    """The voxels' data type.

    Raises:
        DataError: it is unknown, not readable (complex, binary, over 64 bits), or contradicts bitpix.
    """
    try:
        dtype = header.get_data_dtype()
    except Exception:
        raise DataError(f"'{path}': its NIfTI header gives an unknown data type") from None
    if dtype.names:
        if tuple(dtype.names) not in (("R", "G", "B"), ("R", "G", "B", "A")) or dtype.itemsize != len(dtype.names):
            raise DataError(f"'{path}': voxels of type {dtype.names} are not readable; RGB of 8 bits is")
    elif dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise DataError(f"'{path}': voxels of type {dtype} are not readable; take the magnitude first")
    bits = int(header["bitpix"])
    if bits != 8 * dtype.itemsize:
        raise DataError(f"'{path}': its NIfTI header contradicts itself: voxels of type {dtype} with bitpix {bits}")
    return dtype


def scaling_of(header: Nifti1Header, path: str) -> tuple[float, float]:
    """(slope, intercept); a slope of 0 or NaN says that values are as stored (the standard, and what nibabel writes).

    Raises:
        DataError: the slope is infinite, or the intercept of a true slope is not a number.
    """
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not math.isfinite(slope) or not math.isfinite(inter):
        raise DataError(f"'{path}': scl_slope or scl_inter is not a number")
    return slope, inter


def affine_of(header: Nifti1Header, shape: tuple[int, ...], path: str) -> tuple[np.ndarray, bool, list[str]]:
    """((4, 4) RAS+ mm, oriented, notes): the sform where it has a code, else the qform, else spacing alone.

    Raises:
        DataError: spacing is zero, negative or no number, an affine is singular or no number, or two of them that name the
            same space differ.
    """
    codes = {name: int(header[name]) for name in ("sform_code", "qform_code")}
    for name, code in codes.items():
        if code not in _FORM_CODES:
            raise DataError(f"'{path}': its NIfTI header gives {name} {code}; 0 to 5 are known")
    zooms = _zooms(header, shape, path)
    sform = np.asarray(header.get_sform(), np.float64) if codes["sform_code"] else None
    notes = []
    if sform is not None and not sform[:3].any() and codes["qform_code"]:
        sform, codes["sform_code"] = None, 0
        notes.append("the sform is empty although it has a code; the qform was taken")
    qform = _qform(header, path, strict=sform is None) if codes["qform_code"] else None
    if sform is not None:
        if is_singular(sform):
            raise DataError(f"'{path}': its affine (sform) is singular or no number, so that voxels have no place")
        affine, oriented = sform, True
        same = codes["sform_code"] == codes["qform_code"]
        if qform is not None and _apart(sform, qform, shape) > _SLACK:
            if same:
                raise DataError(
                    f"'{path}': sform and qform name the same space but differ; the header is damaged: set one of them right"
                )
            notes.append("sform and qform differ; the sform was taken")
        norms = np.linalg.norm(sform[:3, :3], axis=0)
        if (qform is None or same) and bool((np.abs(norms / zooms - 1)[np.array(shape[:3]) > 1] > 0.01).any()):
            raise DataError(f"'{path}': the spacing (pixdim) contradicts the affine (sform); the header is damaged")
    elif qform is not None:
        affine, oriented = qform, True
    else:
        affine, oriented = np.diag([*zooms, 1.0]), False
        notes.append("the file has no usable sform or qform: orientation is unknown, axes are taken as RAS")
    affine, note = _in_mm(affine, int(header["xyzt_units"]) & 7)
    if is_singular(affine):
        raise DataError(f"'{path}': its affine is singular, so that voxels have no place")
    if np.abs(affine[:3]).max() > _FARTHEST:
        raise DataError(f"'{path}': its affine places voxels over {_FARTHEST / 1e6:g} km away; the header is damaged")
    return affine, oriented, [*notes, *([note] if note else [])]


def _zooms(header: Nifti1Header, shape: tuple[int, ...], path: str) -> np.ndarray:
    """(3,) voxel edges; 1 along an axis of one voxel that gives none."""
    zooms = np.array(header["pixdim"][1:4], np.float64)
    bad = ~(np.isfinite(zooms) & (zooms > 0))
    if (bad & (np.array(shape[:3]) > 1)).any():
        raise DataError(f"'{path}': its NIfTI header gives no valid spacing (pixdim is zero, negative or no number)")
    zooms[bad] = 1.0
    return zooms


def _qform(header: Nifti1Header, path: str, strict: bool) -> np.ndarray | None:
    """The qform; where it is none, None or (`strict`) a DataError."""
    try:
        qfac = float(header["pixdim"][0])
        affine = np.asarray(header.get_qform(), np.float64)
    except Exception:  # a quaternion that is none
        affine, qfac = np.full((4, 4), np.nan), 1.0
    if not is_singular(affine) and qfac in (-1.0, 0.0, 1.0):
        return affine
    if strict:
        raise DataError(f"'{path}': its affine (qform) is singular or no number, so that voxels have no place")
    return None


def _apart(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance of a corner of the volume under two affines, in the first one's smallest voxel edge."""
    corners = np.array([[i, j, k, 1.0] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])])
    distance = np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1).max()
    return float(distance / np.linalg.norm(first[:3, :3], axis=0).min())


def _in_mm(affine: np.ndarray, unit: int) -> tuple[np.ndarray, str]:
    """The affine in mm and a note. A wrong unit is commoner than voxels of a metre or a nanometre."""
    factor = {1: 1000.0, 3: 0.001}.get(unit, 1.0)
    if factor == 1.0:
        return affine, "" if unit in (0, 2) else "the spatial unit is unknown; mm was taken"
    spacing = np.linalg.norm(affine[:3, :3], axis=0) * factor
    if spacing.max() > 100 or spacing.min() < 1e-3:
        name = {1: "metres", 3: "micrometres"}[unit]
        return affine, f"a spacing in {name} makes no sense with these numbers; mm was taken"
    return np.diag([factor, factor, factor, 1.0]) @ affine, "the affine was converted to mm from the file's unit"
