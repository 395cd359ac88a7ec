"""Encoding what alignment terms read, once: vectors, patch and word tokens, and further texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from medfm.encoders.dual import DualEncoder
from medfm.errors import DataError
from medfm.objectives.gather import Gather
from medfm.objectives.grad_cache import encode_in_chunks
from medfm.types import Texts


def never_empty(x: Tensor, value: float = 0) -> Tensor:
    """x (n, ...), or where n is 0 one row of `value`: encoders do not take empty batches. What they give is cut to [:n]."""
    return x if len(x) else x.new_full((1, *x.shape[1:]), value)


def pick_texts(texts: Mapping[str, Texts], rows: Tensor, size: int) -> dict[str, Texts]:
    """The texts of the batch's `rows` (n,), numbered as these, of a batch of `size` rows."""
    place = rows.new_full((size,), -1)
    place[rows] = torch.arange(len(rows), device=rows.device)
    picked = {}
    for kind, some in texts.items():
        row = place[some.row]
        stay = row >= 0
        picked[kind] = replace(
            some, tokens=some.tokens[stay], attention_mask=some.attention_mask[stay], row=row[stay], code=some.code[stay]
        )
    return picked


def encode_texts(
    dual: DualEncoder, texts: Mapping[str, Texts], kinds: tuple[str, ...], chunk: int, like: Tensor, gather: Gather
) -> dict[str, Tensor]:
    """The (M, D) unit vectors of each kind of text: all kinds in one pass, equal texts once.

    Args:
        kinds: what is encoded; the batch must have each.
        chunk: texts encoded at once, with exact gradients (see `medfm.objectives.grad_cache`); 0: all.
        like: (.., D) whose device, kind and graph the vectors of no texts have.
        gather: the devices, which all encode equally often (see `encode_in_chunks`).

    Raises:
        DataError: the batch lacks a kind.
    """
    lacking = [kind for kind in kinds if kind not in texts]
    if lacking:
        raise DataError(
            f"a term of the objective reads '{lacking[0]}', but the batches hold no such texts: index with reports=..."
        )
    chosen = [texts[kind] for kind in kinds]
    counts = [len(some.row) for some in chosen]
    if not sum(counts) and (gather.world_size == 1 or not kinds):
        # With a gradient, for what other devices' texts have one of: a collective that only they run would never end.
        return {kind: like.new_zeros(0, like.shape[-1]) + 0.0 * like.sum() for kind in kinds}
    width = max(1, *(some.tokens.shape[1] for some in chosen))
    tokens = torch.cat([F.pad(some.tokens, (0, width - some.tokens.shape[1])) for some in chosen])
    mask = torch.cat([F.pad(some.attention_mask, (0, width - some.attention_mask.shape[1])) for some in chosen])
    unique, back = torch.cat([some.code for some in chosen]).unique(return_inverse=True)
    number = torch.arange(len(back), device=back.device)
    first = torch.full_like(unique, len(back)).scatter_reduce_(0, back, number, "amin")
    (vectors,) = encode_in_chunks(
        lambda *part: (dual.encode_text(*part),),
        [never_empty(tokens[first]), never_empty(mask[first], 1)],  # other devices have texts
        chunk,
        modules=[dual],
        gather=gather,
    )
    return dict(zip(kinds, vectors[back].split(counts), strict=True))
