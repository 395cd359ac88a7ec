"""NIfTI-1 and NIfTI-2 <-> `Image`.

nibabel parses the header; the voxels are read here, since nibabel neither checks a gzip checksum nor a claimed size before it
allocates.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from medfm.errors import DataError
from medfm.io.files import atomic_write
from medfm.io.geometry import is_singular
from medfm.io.header import ImageHeader
from medfm.io.values import linear
from medfm.types import Image

if TYPE_CHECKING:
    from nibabel import Nifti1Header

# Deflate cannot pack tighter than this, so a larger claim is a damaged header.
_DEFLATE_LIMIT = 1032


def is_nifti_name(name: str) -> bool:
    return name.lower().endswith((".nii", ".nii.gz"))


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if zipped else open(path, "rb")


def _read_header(file: BinaryIO | gzip.GzipFile, path: Path) -> Nifti1Header:
    import nibabel

    start = file.read(540)
    if len(start) < 348:
        raise DataError(f"'{path}': truncated: {len(start)} bytes are no NIfTI header")
    size = {struct.unpack(order + "i", start[:4])[0] for order in "<>"}
    magic = start[4:8] if 540 in size else start[344:348]
    if not size & {348, 540} or magic[:2] not in (b"n+", b"ni"):
        raise DataError(f"'{path}' is not a NIfTI file")
    if magic[:2] == b"ni":
        raise DataError(f"'{path}' is one half of a .hdr/.img pair; save it as one .nii or .nii.gz file")
    kind = nibabel.Nifti2Header if 540 in size else nibabel.Nifti1Header
    try:
        return kind.from_fileobj(BytesIO(start), check=False)
    except Exception as error:
        raise DataError(f"'{path}': its NIfTI header is damaged ({type(error).__name__})") from None


def _shape(header: Nifti1Header, path: Path) -> tuple[int, ...]:
    """(i, j, k) or (i, j, k, t)."""
    try:
        shape = tuple(int(n) for n in header.get_data_shape())
    except Exception:
        raise DataError(f"'{path}': its NIfTI header gives no valid shape") from None
    if not shape or min(shape) < 1:
        raise DataError(f"'{path}': its NIfTI header gives the shape {shape}")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 4:
        raise DataError(f"'{path}' has {len(shape)} dimensions {shape}; 3 (a volume) and 4 (with time) are readable")
    return shape + (1,) * (3 - len(shape))


def _dtype(header: Nifti1Header, path: Path) -> np.dtype[Any]:
    try:
        dtype = header.get_data_dtype()
    except Exception:
        raise DataError(f"'{path}': its NIfTI header gives an unknown data type") from None
    if dtype.names:
        if tuple(dtype.names) not in (("R", "G", "B"), ("R", "G", "B", "A")) or dtype.itemsize != len(dtype.names):
            raise DataError(f"'{path}': voxels of type {dtype.names} are not readable; RGB of 8 bits is")
    elif dtype.kind not in "iuf":
        raise DataError(f"'{path}': voxels of type {dtype} are not readable; take the magnitude first")
    return dtype


def _offset(header: Nifti1Header, path: Path) -> int:
    try:
        offset = int(header.get_data_offset())
    except (ValueError, OverflowError):
        offset = -1
    if offset < 348:
        raise DataError(f"'{path}': its NIfTI header gives no valid place of the voxels")
    return offset


def _fill(file: BinaryIO | gzip.GzipFile, path: Path, offset: int, count: int, dtype: np.dtype[Any]) -> np.ndarray:
    """`count` voxels from `offset`, then on to the end of a gzip stream, whose checksum is only then tested."""
    length = os.path.getsize(path)
    zipped = isinstance(file, gzip.GzipFile)
    claimed = offset + count * dtype.itemsize
    if claimed > length * (_DEFLATE_LIMIT if zipped else 1):
        raise DataError(f"'{path}': truncated or damaged: the header claims {claimed:,} bytes, the file holds {length:,}")
    try:
        file.seek(offset)
        voxels = np.empty(count, dtype)
        view = memoryview(voxels.view(np.uint8))  # type: ignore[arg-type]
        got = 0
        while got < len(view):
            step = file.readinto(view[got : got + 2**24])  # type: ignore[union-attr]
            if not step:
                raise DataError(f"'{path}': truncated: {offset + got:,} of {claimed:,} bytes are there")
            got += step
        while zipped and file.read(2**20):
            pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        word = "truncated" if isinstance(error, EOFError) else "damaged (its gzip checksum or stream is wrong)"
        raise DataError(f"'{path}': {word}; copy it again from its source") from None
    return voxels


def _affine(header: Nifti1Header, path: Path) -> tuple[np.ndarray, bool, list[str]]:
    """((4, 4) RAS+ mm, oriented, notes): the sform where it has a code, else the qform, else spacing alone."""
    sform, scode = header.get_sform(coded=True)
    try:
        qform, qcode = header.get_qform(coded=True)
    except Exception:  # a quaternion that is none
        qform, qcode = None, 0
    notes = []
    if sform is not None and scode and not is_singular(sform):
        affine, oriented = sform, True
        if qform is not None and qcode and not np.allclose(sform, qform, atol=1e-2):
            notes.append("sform and qform differ; the sform was taken")
    elif qform is not None and qcode and not is_singular(qform):
        affine, oriented = qform, True
    else:
        zooms = [abs(float(z)) for z in header.get_zooms()[:3]]
        zooms += [1.0] * (3 - len(zooms))
        affine, oriented = np.diag([*[z if np.isfinite(z) and z > 0 else 1.0 for z in zooms], 1.0]), False
        notes.append("the file has no usable sform or qform: orientation is unknown, axes are taken as RAS")
    affine = np.asarray(affine, np.float64)
    factor = {1: 1000.0, 3: 0.001}.get(int(header["xyzt_units"]) & 7, 1.0)
    if factor != 1.0:
        spacing = np.linalg.norm(affine[:3, :3], axis=0) * factor
        # Writers that leave the wrong unit behind are commoner than voxels of a metre.
        if spacing.max() <= 100 and spacing.min() >= 1e-4:
            affine = np.diag([factor, factor, factor, 1.0]) @ affine
            notes.append("the affine was converted to mm from the file's unit")
    if is_singular(affine):
        raise DataError(f"'{path}': its affine is singular, so that voxels have no place")
    return affine, oriented, notes


def _linear_terms(header: Nifti1Header, path: Path) -> tuple[float, float]:
    try:
        slope, inter = header.get_slope_inter()
    except Exception:
        raise DataError(f"'{path}': scl_slope or scl_inter is not a number") from None
    return (1.0 if slope is None else float(slope)), (0.0 if inter is None else float(inter))


def read_nifti(path: str | Path, modality: str = "OT") -> Image:
    """A NIfTI file as an Image; values after scl_slope and scl_inter, axes as stored, affine in RAS+.

    NIfTI has no field for the modality: `modality="CT"` says that the values are Hounsfield units.

    Raises:
        DataError: missing, truncated or damaged (a gzip checksum is always tested), not NIfTI, or of a kind that is not read.
    """
    path = Path(path)
    try:
        with _open(path) as file:
            header = _read_header(file, path)
            shape, dtype = _shape(header, path), _dtype(header, path)
            affine, oriented, notes = _affine(header, path)
            slope, inter = _linear_terms(header, path)
            count = int(np.prod([int(n) for n in shape], dtype=object))
            voxels = _fill(file, path, _offset(header, path), count, dtype)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or 'its gzip stream is damaged'}") from None
    except (EOFError, zlib.error):
        raise DataError(f"'{path}': truncated or damaged; copy it again from its source") from None
    colour = bool(dtype.names)
    if colour:
        if len(shape) == 4:
            raise DataError(f"'{path}' holds a time series in colour, which is not read")
        array = np.moveaxis(voxels.view(np.uint8).reshape(dtype.itemsize, *shape, order="F"), 0, -1)[..., :3]
        notes += ["transparency was dropped"] if dtype.itemsize == 4 else []
    else:
        voxels = voxels if dtype.isnative else voxels.astype(dtype.newbyteorder("="))
        array, note = _finite(linear(voxels, slope, inter))
        array = array.reshape(shape, order="F")
        notes += [note] if note else []
    return Image(
        array=array,
        affine=affine,
        modality=modality,
        intensity_units="HU" if modality == "CT" and not colour else "display" if colour else "arbitrary",
        source=str(path),
        photometric="RGB" if colour else "MONOCHROME2",
        last_axis="colour" if colour else "time" if len(shape) == 4 else None,
        oriented=oriented,
        bits_stored=8 if colour else None,
        notes=tuple(notes),
    )


def _finite(array: np.ndarray) -> tuple[np.ndarray, str]:
    """NaN and infinity mark voxels outside the field of view: set them to the lowest value."""
    if array.dtype.kind != "f":
        return array, ""
    bad = ~np.isfinite(array)
    count = int(bad.sum())
    if not count:
        return array, ""
    array = array.copy()
    array[bad] = array[~bad].min() if count < array.size else 0
    return array, f"{count} voxels that are not finite were set to the lowest value"


def peek_nifti(path: str | Path) -> ImageHeader:
    """Raises DataError where the header is none."""
    path = Path(path)
    try:
        with _open(path) as file:
            header = _read_header(file, path)
            shape, dtype = _shape(header, path), _dtype(header, path)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or 'its gzip stream is damaged'}") from None
    except (EOFError, zlib.error):
        raise DataError(f"'{path}': truncated or damaged; copy it again from its source") from None
    return ImageHeader(kind="nifti", shape=shape, photometric="RGB" if dtype.names else "MONOCHROME2")


def save_nifti(array: np.ndarray, affine: np.ndarray, path: str | Path) -> None:
    """Write (i, j, k[, t]) and a RAS+ mm affine as .nii or .nii.gz, atomically; the affine as sform and, where it can, as
    qform.

    Raises:
        DataError: the path has another suffix, the affine is singular, or integers need more than 32 bits.
    """
    import nibabel

    path = Path(path)
    if not is_nifti_name(path.name):
        raise DataError(f"'{path}': a NIfTI file is named .nii or .nii.gz")
    affine = np.asarray(affine, np.float64)
    if affine.shape != (4, 4) or is_singular(affine):
        raise DataError(f"'{path}': the affine is singular or not 4 x 4")
    array = np.asarray(array)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    elif array.dtype in (np.int64, np.uint64):
        if array.size and (int(array.min()) < -(2**31) or int(array.max()) >= 2**31):
            raise DataError(f"'{path}': integers beyond 32 bits cannot be written as NIfTI; make them float")
        array = array.astype(np.int32)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1, strip_shears=True)
    image.header.set_xyzt_units("mm")
    with atomic_write(path) as temporary:
        nibabel.save(image, temporary)
