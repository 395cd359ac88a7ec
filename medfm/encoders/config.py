"""Knobs of image and text encoders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from medfm.registry import ENCODERS, TEXT_ENCODERS, TOKENIZERS, ComponentConfig, Config, InputPath, component


@ENCODERS.register("vit", "medfm.encoders.vit:VisionTransformer")
class VitConfig(ComponentConfig):
    """Vision Transformer, 2D or 3D by the length of `img_size` and `patch_size`. Defaults: ViT-B/16."""

    name: str = "vit"
    img_size: tuple[int, ...] = (224, 224)
    patch_size: tuple[int, ...] = (16, 16)
    in_channels: int = Field(default=1, ge=1)
    embed_dim: int = Field(default=768, ge=1)
    depth: int = Field(default=12, ge=1)
    num_heads: int = Field(default=12, ge=1)
    mlp: Literal["gelu", "swiglu"] = Field(default="gelu", description="swiglu: two thirds as wide, gated (DINOv2 ViT-L, -g)")
    mlp_ratio: float = Field(default=4.0, gt=0)
    qkv_bias: bool = True
    class_token: bool = True
    reg_tokens: int = Field(default=0, ge=0)
    pos_embed: Literal["learn", "sincos"] = "learn"
    no_embed_class: bool = Field(default=False, description="positions for patches only, as timm's option of that name")
    init_values: float | None = Field(default=None, description="LayerScale start; None for no LayerScale")
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    pool: Literal["cls", "mean"] = Field(default="cls", description="which feature stands for the image")
    gradient_checkpointing: bool = False
    init: Literal["timm", "mae"] = Field(
        default="timm", description="random start; mae: Xavier for all linear layers, tokens of standard deviation 0.02"
    )
    weights: InputPath | None = Field(
        default=None, description="a local timm ViT weight file (.safetensors, .pth); positions are resampled"
    )
    inflate: Literal["average", "center"] | None = Field(
        default=None,
        description="makes a volume's weights from a 2D file's: the patch projection spread over depth, or at its middle; "
        "positions repeated along depth",
    )
    window: tuple[int, ...] | None = Field(
        default=None, description="patches attend within windows of so many along each axis; class and registers to all"
    )
    global_blocks: tuple[int, ...] | None = Field(
        default=None, description="blocks, from 0, that attend to all patches despite `window`; default: each quarter's last"
    )

    @model_validator(mode="after")
    def _consistent(self) -> VitConfig:
        if len(self.img_size) != len(self.patch_size) or len(self.img_size) not in (2, 3):
            raise ValueError("img_size and patch_size must both have 2 or 3 numbers")
        if any(i % p for i, p in zip(self.img_size, self.patch_size, strict=True)):
            raise ValueError(f"img_size {list(self.img_size)} is not a multiple of patch_size {list(self.patch_size)}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.pool == "cls" and not self.class_token:
            raise ValueError("pool=cls needs class_token=true; use pool=mean")
        if self.inflate is not None and len(self.img_size) != 3:
            raise ValueError("inflate makes volumes' weights from 2D ones; img_size has 2 numbers")
        if self.window is not None:
            grid = [i // p for i, p in zip(self.img_size, self.patch_size, strict=True)]
            if len(self.window) != len(grid) or any(w < 1 or g % w for g, w in zip(grid, self.window, strict=True)):
                raise ValueError(f"window {list(self.window)} must divide the {grid} patches along each axis")
        elif self.global_blocks is not None:
            raise ValueError("global_blocks are the exceptions from window; set window")
        if any(not 0 <= b < self.depth for b in self.global_blocks or ()):
            raise ValueError(f"global_blocks must lie in 0..{self.depth - 1}, got {list(self.global_blocks or ())}")
        return self

    @property
    def windowed_blocks(self) -> tuple[int, ...]:
        """Blocks that attend within windows. By default the last of each quarter does not (ViTDet, SAM: 2, 5, 8, 11 of 12)."""
        if self.window is None:
            return ()
        quarters = {round(self.depth * (n + 1) / 4) - 1 for n in range(4)} & set(range(self.depth))
        whole = quarters if self.global_blocks is None else set(self.global_blocks)
        return tuple(b for b in range(self.depth) if b not in whole)


@ENCODERS.register("timm", "medfm.encoders.timm2d:TimmEncoder")
class TimmConfig(ComponentConfig):
    """Any 2D timm model behind medfm's interface: resnet50, swin_tiny_patch4_window7_224, convnext_tiny, ..."""

    name: str = "timm"
    model: str = "resnet50"
    img_size: tuple[int, int] = (224, 224)
    in_channels: int = Field(default=1, ge=1)
    weights: InputPath | None = Field(default=None, description="a local timm weight file (.safetensors, .pth)")
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    pool: Literal["cls", "mean"] = "mean"
    gradient_checkpointing: bool = False


