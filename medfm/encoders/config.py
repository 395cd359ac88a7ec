"""Knobs of image and text encoders."""

from __future__ import annotations

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
    weights: InputPath | None = Field(
        default=None, description="a local timm ViT weight file (.safetensors, .pth); positions are resampled"
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
        return self


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

    @model_validator(mode="after")
    def _consistent(self) -> ClipTextConfig:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        return self


@TEXT_ENCODERS.register("hf_text", "medfm.encoders.text:HuggingFaceTextEncoder")
class HuggingFaceTextConfig(ComponentConfig):
    """Any Hugging Face encoder (BERT, MiniLM, RoBERTa, ...) by local folder or hub name."""

    name: str = "hf_text"
    path: str | Path = Field(description="folder with config.json and model.safetensors, or hub name")
    pretrained: bool = Field(default=True, description="False builds the architecture with random weights")
    pool: Literal["cls", "mean"] = "mean"
    freeze_layers: int = Field(default=0, ge=0, description="embeddings and the first n layers are not trained (ConVIRT: 6)")
    gradient_checkpointing: bool = False


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
