"""Knobs of preprocessing (the contract saved with every weight file) and of augmentation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medfm.registry import Config

Pair = tuple[float, float]


class PreprocessConfig(Config):
    """The preprocessing contract: everything that decides pixel values between `Image` and the network.

    Order: VOI window (or `hu_window`) -> scale to [0, 1] -> invert MONOCHROME1 -> foreground crop -> spacing -> resize ->
    channels -> storage dtype; then, on the device, float and `(x - mean) / std`.
    """

    size: tuple[int, ...] = Field(default=(224, 224), description="network input, (H, W) or (D, H, W), pixels or voxels")
    window: Literal["voi", "minmax", "percentile", "hu", "none"] = Field(
        default="voi",
        description="how physical values become [0, 1]: the file's VOI (8-bit pictures as they are, percentiles where a file "
        "has no VOI); min-max; percentiles; a fixed HU window; none for values already in display range",
    )
    percentiles: Pair = (0.5, 99.5)
    hu_window: Pair = Field(default=(-1000.0, 1000.0), description="lower and upper HU, for window=hu")
    crop_foreground: bool = Field(default=False, description="cut collimation borders and black margins")
    spacing: tuple[float, ...] | None = Field(
        default=None, description="mm per pixel along `size`, then cut or pad to `size`; None scales by `resize`"
    )
    orientation: str = Field(default="RAS", description="volumes are turned to this before axes become (D, H, W)")
    resize: Literal["pad", "stretch", "crop"] = Field(
        default="pad", description="without spacing: fit the whole image and pad; stretch to size; fill it and cut the middle"
    )
    channels: Literal[1, 3] = 1
    dtype: Literal["uint8", "float32"] = Field(default="uint8", description="storage dtype between loader and device")
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)
    modalities: tuple[str, ...] = Field(default=(), description="DICOM modalities the contract accepts; empty accepts all")

    @model_validator(mode="after")
    def _consistent(self) -> PreprocessConfig:
        if len(self.size) not in (2, 3) or min(self.size) < 1:
            raise ValueError(f"size must be 2 or 3 positive numbers, got {list(self.size)}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise ValueError(f"{name} must have 1 or {self.channels} numbers")
        if min(self.std) <= 0:
            raise ValueError("std must be above 0")
        if self.spacing is not None and len(self.spacing) != len(self.size):
            raise ValueError("spacing must have as many numbers as size")
        if self.spacing is not None and (min(self.spacing) <= 0 or self.resize == "stretch"):
            raise ValueError("spacing must be above 0, and goes with resize pad or crop: stretching would undo it")
        axes = [number for letter in self.orientation for number, pair in enumerate(("LR", "AP", "IS")) if letter in pair]
        if len(self.orientation) != 3 or sorted(axes) != [0, 1, 2]:
            raise ValueError(f"orientation '{self.orientation}' must hold one of R/L, A/P and I/S each, for example RAS or LPS")
        if not 0 <= self.percentiles[0] <= self.percentiles[1] <= 100:
            raise ValueError(f"percentiles must lie between 0 and 100, got {list(self.percentiles)}")
        if self.hu_window[0] >= self.hu_window[1] or self.percentiles[0] >= self.percentiles[1]:
            raise ValueError("the lower end of a window must be below its upper end")
        return self


class AugmentConfig(Config):
    """Random changes of a training batch, made on the device. No left-right flip by default: it swaps the heart's side."""

    scale: Pair = Field(default=(1.0, 1.0), description="random resized crop: area kept, as a share")
    ratio: Pair = (0.9, 1.1)
    rotate: float = Field(default=0.0, ge=0, le=180, description="degrees, each way")
    translate: float = Field(default=0.0, ge=0, lt=1, description="share of the side, each way")
    flip: float = Field(default=0.0, ge=0, le=1, description="probability of a left-right flip")
    brightness: float = Field(default=0.0, ge=0)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    blur: float = Field(default=0.0, ge=0, description="largest Gaussian sigma in pixels")
    noise: float = Field(default=0.0, ge=0, description="standard deviation of added noise, in [0, 1] units")

    @model_validator(mode="after")
    def _consistent(self) -> AugmentConfig:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be two shares above 0 and at most 1, the lower first, got {list(self.scale)}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be two numbers above 0, the lower first, got {list(self.ratio)}")
        return self