Axes = Literal["DHW", "DWH", "HWD", "HDW", "WHD", "WDH"]


class VolumeConfig(ComponentConfig):
    """What encoders of volumes other than the N-d ViT share."""

    img_size: tuple[int, int, int]
    in_channels: int = Field(default=1, ge=1)
    axes: Axes = Field(
        default="DHW", description="order in which the network sees the axes; that in which public weights saw them is not ours"
    )
    weights: InputPath | None = None
    pool: Literal["cls", "mean", "max"] = Field(
        default="mean", description="max: over the tokens, which findings of a few tokens need"
    )
    gradient_checkpointing: bool = False

    def check_multiple(self, stride: tuple[int, ...]) -> None:
        """Raises ValueError where a token would stand for a part of its `stride`, (D, H, W)."""
        if any(n < 1 or n % s for n, s in zip(self.img_size, stride, strict=True)):
            raise ValueError(f"img_size {list(self.img_size)} is not a multiple of the {list(stride)} voxels of a token")

    @model_validator(mode="after")
    def _no_class_token(self) -> VolumeConfig:
        if self.pool == "cls" and self.name != "slices":
            raise ValueError(f"the encoder '{self.name}' has no class token; use pool=mean")
        return self


MonaiModel = Literal[
    "swin_unetr", "segresnet", "segresnet_ds", "resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnet200",
]  # fmt: skip


@ENCODERS.register("monai", "medfm.encoders.monai3d:MonaiEncoder")
class MonaiConfig(VolumeConfig):
    """MONAI's 3D encoders: SwinUNETR's Swin, SegResNet's (and SegResNetDS's, as CT-FM) down path, ResNets as MedicalNet's."""

    name: str = "monai"
    model: MonaiModel = "swin_unetr"
    img_size: tuple[int, int, int] = (96, 96, 96)
    axes: Axes = Field(default="DHW", description="weights trained in MONAI on RAS+ volumes saw WHD")
    weights: InputPath | None = Field(
        default=None, description="a local weight file of this model, or of the whole it is part of"
    )
    feature_size: int = Field(
        default=48, ge=12, description="of swin_unetr: width of its first stage; tokens have 16 times that"
    )
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    num_heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    use_v2: bool = Field(default=False, description="of swin_unetr: a residual convolution before each stage")
    init_filters: int = Field(default=32, ge=8, description="of segresnet, segresnet_ds: width of their first stage")
    blocks_down: tuple[int, ...] = Field(default=(1, 2, 2, 4), description="of segresnet, segresnet_ds: blocks of each stage")
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="of swin_unetr")

    @property
    def stride(self) -> int:
        """Voxels along each axis that a token stands for."""
        return 2 ** (len(self.blocks_down) - 1) if self.model.startswith("segresnet") else 32

    @model_validator(mode="after")
    def _consistent(self) -> MonaiConfig:
        self.check_multiple((self.stride,) * 3)
        if self.model == "swin_unetr":
            if any(self.feature_size * 2**n % heads for n, heads in enumerate(self.num_heads)):
                raise ValueError(
                    f"feature_size {self.feature_size} doubles at each stage and must be a multiple of num_heads there"
                )
        elif self.drop_path:
            raise ValueError(f"drop_path: {self.model} has none")
        if self.model.startswith("segresnet") and self.init_filters % 8:
            raise ValueError("init_filters must be a multiple of 8, the groups of its norms")
        return self


