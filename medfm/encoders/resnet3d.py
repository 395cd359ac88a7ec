"""2D ResNets with kernels inflated over depth: Merlin's image encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from medfm.encoders.config import Resnet3dConfig
from medfm.encoders.inflate import How, inflate_kernel
from medfm.encoders.patches import strided_centre
from medfm.encoders.pretrained import adapt_input_channels, load_strict, read_state_dict
from medfm.encoders.volume import VolumeEncoder
from medfm.errors import WeightsError

# Beside the encoder: 2D classifiers; in Merlin's files its two heads, its text encoder and its temperature.
_UNUSED = ("fc.", "classifier.", "contrastive_head.")


def _conv(inside: int, outside: int, kernel: int, stride: int = 1) -> nn.Conv3d:
    """Kernels of 3 in plane have 3 along depth, those of 1 have 1; depth is strided as the plane is."""
    return nn.Conv3d(inside, outside, kernel, stride, padding=kernel // 2, bias=False)


class Block3d(nn.Module):
    """ResNet's residual block: two 3 x 3 x 3 convolutions, or with `bottleneck` 1, 3 x 3 x 3 (strided), 1."""

    def __init__(self, inside: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outside = width * (4 if bottleneck else 1)
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        widths = (inside, width, width, outside) if bottleneck else (inside, width, outside)
        strided = 1 if bottleneck else 0
        for n, kernel in enumerate(kernels):
            conv = _conv(widths[n], widths[n + 1], kernel, stride if n == strided else 1)
            self.add_module(f"conv{n + 1}", conv)
            self.add_module(f"bn{n + 1}", nn.BatchNorm3d(widths[n + 1]))
        self.relu = nn.ReLU(inplace=True)
        self.count = len(kernels)
        self.downsample = (
            nn.Sequential(_conv(inside, outside, 1, stride), nn.BatchNorm3d(outside))
            if stride != 1 or inside != outside
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for n in range(1, self.count + 1):
            out = self.get_submodule(f"bn{n}")(self.get_submodule(f"conv{n}")(out))
            if n < self.count:
                out = self.relu(out)
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class InflatedResNet(VolumeEncoder):
    """A ResNet whose first convolution is 3 x 7 x 7 with stride 1 along depth, so that a token stands for 16 x 32 x 32 voxels,
    unless the configuration says otherwise.

    Names are torchvision's and timm's, so that their 2D weights inflate into it, and those of Merlin's `i3_resnet`.

    Source: Blankemeier et al. 2024, "Merlin: A Vision Language Foundation Model for 3D CT", merlin/models/i3res.py.
    `coordinates`: Liu et al. 2018, "An intriguing failing of convolutional neural networks and the CoordConv solution"; with
    kernels of 1, at the positions of the first convolution's outputs.

    Raises:
        WeightsError: `config.weights` is missing, broken or does not fit; every tensor must, classifiers and heads aside.
    """

    def __init__(self, config: Resnet3dConfig) -> None:
        super().__init__(config, list(config.stride))
        self.token_centre = strided_centre(self.patch_size)
        bottleneck = config.depth >= 50
        first, self.stages = config.widths[0], len(config.widths)
        self.embed_dim = config.widths[-1] * (4 if bottleneck else 1)
        depth, height, width = config.stem_kernel
        padding = (depth // 2, height // 2, width // 2)
        self.conv1 = nn.Conv3d(config.in_channels, first, config.stem_kernel, config.stem_stride, padding, bias=False)
        self.bn1 = nn.BatchNorm3d(first)
        self.coordinates = nn.Conv3d(3, first, 1, bias=False) if config.coordinates else None
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, 2, 1) if config.stem_pool else nn.Identity()
        inside = first
        for n, (count, width, stride) in enumerate(zip(config.blocks, config.widths, config.strides, strict=True)):
            blocks = []
            for i in range(count):
                blocks.append(Block3d(inside, width, 1 if i else stride, bottleneck))
                inside = width * (4 if bottleneck else 1)
            self.add_module(f"layer{n + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if config.weights is not None:
            state = read_resnet(config.weights, self.state_dict(), config.inflate)
            load_strict(self, state, config.weights, unused=_UNUSED)

    def layer_groups(self) -> list[tuple[str, ...]]:
        stages = (f"layer{n + 1}" for n in range(self.stages))
        return [(f"{stage}.{i}.",) for stage in stages for i in range(len(list(self.get_submodule(stage).children())))]

    def feature_map(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if self.coordinates is not None:
            x = x + self.coordinates(_coordinates(x, self.coordinates.weight.dtype))
        x = self.maxpool(self.relu(self.bn1(x)))
        for n in range(self.stages):
            for block in self.get_submodule(f"layer{n + 1}").children():
                x = self.run(block, x)
        return x


def _coordinates(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(1, 3, *grid of x): where the middle of each cell lies, from -1 to 1 along each axis."""
    axes = [(torch.arange(n, device=x.device, dtype=dtype) * 2 + 1) / n - 1 for n in x.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def read_resnet(path: str | Path, own: dict[str, Tensor], how: How) -> dict[str, Tensor]:
    """A weight file as the state dict of `InflatedResNet`: a 2D ResNet's kernels are inflated; of Merlin's files the image
    encoder is taken, whether it is the whole (`encode_image.i3_resnet.`), the image side (`i3_resnet.`) or the bare network.

    RGB kernels are summed for one channel: Merlin repeats its volume in three.

    Raises:
        WeightsError: see `read_state_dict`; or a kernel has neither 2 nor 3 axes.
    """
    state = read_state_dict(path)
    for prefix in ("encode_image.i3_resnet.", "i3_resnet."):
        inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if inside:
            rest = [name for name in state if not name.startswith((prefix, "encode_text.", "logit_scale"))]
            if rest:
                raise WeightsError(f"{path}: beside {prefix}* it holds tensors of no known use: {', '.join(rest[:5])}")
            state = inside
            break
    for name, tensor in state.items():
        if tensor.ndim == 4 and name in own and own[name].ndim == 5:
            state[name] = inflate_kernel(tensor, own[name].shape[2], how)
    adapt_input_channels(state, "conv1.weight", own["conv1.weight"])
    if "coordinates.weight" in own:  # a network that did not know where it is starts as it was
        state.setdefault("coordinates.weight", torch.zeros_like(own["coordinates.weight"]))
    # Files from before batch norms counted their batches.
    for name in own:
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.tensor(0))
    return state
