"""NIfTI-1 and NIfTI-2 <-> `Image`.

The voxels are read here, since nibabel neither tests a gzip checksum nor a claimed size before it allocates, and is slower.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from medfm.errors import DataError
from medfm.io.files import atomic_write
from medfm.io.geometry import is_singular
from medfm.io.gunzip import DEFLATE_LIMIT, DamagedGzip, GzipStream
from medfm.io.header import ImageHeader
from medfm.io.nifti_header import affine_of, dtype_of, read_header, scaling_of, shape_of
from medfm.io.values import linear
from medfm.types import Image

if TYPE_CHECKING:
    from nibabel import Nifti1Image

# isal's level of 0 to 3. On CT noise 2 packs within 2 % of zlib's 1, which nibabel takes, in a quarter of its time.
_LEVEL = 2
# Bytes behind the voxels that may be padding, in bytes.
_PADDING = 512


def is_nifti_name(name: str) -> bool:
    return name.lower().endswith((".nii", ".nii.gz"))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | GzipStream]:
    """The file's content, inflated where it is gzip, whatever its name says; damage becomes a DataError."""
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield GzipStream(file) if zipped else file
    except DamagedGzip as error:
        word = "truncated" if str(error) == "truncated" else "damaged (its gzip checksum or stream is wrong)"
        raise DataError(f"'{path}': {word}; copy it again from its source") from None
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or type(error).__name__}") from None
    except MemoryError:
        raise DataError(f"'{path}' does not fit into the memory of this machine") from None


