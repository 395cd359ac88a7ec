"""What encoders of volumes that give a feature map share: axes in the order of their weights, tokens in the order of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from medfm.encoders.config import VolumeConfig
from medfm.encoders.recompute import batch_norms, recomputed
from medfm.errors import ConfigError
from medfm.types import EncoderOutput

DHW = "DHW"


class VolumeEncoder(nn.Module):
    """Base of volume encoders whose features are a map over the network's grid.

    A subclass sets `embed_dim` and gives `feature_map` and `layer_groups`. The network sees the axes in the order
    `config.axes`; tokens come out in the order (D, H, W), so that heat maps lie on the volume.

    Attributes:
        embed_dim: E.
        in_channels: channels of a volume.
        grid_size: tokens along D, H, W at the configured size.
        patch_size: voxels along D, H, W that a token stands for.
        token_centre: where in its patch a token is centred, a share of the patch along D, H, W; 0.5 is its middle.
        pool: which feature stands for the volume.
        mask_dim: None, as these networks take no mask tokens.

    Raises:
        ConfigError: a volume of other channels or axes, or one whose size is no multiple of `patch_size`; or `keep` is given.
    """

    drops_patches = False
    mask_dim: int | None = None
    embed_dim: int

    def __init__(self, config: VolumeConfig, stride: Sequence[int]) -> None:
        """`stride`: voxels of a token, (D, H, W)."""
        super().__init__()
        self.name = config.name
        self.pool = config.pool
        self.in_channels = config.in_channels
        self.gradient_checkpointing = config.gradient_checkpointing
        self.patch_size = tuple(stride)
        self.token_centre: tuple[float, ...] = (0.5,) * 3
        self.grid_size = tuple(n // s for n, s in zip(config.img_size, stride, strict=True))
        self._to_network = tuple(2 + DHW.index(a) for a in config.axes)
        self._to_ours = tuple(2 + config.axes.index(a) for a in DHW)

    def feature_map(self, x: Tensor) -> Tensor:
        """x (B, C, *network's axes) -> (B, E, *network's grid)."""
        raise NotImplementedError

    def layer_groups(self) -> list[tuple[str, ...]]:
        """Prefixes of parameter names for each block, from input to output, for `medfm.training.depth`; what is in none embeds
        the input, or follows the blocks where it is a norm."""
        raise NotImplementedError

    def forward(self, x: Tensor, keep: Tensor | None = None) -> EncoderOutput:
        """x (B, C, D, H, W) -> tokens (B, N, E) of the grid (D, H, W), the last axis fastest."""
        if keep is not None:
            raise ConfigError(
                f"patch dropout: the encoder '{self.name}' encodes all patches; set objective.patch_dropout=0 or use 'vit'"
            )
        self.check(x)
        features = self.feature_map(x.permute(0, 1, *self._to_network))
        features = features.permute(0, 1, *self._to_ours)
        return EncoderOutput(
            patch_tokens=features.flatten(2).transpose(1, 2), cls_token=None, grid_size=tuple(features.shape[2:])
        )

    def check(self, x: Tensor) -> None:
        """Raises ConfigError where `x` is no volume that the network takes."""
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise ConfigError(f"the encoder takes volumes of {self.in_channels} channels and 3 axes, got {tuple(x.shape)}")
        if any(n % p for n, p in zip(x.shape[2:], self.patch_size, strict=True)):
            raise ConfigError(
                f"volume size {tuple(x.shape[2:])} is not a multiple of the {self.patch_size} voxels of a token of the encoder "
                f"'{self.name}'"
            )

    def run(self, block: Callable[..., Tensor], *args: Tensor | None) -> Tensor:
        """`block(*args)`, computed again in the backward pass where that is asked for."""
        if self.gradient_checkpointing and self.training:
            made: Tensor = recomputed(block, batch_norms(block) if isinstance(block, nn.Module) else [], *args)
            return made
        return block(*args)