@ENCODERS.register("resnet3d", "medfm.encoders.resnet3d:InflatedResNet")
class Resnet3dConfig(VolumeConfig):
    """A 2D ResNet with kernels inflated over depth, as Merlin's; or a smaller one of any sizes. Defaults: Merlin's sizes."""

    name: str = "resnet3d"
    depth: Literal[18, 34, 50, 101, 152] = 152
    img_size: tuple[int, int, int] = (160, 224, 224)
    axes: Axes = Field(default="DHW", description="Merlin's weights saw DWH of RAS+ volumes")
    weights: InputPath | None = Field(
        default=None, description="a local timm or torchvision ResNet file, which is inflated; or Merlin's"
    )
    inflate: Literal["average", "center"] = Field(
        default="center", description="2D kernels spread over depth, or at its middle"
    )
    layers: tuple[int, ...] | None = Field(default=None, description="blocks of each stage; default: those of `depth`")
    widths: tuple[int, ...] = Field(
        default=(64, 128, 256, 512), description="of the stages; a small net has fewer and narrower"
    )
    strides: tuple[int, ...] = Field(default=(1, 2, 2, 2), description="of the stages' first blocks; 1s keep a finer grid")
    stem_kernel: tuple[int, int, int] = Field(default=(3, 7, 7), description="of the first convolution; odd")
    stem_stride: tuple[int, int, int] = (1, 2, 2)
    stem_pool: bool = Field(default=True, description="a maximum over 3 x 3 x 3, stride 2, follows the first convolution")
    coordinates: bool = Field(
        default=False, description="the first convolution also sees where it is (CoordConv), so that few steps tell sides apart"
    )

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return self.layers or {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}.get(
            self.depth, (3, 4, 6, 3)
        )

    @property
    def stride(self) -> tuple[int, ...]:
        """Voxels that a token stands for, (D, H, W)."""
        times = math.prod(self.strides) * (2 if self.stem_pool else 1)
        return tuple(self.stem_stride[self.axes.index(a)] * times for a in "DHW")

    @model_validator(mode="after")
    def _consistent(self) -> Resnet3dConfig:
        counts = [len(self.blocks), len(self.widths), len(self.strides)]
        if len(set(counts)) > 1:
            raise ValueError(f"layers, widths and strides differ: {', '.join(map(str, counts))} stages")
        if min(*self.blocks, *self.widths, *self.strides, *self.stem_stride) < 1:
            raise ValueError("layers, widths, strides and stem_stride must be 1 or more")
        if any(k < 1 or k % 2 == 0 for k in self.stem_kernel):
            raise ValueError(f"stem_kernel {list(self.stem_kernel)} must be odd numbers")
        self.check_multiple(self.stride)
        return self


@ENCODERS.register("ctvit", "medfm.encoders.ctvit:CTViT")
class CTViTConfig(VolumeConfig):
    """Factorised attention: within slices, then along depth (CT-ViT). Defaults: CT-CLIP's."""

    name: str = "ctvit"
    img_size: tuple[int, int, int] = (240, 480, 480)
    patch_size: tuple[int, int, int] = (10, 20, 20)
    axes: Axes = Field(default="DHW", description="CT-CLIP's weights saw DWH of RAS+ volumes")
    weights: InputPath | None = Field(default=None, description="a local CT-CLIP or CT-ViT file; needs peg=ctclip")
    embed_dim: int = Field(default=512, ge=1)
    spatial_depth: int = Field(default=4, ge=1)
    temporal_depth: int = Field(default=4, ge=1)
    num_heads: int = Field(default=8, ge=1)
    head_dim: int = Field(default=32, ge=1)
    mlp_ratio: float = Field(default=4.0, gt=0, description="times 2/3, as the hidden layer is gated")
    peg: Literal["grid", "ctclip"] = Field(
        default="grid",
        description="what the position convolution of the blocks along depth sees: the grid; or, as CT-CLIP has it, tokens "
        "in the order (H, W, D) taken for (D, H, W), which its weights need",
    )
    codebook_size: int = Field(default=0, ge=0, description="CT-CLIP's tokens are entries of a frozen codebook (8192); 0: none")

    @model_validator(mode="after")
    def _consistent(self) -> CTViTConfig:
        self.check_multiple(self.patch_size)
        if self.axes[0] != "D":
            raise ValueError(f"axes={self.axes}: this network's first axis is depth; use DHW or DWH")
        return self


