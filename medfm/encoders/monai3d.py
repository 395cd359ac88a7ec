"""MONAI's encoders of volumes: SwinUNETR's Swin Transformer, SegResNet's down path, 3D ResNets."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from medfm.encoders.config import MonaiConfig
from medfm.encoders.patches import strided_centre
from medfm.encoders.pretrained import adapt_input_channels, load_strict, read_state_dict
from medfm.encoders.volume import VolumeEncoder
from medfm.errors import ConfigError

# What public files hold beside the encoder, by the names that they have after `_renamed`: decoders, classifiers, heads of
# self-supervised training (rotation, contrast, reconstruction), SSL files' last norm, which SwinUNETR does not have.
_UNUSED = {
    "swin": (
        *("encoder", "decoder", "out.", "norm.", "mask_token", "rotation_", "contrastive_", "convTrans3d.", "conv."),
        *("rec_head.", "swinViT.norm.", "fc."),
    ),
    "segresnet_ds": ("up_layers.", "head_module."),
    "segresnet": ("up_layers.", "up_samples.", "conv_final.", "vae_"),
    "resnet": ("fc.", "conv_seg."),
}


class MonaiEncoder(VolumeEncoder):
    """MONAI's network `config.model`: features are what its own forward gives at the last stage of its way down.

    "swin_unetr": `SwinUNETR(...).swinViT(x)[4]`, layer-normed without weights; "segresnet": `SegResNet(...).encode(x)[0]`;
    "segresnet_ds": `SegResEncoder(...)(x)[-1]`, CT-FM's network; "resnet18", ...: `ResNetFeatures("resnet18", ...)(x)[-1]`,
    MedicalNet's networks. State-dict names are MONAI's under `model.`.

    MONAI's resnet18 and resnet34 cut the gradient of their parameter-free shortcuts (`out.data`); here it flows.

    Raises:
        ConfigError: MONAI refuses the options.
        WeightsError: `config.weights` is missing, broken or does not fit; every tensor must, decoders and heads aside.
    """

    def __init__(self, config: MonaiConfig) -> None:
        super().__init__(config, (config.stride,) * 3)
        self.kind = next(kind for kind in ("swin", "segresnet_ds", "segresnet", "resnet") if config.model.startswith(kind))
        if self.kind != "swin":  # which merges patches of 2 x 2 x 2
            self.token_centre = strided_centre(self.patch_size)
        try:
            self.model: Any = _BUILDERS[self.kind](config)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"encoder: MONAI cannot build {config.model}: {error}") from error
        self.embed_dim = self._width(config)
        if config.weights is not None:
            state = _renamed(read_state_dict(config.weights), self.kind)
            first = {"swin": "swinViT.patch_embed.proj", "segresnet": "convInit.conv", "segresnet_ds": "conv_init"}
            name = first.get(self.kind, "conv1") + ".weight"
            adapt_input_channels(state, name, self.model.state_dict()[name])
            load_strict(self.model, state, config.weights, unused=_UNUSED[self.kind])

    def _width(self, config: MonaiConfig) -> int:
        if self.kind == "swin":
            return 16 * config.feature_size
        if self.kind.startswith("segresnet"):
            return int(config.init_filters * 2 ** (len(config.blocks_down) - 1))
        return 512 if config.model in ("resnet10", "resnet18", "resnet34") else 2048

    def feature_map(self, x: Tensor) -> Tensor:
        features: Tensor = getattr(self, f"_{self.kind}")(x)
        return features

    def _swin(self, x: Tensor) -> Tensor:
        """As SwinTransformer.forward, without the normalised copies of the earlier stages, which are as large as the image."""
        swin = self.model.swinViT
        x = swin.pos_drop(swin.patch_embed(x))
        for n in range(1, 5):
            if swin.use_v2:
                x = self.run(getattr(swin, f"layers{n}c")[0], x.contiguous())
            x = getattr(swin, f"layers{n}")[0](x.contiguous())  # its blocks checkpoint themselves
        return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)

    def _segresnet(self, x: Tensor) -> Tensor:
        x = self.model.convInit(x)
        for layer in self.model.down_layers:
            for block in layer:
                x = self.run(block, x)
        return x

    def _segresnet_ds(self, x: Tensor) -> Tensor:
        x = self.model.conv_init(x)
        for layer in self.model.layers:
            for block in layer["blocks"]:
                x = self.run(block, x)
            x = layer["downsample"](x)
        return x

    def _resnet(self, x: Tensor) -> Tensor:
        x = self.model.maxpool(self.model.act(self.model.bn1(self.model.conv1(x))))
        for n in range(1, 5):
            for block in getattr(self.model, f"layer{n}"):
                x = self.run(block, x)
        return x

    def layer_groups(self) -> list[tuple[str, ...]]:
        """Swin: what leads from stage to stage belongs to the block before it, SwinUNETR-V2's convolutions to the block after;
        SegResNet's downsampling convolutions are layers of their own."""
        if self.kind == "swin":
            swin, groups = self.model.swinViT, []
            for n in range(1, 5):
                count = len(getattr(swin, f"layers{n}")[0].blocks)
                for i in range(count):
                    names = [f"model.swinViT.layers{n}.0.blocks.{i}."]
                    names += [f"model.swinViT.layers{n}c."] if i == 0 else []
                    names += [f"model.swinViT.layers{n}.0.downsample."] if i == count - 1 else []
                    groups.append(tuple(names))
            return groups
        if self.kind == "segresnet_ds":
            return [
                (
                    f"model.layers.{n}.blocks.{i}.",
                    *((f"model.layers.{n}.downsample.",) if i == len(layer["blocks"]) - 1 else ()),
                )
                for n, layer in enumerate(self.model.layers)
                for i in range(len(layer["blocks"]))
            ]
        stages = (
            {f"down_layers.{n}": layer for n, layer in enumerate(self.model.down_layers)}
            if self.kind == "segresnet"
            else {f"layer{n}": getattr(self.model, f"layer{n}") for n in range(1, 5)}
        )
        return [
            (f"model.{stage}.{i}.",)
            for stage, layer in stages.items()
            for i, block in enumerate(layer)
            if any(True for _ in block.parameters())
        ]


