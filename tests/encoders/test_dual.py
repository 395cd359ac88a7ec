"""The joint space, and the DualEncoder that configurations describe."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from medfm.encoders.build import build_dual
from medfm.encoders.config import DualConfig, Resnet3dConfig, TimmConfig, VitConfig
from medfm.encoders.dual import DualEncoder, unit
from medfm.errors import ConfigError
from medfm.text.tokenizers import ClipTokenizer
from medfm.types import EncoderOutput, TextOutput

CLIP_TEXT = {"name": "clip_text", "embed_dim": 32, "depth": 1, "num_heads": 2}
VIT = VitConfig(img_size=(32, 32), patch_size=(8, 8), embed_dim=48, depth=2, num_heads=2)


def dual(encoder: Any = VIT, **options: Any) -> DualEncoder:
    torch.manual_seed(0)
    config = DualConfig(
        **{"text_encoder": CLIP_TEXT, "tokenizer": {"name": "clip", "context_length": 16}, "embed_dim": 24, **options}
    )
    return build_dual(encoder, config).eval()


class Fixed(torch.nn.Module):
    """An encoder whose features are what it is given."""

    embed_dim, pool = 2, "mean"

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> Any:
        if x.dtype == torch.long:
            return TextOutput(tokens=x[:, None].float(), pooled=x.float())
        return EncoderOutput(patch_tokens=x, cls_token=None, grid_size=(1, x.shape[1]))


def test_dual__vectors_by_hand() -> None:
    model = DualEncoder(Fixed(), Fixed(), embed_dim=2)
    with torch.no_grad():
        model.image_projection.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        model.text_projection.weight.copy_(torch.eye(2))
    image = torch.tensor([[[2.0, 1.0], [4.0, 3.0]]])  # mean (3, 2) -> (3, 4) -> (.6, .8)
    torch.testing.assert_close(model.encode_image(image), torch.tensor([[0.6, 0.8]]))
    tokens, grid = model.image_tokens(image)
    torch.testing.assert_close(tokens[0], torch.tensor([[2.0, 2.0], [4.0, 6.0]]) / 5)  # (3, 4), their mean, is 5 long
    assert grid == (1, 2)
    model.text_encoder.forward = lambda x, mask: TextOutput(tokens=x[:, None], pooled=x.float())  # type: ignore[method-assign]
    torch.testing.assert_close(model.encode_text(torch.tensor([[0, 5]])), torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("projection", ["linear", "mlp"])
@pytest.mark.parametrize("encoder", [VIT, TimmConfig(model="resnet10t", img_size=(32, 32))])
def test_dual__unit_vectors_from_real_encoders(encoder: Any, projection: str) -> None:
    model = dual(encoder, projection=projection)
    ids, mask = ClipTokenizer()(["effusion", "no effusion"])
    image = model.encode_image(torch.randn(3, 1, 32, 32))
    text = model.encode_text(ids[:, :16], mask[:, :16])
    assert image.shape == (3, 24)
    assert text.shape == (2, 24)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(2))
    assert not torch.allclose(text[0], text[1], atol=1e-3)
    tokens, grid = model.image_tokens(torch.randn(3, 1, 32, 32))
    assert tokens.shape == (3, math.prod(grid), 24)
    if projection == "mlp" or encoder is VIT:
        torch.testing.assert_close(tokens.norm(dim=2), torch.ones(3, math.prod(grid)))


def test_dual__mean_pooled_score_is_shared_among_the_patches() -> None:
    model = dual(TimmConfig(model="resnet10t", img_size=(64, 64)))
    x = torch.randn(2, 1, 64, 64)
    tokens, _ = model.image_tokens(x)
    torch.testing.assert_close(tokens.mean(dim=1), model.encode_image(x))
    assert tokens.norm(dim=2).std() > 0.01


def test_dual__patches_of_a_maximum_keep_their_lengths() -> None:
    model = dual(
        Resnet3dConfig(
            depth=18,
            layers=(1,),
            widths=(8,),
            strides=(1,),
            stem_stride=(4, 4, 4),
            stem_pool=False,
            img_size=(16,) * 3,
            pool="max",
        )
    )
    x = torch.randn(2, 1, 16, 16, 16)
    vector, output = model.encode_image_and_patches(x)
    whole = model.image_projection(output.patch_tokens.amax(dim=1)).norm(dim=1)
    torch.testing.assert_close(model.image_projection(output.patch_tokens.amax(dim=1)) / whole[:, None], vector)
    torch.testing.assert_close(model.image_tokens(x)[0], model.image_projection(output.patch_tokens) / whole[:, None, None])


def test_dual__class_token_model_maps_by_value_path() -> None:
    model = dual()
    x = torch.randn(1, 1, 32, 32)
    expected = model.image_projection(model.image_encoder.forward_dense(x).patch_tokens)
    torch.testing.assert_close(model.image_tokens(x)[0], torch.nn.functional.normalize(expected, dim=-1))
    assert not torch.allclose(expected, model.image_projection(model.image_encoder(x).patch_tokens), atol=1e-3)


def test_dual__maps_by_the_patch_tokens_where_they_were_aligned() -> None:
    model = dual()
    model.dense = "patches"
    x = torch.randn(1, 1, 32, 32)
    vector, output = model.encode_image_and_patches(x)
    expected = model.image_projection(output.patch_tokens)
    torch.testing.assert_close(model.image_tokens(x)[0], torch.nn.functional.normalize(expected, dim=-1))
    torch.testing.assert_close(vector, model.encode_image(x))


def test_dual__keep_reaches_the_encoder() -> None:
    model = dual()
    x = torch.randn(1, 1, 32, 32)
    part = model.encode_image(x, torch.arange(8)[None])
    assert not torch.allclose(part, model.encode_image(x), atol=1e-4)
    changed = x.clone()
    changed[..., 16:, :] = 9.0  # rows of patches 8..15
    torch.testing.assert_close(model.encode_image(changed, torch.arange(8)[None]), part)


def test_dual__scale_and_bias() -> None:
    model = dual(temperature=0.05)
    assert model.logit_scale.exp().item() == pytest.approx(20)
    assert model.logit_scale.requires_grad
    assert model.logit_bias is None
    fixed = dual(learn_temperature=False, loss="sigmoid", logit_bias=-7.5)
    assert "logit_scale" not in dict(fixed.named_parameters())
    assert "logit_scale" in fixed.state_dict()
    assert fixed.logit_bias.item() == -7.5
    assert fixed.logit_bias.requires_grad


def test_dual__float32_vectors_under_autocast() -> None:
    model = dual()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vector = model.encode_image(torch.randn(2, 1, 32, 32))
    assert vector.dtype == torch.float32
    torch.testing.assert_close(vector.norm(dim=1), torch.ones(2), rtol=1e-6, atol=1e-6)


def test_build_dual__clip_text_follows_the_tokenizer(minilm: Path) -> None:
    model = dual(tokenizer={"name": "clip", "context_length": 20})
    assert model.text_encoder.positional_embedding.shape == (20, 32)
    assert model.text_encoder.token_embedding.num_embeddings == 49408
    model = dual(tokenizer={"name": "hf", "path": str(minilm), "context_length": 24})
    assert model.text_encoder.token_embedding.num_embeddings == 30522
    assert model.text_encoder.positional_embedding.shape == (24, 32)


def test_build_dual__takes_a_contrastive_config() -> None:
    from medfm.objectives.config import ContrastiveConfig

    config = ContrastiveConfig(text_encoder=CLIP_TEXT, embed_dim=24, temperature=0.1)
    torch.manual_seed(0)
    model = build_dual(VIT, config, ClipTokenizer())
    assert model.embed_dim == 24
    assert model.logit_scale.item() == pytest.approx(math.log(10))


def test_build_dual__unfit_tokenizer_is_refused(minilm: Path, tmp_path: Path) -> None:
    text = {"name": "hf_text", "path": str(minilm), "pretrained": False}
    with pytest.raises(ConfigError, match=r"49408 tokens, the text encoder 30522; set objective\.tokenizer"):
        dual(text_encoder=text)
    larger = tmp_path / "larger"  # CLIP's ids all fit in, and are other words there
    larger.mkdir()
    config = json.loads((minilm / "config.json").read_text())
    (larger / "config.json").write_text(json.dumps(config | {"vocab_size": 60000}))
    with pytest.raises(ConfigError, match=r"49408 tokens, the text encoder 60000; set objective\.tokenizer"):
        dual(text_encoder={**text, "path": str(larger)})
    with pytest.raises(ConfigError, match="context_length: 1024 exceeds the 512 positions"):
        dual(text_encoder=text, tokenizer={"name": "hf", "path": str(minilm), "context_length": 1024})
    assert dual(text_encoder=text, tokenizer={"name": "hf", "path": str(minilm)}).text_encoder.embed_dim == 384


def test_unit__is_normalize_and_so_are_its_gradients() -> None:
    x = torch.randn(3, 5, 7, dtype=torch.float64)
    x[0, 0] = 0
    grad = torch.randn_like(x)
    found = []
    for way in (unit, lambda value: F.normalize(value, dim=-1)):
        given = x.clone().requires_grad_()
        made = way(given)
        made.backward(grad)
        found.append((made.detach(), given.grad))
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)
    some = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, some)
    assert unit(some.to(torch.bfloat16)).dtype == torch.float32
