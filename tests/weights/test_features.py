"""`Model.features` and `Model.patch_features`: the encoder's own features, of its last blocks, in 2D and 3D."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medfm.encoders.image import ImageModel
from medfm.errors import ConfigError, DataError
from medfm.registry import ENCODERS
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.preprocess import Preprocess
from medfm.weights.load import load_model
from medfm.weights.model import Model


def model_of(size: tuple[int, ...], **encoder: Any) -> Model:
    torch.manual_seed(0)
    config = ENCODERS.parse({"name": "vit", "img_size": size, "embed_dim": 24, "depth": 3, "num_heads": 2, **encoder})
    return Model(ImageModel(ENCODERS.build(config)), Preprocess(PreprocessConfig(size=size)), None, {}, config, None)


def stored(size: tuple[int, ...], count: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize(("size", "patch"), [((16, 24), (8, 8)), ((8, 16, 12), (4, 8, 4))])
def test_features__are_the_last_blocks_tokens_after_the_norm(size: tuple[int, ...], patch: tuple[int, ...]) -> None:
    model, images = model_of(size, patch_size=patch), stored(size)
    encoder: Any = model.network.image_encoder
    blocks: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _m, _i, output: blocks.append(output)) for block in encoder.blocks]
    with torch.no_grad():
        last = encoder(model.preprocess.to_float(images))
    for hook in hooks:
        hook.remove()
    tokens = [encoder.norm(block) for block in blocks]
    classes = [t[:, 0] for t in tokens]
    patches = [t[:, 1:].mean(1) for t in tokens]
    expected = {
        ("cls", 1): classes[-1],
        ("cls", 2): torch.cat(classes[-2:], 1),
        ("cls", 3): torch.cat(classes, 1),
        ("mean", 1): patches[-1],
        ("mean", 2): torch.cat(patches[-2:], 1),
        ("cls+mean", 1): torch.cat([classes[-1], patches[-1]], 1),
        ("cls+mean", 2): torch.cat([*classes[-2:], patches[-1]], 1),
    }
    for (pool, count), values in expected.items():
        # In batches of two: their bounds must not show.
        torch.testing.assert_close(model.features(images, pool, count, batch_size=2), values)
    torch.testing.assert_close(model.features(images), last.cls_token)
    found, grid = model.patch_features(images, batch_size=2)
    torch.testing.assert_close(found, last.patch_tokens)
    assert grid == tuple(n // p for n, p in zip(size, patch, strict=True))
    for count in (2, 3):
        side_by_side, grid_of = model.patch_features(images, batch_size=2, blocks=count)
        torch.testing.assert_close(side_by_side, torch.cat([t[:, 1:] for t in tokens[-count:]], 2))
        assert grid_of == grid


def test_features__of_a_model_trained_with_text_come_before_the_projection(tmp_path: Path, save_tiny_model: Any) -> None:
    save_tiny_model(tmp_path, 16)
    model = load_model(tmp_path)
    images = stored((16, 16))
    features = model.features(images)
    projected = torch.nn.functional.normalize(model.dual.image_projection(features), dim=-1)
    torch.testing.assert_close(projected, model.encode_images(images))
    assert features.shape == (5, 16)
    assert not torch.allclose(features.norm(dim=1), torch.ones(5), atol=0.1)


def test_features__of_timm_models() -> None:
    model = _resnet()
    images = stored((32, 32), 2)
    features, (patches, grid) = model.features(images), model.patch_features(images)
    assert grid == (1, 1)
    torch.testing.assert_close(features, patches.mean(1))
    with pytest.raises(ConfigError, match=r"blocks=2: a TimmEncoder gives its last features alone; use blocks=1"):
        model.features(images, blocks=2)
    with pytest.raises(ConfigError, match=r"blocks=2: a TimmEncoder gives its last features alone"):
        model.patch_features(images, blocks=2)
    with pytest.raises(ConfigError, match="class token"):
        model.features(images, "cls+mean")


def _resnet() -> Model:
    config = ENCODERS.parse({"name": "timm", "model": "resnet18", "img_size": [32, 32]})
    return Model(ImageModel(ENCODERS.build(config)), Preprocess(PreprocessConfig(size=(32, 32))), None, {}, config, None)


def test_features__more_blocks_than_there_are() -> None:
    with pytest.raises(ConfigError, match="blocks=4: the encoder has 3 blocks"):
        model_of((16, 16), patch_size=(8, 8)).features(stored((16, 16)), blocks=4)


def test_features__refuse_images_of_another_size() -> None:
    with pytest.raises(DataError, match="preprocessed images must be"):
        model_of((16, 16), patch_size=(8, 8)).features(stored((16, 24)))
