"""Frames of an enhanced object: the functional groups that all share, overlaid with each frame's own.

Source: DICOM PS3.3 C.7.6.16 (multi-frame functional groups), C.8.4.15 (NM reconstruction). Legacy-converted objects, breast
tomosynthesis and parametric maps use the same groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from medfm.errors import DataError
from medfm.io.dataset import frame_count
from medfm.io.geometry import directions, floats

if TYPE_CHECKING:
    from pydicom import Dataset

# The macros that place a frame, order it and give its values a meaning (C.7.6.16.2, C.8.13.5, C.8.15.3).
_MACROS = (
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "FrameContentSequence",
    "TemporalPositionSequence",
    "CardiacSynchronizationSequence",
    "MRDiffusionSequence",
    "MREchoSequence",
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "XRay3DFrameTypeSequence",
    "ParametricMapFrameTypeSequence",
    "RealWorldValueMappingSequence",
    "UnassignedPerFrameConvertedAttributesSequence",
)
# Of a legacy-converted frame, what the classic image said; geometry and values have macros of their own.
_CONVERTED = ("AcquisitionDate", "AcquisitionTime", "ContentTime", "TriggerTime", "EchoTime", "TemporalPositionIdentifier")
# What single images keep at the top. Some vendors leave a macro out and write the value there.
_TOP = ("PixelSpacing", "ImageOrientationPatient", "SliceThickness")


def frame_groups(dataset: Dataset) -> Iterator[Dataset]:
    """For each frame in stored order one flat Dataset of its functional groups' values.

    Raises:
        DataError: the number of groups is not the number of frames, or frames of a reconstruction have no spacing.
    """
    from pydicom.dataset import Dataset

    count = frame_count(dataset)
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared_items = dataset.get("SharedFunctionalGroupsSequence") or []
    if not own and not shared_items:
        yield from _reconstruction(dataset, count)
        return
    if len(own) != count and (own or count > 1):
        raise DataError(f"its header counts {count} frames and describes {len(own)}")
    shared = Dataset()
    for keyword in _TOP:
        if keyword in dataset:
            shared[keyword] = dataset[keyword]
    if shared_items:
        _overlay(shared, shared_items[0])
    for item in own or [Dataset()]:
        group = Dataset()
        group.update(shared)
        _overlay(group, item)
        yield group


def _overlay(group: Dataset, item: Dataset) -> None:
    for keyword in _MACROS:
        if keyword not in item or not item[keyword].value:
            continue
        macro = item[keyword].value[0]
        if keyword == "RealWorldValueMappingSequence":
            group[keyword] = item[keyword]  # a macro of its own attributes, which may occur more than once
            continue
        if keyword == "UnassignedPerFrameConvertedAttributesSequence":
            for name in _CONVERTED:
                if name in macro and name not in group:
                    group[name] = macro[name]
            continue
        group.update(macro)


def _reconstruction(dataset: Dataset, count: int) -> Iterator[Dataset]:
    """Frames of an NM reconstruction: the first one's place, then steps along the normal; a negative spacing steps back."""
    from pydicom.dataset import Dataset

    detector = (dataset.get("DetectorInformationSequence") or [dataset])[0]
    axes = directions(detector)
    start = floats(detector, "ImagePositionPatient")
    step = (floats(dataset, "SpacingBetweenSlices") or [0.0])[0]
    if axes is None or len(start) != 3 or (step == 0 and count > 1):
        raise DataError("a reconstruction without position, orientation or spacing between slices")
    numbers = floats(dataset, "SliceVector")
    if count > 1 and sorted(numbers) != list(range(1, count + 1)):
        raise DataError("a reconstruction whose SliceVector does not number its slices once each (gated or dynamic)")
    for number in numbers or [1.0]:
        group = Dataset()
        group.ImageOrientationPatient = axes[:2].ravel().tolist()
        group.ImagePositionPatient = (np.array(start) + axes[2] * step * (number - 1)).tolist()
        for keyword in ("PixelSpacing", "SliceThickness"):
            if keyword in dataset:
                group[keyword] = dataset[keyword]
        yield group
