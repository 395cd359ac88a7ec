"""Where pixels lie: spacing, affine, orientation, view.

DICOM's patient coordinates are LPS+ (x to the patient's left, y to the back, z to the head); medfm's are RAS+. An affine maps
the voxel index (i, j, k) = (column, row, slice) to millimetres: PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medfm.errors import DataError
from medfm.io.raw import has, is_mislabelled, raw_bytes

if TYPE_CHECKING:
    from pydicom import Dataset

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# The direction in which a letter points, as (RAS axis, sign). H and F (head, feet) are DICOM's names of S and I.
_LETTERS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1), "H": (2, 1), "F": (2, -1)}


# Pixels of microscopes measure 0.2 um and those of bone scans 10 mm; beyond these, mm, the header is damaged.
_SMALLEST_SPACING, _LARGEST_SPACING = 1e-4, 100.0


def floats(dataset: Dataset, keyword: str) -> list[float]:
    """The finite numbers of a header value; [] where it is absent, empty or not numeric."""
    if not has(dataset, keyword) or is_mislabelled(dataset, keyword):
        return []
    plain = raw_bytes(dataset, keyword)
    try:
        if plain is not None:
            # Python would read 1_0 as 10.
            numbers = [float(v) for v in plain.split(b"\\")] if plain and b"_" not in plain else []
        else:
            value = dataset.get(keyword)
            if value is None or value == "":
                return []
            numbers = [float(v) for v in ([value] if isinstance(value, str | float | int) else list(value))]
    except (TypeError, ValueError, ArithmeticError):
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def pixel_spacing(dataset: Dataset) -> tuple[tuple[float, float], str]:
    """((row spacing, column spacing) in mm, a note). (0, 0) where the file gives none, or only zeros, which mean the same.

    The first number of (0028,0030) is the distance between rows, that is along j. A film's ImagerPixelSpacing is measured at
    the detector and used as it is, with a note, where there is no PixelSpacing.

    Raises:
        DataError: what the file gives is no spacing. The text names the keyword, not the file.
    """
    zero = ""
    for keyword, note in (
        ("PixelSpacing", ""),
        ("ImagerPixelSpacing", "spacing is ImagerPixelSpacing, at the detector, not corrected for magnification"),
        ("NominalScannedPixelSpacing", "spacing is NominalScannedPixelSpacing, of the film digitiser"),
    ):
        pair = floats(dataset, keyword)
        if len(pair) == 2 and min(pair) >= _SMALLEST_SPACING and max(pair) <= _LARGEST_SPACING:
            return (pair[0], pair[1]), "; ".join(filter(None, (zero, note)))
        if pair and not any(pair):
            zero = zero or f"{keyword} is zero and was left out"
        elif pair or not is_empty(dataset, keyword):
            raise DataError(f"{keyword} is not two numbers from {_SMALLEST_SPACING} to {_LARGEST_SPACING:g} mm; it is damaged")
    return (0.0, 0.0), zero


def directions(dataset: Dataset) -> np.ndarray | None:
    """(3, 3) float64, LPS unit vectors of i, j and their normal as rows, from ImageOrientationPatient; None where it has
    none.
    """
    cosines = floats(dataset, "ImageOrientationPatient")
    if len(cosines) != 6:
        return None
    i, j = cosines[:3], cosines[3:]
    lengths = math.hypot(*i), math.hypot(*j)
    # Rounded headers miss unit length and a right angle by a few 1e-3; anything more is no orientation.
    if max(abs(length - 1) for length in lengths) > 0.01 or abs(sum(p * q for p, q in zip(i, j, strict=True))) > 0.01:
        return None
    a, b = [v / lengths[0] for v in i], [v / lengths[1] for v in j]
    normal = [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
    return np.array([a, b, normal])


def is_empty(dataset: Dataset, keyword: str) -> bool:
    """Whether an attribute is absent or has no value."""
    if not has(dataset, keyword):
        return True
    plain = raw_bytes(dataset, keyword)
    value = dataset[keyword].value if plain is None else plain
    return value is None or (hasattr(value, "__len__") and len(value) == 0)


def place_of(dataset: Dataset) -> tuple[np.ndarray | None, tuple[float, ...] | None]:
    """((3, 3) axes as `directions` gives them, LPS position in mm), both None where the image has no place in the patient.

    Raises:
        DataError: one of the two is missing or damaged. A picture laid anywhere would look like one that is in its place.
    """
    axes, position = directions(dataset), floats(dataset, "ImagePositionPatient")
    if axes is not None and len(position) == 3:
        return axes, (position[0], position[1], position[2])
    gone = is_empty(dataset, "ImageOrientationPatient"), is_empty(dataset, "ImagePositionPatient")
    if all(gone):
        return None, None
    names = [
        f"{keyword} is {'missing' if empty else 'damaged'}"
        for keyword, empty, usable in (
            ("ImageOrientationPatient", gone[0], axes is not None),
            ("ImagePositionPatient", gone[1], len(position) == 3),
        )
        if not usable
    ]
    raise DataError(f"{' and '.join(names)}, so the image has no known place")


def complete_axes(cosines: Sequence[float]) -> np.ndarray:
    """(3, 3) LPS unit vectors of i, j and their normal as rows, from six direction cosines of unit length."""
    pair = np.asarray(cosines, float).reshape(2, 3)
    return np.vstack([pair, np.cross(pair[0], pair[1])])


def patient_affine(axes: np.ndarray, spacing: tuple[float, float], step: np.ndarray, position: np.ndarray) -> np.ndarray:
    """(4, 4) RAS+ affine of a stack of slices.

    Args:
        axes: LPS unit vectors of i and j as the first two rows, as `directions` gives them.
        spacing: (row spacing, column spacing) in mm; columns lie the second number apart along i.
        step: LPS vector from one slice to the next, mm.
        position: LPS position of the first voxel, ImagePositionPatient.
    """
    affine = np.eye(4)
    affine[:3, 0] = axes[0] * spacing[1]
    affine[:3, 1] = axes[1] * spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = position
    return LPS_TO_RAS @ affine


def film_affine(dataset: Dataset, spacing: tuple[float, float]) -> tuple[np.ndarray, bool]:
    """((4, 4) RAS+ affine, oriented) of a film that has at most PatientOrientation, for example L\\F; the origin is its
    corner.
    """
    scale = np.diag([spacing[1], spacing[0], 1.0, 1.0])
    axes = [_LETTERS.get(str(value).strip().upper()[:1]) for value in _texts(dataset, "PatientOrientation")]
    if len(axes) != 2 or axes[0] is None or axes[1] is None or axes[0][0] == axes[1][0]:
        return scale, False
    turn = np.eye(4)
    turn[:3, :3] = 0.0
    for column, (axis, sign) in enumerate((axes[0], axes[1])):
        turn[axis, column] = sign
    turn[:3, 2] = np.cross(turn[:3, 0], turn[:3, 1])
    return turn @ scale, True


def view_of(dataset: Dataset) -> str:
    """ "PA", "AP", "LATERAL" or the file's own term in capitals; "" where the header does not say."""
    terms = _texts(dataset, "ViewPosition")
    for item in (dataset.get("ViewCodeSequence") if has(dataset, "ViewCodeSequence") else None) or []:
        terms.append(str(item.get("CodeMeaning", "")))
    for term in terms:
        view = _view_word(term)
        if view:
            return view
    # A film whose rows run from front to back, with the feet below, was taken from the side.
    orientation = [str(value).strip().upper()[:1] for value in _texts(dataset, "PatientOrientation")]
    film = str(dataset.get("Modality", "")) in ("CR", "DX", "RG")
    if film and len(orientation) == 2 and orientation[0] in ("A", "P") and orientation[1] == "F":
        return "LATERAL"
    return ""