@ENCODERS.register("slices", "medfm.encoders.slices:SlicesEncoder")
class SlicesConfig(VolumeConfig):
    """A 2D encoder over a volume's axial slices, with attention slice pooling (RadCLIP)."""

    name: str = "slices"
    img_size: tuple[int, int, int] = (32, 224, 224)
    encoder: component(ENCODERS) = Field(  # type: ignore[valid-type]
        default="vit",
        description="the 2D encoder, whose weights may be any 2D weights; img_size and in_channels follow from here",
    )
    pool: Literal["cls", "mean"] = Field(default="cls", description="cls: attention over slices; mean: of all patch tokens")
    pool_heads: int = Field(default=8, ge=1, description="heads of the attention over slices")
    pool_residual: bool = Field(
        default=True,
        description="attention is added to the slices' features, so that training starts from their mean; "
        "false: attention alone, RadCLIP's formula",
    )
    slice_chunk: int = Field(default=32, ge=1, description="slices encoded at a time; with gradient_checkpointing, also kept")

    @model_validator(mode="after")
    def _consistent(self) -> SlicesConfig:
        inner = self.encoder
        if self.axes[0] != "D":
            raise ValueError(f"axes={self.axes}: slices are axial; use DHW or DWH")
        if self.weights is not None:
            raise ValueError("weights of the 2D encoder are set by encoder.encoder.weights")
        if isinstance(inner, VolumeConfig):
            raise ValueError(f"encoder '{inner.name}' encodes volumes; slices need a 2D one (vit, timm)")
        fixed = {"img_size": tuple(self.img_size["DHW".index(a)] for a in self.axes[1:]), "in_channels": self.in_channels}
        for key, value in fixed.items():
            if key not in type(inner).model_fields:
                raise ValueError(f"encoder '{inner.name}' has no {key}: it is no 2D image encoder")
            if key in inner.model_fields_set and getattr(inner, key) != value:
                raise ValueError(f"encoder.{key} {getattr(inner, key)} is not that of a slice, {value}; leave it out")
        if any(getattr(inner, key) != value for key, value in fixed.items()):
            # Frozen for others; a slice's size is known here alone.
            inner = ENCODERS.parse({**inner.model_dump(exclude_unset=True), "name": inner.name, **fixed})
            object.__setattr__(self, "encoder", inner)
        return self


@TEXT_ENCODERS.register("clip_text", "medfm.encoders.text:ClipTextEncoder")
class ClipTextConfig(ComponentConfig):
    """CLIP's causal text transformer; the end-of-text token stands for the text. Defaults: ViT-B/16's partner."""

    name: str = "clip_text"
    vocab_size: int = Field(default=49408, ge=2)
    context_length: int = Field(default=77, ge=4)
    embed_dim: int = Field(default=512, ge=1)
    depth: int = Field(default=12, ge=1)
    num_heads: int = Field(default=8, ge=1)
    mlp_ratio: float = Field(default=4.0, gt=0)
    activation: Literal["gelu", "quick_gelu"] = Field(default="gelu", description="OpenAI's weights need quick_gelu")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    gradient_checkpointing: bool = False
    weights: InputPath | None = Field(
        default=None,
        description="a local CLIP, open_clip or Long-CLIP file, of which the text side is taken; positions are stretched "
        "to the tokenizer's context_length where that is longer (Long-CLIP)",
    )

    @model_validator(mode="after")
    def _consistent(self) -> ClipTextConfig:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        return self


class LoraConfig(Config):
    """Low-rank adapters on a frozen text encoder (LoRA). Defaults: SPECTRE's rank and alpha."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=64.0, gt=0, description="the adapters' output is scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of the adapters' input")
    target: Literal["all"] | tuple[str, ...] = Field(
        default="all", description="last names of the adapted linear modules (q_proj, v_proj; query, value); all: of the layers"
    )


@TEXT_ENCODERS.register("hf_text", "medfm.encoders.text:HuggingFaceTextEncoder")
class HuggingFaceTextConfig(ComponentConfig):
    """Any Hugging Face encoder (BERT, MiniLM, RoBERTa, ...) or decoder (Qwen3, Llama, ...) by local folder or hub name."""

    name: str = "hf_text"
    path: str | Path = Field(description="folder with config.json and model.safetensors, or hub name")
    pretrained: bool = Field(default=True, description="False builds the architecture with random weights")
    pool: Literal["cls", "mean", "last"] = Field(
        default="mean", description="last: the last real token, which in a causal language model alone has seen all of them"
    )
    freeze_layers: int = Field(default=0, ge=0, description="embeddings and the first n layers are not trained (ConVIRT: 6)")
    lora: LoraConfig | None = Field(default=None, description="trains low-rank adapters and nothing else of the encoder")
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> HuggingFaceTextConfig:
        if self.lora is not None and self.freeze_layers:
            raise ValueError("lora freezes every layer: leave freeze_layers out")
        return self


class DualConfig(Config):
    """What makes a DualEncoder beside its image encoder: the part of the objective that weight files keep."""

    text_encoder: component(TEXT_ENCODERS) = Field(default="clip_text")  # type: ignore[valid-type]
    tokenizer: component(TOKENIZERS) = Field(default="clip")  # type: ignore[valid-type]
    loss: Literal["infonce", "sigmoid"] = "infonce"
    embed_dim: int = Field(default=512, ge=1)
    projection: Literal["linear", "mlp"] = "linear"
    temperature: float = Field(default=0.07, gt=0)
    learn_temperature: bool = True
    logit_bias: float = -10.0
    dense: Literal["patches", "values"] = Field(
        default="values", description="heat maps read the patch tokens, where terms aligned them, or else values (MaskCLIP)"
    )
