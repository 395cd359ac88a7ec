"""A Siemens CSA image header with nothing but numbers, since a mosaic cannot be taken apart without them.

The original is a list of some hundred named values, free text among them. Only counts, directions and b-values are taken over.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

CREATOR = "SIEMENS CSA HEADER"
_GROUP = 0x0029
# name -> VR; all numeric.
_NUMBERS = {
    "NumberOfImagesInMosaic": "US",
    "SliceNormalVector": "FD",
    "B_value": "IS",
    "B_matrix": "FD",
    "DiffusionGradientDirection": "FD",
    "BandwidthPerPixelPhaseEncode": "FD",
    "MosaicRefAcqTimes": "FD",
}


def is_mosaic(dataset: Dataset) -> bool:
    value = dataset.get("ImageType") or []
    return "MOSAIC" in [str(v).upper() for v in ([value] if isinstance(value, str) else value)]


def numbers(dataset: Dataset) -> dict[str, list[float]]:
    """The numeric values of the CSA image header that are worth keeping; empty without one, or where it is damaged."""
    try:
        from nibabel.nicom.csareader import get_csa_header

        header = get_csa_header(dataset, "image")
        tags = header["tags"] if header else {}
        found = {name: [float(v) for v in tags[name]["items"]] for name in _NUMBERS if tags.get(name, {}).get("items")}
    except Exception:  # struct.error, CSAReadError, UnicodeDecodeError, ValueError
        return {}
    return {name: values for name, values in found.items() if all(map(math.isfinite, values))}


def put_numbers(dataset: Dataset, found: dict[str, list[float]]) -> None:
    """Add a private block with a CSA header (format SV10, as nibabel documents it) of `found`."""
    parts = [b"SV10", b"\4\3\2\1", struct.pack("<II", len(found), 77)]
    for name, values in found.items():
        parts.append(struct.pack("<64si4siii", name.encode(), len(values), _NUMBERS[name].encode(), 0, len(values), 77))
        for value in values:
            item = (f"{value:.0f}" if value == int(value) else f"{value:.8f}").encode() + b"\0"
            parts.append(struct.pack("<4i", len(item), len(item), 77, len(item)))
            parts.append(item + bytes(-len(item) % 4))
    dataset.private_block(_GROUP, CREATOR, create=True).add_new(0x10, "OB", b"".join(parts))
