from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from medfm.errors import ConfigError
from medfm.objectives.align.config import MaskedWordsConfig
from medfm.objectives.align.masked_words import MaskedWordsTerm, hide_words
from medfm.transforms.draws import Draws

Make = Callable[..., Any]


def test_hide_words__follows_berts_shares() -> None:
    tokens = torch.full((400, 50), 5)
    words = torch.ones_like(tokens, dtype=torch.bool)
    words[:, -10:] = False
    noise = torch.rand(400, 50, 3, generator=torch.Generator().manual_seed(0))
    hidden, chosen = hide_words(tokens, words, noise, 0.15, 99, 1000)
    assert not chosen[:, -10:].any()
    assert float(chosen[:, :40].float().mean()) == pytest.approx(0.15, abs=0.01)
    assert torch.equal(hidden[~chosen], tokens[~chosen])
    of = hidden[chosen]
    assert float((of == 99).float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float((of == 5).float().mean()) == pytest.approx(0.1, abs=0.02)
    rest = of[(of != 99) & (of != 5)]
    assert rest.min() >= 0
    assert rest.max() < 1000
    assert len(rest.unique()) > 100


def test_term__is_cross_entropy_of_what_was_chosen(make_objective: Make, make_text_batch: Make) -> None:
    objective, batch = make_objective(weight=0.0, terms=[{"name": "masked_words", "ratio": 0.5}]), make_text_batch()
    (term,) = objective.terms
    rows = [r for r in range(10) if r != 1]
    noise = Draws(4).rand(10, 6, 3)[rows]
    losses = []
    with torch.no_grad():
        for i, row in enumerate(rows):
            tokens, mask = batch.tokens[row].clone(), batch.attention_mask[row]
            asked = [t for t in range(6) if mask[t] and tokens[t] != 31 and noise[i, t, 0] < 0.5]
            for t in asked:
                if noise[i, t, 1] < 0.8:
                    tokens[t] = 30
                elif noise[i, t, 1] < 0.9:
                    tokens[t] = int(noise[i, t, 2] * 32)
            features = objective.dual.text_encoder(tokens[None], mask[None]).tokens[0]
            logits = features @ term.predict.weight.t() + term.predict.bias
            losses += [-F.log_softmax(logits[t], 0)[batch.tokens[row, t]] for t in asked]
    assert len(losses) > 8
    output = objective(batch, Draws(4))
    torch.testing.assert_close(output.loss.detach(), torch.stack(losses).mean(), rtol=1e-9, atol=0)
    output.loss.backward()
    assert objective.dual.text_encoder.token_embedding.weight.grad[30].any()


def test_term__touches_its_parameters_where_nothing_is_chosen(make_objective: Make, make_text_batch: Make) -> None:
    objective, batch = make_objective(weight=0.0, terms=[{"name": "masked_words"}]), make_text_batch()
    batch.text_group[:] = -1
    loss = objective(batch).loss
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is not None for p in objective.terms.parameters())


def test_term__needs_a_mask_token(make_objective: Make, tiny_tokenizer: Any) -> None:
    tiny_tokenizer.mask_id = None
    with pytest.raises(ConfigError, match="no mask token"):
        MaskedWordsTerm(MaskedWordsConfig(), dual=make_objective().dual, tokenizer=tiny_tokenizer)
