"""Whether the slices of one volume mean the same: values of one kind, taken with one contrast.

Geometry cannot tell: half of a dual echo beside the other half of its slices, or a slice that lost its rescale, lie on an even
grid as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medfm.io.dataset import text
from medfm.io.geometry import is_empty
from medfm.io.values import says_hounsfield

if TYPE_CHECKING:
    from pydicom import Dataset

    from medfm.io.slices import Slice

# What gives the stored values their meaning. Two of these in one CT or PET are two scales in one volume.
_SCALE = ("RescaleType", "Units", "SUVType")
# Contrasts that differ more than a scanner's rounding make no one volume, as (name, relative, absolute tolerance).
_CONTRASTS = (("EchoTime", 0.1, 0.5), ("b-value", 0.1, 20.0))


def scale_of(group: Dataset, dataset: Dataset) -> tuple[str, ...]:
    """Of one image: whether it is rescaled ("rescale" or ""), then the values of `_SCALE`; one spelling of Hounsfield units.

    Args:
        group: its functional groups, or the dataset again.
    """
    rescaled = any(not is_empty(d, k) for d in (group, dataset) for k in ("RescaleIntercept", "RescaleSlope"))
    kind, *others = ((text(group, keyword) or text(dataset, keyword)).upper()[:16] for keyword in _SCALE)
    return ("rescale" if rescaled else "", "" if says_hounsfield(kind) else kind, *others)


def kernel_of(dataset: Dataset) -> str:
    """ConvolutionKernel, "" where there is none."""
    return text(dataset, "ConvolutionKernel")[:64]


def disagreement(volumes: Sequence[Sequence[Slice]]) -> tuple[str, tuple[str, ...]]:
    """(why these slices make no volume, or "", what else differs within a volume, in words)."""
    everything = [s for volume in volumes for s in volume]
    notes: list[str] = []
    scales = {s.scale for s in everything}
    if len(scales) > 1:
        names = ("whether they have a rescale slope and intercept", *_SCALE)
        told = [name for name, values in zip(names, zip(*scales, strict=True), strict=True) if len(set(values)) > 1]
        words = f"slices differ in {' and '.join(told)}, so their values are not of one scale"
        if everything[0].header.modality in ("CT", "PT"):
            return words, ()
        notes.append(words)
    for name, relative, absolute in _CONTRASTS:
        for volume in volumes:
            numbers = [value for s in volume for key, value in s.order if key == name]
            if numbers and max(numbers) - min(numbers) > relative * max(numbers) + absolute:
                return f"slices of one volume differ in {name}: from {min(numbers):g} to {max(numbers):g}", ()
    for what, values in (
        ("ImageType", [{s.image_type for s in v} for v in volumes]),
        ("ConvolutionKernel", [{s.kernel for s in v} for v in volumes]),
    ):
        if any(len(v) > 1 for v in values):
            notes.append(f"slices of one volume differ in {what}")
    return "", tuple(notes)
