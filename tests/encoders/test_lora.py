"""Language models as text encoders, and low-rank adapters on frozen ones, against peft and transformers."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medfm.encoders.build import build_dual
from medfm.encoders.config import DualConfig, HuggingFaceTextConfig
from medfm.encoders.pretrained import load_strict
from medfm.encoders.text import HuggingFaceTextEncoder
from medfm.errors import ConfigError, WeightsError
from medfm.registry import ENCODERS, TOKENIZERS
from medfm.training.depth import layer_ids
from medfm.weights.load import load_model
from medfm.weights.save import save_model

QWEN = {
    "vocab_size": 30522, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
}  # fmt: skip
LORA = {"rank": 4, "alpha": 16.0}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    """The folder of a small Qwen3 with its language head, as such models are shared."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("qwen")
    Qwen3ForCausalLM(Qwen3Config(**QWEN, tie_word_embeddings=False)).save_pretrained(folder)
    shutil.copy(minilm / "tokenizer.json", folder)
    return folder


def encoder(folder: Path | str, **options: Any) -> HuggingFaceTextEncoder:
    return HuggingFaceTextEncoder(HuggingFaceTextConfig(**{"path": folder, "pool": "last", **options}))


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.tensor([[5, 6, 7, 8, 9], [11, 12, 0, 0, 0], [13, 0, 0, 0, 0]])
    return tokens, (tokens > 0).long()


def train(model: HuggingFaceTextEncoder | Any, parameters: Any, forward: Any, steps: int = 3) -> None:
    optimizer = torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        forward(model).square().mean().backward()
        optimizer.step()


def test_decoder__equals_transformers_and_leaves_the_language_head_out(qwen: Path) -> None:
    from transformers import Qwen3ForCausalLM

    theirs = Qwen3ForCausalLM.from_pretrained(qwen).eval()
    mine = encoder(qwen).eval()
    tokens, mask = batch()
    with torch.no_grad():
        output = mine(tokens, mask)
        expected = theirs.model(input_ids=tokens, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(output.tokens, expected)
    torch.testing.assert_close(output.pooled, torch.stack([expected[0, 4], expected[1, 1], expected[2, 0]]))
    assert not any("lm_head" in name for name, _ in mine.named_parameters())
    assert mine.embed_dim == 16


def test_decoder__last_token_has_seen_every_word_and_no_padding(qwen: Path) -> None:
    model = encoder(qwen).eval()
    tokens, mask = batch()
    with torch.no_grad():
        pooled = model(tokens, mask).pooled
        alone = model(tokens[1:2, :2], mask[1:2, :2]).pooled
        torch.testing.assert_close(pooled[1:2], alone, rtol=1e-5, atol=1e-6)
        changed = tokens.clone()
        changed[0, 0] = 77  # the first word
        assert not torch.allclose(model(changed, mask).pooled[0], pooled[0], atol=1e-4)
        # Padding before the text: the last column is the last word.
        left = torch.tensor([[0, 0, 0, 11, 12]])
        output = model(left, (left > 0).long())
        torch.testing.assert_close(output.pooled, output.tokens[:, -1])
        assert model(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long)).pooled.isfinite().all()


