"""Is a radiograph shown inverted? Air and the ground beside the body are black on a film that is shown as radiologists read it.

Thresholds were set on 1,095 chest radiographs of four public sets, each also inverted: `benchmarks/doctor.py` measures them.
"""

from __future__ import annotations

import numpy as np

SIDE = 64
_RIM = 3  # of SIDE pixels
_NEAR = 0.07  # of full scale: "near white", "near black"
_BORDER, _CHEST = 0.15, 0.15
_LEAST = SIDE // 4  # of a film that is never taken for shutter
_CHEST_WORDS = ("CHEST", "THORAX", "LUNG")


def is_chest(modality: str, view: str, body_part: str) -> bool:
    """Whether a film is a frontal chest radiograph, as far as the header says; a PA or AP view without a body part counts."""
    part = body_part.upper()
    if modality not in ("CR", "DX", "RG") or view == "LATERAL":
        return False
    return any(word in part for word in _CHEST_WORDS) or (not part and view in ("PA", "AP"))


def inverted(brightness: np.ndarray, chest: bool) -> str:
    """The evidence that a film is shown inverted, in words; "" where there is none or too little.

    Args:
        brightness: (rows, columns), larger is shown brighter; after the declared polarity, any scale.
        chest: it is a frontal chest film, so that the lungs must be darker than what lies between them.
    """
    small = shrink(np.asarray(brightness, np.float32), SIDE)
    low, high = np.percentile(small, (0.5, 99.5))
    if not high > low:
        return ""
    small = np.clip((small - low) / (high - low), 0, 1)
    # The lower border is left out: the belly is bright.
    rim = np.concatenate([small[:, :_RIM].ravel(), small[:, -_RIM:].ravel(), small[:_RIM, _RIM:-_RIM].ravel()])
    white, black = float((rim > 1 - _NEAR).mean()), float((rim < _NEAR).mean())
    border = f"{100 * white:.0f} % of the border is near white, {100 * black:.0f} % near black"
    if _collimated(small):
        white = black = 0.0  # the border is the shutter of the tube, and says nothing of air
    if white - black > _BORDER:
        return border
    if not chest:
        return ""
    lungs = np.concatenate([small[16:40, 12:24].ravel(), small[16:40, 40:52].ravel()]).mean()
    between = small[16:48, 29:35].mean()
    if lungs - between + (white - black) / 2 > _CHEST:
        return f"the lungs are shown brighter than the mediastinum ({lungs:.2f} to {between:.2f} of full scale); {border}"
    return ""


def _collimated(small: np.ndarray) -> bool:
    """Whether white bands along whole sides are the tube's shutter: what they leave holds more black (air) than white."""
    white = small > 1 - _NEAR
    left, right, top, bottom = 0, small.shape[1], 0, small.shape[0]
    while right - left > _LEAST and white[:, left].mean() > 0.9:
        left += 1
    while right - left > _LEAST and white[:, right - 1].mean() > 0.9:
        right -= 1
    while bottom - top > _LEAST and white[top, left:right].mean() > 0.9:
        top += 1
    while bottom - top > _LEAST and white[bottom - 1, left:right].mean() > 0.9:
        bottom -= 1
    inside = small[top:bottom, left:right]
    return inside.size < small.size and float((inside < _NEAR).mean()) >= float((inside > 1 - _NEAR).mean())


def shrink(array: np.ndarray, side: int) -> np.ndarray:
    """(rows, columns) -> (side, side) means of blocks, float32; nearest pixels where there are fewer than `side`."""
    for axis in (0, 1):
        edges = np.linspace(0, array.shape[axis], side + 1)
        first = np.minimum(edges[:-1].astype(np.int64), array.shape[axis] - 1)
        if array.shape[axis] >= side:
            counts = np.diff(np.append(first, array.shape[axis]))
            sums = np.add.reduceat(array, first, axis=axis, dtype=np.float32)
            array = sums / (counts[:, None] if axis == 0 else counts)
        else:
            array = array.take(first, axis=axis)
    return np.asarray(array, np.float32)
