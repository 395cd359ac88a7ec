"""Other projects' MAE training losses, each as its authors' code computes it: `loss(images) -> scalar` and its module.

facebookresearch/mae is read from a folder and runs on today's timm and numpy by two changes: `np.float` (gone from numpy) is
`float` again, and timm's Block is handed no `qk_scale` (gone from timm; it was None). lightly's modules are put together as in
its MAE example, with its own patch normalisation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor], Tensor]


class Missing(Exception):
    """A peer that is not here; the text says what is missing."""


def facebook(folder: Path, sizes: dict[str, Any]) -> tuple[nn.Module, Loss]:
    if not (folder / "mae" / "models_mae.py").is_file():
        raise Missing(f"facebookresearch/mae: no {folder / 'mae'}; clone it there, or give --peers")
    import numpy as np
    import timm.models.vision_transformer as timm_vit

    setattr(np, "float", float)  # noqa: B010 (np.float reads as the builtin to a linter)
    original = timm_vit.Block

    class Block(original):  # type: ignore[valid-type,misc]
        def __init__(self, *args: Any, qk_scale: None = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    timm_vit.Block = Block  # type: ignore[misc]
    sys.path.insert(0, str(folder / "mae"))
    try:
        import models_mae
    finally:
        sys.path.remove(str(folder / "mae"))
        timm_vit.Block = original  # type: ignore[misc]
    model = models_mae.MaskedAutoencoderViT(
        img_size=sizes["size"],
        patch_size=sizes["patch"],
        embed_dim=sizes["dim"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        decoder_embed_dim=sizes["decoder_dim"],
        decoder_depth=sizes["decoder_depth"],
        decoder_num_heads=sizes["decoder_heads"],
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        norm_pix_loss=True,
    )
    return model, lambda images: model(images, mask_ratio=0.75)[0]


def transformers(sizes: dict[str, Any]) -> tuple[nn.Module, Loss]:
    try:
        from transformers import ViTMAEConfig, ViTMAEForPreTraining
    except ImportError as error:
        raise Missing("transformers: not installed") from error
    config = ViTMAEConfig(
        image_size=sizes["size"],
        patch_size=sizes["patch"],
        hidden_size=sizes["dim"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        intermediate_size=4 * sizes["dim"],
        decoder_hidden_size=sizes["decoder_dim"],
        decoder_num_hidden_layers=sizes["decoder_depth"],
        decoder_num_attention_heads=sizes["decoder_heads"],
        decoder_intermediate_size=4 * sizes["decoder_dim"],
        norm_pix_loss=True,
    )
    model = ViTMAEForPreTraining(config)
    model.train()
    return model, lambda images: model(images).loss


def lightly(sizes: dict[str, Any]) -> tuple[nn.Module, Loss]:
    try:
        from lightly.models import utils
        from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise Missing("lightly: not installed") from error
    vit = VisionTransformer(
        img_size=sizes["size"],
        patch_size=sizes["patch"],
        embed_dim=sizes["dim"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        num_classes=0,
    )
    backbone = MaskedVisionTransformerTIMM(vit=vit)
    decoder = MAEDecoderTIMM(
        num_patches=vit.patch_embed.num_patches,
        patch_size=sizes["patch"],
        embed_dim=sizes["dim"],
        decoder_embed_dim=sizes["decoder_dim"],
        decoder_depth=sizes["decoder_depth"],
        decoder_num_heads=sizes["decoder_heads"],
    )
    criterion = nn.MSELoss()

    def loss(images: Tensor) -> Tensor:
        batch, length = len(images), backbone.sequence_length
        keep, masked = utils.random_token_mask(size=(batch, length), mask_ratio=0.75, device=images.device)
        encoded = decoder.embed(backbone.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(decoder.mask_token, (batch, length))
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        predicted = decoder.predict(utils.get_at_index(decoder.decode(tokens), masked))
        target = utils.get_at_index(utils.patchify(images, sizes["patch"]), masked - 1)
        return criterion(predicted, utils.normalize_mean_var(target, dim=-1))

    return nn.ModuleList([backbone, decoder]), loss


def monai(sizes: dict[str, Any]) -> tuple[nn.Module, Loss]:
    """Its network, with the loss that the paper takes: MONAI gives predictions and a mask."""
    try:
        from monai.networks.nets import MaskedAutoEncoderViT
    except ImportError as error:
        raise Missing("monai: not installed") from error
    size, patch = (sizes["size"],) * 3, (sizes["patch"],) * 3
    model = MaskedAutoEncoderViT(
        in_channels=1,
        img_size=size,
        patch_size=patch,
        hidden_size=sizes["dim"],
        mlp_dim=int(sizes["dim"] * sizes["mlp_ratio"]),
        num_layers=sizes["depth"],
        num_heads=sizes["heads"],
        decoder_hidden_size=sizes["decoder_dim"],
        decoder_mlp_dim=int(sizes["decoder_dim"] * sizes["decoder_mlp_ratio"]),
        decoder_num_layers=sizes["decoder_depth"],
        decoder_num_heads=sizes["decoder_heads"],
        qkv_bias=True,
    )
    n, p = sizes["size"] // sizes["patch"], sizes["patch"]

    def loss(images: Tensor) -> Tensor:
        predicted, mask = model(images)
        target = images.reshape(len(images), n, p, n, p, n, p).permute(0, 1, 3, 5, 2, 4, 6).reshape(len(images), n**3, p**3)
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        per_patch = (predicted - (target - mean) / (variance + 1e-6).sqrt()).square().mean(dim=-1)
        return (per_patch * mask).sum() / mask.sum()

    return model, loss