def _view_word(term: str) -> str:
    word = "".join(c for c in term.upper() if c.isalnum())
    if word in ("LL", "RL", "LAT", "LLAT", "RLAT", "LATL", "LATR") or word.endswith("LATERAL"):
        return "LATERAL"
    if word.startswith("POSTEROANTERIOR"):
        return "PA"
    if word.startswith("ANTEROPOSTERIOR"):
        return "AP"
    return word[:16]


def _texts(dataset: Dataset, keyword: str) -> list[str]:
    if not has(dataset, keyword):
        return []
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str) else [str(v) for v in value]


def reorient(array: np.ndarray, affine: np.ndarray, orientation: str = "RAS") -> tuple[np.ndarray, np.ndarray]:
    """Permute and flip the first three axes so that they run, as nearly as they can, towards the letters of `orientation`.

    No interpolation; the array is a view. Voxels keep their place in space: the affine changes with the axes.

    Args:
        array: (i, j, k, ...).
        affine: (4, 4), RAS+ mm.
        orientation: three letters, one of R/L, A/P and S/I each, for example "RAS" or "LPS".

    Raises:
        ValueError: `orientation` is not such a triple.
    """
    wanted = parse_orientation(orientation)
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    source = _nearest_axes(cosines)  # source[r]: the array axis that runs along RAS axis r
    order = [source[axis] for axis, _ in wanted]
    array = array.transpose(*order, *range(3, array.ndim))
    affine = affine[:, [*order, 3]].copy()
    for axis, (world, sign) in enumerate(wanted):
        if affine[world, axis] * sign < 0:
            array = np.flip(array, axis)
            affine[:, 3] += affine[:, axis] * (array.shape[axis] - 1)
            affine[:, axis] *= -1
    return array, affine


def parse_orientation(orientation: str) -> list[tuple[int, int]]:
    """[(RAS axis, sign)] of three letters. Raises ValueError."""
    found = [_LETTERS[letter] for letter in orientation if letter in "RLAPSI"]
    if len(orientation) != 3 or sorted(axis for axis, _ in found) != [0, 1, 2]:
        raise ValueError(f"orientation '{orientation}' must hold one of R/L, one of A/P and one of S/I, for example RAS or LPS")
    return found


def _nearest_axes(cosines: np.ndarray) -> list[int]:
    """For each world axis the array axis nearest to it, each used once, the clearest match first."""
    strength = np.abs(cosines).copy()
    source = [0, 0, 0]
    for _ in range(3):
        world, axis = np.unravel_index(int(np.argmax(strength)), (3, 3))
        source[world] = int(axis)
        strength[world, :] = -1
        strength[:, axis] = -1
    return source


def is_singular(affine: np.ndarray) -> bool:
    """Whether an affine cannot place voxels: not finite, or an axis of no length, or axes in one plane."""
    linear = affine[:3, :3]
    if not np.isfinite(affine).all():
        return True
    lengths = np.linalg.norm(linear, axis=0)
    return bool(min(lengths) <= 0) or abs(float(np.linalg.det(linear / lengths))) < 1e-3


def as_spacing(values: Sequence[float]) -> str:
    """Millimetres for a message."""
    return " x ".join(f"{v:.4g}" for v in values) + " mm"