def _fill(
    file: BinaryIO | GzipStream, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], seen: int
) -> np.ndarray:
    """The voxels of `shape`, flat, from `offset` on; `seen` bytes of the file are read already. The file must end behind them,
    but for the padding of a disk block: more bytes left over mean that the claimed size is wrong.
    """
    count = int(np.prod([int(n) for n in shape], dtype=object))
    length = os.path.getsize(path)
    zipped = isinstance(file, GzipStream)
    claimed = offset + count * dtype.itemsize
    if claimed > length * (DEFLATE_LIMIT if zipped else 1):
        raise DataError(f"'{path}': truncated or damaged: the header claims {claimed:,} bytes, the file holds {length:,}")
    if isinstance(file, GzipStream):
        _skip(file, offset - seen)
    else:
        file.seek(offset)
    voxels = np.empty(count, dtype)
    view = memoryview(voxels.view(np.uint8))  # type: ignore[arg-type]
    got = 0
    while got < len(view):
        step = file.readinto(view[got : got + 2**24])  # type: ignore[union-attr]
        if not step:
            raise DataError(f"'{path}': truncated: {offset + got:,} of {claimed:,} bytes are there")
        got += step
    left = file.rest(2**20) if isinstance(file, GzipStream) else length - claimed
    # A size that is one too small leaves a face of the volume over.
    if left and (left > _PADDING or left >= count // max(shape) * dtype.itemsize):
        more = "over a million" if left > 2**20 else f"{left:,}"
        raise DataError(f"'{path}': {more} bytes follow the {claimed:,} that the header claims; its dim or vox_offset is wrong")
    return voxels


def _skip(file: GzipStream, count: int) -> None:
    while count > 0:
        data = file.read(min(count, 2**20))
        if not data:
            raise DamagedGzip("truncated")
        count -= len(data)


class _Counted:
    """Counts what the header took of a stream that cannot seek."""

    def __init__(self, file: BinaryIO | GzipStream) -> None:
        self._file = file
        self.seen = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.seen += len(data)
        return data


def read_nifti(path: str | Path, modality: str = "OT") -> Image:
    """A NIfTI file as an Image; values after scl_slope and scl_inter, axes as stored, affine in RAS+.

    NIfTI has no field for the modality: `modality="CT"` says that the values are Hounsfield units.

    Raises:
        DataError: missing, truncated or damaged (a gzip checksum is always tested), not NIfTI, of a kind that is not read, or
            with a header that contradicts itself or the file's length.
    """
    path = Path(path)
    with _opened(path) as file:
        counted = _Counted(file)
        header, offset = read_header(counted, str(path))
        shape, dtype = shape_of(header, str(path)), dtype_of(header, str(path))
        affine, oriented, notes = affine_of(header, shape, str(path))
        slope, inter = scaling_of(header, str(path))
        voxels = _fill(file, path, offset, shape, dtype, counted.seen)
    colour = bool(dtype.names)
    if colour:
        if len(shape) == 4:
            raise DataError(f"'{path}' holds a time series in colour, which is not read")
        array = np.moveaxis(voxels.view(np.uint8).reshape(dtype.itemsize, *shape, order="F"), 0, -1)[..., :3]
        notes += ["transparency was dropped"] if dtype.itemsize == 4 else []
    else:
        array, note = _physical(voxels, slope, inter, path)
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


def _physical(voxels: np.ndarray, slope: float, inter: float, path: Path) -> tuple[np.ndarray, str]:
    """(slope * voxels + inter, a note). NaN and infinity, outside the field of view, become the lowest value."""
    voxels = voxels if voxels.dtype.isnative else voxels.astype(voxels.dtype.newbyteorder("="))
    if voxels.dtype == np.int16 and (slope, inter) == (1.0, 0.0):
        return voxels, ""
    note = ""
    if voxels.dtype.kind == "f":
        bad = ~np.isfinite(voxels)
        count = int(bad.sum())
        if count:
            voxels[bad] = voxels[~bad].min() if count < voxels.size else 0
            note = f"{count} voxels that are not finite were set to the lowest value"
    with np.errstate(over="ignore"):
        array = linear(voxels, slope, inter)
    if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
        raise DataError(f"'{path}': values after scl_slope and scl_inter are beyond float32; they are wrong, or the voxels are")
    return array, note


def peek_nifti(path: str | Path) -> ImageHeader:
    """The header alone; of a zipped file no more than its first bytes are inflated.

    Raises:
        DataError: the header is none, or contradicts itself.
    """
    path = Path(path)
    with _opened(path) as file:
        header, _ = read_header(file, str(path))
        shape, dtype = shape_of(header, str(path)), dtype_of(header, str(path))
    return ImageHeader(
        kind="nifti",
        shape=(*shape, 3) if dtype.names else shape,
        photometric="RGB" if dtype.names else "MONOCHROME2",
    )


def save_nifti(array: np.ndarray, affine: np.ndarray, path: str | Path, oriented: bool = True, extension: bytes = b"") -> None:
    """Write (i, j, k[, t]) and a RAS+ mm affine as .nii or .nii.gz, atomically; the affine as sform and, where it has no
    shear, as qform. Equal arrays give equal bytes.

    Args:
        array: numbers or bool, or the structured (R, G, B) uint8 type for colour.
        oriented: False writes the spacing alone, so that an image without orientation is read again as one.
        extension: text to put into the header (ecode 0), for example names of labels.

    Raises:
        DataError: the path has another suffix, the affine is singular, or integers need more than 32 bits.
    """
    path = Path(path)
    if not is_nifti_name(path.name):
        raise DataError(f"'{path}': a NIfTI file is named .nii or .nii.gz")
    affine = np.asarray(affine, np.float64)
    if affine.shape != (4, 4) or is_singular(affine):
        raise DataError(f"'{path}': the affine is singular or not 4 x 4")
    image = _nifti_image(_storable(np.asarray(array), path), affine, oriented)
    if extension:
        from nibabel.nifti1 import Nifti1Extension

        image.header.extensions.append(Nifti1Extension(0, extension))
    with atomic_write(path) as temporary:
        if path.name.lower().endswith(".gz"):
            from isal import igzip

            # Neither name nor time go into the gzip header.
            with open(temporary, "wb") as raw, igzip.IGzipFile("", "wb", _LEVEL, raw, mtime=0) as file:
                image.to_stream(file)
        else:
            with open(temporary, "wb") as file:
                image.to_stream(file)


def _storable(array: np.ndarray, path: Path) -> np.ndarray:
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype in (np.int64, np.uint64):
        if array.size and (int(array.min()) < -(2**31) or int(array.max()) >= 2**31):
            raise DataError(f"'{path}': integers beyond 32 bits cannot be written as NIfTI; make them float")
        return array.astype(np.int32)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _nifti_image(array: np.ndarray, affine: np.ndarray, oriented: bool) -> Nifti1Image:
    import nibabel

    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    if not oriented:
        image.set_sform(None, code=0)
        image.set_qform(None, code=0)
        image.header.set_zooms((*np.linalg.norm(affine[:3, :3], axis=0), *[1.0] * (array.ndim - 3))[: array.ndim])
        return image
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1, strip_shears=True)
    if not np.allclose(image.get_qform(), affine, rtol=0, atol=1e-3 * np.linalg.norm(affine[:3, :3], axis=0).min()):
        image.set_qform(None, code=0)  # a quaternion has no shear
    return image
