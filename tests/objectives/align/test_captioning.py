from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfm.errors import ConfigError
from medfm.objectives.align.caption_decoder import CaptionDecoder
from medfm.objectives.align.captioning import CaptioningTerm
from medfm.objectives.align.config import CaptioningConfig

Make = Callable[..., Any]
SMALL = {"name": "captioning", "depth": 2, "num_heads": 2, "weight": 1.0}


@pytest.fixture
def rows(make_text_batch: Make) -> Tensor:
    return torch.tensor([r for r in range(10) if r != 1])


def clips_loss(logits: Tensor, batch: Any, rows: Tensor) -> Tensor:
    """The mean over real next words, word by word."""
    losses = []
    for i, row in enumerate(rows.tolist()):
        for t in range(1, int(batch.attention_mask[row].sum())):
            losses.append(-F.log_softmax(logits[i, t - 1], 0)[batch.tokens[row, t]])
    return torch.stack(losses).mean()


def test_decoder_and_loss__are_open_clips(make_objective: Make, make_text_batch: Make, rows: Tensor) -> None:
    from open_clip.loss import CoCaLoss
    from open_clip.transformer import MultimodalTransformer

    objective, batch = make_objective(weight=0.0, terms=[{**SMALL, "weight": 2.0}]), make_text_batch()
    (term,) = objective.terms
    theirs = MultimodalTransformer(16, 2, 2, context_length=6, output_dim=32).double()
    state = {**term.decoder.state_dict(), "text_projection": term.write.weight.t()}
    theirs.load_state_dict(state)
    with torch.no_grad():
        image = term.see(objective.dual.image_encoder(batch.images[rows]).patch_tokens)
        words = objective.dual.text_encoder(batch.tokens[rows], batch.attention_mask[rows]).tokens
        logits = theirs(image, words[:, :-1])
        width = words.shape[1]
        assert (batch.tokens[rows] == 0).eq(batch.attention_mask[rows] == 0).all()
        expected = CoCaLoss(2.0, 0)(None, None, logits, batch.tokens[rows, 1:width], torch.tensor(1.0))[1]
        loss = objective(batch).loss
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(loss, 2 * clips_loss(logits, batch, rows), rtol=1e-10, atol=0)


@pytest.mark.parametrize("share", [False, True])
def test_term__of_the_embedding_reads_the_words_before(
    make_objective: Make, make_text_batch: Make, rows: Tensor, share: bool
) -> None:
    terms = [{**SMALL, "inputs": "embedding", "share_embedding": share, "dim": 8}]
    objective, batch = make_objective(weight=0.0, terms=terms), make_text_batch()
    (term,) = objective.terms
    embedding = objective.dual.text_encoder.token_embedding.weight
    assert not any(p is embedding for p in term.parameters())
    with torch.no_grad():
        words = term.read(embedding[batch.tokens[rows, :-1]]) + term.positions[:5]
        hidden = term.decoder(words, term.see(objective.dual.image_encoder(batch.images[rows]).patch_tokens))
        logits = term.write(hidden)
        logits = logits @ embedding.t() if share else logits
    output = objective(batch)
    torch.testing.assert_close(output.loss.detach(), clips_loss(logits, batch, rows), rtol=1e-10, atol=0)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in term.parameters())


def test_decoder__knows_no_later_word_and_looks_at_the_image() -> None:
    torch.manual_seed(0)
    decoder = CaptionDecoder(8, 2, 2, 2.0).double()
    words, image = torch.randn(1, 5, 8).double(), torch.randn(1, 3, 8).double()
    before = decoder(words, image)
    words[:, 3] += torch.randn(8)
    after = decoder(words, image)
    torch.testing.assert_close(after[:, :3], before[:, :3], rtol=0, atol=1e-14)
    assert (after[:, 3:] - before[:, 3:]).abs().min(dim=1).values.max() > 1e-4
    assert (decoder(words, image.flip(2)) - after).abs().max() > 1e-4


def test_padding__changes_nothing(make_objective: Make, make_text_batch: Make) -> None:
    objective, batch = make_objective(weight=0.0, terms=[SMALL]), make_text_batch()
    before = objective(batch).loss
    batch.tokens[batch.attention_mask == 0] = 17
    torch.testing.assert_close(objective(batch).loss, before, rtol=1e-12, atol=0)


def test_scores__of_chunks_are_those_of_all(
    make_objective: Make, make_text_batch: Make, monkeypatch: pytest.MonkeyPatch, gradients: Any
) -> None:
    results = []
    for chunk in (4096, 7):
        monkeypatch.setattr(CaptioningTerm, "CHUNK", chunk)
        objective = make_objective(weight=0.0, terms=[{**SMALL, "share_embedding": True}])
        output = objective(make_text_batch())
        output.loss.backward()
        results.append((output.loss.detach(), output.logs["captioning_accuracy"], gradients(objective)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-14)


def test_gradients__are_right(make_objective: Make, make_text_batch: Make) -> None:
    objective, batch = make_objective(weight=0.0, terms=[{**SMALL, "depth": 1}]), make_text_batch(6)
    weight = objective.terms[0].decoder.cross_attn[0].attn.in_proj_weight
    objective(batch).loss.backward()
    for place in ((0, 3), (20, 5), (40, 9)):
        with torch.no_grad():
            sides = []
            for step in (1e-5, -2e-5):
                weight[place] += step
                sides.append(objective(batch).loss)
            weight[place] += 1e-5
        torch.testing.assert_close(weight.grad[place], (sides[0] - sides[1]) / 2e-5, rtol=1e-4, atol=1e-9)


def test_term__learns_to_tell_reports_apart_by_their_images(make_objective: Make, make_text_batch: Make) -> None:
    """All reports begin alike: their one word can be read off the image alone."""
    objective, batch = make_objective(weight=0.0, terms=[SMALL]), make_text_batch()
    batch.tokens[:] = torch.stack([torch.tensor([1, 2 + row, 31, 0, 0, 0]) for row in range(10)])
    batch.attention_mask[:] = (batch.tokens > 0).long()
    optimiser = torch.optim.Adam(objective.parameters(), lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        output = objective(batch)
        output.loss.backward()
        optimiser.step()
    assert float(output.logs["captioning_accuracy"]) > 0.9
    batch.images = batch.images.flip(0)
    assert float(objective(batch).logs["captioning_accuracy"]) < 0.65


def test_term__refuses_encoders_that_see_both_ways(make_objective: Make, tiny_tokenizer: Any) -> None:
    dual = make_objective().dual
    dual.text_encoder = nn.Module()
    dual.text_encoder.embed_dim = 16  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="causal"):
        CaptioningTerm(CaptioningConfig(inputs="words"), dual=dual, tokenizer=tiny_tokenizer)
    with pytest.raises(ConfigError, match="shows no token embedding"):
        CaptioningTerm(CaptioningConfig(), dual=dual, tokenizer=tiny_tokenizer)
    with pytest.raises(ConfigError, match="not a multiple of num_heads"):
        CaptioningTerm(CaptioningConfig(dim=9), dual=dual, tokenizer=tiny_tokenizer)