class _Swin(nn.Module):
    """Holds the Swin under the name that it has in SwinUNETR."""

    def __init__(self, config: MonaiConfig) -> None:
        super().__init__()
        from monai.networks.nets.swin_unetr import SwinTransformer

        self.swinViT = SwinTransformer(
            in_chans=config.in_channels,
            embed_dim=config.feature_size,
            window_size=(7, 7, 7),
            patch_size=(2, 2, 2),
            depths=config.depths,
            num_heads=config.num_heads,
            drop_path_rate=config.drop_path,
            use_checkpoint=config.gradient_checkpointing,
            use_v2=config.use_v2,
        )


def _segresnet(config: MonaiConfig) -> nn.Module:
    from monai.networks.nets.segresnet import SegResNet

    model = SegResNet(init_filters=config.init_filters, in_channels=config.in_channels, blocks_down=config.blocks_down)
    for part in ("up_layers", "up_samples", "conv_final"):
        delattr(model, part)
    return model


def _segresnet_ds(config: MonaiConfig) -> nn.Module:
    from monai.networks.nets.segresnet_ds import SegResEncoder

    return SegResEncoder(init_filters=config.init_filters, in_channels=config.in_channels, blocks_down=config.blocks_down)


def _resnet(config: MonaiConfig) -> nn.Module:
    from monai.networks.nets.resnet import ResNetFeatures

    model = ResNetFeatures(config.model, pretrained=False, in_channels=config.in_channels)
    for block in model.modules():
        shortcut: Any = getattr(block, "downsample", None)
        if isinstance(shortcut, partial):
            made: Any = partial(_shortcut, planes=shortcut.keywords["planes"], stride=shortcut.keywords["stride"])
            block.downsample = made
    return model


def _shortcut(x: Tensor, planes: int, stride: int) -> Tensor:
    """ResNet's shortcut "A": every `stride`-th voxel, channels filled up with zeros. MONAI's takes `.data`."""
    x = x[:, :, ::stride, ::stride, ::stride]
    return F.pad(x, (0, 0, 0, 0, 0, 0, 0, planes - x.shape[1]))


_BUILDERS: dict[str, Any] = {
    "swin": _Swin,
    "segresnet": _segresnet,
    "segresnet_ds": _segresnet_ds,
    "resnet": _resnet,
}


def _renamed(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Public files' names as MONAI's own.

    Swin files come as a SwinUNETR (`swinViT.*` and a U-Net); as self-supervised training left them (`model_swinvit.pt`),
    without `swinViT.` and with `mlp.fc1`, `mlp.fc2`; or as Disruptive Autoencoders (`encoder.layers1.0.0.blocks...`, see
    MONAI's `filter_swinunetr`). A SegResNetDS file has its encoder under `encoder.`.
    """
    if kind == "segresnet_ds" and any(name.startswith("encoder.conv_init") for name in state):
        return {name.removeprefix("encoder."): tensor for name, tensor in state.items()}
    if kind != "swin":
        return state
    made = {}
    for name, tensor in state.items():
        name = re.sub(r"^encoder\.(patch_embed\.|layers\dc?\.0\.)(?:0\.)?", r"swinViT.\1", name)
        name = re.sub(r"^(patch_embed\.|layers\dc?\.)", r"swinViT.\1", name)
        name = re.sub(r"\.mlp\.fc([12])\.", r".mlp.linear\1.", name)
        made[name] = tensor
    return made
