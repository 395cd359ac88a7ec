"""Masks: NIfTI label maps, pictures, DICOM SEG and RTSTRUCT, laid on an image's grid."""

from medfm.io.masks.load import load_mask

__all__ = ["load_mask"]
