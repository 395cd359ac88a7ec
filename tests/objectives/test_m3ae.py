from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medfm.encoders.image import ImageModel
from medfm.encoders.positions import sincos_positions
from medfm.errors import ConfigError, DataError
from medfm.objectives.base import Parts
from medfm.objectives.config import M3aeConfig
from medfm.objectives.m3ae import M3aeObjective
from medfm.objectives.masking import split_text
from medfm.registry import ENCODERS, OBJECTIVES
from medfm.transforms.config import AugmentConfig, PreprocessConfig
from medfm.transforms.draws import Draws
from medfm.transforms.preprocess import Preprocess
from medfm.types import Batch

Make = Callable[..., Any]


@pytest.fixture
def batch(make_batch: Make) -> Batch:
    """Reports of 5, 0, 3, 1, 5 and 4 words and an end token (31), in a width of 6."""
    made = make_batch(6)
    for row, words in enumerate([5, 0, 3, 1, 5, 4]):
        made.tokens[row, words] = 31
        made.tokens[row, words + 1 :] = 0
        made.attention_mask[row, words + 1 :] = 0
    made.attention_mask[1] = 0
    return made


def attention(block: Any, x: Tensor) -> Tensor:
    """A pre-norm block on one sequence (N, E), written out."""
    n, e = x.shape
    heads = block.attn.num_heads
    q, k, v = block.attn.qkv(block.norm1(x)).view(n, 3, heads, e // heads).permute(1, 2, 0, 3)
    weights = (q @ k.transpose(1, 2) / (e // heads) ** 0.5).softmax(-1)
    x = x + block.attn.proj((weights @ v).transpose(0, 1).reshape(n, e))
    return x + block.mlp(block.norm2(x))


def reference(objective: M3aeObjective, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
    """The paper's losses, row by row: real tokens alone, no attention mask, the decoder's tokens in natural order."""
    encoder: Any = objective.network.image_encoder
    decoder = objective.decoder
    real = (batch.attention_mask == 1) & (batch.text_group >= 0)[:, None]
    masks, words = objective._image_masks(batch.images, draws), objective._text_masks(batch.tokens, real, draws)
    image_losses, text_losses = [], []
    for row, image in enumerate(batch.images):
        keep, hidden = masks.keep[row], masks.masked[row]
        seen, asked = words.seen[row][words.seen_real[row]], words.masked[row][words.masked_real[row]]
        tokens = batch.tokens[row]
        patches = image.unfold(1, 2, 2).unfold(2, 2, 2).permute(1, 2, 3, 4, 0).reshape(16, 4)
        x = patches @ encoder.patch_embed.proj.weight.flatten(1).t() + encoder.patch_embed.proj.bias + encoder.pos_embed[0, 1:]
        text = objective.token_embedding.weight[tokens] + sincos_positions((6,), 16)[0] + objective.text_type
        x = torch.cat([encoder.cls_token[0] + encoder.pos_embed[0, :1], x[keep], text[seen]])
        for block in encoder.blocks:
            x = attention(block, x)
        x = decoder.embed(encoder.norm(x))
        whole = decoder.mask_token[0].expand(16, -1).clone()
        whole[keep] = x[1 : 1 + len(keep)]
        said = decoder.text_mask_token.expand(6, -1).clone()
        said[seen] = x[1 + len(keep) :]
        said = (said + sincos_positions((6,), 12)[0] + decoder.text_type)[: int(real[row].sum())]
        x = torch.cat([x[:1], whole + sincos_positions((4, 4), 12)[0] + decoder.image_type, said])
        for block in decoder.blocks:
            x = attention(block, x)
        x = decoder.norm(x)
        target = (patches - patches.mean(1, keepdim=True)) / (patches.var(1, keepdim=True) + 1e-6).sqrt()
        image_losses.append(((decoder.pred(x[1:17]) - target) ** 2).mean(1)[hidden].mean())
        if len(asked):
            log_probability = decoder.text_pred(x[17:]).log_softmax(1)
            text_losses.append(-log_probability[asked, tokens[asked]].mean())
    return torch.stack(image_losses).mean(), torch.stack(text_losses).mean()


def test_loss_and_gradients__are_the_papers_row_by_row(make_m3ae: Make, batch: Batch) -> None:
    objective = make_m3ae(image_weight=2.0, text_weight=0.3)
    image, text = reference(objective, batch, Draws(0))
    expected = 2.0 * image + 0.3 * text
    names, parameters = zip(*objective.named_parameters(), strict=True)
    wanted = torch.autograd.grad(expected, parameters)
    output = objective(batch, Draws(0))
    torch.testing.assert_close(output.loss, expected, rtol=1e-9, atol=0)
    assert float(output.logs["image_loss"]) == pytest.approx(float(image.detach()))
    assert float(output.logs["text_loss"]) == pytest.approx(float(text.detach()))
    assert float(output.logs["rows_without_text"]) == 1.0
    for name, mine, theirs in zip(names, torch.autograd.grad(output.loss, parameters), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_checkpointing__changes_nothing(make_m3ae: Make, make_network: Make, batch: Batch) -> None:
    def gradient(objective: Any) -> Tensor:
        objective(batch, Draws(0)).loss.backward()
        return objective.network.image_encoder.patch_embed.proj.weight.grad

    plain, saving = make_m3ae(), make_m3ae(make_network(gradient_checkpointing=True).image_encoder)
    torch.testing.assert_close(gradient(saving), gradient(plain), rtol=1e-10, atol=0)


def test_split_text__masks_words_alone_and_loses_none() -> None:
    words = torch.zeros(5, 10, dtype=torch.bool)
    special = torch.zeros_like(words)
    for row, count in enumerate([8, 4, 1, 0, 5]):
        words[row, 1 : 1 + count] = True
        special[row, [0, 1 + count]] = True
    special[3] = False  # no text at all
    masks = split_text(words, special, torch.rand(5, 10, generator=torch.Generator().manual_seed(0)), 0.75, specials=2)
    assert (masks.seen.shape, masks.masked.shape) == ((5, 4), (5, 6))
    for row, hidden in enumerate([6, 3, 1, 0, 4]):
        seen = set(masks.seen[row][masks.seen_real[row]].tolist())
        masked = set(masks.masked[row][masks.masked_real[row]].tolist())
        assert len(masked) == hidden
        assert not seen & masked
        assert seen | masked == set((words | special)[row].nonzero().squeeze(1).tolist())
        assert masked <= set(words[row].nonzero().squeeze(1).tolist())


def test_rows_without_text__are_not_read(make_m3ae: Make, batch: Batch) -> None:
    objective = make_m3ae()
    expected = objective(batch, Draws(0)).loss
    tokens = batch.tokens.clone()
    tokens[1] = 7  # of a row that says it has no text
    torch.testing.assert_close(objective(replace(batch, tokens=tokens), Draws(0)).loss, expected)
    drawn = torch.arange(6)
    drawn[0] = -1  # a report of which no sentence was drawn
    assert float(objective(replace(batch, drawn=drawn), Draws(0)).logs["rows_without_text"]) == 2.0


def test_batch_without_any_text__gives_every_parameter_a_gradient(make_m3ae: Make, batch: Batch, gradients: Make) -> None:
    objective = make_m3ae()
    output = objective(replace(batch, text_group=torch.full((6,), -1)), Draws(0))
    output.loss.backward()
    assert float(output.logs["text_loss"]) == 0.0
    found = gradients(objective)
    assert set(found) == {name for name, _ in objective.named_parameters()}  # data-parallel training waits for each of them
    assert all(bool(torch.isfinite(g).all()) for g in found.values())
    assert float(found["token_embedding.weight"].abs().max()) == 0.0


def test_build__takes_any_tokenizer(minilm: Path) -> None:
    parts = Parts(
        ENCODERS.parse({"name": "vit", "img_size": [8, 8], "patch_size": [4, 4], "embed_dim": 12, "depth": 1, "num_heads": 2}),
        Preprocess(PreprocessConfig(size=(8, 8), window="none")),
        AugmentConfig(),
        4,
    )
    small = {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2}
    for tokenizer, special in (
        ({"name": "clip", "context_length": 12}, [49406, 49407]),
        ({"name": "hf", "path": str(minilm), "context_length": 12}, [101, 102]),
    ):
        config = M3aeConfig.model_validate({"tokenizer": tokenizer, **small})
        each = replace(parts, tokenizer_config=config.tokenizer_config)
        objective = OBJECTIVES.build(config, parts=each)
        assert objective.special.tolist() == special
        assert isinstance(objective.model(), ImageModel)
        assert objective.model().image_encoder is each.image_encoder
        assert each.tokenizer is not None
        tokens, mask = each.tokenizer(["a nodule", "no effusion and no pneumothorax is seen in this film today", ""])
        labels, index, images = torch.zeros(3, 0), torch.arange(3), torch.randn(3, 1, 8, 8)
        batch = Batch(images, tokens, mask, index, torch.tensor([0, 1, -1]), labels, index)
        output = objective(batch, Draws(0))
        output.loss.backward()
        assert torch.isfinite(output.loss)


def test_refusals__say_what_to_do(make_m3ae: Make, batch: Batch) -> None:
    with pytest.raises(DataError, match="reports="):
        make_m3ae()(replace(batch, tokens=None))
    plain = nn.Linear(2, 2)
    plain.embed_dim = 2  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="vit"):
        M3aeObjective(M3aeConfig(), ImageModel(plain), 32, 6, [31])
    with pytest.raises(ValueError, match="multiple of decoder_heads"):
        M3aeConfig(decoder_dim=10, decoder_heads=4)
    with pytest.raises(ValueError, match="both 0"):
        M3aeConfig(image_weight=0, text_weight=0)


def test_training__fills_in_pixels_and_words(make_m3ae: Make, batch: Batch) -> None:
    objective = make_m3ae(image_mask_ratio=0.5, text_mask_ratio=0.5)
    optimiser = torch.optim.Adam(objective.parameters(), lr=5e-3)
    logs = []
    for step in range(60):
        optimiser.zero_grad()
        output = objective(batch, Draws(step % 4))
        output.loss.backward()
        optimiser.step()
        logs.append(output.logs)
    for name in ("image_loss", "text_loss"):
        first, last = (sum(float(log[name]) for log in some) for some in (logs[:4], logs[-4:]))
        assert last < 0.7 * first, name