@pytest.mark.parametrize("target", ["all", ("q_proj", "v_proj")])
def test_lora__trains_as_pefts_own_model(qwen: Path, target: Any) -> None:
    """Same start, three steps: outputs, gradients and adapters agree with `get_peft_model`."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    mine = encoder(qwen, lora={**LORA, "target": target}).eval()
    modules = "all-linear" if target == "all" else list(target)
    theirs = get_peft_model(
        AutoModel.from_pretrained(qwen, dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=16, target_modules=modules, bias="none"),
    ).eval()
    start = {name.removeprefix("base_model."): value.clone() for name, value in theirs.state_dict().items()}
    mine.load_state_dict(start)  # strict: the names are peft's

    tokens, mask = batch()
    train(mine, mine.parameters(), lambda m: m(tokens, mask).tokens)
    train(theirs, theirs.parameters(), lambda m: m(input_ids=tokens, attention_mask=mask).last_hidden_state)
    trained = dict(theirs.named_parameters())
    moved = 0
    for name, value in mine.named_parameters():
        torch.testing.assert_close(value, trained[f"base_model.{name}"], rtol=1e-5, atol=1e-7, msg=name)
        assert value.requires_grad == ("lora_" in name)
        moved += not torch.equal(value, start[name])
    assert moved == sum("lora_" in name for name in start)


def test_lora__starts_as_the_frozen_model_and_learns_by_its_adapters_alone(qwen: Path) -> None:
    tokens, mask = batch()
    plain, adapted = encoder(qwen).eval(), encoder(qwen, lora=LORA).eval()
    torch.testing.assert_close(adapted(tokens, mask).pooled, plain(tokens, mask).pooled)
    before = copy.deepcopy(adapted.state_dict())
    train(adapted, adapted.parameters(), lambda m: m(tokens, mask).pooled)
    after = adapted.state_dict()
    assert {k for k in after if not torch.equal(after[k], before[k])} == {k for k in after if "lora_" in k}
    # The paper's formula, module by module.
    layer: Any = adapted.model.layers[0].self_attn.q_proj
    x = torch.randn(3, 16)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(layer(x), x @ layer.base_layer.weight.T + 16 / 4 * x @ a.T @ b.T)
    numbers, depth = layer_ids(adapted)
    assert depth == 3
    assert all(numbers[n] == int(n.split(".")[2]) + 1 for n in numbers if "lora_" in n)  # "model.layers.<i>..."


def test_lora__gradient_checkpointing_changes_no_gradient(qwen: Path) -> None:
    tokens, mask = batch()
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = encoder(qwen, lora=LORA, gradient_checkpointing=checkpointing).train()
        model(tokens, mask).pooled.square().sum().backward()
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


def test_lora__on_a_bert(minilm: Path) -> None:
    model = encoder(minilm, pool="mean", pretrained=False, lora={**LORA, "target": ["query", "value"]})
    assert sum(p.requires_grad for p in model.parameters()) == 6 * 2 * 2
    assert all("attention.self" in n for n, p in model.named_parameters() if p.requires_grad)


def test_lora__a_target_that_is_not_there_is_named(qwen: Path) -> None:
    with pytest.raises(ConfigError, match=r"Qwen3Model has no linear module query in its layers; it has: down_proj.*v_proj"):
        encoder(qwen, lora={**LORA, "target": ["query", "v_proj"]})
    with pytest.raises(ValueError, match="lora freezes every layer"):
        HuggingFaceTextConfig(path=qwen, lora=LORA, freeze_layers=1)


def test_lora__weight_file_is_exact_and_needs_no_folder(qwen: Path, tmp_path: Path) -> None:
    """Saved and read again without the language model's folder: every tensor equal, every vector equal."""
    folder = tmp_path / "llm"
    shutil.copytree(qwen, folder)
    objective = {
        "name": "contrastive",
        "text_encoder": {
            "name": "hf_text",
            "path": str(folder),
            "pool": "last",
            "lora": {**LORA, "target": ["q_proj", "v_proj"]},
        },
        "tokenizer": {"name": "hf", "path": str(folder), "context_length": 32},
        "embed_dim": 8,
    }
    image = {"name": "vit", "img_size": [16, 16], "patch_size": [8, 8], "embed_dim": 16, "depth": 1, "num_heads": 2}
    recipe = {"encoder": image, "objective": objective, "preprocess": {"size": [16, 16]}}
    config = DualConfig(**{k: v for k, v in objective.items() if k in DualConfig.model_fields})  # type: ignore[arg-type]
    tokenizer = TOKENIZERS.build(config.tokenizer)
    dual = build_dual(ENCODERS.parse(image), config, tokenizer)
    tokens = tokenizer(["small left effusion", "no"])
    train(dual, dual.parameters(), lambda m: m.text_projection(m.text_encoder(*tokens).pooled))
    dual.eval()
    file = save_model(tmp_path / "model.safetensors", dual, recipe, tokenizer)
    shutil.rmtree(folder)
    model = load_model(file)
    saved, loaded = dual.state_dict(), model.dual.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[k], loaded[k]) for k in saved)
    with torch.no_grad():
        assert torch.equal(model.encode_texts(["small left effusion", "no"]), dual.encode_text(*tokens))


def test_lora__a_file_without_the_adapters_does_not_pass(qwen: Path) -> None:
    adapted = encoder(qwen, lora=LORA)
    with pytest.raises(WeightsError, match=r"of the model's tensors are not in the file: .*lora_A"):
        load_strict(adapted, {k: v for k, v in adapted.state_dict().items() if "lora_" not in k}, "some.safetensors")
