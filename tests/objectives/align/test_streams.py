from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medfm.errors import DataError
from medfm.objectives.align.streams import existence_loss, prototype_loss, relation_loss
from medfm.objectives.gather import SingleDevice

Make = Callable[..., Any]
ONE = SingleDevice()
NAN = torch.nan
SMALL = {"name": "streams", "dim": 8, "depth": 2, "num_heads": 2, "dropout": 0.0}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


LIES_IN = torch.tensor([[[1, 0, 1, 0], [0, 0, 0, 0]], [[0, 0, 0, 1], [0, 1, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]]) == 1
NEAR = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]) == 1


def test_prototype_loss__is_a_softmax_of_the_mean_partner_and_the_others() -> None:
    found, book = random(3, 2, 5), random(4, 5, seed=1)
    losses = []
    for b, q in [(0, 0), (1, 0), (1, 1)]:
        partners = [c for c in range(4) if LIES_IN[b, q, c]]
        mean = torch.stack([book[c] for c in partners]).mean(0)
        others = [c for c in range(4) if c not in partners and not any(NEAR[p, c] for p in partners)]
        scores = torch.stack([found[b, q] @ mean, *(found[b, q] @ book[c] for c in others)])
        losses.append(-float(F.log_softmax(scores, 0)[0]))
    expected = sum(losses) / 3
    assert float(prototype_loss(found, book, LIES_IN, NEAR, ONE)) == pytest.approx(expected, rel=1e-12)


