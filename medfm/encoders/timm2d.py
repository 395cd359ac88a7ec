"""Any 2D model of timm behind medfm's encoder interface."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medfm.encoders.config import TimmConfig
from medfm.encoders.patches import strided_centre
from medfm.encoders.pretrained import adapt_input_channels, load_strict, read_state_dict
from medfm.encoders.recompute import keep_statistics
from medfm.errors import ConfigError
from medfm.registry import suggest
from medfm.types import EncoderOutput


def _create(config: TimmConfig) -> nn.Module:
    """The bare timm model with its final norm and without pooling and classifier. Never touches the network."""
    import timm

    if ":" in config.model or not timm.is_model(config.model):
        hint = suggest(config.model, timm.list_models()) or "; see timm.list_models()"
        raise ConfigError(f"encoder.model: timm has no model '{config.model}'{hint}")
    options: dict[str, Any] = {"in_chans": config.in_channels, "num_classes": 0, "global_pool": ""}
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    fixed = timm.get_pretrained_cfg(config.model, allow_unregistered=True)
    if fixed is not None and getattr(fixed, "fixed_input_size", False):
        options["img_size"] = config.img_size
    try:
        return timm.create_model(config.model, pretrained=False, **options)
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"encoder.model: timm cannot build '{config.model}' with {options}: {error}") from error


class TimmEncoder(nn.Module):
    """timm's model `config.model`: features are what `timm.create_model(..., num_classes=0, global_pool="")` returns.

    A feature map (B, E, H, W), or (B, H, W, E) as Swin's, becomes patch tokens (B, H*W, E); a transformer's prefix tokens are
    split off. No network is touched: weights come from a local file (`config.weights`), every tensor of which must fit, the
    classifier's aside; an RGB file's first layer is adapted to `in_channels` as timm does.

    Attributes:
        embed_dim: E.
        grid_size: tokens along height and width at the configured image size.
        patch_size: pixels along height and width that a token stands for; Swin's is its last stride, 32.
        mask_dim: width of a `mask_token`, that of the patch embedding; None for models without one.
        token_centre: where in its patch a token is centred, a share of it along height and width; known for ResNets, the middle
            is taken for all others.
        pool: which feature stands for the image.

    Raises:
        ConfigError: no such timm model, an option it does not have, or pool=cls without a class token.
        WeightsError: the weight file is missing, broken or does not fit.
    """

    drops_patches = False
    model: Any

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.name = config.model
        self.pool = config.pool
        self.model = _create(config)
        self.has_class_token = getattr(self.model, "cls_token", None) is not None
        if self.pool == "cls" and not self.has_class_token:
            raise ConfigError(f"encoder.pool: timm's {config.model} has no class token; use pool=mean")
        if config.weights is not None:
            self._load(config)
        self.in_channels = config.in_channels
        self.embed_dim, self.grid_size = self._probe(config)
        self.patch_size = tuple(n // g for n, g in zip(config.img_size, self.grid_size, strict=True))
        self._check_multiple(config)
        self.token_centre: tuple[float, ...] = (0.5, 0.5)
        if type(self.model).__module__ == "timm.models.resnet":
            self.token_centre = strided_centre(self.patch_size)
        projection = getattr(getattr(self.model, "patch_embed", None), "proj", None)
        self.mask_dim: int | None = getattr(projection, "out_channels", None)
        if config.gradient_checkpointing:
            self.model.set_grad_checkpointing(True)
            keep_statistics(self.model)

    def _check_multiple(self, config: TimmConfig) -> None:
        """A padded network's last tokens would stand for less than the others, and maps of its tokens be shifted."""
        stages = getattr(self.model, "feature_info", None) or [{}]
        stride = stages[-1].get("reduction")
        if isinstance(stride, int) and self.grid_size == tuple(-(-n // stride) for n in config.img_size):
            whole = [max(1, round(n / stride)) * stride for n in config.img_size]
            if whole != list(config.img_size):
                raise ConfigError(
                    f"encoder.img_size: a token of timm's {self.name} stands for {stride} pixels, of which "
                    f"{list(config.img_size)} is no multiple; set it and preprocess.size to {whole}"
                )

    def _load(self, config: TimmConfig) -> None:
        from importlib import import_module

        assert config.weights is not None
        state = read_state_dict(config.weights)
        convert = getattr(import_module(type(self.model).__module__), "checkpoint_filter_fn", None)
        if convert is not None:  # old key names, position embeddings of another size
            state = convert(state, self.model)
        info = self.model.pretrained_cfg
        for name in _names(info.get("first_conv")):
            adapt_input_channels(state, f"{name}.weight", self.model.get_submodule(name).weight)
        heads = tuple(f"{name}." for name in _names(info.get("classifier")))
        load_strict(self.model, state, config.weights, unused=heads)

    @torch.no_grad()
    def _probe(self, config: TimmConfig) -> tuple[int, tuple[int, ...]]:
        training = self.model.training
        self.model.eval()
        parameter = next(self.model.parameters())
        try:
            output = self(parameter.new_zeros(1, config.in_channels, *config.img_size))
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"encoder.img_size: timm's {self.name} does not take {list(config.img_size)}: {error}") from error
        self.model.train(training)
        return output.patch_tokens.shape[-1], output.grid_size

    def _token_grid(self, tokens: int, spatial: tuple[int, ...]) -> tuple[int, int]:
        """The grid of `tokens` patches of an image (H, W): the one with the image's proportions."""
        height = round(math.sqrt(tokens * spatial[0] / spatial[1]))
        if height == 0 or tokens % height:
            raise ConfigError(f"encoder.model: the {tokens} tokens of timm's {self.name} form no grid; use another model")
        return height, tokens // height

    def forward(
        self, x: Tensor, keep: Tensor | None = None, masked: Tensor | None = None, mask_token: Tensor | None = None
    ) -> EncoderOutput:
        """x (B, C, H, W) -> features after the model's final norm.

        Args:
            masked: (B, N) bool, by tokens of the output; `mask_token` (mask_dim values) takes the place of what the patch
                embedding gives there, before positions, as in SimMIM.

        Raises:
            ConfigError: `keep` is given: timm models encode all patches; or mask tokens do not fit the patch embedding.
        """
        if keep is not None:
            raise ConfigError(
                "patch dropout: timm models encode all patches; set objective.patch_dropout=0 or use the encoder 'vit'"
            )
        if masked is None:
            features = self.model(x)
        else:
            assert mask_token is not None
            grid = tuple(n // p for n, p in zip(x.shape[2:], self.patch_size, strict=True))
            put = partial(self._put_mask_tokens, masked=masked.reshape(-1, *grid), mask_token=mask_token)
            handle = self.model.patch_embed.register_forward_hook(lambda module, args, output: put(output))
            try:
                features = self.model(x)
            finally:
                handle.remove()
        if features.ndim == 4:
            if getattr(self.model, "output_fmt", "NCHW") != "NHWC":
                features = features.permute(0, 2, 3, 1)
            grid = tuple(features.shape[1:3])
            return EncoderOutput(patch_tokens=features.flatten(1, 2), cls_token=None, grid_size=grid)
        if features.ndim != 3:
            raise ConfigError(f"encoder.model: timm's {self.name} gives no feature map or tokens; use another model")
        prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        tokens = features[:, prefix:]
        return EncoderOutput(
            patch_tokens=tokens,
            cls_token=features[:, 0] if self.has_class_token else None,
            grid_size=self._token_grid(tokens.shape[1], tuple(x.shape[2:])),
        )

    def _put_mask_tokens(self, embedded: Tensor, masked: Tensor, mask_token: Tensor) -> Tensor:
        """What the patch embedding gives, (B, n, E) or (B, h, w, E), with the mask token under `masked` (B, H, W)."""
        if not isinstance(embedded, Tensor) or embedded.shape[-1] != self.mask_dim:
            raise ConfigError(
                f"objective.encode_all: the patch embedding of timm's {self.name} takes no mask tokens; use a ViT or Swin"
            )
        times = math.prod(embedded.shape[1:-1]) / math.prod(masked.shape[1:])
        side = math.isqrt(int(times))
        if side**2 != times:
            raise ConfigError(f"encoder.img_size: timm's {self.name} pads this image, so that patches and tokens do not fit")
        fine = masked.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
        return torch.where(fine.reshape(*embedded.shape[:-1], 1), mask_token.to(embedded.dtype), embedded)


def _names(value: Any) -> tuple[str, ...]:
    """timm writes one layer's name or a tuple of them."""
    return (value,) if isinstance(value, str) else tuple(value or ())
