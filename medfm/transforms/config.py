"""Knobs of preprocessing (the contract saved with every weight file) and of augmentation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from medfm.registry import Config

Pair = tuple[float, float]

# What int16 storage keeps of Hounsfield units: 12 bits, which hold every tissue and metal as scanners write it.
HU_STORED = (-1024.0, 3071.0)


class PreprocessConfig(Config):
    """The preprocessing contract: everything that decides pixel values between file and network.

    Order: orientation (volumes) -> crop to `foreground_threshold` -> window to [0, 1], MONOCHROME1 inverted -> luma -> border
    crop -> spacing or resize -> channels -> storage dtype: the *whole* image, which a cache keeps. Then cut or padded to size;
    then, on the device, float in [0, 1] and `(x - mean) / std`. With dtype=int16 and window=hu the whole image holds Hounsfield
    units, and the windows are applied on the device.
    """

    size: tuple[int, ...] = Field(default=(224, 224), description="network input, (H, W) or (D, H, W), pixels or voxels")
    window: Literal["voi", "minmax", "percentile", "hu", "none", "zscore", "fixed", "auto"] = Field(
        default="voi",
        description="how physical values become [0, 1]: the file's VOI (8-bit pictures as they are, percentiles where a file "
        "has no VOI); min-max; percentiles; a fixed HU window; none for values already in display range; z-scores of the "
        "values that are not 0; the fixed `value_range`; auto: hu for CT, fixed for SUV, VOI for radiographs, pictures as they "
        "are, percentiles for all else (MR)",
    )
    percentiles: Pair = (0.5, 99.5)
    hu_window: Pair = Field(default=(-1000.0, 1000.0), description="lower and upper HU, for window=hu")
    windows: tuple[Pair, ...] = Field(
        default=(),
        description="several HU windows, one a channel, e.g. [[-1000, 400], [-160, 240]], in place of hu_window; channels "
        "must be their number",
    )
    value_range: Pair = Field(default=(0.0, 10.0), description="values that become 0 and 1 with window=fixed, e.g. SUV 0 to 10")
    zscore_range: float = Field(default=4.0, gt=0, description="window=zscore: -z becomes 0, +z becomes 1")
    units: Literal["", "HU", "BQML", "SUV", "GY", "display", "arbitrary"] = Field(
        default="", description="units that images must have; empty accepts all (window=hu needs HU in any case)"
    )
    crop_foreground: bool = Field(default=False, description="cut collimation borders and black margins")
    foreground_threshold: float | None = Field(
        default=None,
        description="cut to the box of physical values above this, e.g. -500 HU for the body, 0 for a stripped brain, in place "
        "of the search for borders",
    )
    spacing: tuple[float, ...] | None = Field(
        default=None, description="mm per pixel along `size`, then cut or pad to `size`; None scales by `resize`"
    )
    orientation: str = Field(default="RAS", description="volumes are turned to this before axes become (D, H, W)")
    resize: Literal["pad", "stretch", "crop", "none"] = Field(
        default="pad",
        description="without spacing: fit the whole image and pad; stretch to size; fill it and cut the middle; none keeps the "
        "pixels and cuts or pads",
    )
    channels: int = Field(
        default=1, ge=1, le=16, description="1 grey, 3 colour (grey is repeated), or the number of `windows` or `sequences`"
    )
    sequences: tuple[str, ...] = Field(
        default=(),
        description="the channels of an image of several sequences, in order, e.g. [T1, T2, FLAIR]; each has its own window",
    )
    dtype: Literal["uint8", "int16", "float32"] = Field(
        default="uint8", description="storage dtype between loader and device; int16 keeps HU, or [0, 1] in 15 bits"
    )
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)
    modalities: tuple[str, ...] = Field(default=(), description="DICOM modalities the contract accepts; empty accepts all")
    pad_value: float | None = Field(
        default=None,
        description="what is put around the image, HU for window=hu, else in [0, 1]; default: black (air for int16 HU)",
    )
    tilt: Literal["refuse", "resample"] = Field(default="refuse", description="CT series with a tilted gantry")
    reduced_decode: bool = Field(
        default=False,
        description="decode JPEG 2000 at half the resolution or less where it is over 8 times `size`; single images only; "
        "pixels differ by about 1 of 255",
    )

    @property
    def hu_windows(self) -> tuple[Pair, ...]:
        """The HU windows, one a channel."""
        return self.windows or (self.hu_window,)

    @property
    def keeps_hounsfield(self) -> bool:
        """Whether HU are stored, and windows applied on the device."""
        return self.dtype == "int16" and self.window == "hu"

    @property
    def stored_channels(self) -> int:
        """Channels between loader and device; `channels` are what the network gets."""
        return 1 if self.keeps_hounsfield else self.channels

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
        if any(low >= high for low, high in (*self.hu_windows, self.hu_window, self.percentiles, self.value_range)):
            raise ValueError("the lower end of a window must be below its upper end")
        return self

    @model_validator(mode="after")
    def _windows(self) -> PreprocessConfig:
        if self.windows and self.window not in ("hu", "auto"):
            raise ValueError("windows are HU windows: they go with window=hu or auto")
        if self.windows and self.channels != len(self.windows):
            raise ValueError(f"{len(self.windows)} windows make {len(self.windows)} channels: set channels={len(self.windows)}")
        if self.sequences and (self.windows or self.window in ("hu", "auto")):
            raise ValueError("sequences go with window=percentile, zscore, minmax or fixed, not with HU windows")
        if self.sequences and self.channels != len(self.sequences):
            raise ValueError(f"{len(self.sequences)} sequences make {len(self.sequences)} channels: set channels")
        if not self.windows and not self.sequences and self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, or the number of windows; got {self.channels}")
        if self.window == "hu" and self.units not in ("", "HU"):
            raise ValueError(f"window=hu takes Hounsfield units, not units={self.units}")
        if self.dtype == "int16" and self.window == "auto":
            raise ValueError("dtype=int16 keeps HU for window=hu and scaled values otherwise: window=auto would mix the two")
        low, high = HU_STORED
        if self.keeps_hounsfield and any(w[0] < low or w[1] > high for w in self.hu_windows):
            raise ValueError(f"dtype=int16 keeps HU from {low:g} to {high:g}; windows must lie within")
        if self.pad_value is not None and self.window != "hu" and not 0 <= self.pad_value <= 1:
            raise ValueError("pad_value is HU with window=hu, else it lies in [0, 1]")
        if self.foreground_threshold is not None and self.crop_foreground:
            raise ValueError("crop_foreground searches for borders, foreground_threshold cuts at a value: choose one")
        if self.reduced_decode and (len(self.size) != 2 or self.spacing is not None or self.resize == "none"):
            raise ValueError("reduced_decode is for single images that are resized to `size`")
        return self


def _up_to(value: Any) -> Any:
    """A number is the upper end of a range from 0."""
    return (0.0, value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


class AugmentConfig(Config):
    """Random changes of a training batch, made on the device but for `crop`.

    Objectives that cut views take `rotate`, `flip` and the strengths of what changes intensities from here; boxes and
    probabilities are those of their `ViewsConfig`, in place of `scale`, `ratio`, `translate` and every `*_p` but `greyscale_p`.

    No flips by default. A flip swaps the heart's side, and any one axis does: front and back swapped are left and right
    swapped, turned by half a turn. Where reports are read, whose "left" would then be wrong, a flip is refused unless
    `flip_with_text`.
    """

    crop: Literal["center", "random"] = Field(
        default="center",
        description="which part of an image larger than preprocess.size training sees; random needs preprocess.spacing or "
        "resize=none, and is drawn anew each epoch, before the batch is made",
    )
    scale: Pair = Field(default=(1.0, 1.0), description="random resized crop: area (volume) kept, as a share")
    ratio: Pair = Field(default=(0.9, 1.1), description="of the crop's W to its H, log-uniform; in 3D also of D to these two")
    rotate: float = Field(default=0.0, ge=0, le=180, description="degrees, each way; in 3D axial slices turn in their plane")
    translate: float = Field(default=0.0, ge=0, lt=1, description="share of the side, each way")
    flip: float = Field(
        default=0.0, ge=0, le=1, description="probability that an axis of `flip_axes` is mirrored; breaks sides"
    )
    flip_axes: tuple[Literal["D", "H", "W"], ...] = Field(
        default=("W",), description="axes that `flip` mirrors, each by itself; W is left-right"
    )
    flip_with_text: bool = Field(
        default=False, description="allow flip where reports are read, though left and right in them become wrong"
    )
    jitter_p: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of images that gamma, contrast, gain, brightness and colour change, and by a draw of its own "
        "window_jitter",
    )
    window_jitter: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="j moves the intensity window's centre by up to j of its width and multiplies its width by 1/(1+j) to 1+j; "
        "of stored HU before they are clipped, else of [0, 1], where what the contract's window cut off stays lost",
    )
    gamma: float = Field(default=0.0, ge=0, description="exponent between 1/(1+gamma) and 1+gamma, log-uniform")
    contrast: float = Field(
        default=0.0, ge=0, lt=1, description="distance from the image's mean times 1 - contrast to 1 + contrast"
    )
    gain: float = Field(default=0.0, ge=0, lt=1, description="values times 1 - gain to 1 + gain (torchvision's brightness)")
    brightness: float = Field(default=0.0, ge=0, description="added to values in [0, 1], each way")
    saturation: float = Field(default=0.0, ge=0, lt=1, description="colour images: distance from grey times 1 -+ saturation")
    hue: float = Field(default=0.0, ge=0, le=0.5, description="colour images: hue turned by this share of the circle, each way")
    greyscale_p: float = Field(default=0.0, ge=0, le=1, description="colour images: probability that colour is dropped")
    blur: Annotated[Pair, BeforeValidator(_up_to)] = Field(
        default=(0.0, 0.0), description="Gaussian sigma in pixels: a range, or its upper end"
    )
    blur_p: float = Field(default=1.0, ge=0, le=1, description="probability of blur")
    noise: float = Field(default=0.0, ge=0, description="standard deviation of added noise, in [0, 1] units")
    solarize_p: float = Field(default=0.0, ge=0, le=1, description="probability that values of 0.5 and above are inverted")

    @property
    def colours(self) -> bool:
        """Whether something is asked for that only colour images have."""
        return bool(self.saturation or self.hue or self.greyscale_p)

    @model_validator(mode="after")
    def _consistent(self) -> AugmentConfig:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be two shares above 0 and at most 1, the lower first, got {list(self.scale)}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be two numbers above 0, the lower first, got {list(self.ratio)}")
        if not 0 <= self.blur[0] <= self.blur[1]:
            raise ValueError(f"blur must be one number, or two, the lower first, none below 0; got {list(self.blur)}")
        if len(set(self.flip_axes)) != len(self.flip_axes) or (self.flip and not self.flip_axes):
            raise ValueError(f"flip_axes must name axes once each, got {list(self.flip_axes)}")
        return self


Kinds = tuple[float, float, float]


class ViewsConfig(Config):
    """Random crops of each image for objectives that compare views (DINO, SimCLR, MoCo, BYOL, Barlow Twins).

    Each global and local view is a box of the stored image, scaled to the network's size or to `local_size`, and changed in
    intensity by the strengths of `augment` with the probabilities given here, for the first global view, further ones and
    local ones. Source of the defaults: DINO (Caron 2021), main_dino.py, with scale as published for ViT-S multi-crop; DINO
    solarises a fifth of the second views, (0, 0.2, 0), which in a radiograph makes bone and air alike.
    """

    global_count: int = Field(default=2, ge=1, description="global views an image")
    global_scale: Pair = Field(default=(0.4, 1.0), description="area (volume) of a global view, as a share of the image's")
    local_count: int = Field(default=8, ge=0, description="local views an image")
    local_scale: Pair = Field(default=(0.05, 0.4), description="area (volume) of a local view, as a share of the image's")
    local_size: tuple[int, ...] | None = Field(
        default=None, description="pixels of a local view, (H, W) or (D, H, W); default: 3/7 of a global one, in whole patches"
    )
    ratio: Pair = Field(default=(3 / 4, 4 / 3), description="of a view's W to its H, log-uniform; in 3D also of D to these two")
    jitter_p: Kinds = Field(default=(0.8, 0.8, 0.8), description="as augment.jitter_p: first global, further global, local")
    blur_p: Kinds = Field(default=(1.0, 0.1, 0.5), description="as augment.blur_p: first global, further global, local")
    solarize_p: Kinds = Field(default=(0.0, 0.0, 0.0), description="as augment.solarize_p: first global, further global, local")

    @model_validator(mode="after")
    def _consistent(self) -> ViewsConfig:
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} must be two shares above 0 and at most 1, the lower first, got {[low, high]}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be two numbers above 0, the lower first, got {list(self.ratio)}")
        for name in ("jitter_p", "blur_p", "solarize_p"):
            if not all(0 <= p <= 1 for p in getattr(self, name)):
                raise ValueError(f"{name} must be three probabilities, got {list(getattr(self, name))}")
        if self.local_size is not None and (len(self.local_size) not in (2, 3) or min(self.local_size) < 1):
            raise ValueError(f"local_size must be 2 or 3 positive numbers, got {list(self.local_size)}")
        return self
