"""One feature for an image, from its tokens."""

from __future__ import annotations

import pytest
import torch

from medfm.encoders.config import Resnet3dConfig
from medfm.encoders.pooling import block_features, pooled
from medfm.encoders.resnet3d import InflatedResNet
from medfm.errors import ConfigError
from medfm.types import EncoderOutput


def test_pooled__each_way_is_what_its_name_says() -> None:
    tokens = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [2.0, 0.0]]])
    output = EncoderOutput(patch_tokens=tokens, cls_token=torch.tensor([[7.0, 8.0]]), grid_size=(1, 3))
    expected = {"mean": [2.0, -2.0], "max": [3.0, 0.0], "cls": [7.0, 8.0], "cls+mean": [7.0, 8.0, 2.0, -2.0]}
    for pool, values in expected.items():
        torch.testing.assert_close(pooled(output, pool), torch.tensor([values]))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="use pool=mean"):
        pooled(EncoderOutput(patch_tokens=tokens, cls_token=None, grid_size=(1, 3)), "cls")


def test_max__moves_only_the_patches_that_stand_out() -> None:
    config = Resnet3dConfig(
        depth=18, layers=(1,), widths=(4,), strides=(1,), stem_stride=(4, 4, 4), stem_pool=False, img_size=(16,) * 3, pool="max"
    )
    encoder = InflatedResNet(config).eval()
    x = torch.randn(2, 1, 16, 16, 16)
    tokens = encoder(x).patch_tokens.detach().requires_grad_()
    pooled(EncoderOutput(patch_tokens=tokens, cls_token=None, grid_size=(4, 4, 4)), encoder.pool).sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad.amax(dim=1) > 0).all()
    assert int((tokens.grad > 0).any(dim=2).sum(dim=1).max()) <= 4  # one a channel
    torch.testing.assert_close(block_features(encoder, x, "max"), encoder(x).patch_tokens.amax(dim=1))