def test_prototype_loss__is_the_authors_cross_entropy_with_all_negatives() -> None:
    """Their candidates stand in a (B Q, positions, D) tensor with the mean partner first; here there are seven others."""
    found, book = random(1, 1, 5), random(8, 5, seed=1)
    lies_in = torch.zeros(1, 1, 8, dtype=torch.bool)
    lies_in[..., 3] = True
    candidates = torch.cat([book[3:4], book[[0, 1, 2, 4, 5, 6, 7]]])[None]
    scores = torch.bmm(candidates, found.reshape(1, 5, 1)).squeeze(-1)
    expected = F.cross_entropy(scores, torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(prototype_loss(found, book, lies_in, torch.zeros(8, 8) == 1, ONE), expected)


def test_relation_loss__is_binary_cross_entropy_of_what_is_said() -> None:
    pathology, anatomy = random(3, 2, 5), random(3, 4, 5, seed=1)
    related = LIES_IN.double()
    related[0, 1] = related[2, 0] = NAN
    total, count = 0.0, 0
    for b in range(3):
        for p in range(2):
            for a in range(4):
                y = float(related[b, p, a])
                near = any(LIES_IN[b, p, other] and NEAR[other, a] for other in range(4))
                if math.isnan(y) or (y == 0 and near):
                    continue
                x = float(pathology[b, p] @ anatomy[b, a])
                total += math.log1p(math.exp(-x if y else x))
                count += 1
    assert count == 3 * 8 - 8 - 2
    assert float(relation_loss(pathology, anatomy, related, NEAR, ONE)) == pytest.approx(total / count, rel=1e-12)


def test_existence_loss__counts_what_is_said() -> None:
    logits, exists = random(2, 3, 2), torch.tensor([[1, NAN, 0], [NAN, NAN, 1]])
    known = [(0, 0, 1), (0, 2, 0), (1, 2, 1)]
    expected = sum(-float(F.log_softmax(logits[b, c], 0)[y]) for b, c, y in known) / 3
    assert float(existence_loss(logits, exists, ONE)) == pytest.approx(expected, rel=1e-12)
    assert float(existence_loss(logits, torch.full((2, 3), NAN), ONE)) == 0


def test_losses__have_the_gradients_of_their_values() -> None:
    found, other, book = random(3, 2, 5).requires_grad_(), random(3, 4, 5, seed=1).requires_grad_(), random(4, 5, seed=2)
    related = LIES_IN.double()
    related[0, 1] = NAN
    assert torch.autograd.gradcheck(lambda x: prototype_loss(x, book, LIES_IN, NEAR, ONE), [found])
    assert torch.autograd.gradcheck(lambda x, y: relation_loss(x, y, related, NEAR, ONE), [found, other])


def decoded(stream: Any, tokens: Tensor, queries: Tensor) -> Tensor:
    """The pre-norm decoder, written out: self-attention, cross-attention, two layers, each on a residual."""
    y = F.relu(tokens @ stream.project[0].weight.t() + stream.project[0].bias)
    memory = y @ stream.project[2].weight.t() + stream.project[2].bias

    def attend(module: Any, x: Tensor, y: Tensor) -> Tensor:
        wq, wk, wv = module.in_proj_weight.chunk(3)
        bq, bk, bv = module.in_proj_bias.chunk(3)
        q, k, v = ((t @ w.t() + b).unflatten(-1, (2, 4)).transpose(0, 1) for t, w, b in ((x, wq, bq), (y, wk, bk), (y, wv, bv)))
        weights = (q @ k.transpose(1, 2) / 2).softmax(-1)
        return (weights @ v).transpose(0, 1).flatten(1) @ module.out_proj.weight.t() + module.out_proj.bias

    x = queries
    for layer in stream.decoder.layers:
        n = layer.norm1(x)
        x = x + attend(layer.self_attn, n, n)
        x = x + attend(layer.multihead_attn, layer.norm2(x), memory)
        x = x + layer.linear2(F.relu(layer.linear1(layer.norm3(x))))
    found: Tensor = stream.decoder.norm(x)
    return found


def test_term__is_medslips_sum(make_objective: Make, make_text_batch: Make, knowledge: Any, tiny_tokenizer: Any) -> None:
    """Gate, two streams, three losses, from the tokens of each row by itself."""
    batch = make_text_batch()
    terms = [{**SMALL, "prototypes": 0.5, "relations": 2.0}]
    objective = make_objective(weight=0.0, knowledge="chest", terms=terms)
    (term,) = objective.terms
    rows = [r for r in range(10) if r != 1]
    dual = objective.dual
    with torch.no_grad():
        books = [
            dual.encode_text(*tiny_tokenizer([knowledge.describe(name) for name in names]))
            for names in (("Opacity", "Nodule", "Effusion"), ("Lung", "Apex", "Pleura"))
        ]
        tokens = dual.image_encoder(batch.images[rows]).patch_tokens
        found: list[list[Tensor]] = [[], []]
        for x in tokens:
            gate = x @ term.gate.weight.t() + term.gate.bias
            for side, (stream, part) in enumerate(((term.pathology, gate * x), (term.anatomy, (1 - gate) * x))):
                found[side].append(decoded(stream, part, books[side] @ term.query.weight.t() + term.query.bias))
        both = [torch.stack(f) for f in found]
        said = batch.concepts[rows]
        pathology, anatomy = said[:, [0, 2, 4]], said[:, [1, 3, 5]]
        related = torch.zeros(9, 3, 3).double()
        for b, row in enumerate(rows):
            for p in range(3):
                for a in range(3):
                    related[b, p, a] = (
                        1.0 if batch.relations[row, 2 * p, 2 * a + 1] else NAN if pathology[b, p].isnan() else 0.0
                    )
        lies_in = related == 1
        assert lies_in.sum() > 3
        exists_a = torch.full((9, 3), NAN)
        exists_a[anatomy == 1] = 0.0
        exists_a[lies_in.any(1)] = 1.0
        assert (exists_a == 0).any()
        near = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])  # in both streams
        output = objective(batch)
        expected = (
            existence_loss(term.pathology.exists(both[0]), pathology, ONE)
            + existence_loss(term.anatomy.exists(both[1]), exists_a, ONE)
            + 0.5 * prototype_loss(term.pathology.to_prototypes(both[0]), books[1], lies_in, near, ONE)
            + 0.5 * prototype_loss(term.anatomy.to_prototypes(both[1]), books[0], lies_in.transpose(1, 2), near, ONE)
            + 2.0 * relation_loss(both[0], both[1], related, near, ONE)
        )
    torch.testing.assert_close(output.loss, expected, rtol=1e-9, atol=0)
    assert {"streams_relations", "streams_existence_pathology", "streams_prototypes_anatomy"} <= set(output.logs)


def test_term__gives_all_parameters_a_gradient_and_prototypes_none(make_objective: Make, make_text_batch: Make) -> None:
    objective, batch = make_objective(weight=0.0, knowledge="chest", terms=[SMALL]), make_text_batch()
    for silent in (False, True):
        if silent:
            batch.concepts[:], batch.relations[:] = torch.nan, False
        objective.zero_grad()
        objective(batch).loss.backward()
        assert all(p.grad is not None for p in objective.terms.parameters())
        assert not any(p.grad is not None and p.grad.any() for p in objective.dual.text_encoder.parameters())
        reached = any(p.grad is not None and bool(p.grad.any()) for p in objective.dual.image_encoder.parameters())
        assert reached != silent


def test_term__needs_relations(make_objective: Make, make_text_batch: Make) -> None:
    objective, batch = make_objective(knowledge="chest", terms=[SMALL]), make_text_batch()
    batch.relations = None
    with pytest.raises(DataError, match="relations"):
        objective(batch)
