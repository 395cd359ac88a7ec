"""The shapes of what passes between rooms: plain dataclasses.

Tensor legend: B batch, C channels, D H W depth height width, N tokens, E embedding, V views, T text tokens.
Image arrays follow the affine's axes (i, j, k), see `Image`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch

Photometric = Literal["MONOCHROME1", "MONOCHROME2", "RGB"]
IntensityUnits = Literal["HU", "BQML", "SUV", "GY", "display", "arbitrary"]


@dataclass(frozen=True, eq=False)
class Window:
    """A DICOM VOI: how physical values become display values (PS3.3 C.11.2).

    Either a centre and a width with a `function` ("LINEAR", "LINEAR_EXACT" or "SIGMOID"), or an explicit look-up table:
    `lut[value - first]` clipped at both ends, whose outputs span [0, lut_max].
    """

    center: float = 0.0
    width: float = 0.0
    function: str = "LINEAR"
    lut: np.ndarray | None = None
    first: int = 0
    lut_max: float = 0.0


@dataclass(frozen=True, eq=False)
class Image:
    """An image or volume with its place in space.

    Attributes:
        array: values indexed (i, j, k), then time or colour last where there is one. A plain film is (columns, rows, 1).
            Values are physical: after the modality LUT or rescale, before any VOI window and before any inversion.
        affine: (4, 4) float64, voxel index to millimetres in RAS+.
        modality: DICOM code ("CR", "DX", "CT", "MR", "US", ...), "OT" where unknown.
        intensity_units: "HU" for CT, "display" for 8-bit pictures, "arbitrary" where the file says nothing.
        source: the file or folder it came from.
        photometric: polarity as stored; MONOCHROME1 is inverted by the preprocessing contract, after VOI, once.
        windows: the VOI windows the file offers, the first is the default; empty where it offers none.
        last_axis: what a fourth axis means; None for a 3D array. "time, colour" has both, in that order (a cine in colour).
            "sequence": several series of one examination on one grid, such as T1, T2 and FLAIR.
        oriented: False where the file gives no orientation (PNG, JPEG, a film without one): the affine then holds spacing only.
        spaced: False where the file gives no pixel spacing: 1 mm is then a placeholder.
        bits_stored: bits of the stored value, None where unknown.
        view: "PA", "AP", "LATERAL", ... or "" where unknown.
        notes: what was repaired or assumed on reading, in words, without patient data.
    """

    array: np.ndarray = field(repr=False)
    affine: np.ndarray = field(repr=False)
    modality: str
    intensity_units: IntensityUnits
    source: str
    photometric: Photometric = "MONOCHROME2"
    windows: tuple[Window, ...] = ()
    last_axis: Literal["time", "colour", "time, colour", "sequence"] | None = None
    oriented: bool = True
    spaced: bool = True
    bits_stored: int | None = None
    view: str = ""
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edge lengths along i, j, k in mm."""
        a = self.affine[:3, :3]
        i, j, k = ((a**2).sum(axis=0) ** 0.5).tolist()
        return (i, j, k)

    def __repr__(self) -> str:
        size = " x ".join(str(n) for n in self.shape)
        mm = " x ".join(f"{s:.3g}" for s in self.spacing) + " mm" if self.spaced else "spacing unknown"
        return f"Image({self.modality}, {size}, {mm}, {self.array.dtype}, {self.intensity_units}, {self.photometric})"


@dataclass(frozen=True, eq=False)
class Mask:
    """Segments on an image's grid. They may overlap, so each has a layer of its own.

    Attributes:
        array: (S, i, j, k) bool, one layer a segment.
        names: what each layer is, in words; S of them.
        affine: (4, 4) float64, voxel index to millimetres in RAS+; that of the image it was laid on.
        source: the file it came from.
        notes: what was assumed on reading, in words, without patient data.
    """

    array: np.ndarray = field(repr=False)
    names: tuple[str, ...]
    affine: np.ndarray = field(repr=False)
    source: str
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


@dataclass
class Texts:
    """Further texts of a batch's rows, any number a row.

    Attributes:
        tokens: (M, T) token ids, 0-padded; T may differ from the batch's.
        attention_mask: (M, T) 1 for real tokens.
        row: (M,) int64, the row of the batch that a text belongs to; ascending.
        code: (M,) int64, equal numbers are the same text.
    """

    tokens: torch.Tensor
    attention_mask: torch.Tensor
    row: torch.Tensor
    code: torch.Tensor


@dataclass
class Batch:
    """What the DataModule yields and an objective takes.

    Attributes:
        images: (B, C, *spatial) in the contract's storage dtype (uint8 by default); made float on the device.
        tokens: (B, T) token ids, 0-padded, or None without text.
        attention_mask: (B, T) 1 for real tokens.
        patient: (B,) int64 code; equal numbers are the same patient.
        text_group: (B,) int64 code; equal numbers mean the same text, or reports that are both normal. -1: no text.
        labels: (B, L) float, 1, 0, -1 (uncertain) or NaN (not stated); L may be 0.
        index: (B,) row in the manifest.
        drawn: (B,) int64 code of the very text in `tokens`: different reports may be drawn the same sentence. -1: no text.
        texts: further texts by kind ("sentences", "findings", "impression", "swapped", "negated"), where the objective asks.
        concepts: (B, K) what a report says of each concept of the knowledge file: 1 present, 0 denied, NaN nothing; or None.
        relations: (B, K, K) bool, whether one sentence of the report states both concepts; None where nothing asks for it.
    """

    images: torch.Tensor
    tokens: torch.Tensor | None
    attention_mask: torch.Tensor | None
    patient: torch.Tensor
    text_group: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    drawn: torch.Tensor | None = None
    texts: dict[str, Texts] = field(default_factory=dict)
    concepts: torch.Tensor | None = None
    relations: torch.Tensor | None = None


@dataclass
class EncoderOutput:
    """Features of one image batch.

    Attributes:
        patch_tokens: (B, N, E), N = prod(grid_size) unless some were dropped through `keep`.
        cls_token: (B, E) or None for encoders without one.
        grid_size: tokens along each spatial axis, (H, W) or (D, H, W).
    """

    patch_tokens: torch.Tensor
    cls_token: torch.Tensor | None
    grid_size: tuple[int, ...]


@dataclass
class TextOutput:
    """Features of one text batch: `tokens` (B, T, E) and `pooled` (B, E)."""

    tokens: torch.Tensor
    pooled: torch.Tensor


@dataclass
class ObjectiveOutput:
    """A loss to minimise (scalar) and named numbers worth logging (detached scalars)."""

    loss: torch.Tensor
    logs: dict[str, torch.Tensor] = field(default_factory=dict)
