"""A step followed without computing it, against the same step computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medfm.config.resolve import resolve
from medfm.training.config import PretrainConfig
from medfm.training.plan.estimate import memory_of
from medfm.training.plan.flops import attention_flops, op_flops, vit_forward_flops
from medfm.training.plan.measure import measure_step
from medfm.training.plan.settings import Setting
from medfm.training.plan.trace import trace_step

TEXT = {"objective.text_encoder.depth": 1, "objective.text_encoder.embed_dim": 64, "objective.text_encoder.num_heads": 2}
MAE = {"objective": "mae", "objective.decoder_dim": 64, "objective.decoder_depth": 1, "objective.decoder_heads": 2}
VOLUME = {"preprocess.size": [32, 32, 32], "encoder.img_size": [32, 32, 32], "encoder.patch_size": [8, 8, 8]}
CASES: dict[str, dict[str, Any]] = {
    "contrastive": TEXT,
    "contrastive 3d": {**TEXT, **VOLUME},
    "contrastive, patches dropped": {**TEXT, "objective.patch_dropout": 0.5},
    "contrastive, checkpointing": {**TEXT, "encoder.gradient_checkpointing": True},
    "mae": MAE,
    "mae 3d": {**MAE, **VOLUME},
    "dino": {"objective": "dino", "objective.out_dim": 256},
    "simclr": {"objective": "simclr"},
    "byol": {"objective": "byol", "objective.hidden_dim": 128},
    "moco": {"objective": "moco", "objective.hidden_dim": 128},
    "barlow": {"objective": "barlow", "objective.out_dim": 128},
}


def recipe(**changes: Any) -> PretrainConfig:
    tiny = {
        "data.manifest": "none.parquet",
        "preprocess.size": [48, 48],
        "encoder.img_size": [48, 48],
        "encoder.patch_size": [8, 8],
        "encoder.embed_dim": 64,
        "encoder.depth": 2,
        "encoder.num_heads": 2,
        "data.batch_size": 4,
    }
    return resolve(PretrainConfig, "pretrain", None, {**tiny, **changes}, files=False).config


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_trace_step__is_what_a_real_step_takes(name: str, precision: str) -> None:
    config = recipe(**CASES[name], **{"trainer.precision": precision})
    foot, weights = trace_step(config, 4, cuda=False)
    real = measure_step(config, 4, "cpu", steps=1)
    assert real.kept is not None
    assert foot.kept == pytest.approx(real.kept, rel=0.05)
    memory = memory_of(foot, weights, Setting("32-true", False, 4), 1)
    assert memory.total - memory.margin == pytest.approx(real.peak, rel=0.05)
    assert foot.guesses == 0


def test_trace_step__further_texts_and_concepts() -> None:
    """A batch of the plan holds what terms read. The word table's gradients of two passes are summed in place, which is not
    followed: one table too many at most."""
    terms = {"objective.terms": [{"name": "sentences"}, {"name": "hard_negatives"}], "objective.max_sentences": 3}
    config = recipe(**TEXT, **terms, **{"objective.knowledge": "chest"})
    foot, weights = trace_step(config, 4, cuda=False)
    real = measure_step(config, 4, "cpu", steps=1)
    assert real.kept is not None
    assert foot.kept == pytest.approx(real.kept, rel=0.05)
    memory = memory_of(foot, weights, Setting("32-true", False, 4), 1)
    table = 49408 * 64 * 4
    assert real.peak * 0.95 < memory.total - memory.margin < real.peak * 1.05 + table
    assert foot.kept > trace_step(recipe(**TEXT), 4, cuda=False)[0].kept


@pytest.mark.parametrize("term", ["knowledge", "concepts", "streams"])
def test_trace_step__terms_that_tokenise_concepts(term: str) -> None:
    """They read token ids as they are built, on the meta device."""
    config = recipe(**TEXT, **{"objective.terms": [{"name": term}], "objective.knowledge": "chest"})
    foot, _ = trace_step(config, 2, cuda=False)
    assert foot.forward_flops > trace_step(recipe(**TEXT), 2, cuda=False)[0].forward_flops


@pytest.mark.parametrize("changes", [{}, VOLUME])
def test_trace_step__counts_the_textbooks_operations(changes: dict[str, Any]) -> None:
    dims = {"encoder.embed_dim": 192, "encoder.depth": 3, "encoder.num_heads": 3}
    config = recipe(**{**CASES["simclr"], **changes, **dims})
    shallow = recipe(**{**CASES["simclr"], **changes, **dims, "encoder.depth": 1})
    patches = 64 if changes else 36
    counted = trace_step(config, 2)[0].forward_flops - trace_step(shallow, 2)[0].forward_flops
    block = vit_forward_flops(patches + 1, 0, 0, 192, 1)
    assert counted == pytest.approx(4 * 2 * block, rel=0.01)  # two images, two views, two blocks


def test_trace_step__checkpointing_keeps_less_and_computes_more() -> None:
    plain, _ = trace_step(recipe(**TEXT), 4)
    again, _ = trace_step(recipe(**CASES["contrastive, checkpointing"]), 4)
    assert again.kept < 0.8 * plain.kept
    assert 1.1 * plain.flops < again.flops < 1.34 * plain.flops
    assert again.forward_flops == plain.forward_flops


def test_trace_step__attention_memory_is_linear_in_tokens() -> None:
    """Fused attention on a GPU keeps no N x N weights: 8 times the tokens take 8 times the memory."""
    sizes = [recipe(**{**TEXT, **VOLUME, **{k: [n] * 3 for k in ("preprocess.size", "encoder.img_size")}}) for n in (64, 128)]
    small, large = (trace_step(config, 2)[0].kept - trace_step(config, 1)[0].kept for config in sizes)
    assert large / small == pytest.approx(8, rel=0.1)


def test_op_flops__grouped_convolution_backward() -> None:
    """torch's counter forgets the groups."""
    x, weight, grad = torch.empty(2, 8, 16, 16), torch.empty(8, 1, 3, 3), torch.empty(2, 8, 14, 14)
    func = torch.ops.aten.convolution_backward.default
    args = (grad, x, weight, [8], [1, 1], [0, 0], [1, 1], False, [0, 0], 8, [True, True, True])
    assert op_flops(func, args, {}, None) == 2 * (2 * grad.numel() * 9)


def test_attention_flops__two_products() -> None:
    assert attention_flops(1, 10, 20, 8) == 2 * 2 * 10 * 20 * 8
    assert attention_flops(3, 10, 10, 8, is_causal=True) == 3 * 2 * 10 * 10 * 8


def test_vit_forward_flops__published_count_of_vit_b() -> None:
    """17.6 GMACs: Touvron et al. 2021 (DeiT), table 5."""
    assert vit_forward_flops(197, 196, 768, 768, 12) / 2 == pytest.approx(17.6e9, rel=0.005)
