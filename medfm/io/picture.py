"""PNG and JPEG -> `Image`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medfm.errors import DataError
from medfm.io.header import ImageHeader
from medfm.io.quiet import quiet
from medfm.types import Image

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
_ORIENTATION = 274  # EXIF tag


def _open(path: Path) -> Any:
    from PIL import Image as Pictures
    from PIL import UnidentifiedImageError

    try:
        with quiet():
            # Pillow warns from 89 million pixels on and refuses from twice that: a claim from the header alone, before it
            # allocates.
            picture = Pictures.open(path, formats=("PNG", "JPEG"))
    except UnidentifiedImageError:
        raise DataError(f"'{path}' is not a PNG or JPEG picture, whatever its name says") from None
    except Pictures.DecompressionBombError:
        raise DataError(f"'{path}' claims more than {2 * (Pictures.MAX_IMAGE_PIXELS or 0):,} pixels") from None
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or 'it is damaged'}") from None
    except (ValueError, SyntaxError):
        raise DataError(f"'{path}' is damaged: its header cannot be read") from None
    if getattr(picture, "n_frames", 1) > 1:
        raise DataError(f"'{path}' holds several frames; save the one that is wanted as a picture of its own")
    return picture


def _deep_colour(path: Path) -> bool:
    """Whether a PNG stores 16-bit colour (IHDR: depth 16, colour type with RGB), which Pillow reads as 8 bits."""
    with open(path, "rb") as file:
        start = file.read(26)
    return start[:4] == b"\x89PNG" and start[24] == 16 and start[25] in (2, 6)


def read_picture(path: str | Path, modality: str = "OT") -> Image:
    """A PNG or JPEG file as an Image of (columns, rows, 1) or, in colour, (columns, rows, 1, 3).

    8-bit values are display values; 16-bit grey is "arbitrary". A palette becomes RGB, or grey where it is all grey;
    transparency is dropped and an EXIF orientation applied, both with a note. Pictures carry no spacing.

    Raises:
        DataError: missing, damaged, truncated, animated, or of more pixels than Pillow allows.
    """
    from PIL import ImageOps

    path = Path(path)
    notes = []
    with _open(path) as picture:
        try:
            mode = picture.mode
            turned = picture.getexif().get(_ORIENTATION, 1)
            picture.load()
            if turned in range(2, 9):
                picture = ImageOps.exif_transpose(picture)
                notes.append(f"turned upright as its EXIF orientation ({turned}) says")
            if _deep_colour(path):
                notes.append("16-bit colour was read as 8-bit")
            if mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in picture.info:
                notes.append("transparency was dropped")
            pixels = _pixels(picture)
        except (OSError, ValueError, SyntaxError) as error:
            word = "truncated" if "truncated" in str(error) else "damaged"
            raise DataError(f"'{path}' is {word}; copy it again from its source") from None
    colour = pixels.ndim == 3
    deep = pixels.dtype != np.uint8
    return Image(
        array=pixels.swapaxes(0, 1)[:, :, None],
        affine=np.eye(4),
        modality=modality,
        intensity_units="arbitrary" if deep else "display",
        source=str(path),
        photometric="RGB" if colour else "MONOCHROME2",
        last_axis="colour" if colour else None,
        oriented=False,
        spaced=False,
        bits_stored=16 if deep else 8,
        notes=tuple(notes),
    )


def _pixels(picture: Any) -> np.ndarray:
    """(rows, columns) uint8 or uint16, or (rows, columns, 3) uint8."""
    mode = picture.mode
    if mode.startswith("I"):  # 16-bit grey; mode I is 32-bit in memory
        pixels = np.asarray(picture)
        if pixels.min(initial=0) < 0 or pixels.max(initial=0) > 65535:
            raise ValueError("more than 16 bits")
        return pixels.astype(np.uint16)
    if mode in ("1", "L", "LA", "La"):
        return np.asarray(picture.convert("L"))
    if mode in ("P", "PA"):
        pixels = np.asarray(picture.convert("RGB"))
        grey = bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())
        return pixels[..., 0].copy() if grey else pixels
    return np.asarray(picture.convert("RGB"))


def peek_picture(path: str | Path) -> ImageHeader:
    """Raises DataError where the file is no PNG or JPEG."""
    with _open(Path(path)) as picture:
        columns, rows = picture.size
        # Without EXIF data before its pixels, Pillow would decode a whole PNG to look behind them.
        try:
            turned = picture.getexif().get(_ORIENTATION, 1) if "exif" in picture.info else 1
        except (OSError, ValueError, SyntaxError, TypeError):
            turned = 1
        if turned in (5, 6, 7, 8):
            columns, rows = rows, columns
        grey = picture.mode in ("1", "L", "LA", "La") or picture.mode.startswith("I")
    return ImageHeader(
        kind="picture",
        shape=(columns, rows, 1) if grey else (columns, rows, 1, 3),
        photometric="MONOCHROME2" if grey else "RGB",
    )
