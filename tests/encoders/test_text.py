"""Text encoders against the reference implementations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from medfm.encoders.config import ClipTextConfig, HuggingFaceTextConfig
from medfm.encoders.text import ClipTextEncoder, HuggingFaceTextEncoder
from medfm.errors import ConfigError, WeightsError
from medfm.text.config import ClipTokenizerConfig, HuggingFaceTokenizerConfig
from medfm.text.tokenizers import ClipTokenizer, HuggingFaceTokenizer

TEXTS = ["Small left pleural effusion.", "No acute cardiopulmonary process, the heart size is normal; lungs are clear.", ""]


def clip_encoder(**options: Any) -> ClipTextEncoder:
    torch.manual_seed(0)
    return ClipTextEncoder(ClipTextConfig(**{"embed_dim": 64, "depth": 3, "num_heads": 4, **options})).eval()


@pytest.fixture(scope="module")
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    return ClipTokenizer(ClipTokenizerConfig())(TEXTS)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_clip_text__equals_open_clip(activation: str, tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    from open_clip.transformer import QuickGELU, TextTransformer

    act = QuickGELU if activation == "quick_gelu" else torch.nn.GELU
    theirs = TextTransformer(width=64, heads=4, layers=3, output_dim=32, act_layer=act).eval()
    generator = torch.Generator().manual_seed(1)
    state = {k: torch.randn(v.shape, generator=generator) * 0.2 for k, v in theirs.state_dict().items()}
    theirs.load_state_dict(state)
    projection = state.pop("text_projection")
    mine = clip_encoder(activation=activation)
    mine.load_state_dict(state)  # strict: the names are CLIP's

    ours, reference = mine(*tokens).pooled @ projection, theirs(tokens[0])
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
    ours.square().sum().backward()
    reference.square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in mine.named_parameters():
        gradient = expected[name].grad
        assert gradient is not None
        scale = float(gradient.abs().max()) + 1e-6
        torch.testing.assert_close(parameter.grad / scale, gradient / scale, rtol=0, atol=1e-5, msg=name)


def test_clip_text__padding_columns_change_nothing(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = clip_encoder()
    trimmed = model(*tokens)
    assert trimmed.tokens.shape[1] == int(tokens[1].sum(dim=1).max()) < 77
    # The last text fills the context, so that no column can be left out.
    long_ids, long_mask = ClipTokenizer()(["word " * 100])
    both = model(torch.cat([tokens[0], long_ids]), torch.cat([tokens[1], long_mask]))
    assert both.tokens.shape[1] == 77
    torch.testing.assert_close(both.pooled[:3], trimmed.pooled, rtol=1e-5, atol=1e-6)


def test_clip_text__end_token_is_found_without_a_mask(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = clip_encoder()
    torch.testing.assert_close(model(tokens[0]).pooled, model(*tokens).pooled)


def test_clip_text__feature_depends_on_the_text_alone(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = clip_encoder()
    ids = tokens[0].clone()
    ids[0, int(tokens[1][0].sum()) :] = 1234  # what stands behind the end
    torch.testing.assert_close(model(ids, tokens[1]).pooled[0], model(*tokens).pooled[0])
    ids[0, 1] = 1234
    assert not torch.allclose(model(ids, tokens[1]).pooled[0], model(*tokens).pooled[0], atol=1e-3)


def test_clip_text__gradient_checkpointing_changes_no_gradient(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = clip_encoder(gradient_checkpointing=checkpointing).train()
        model(*tokens).pooled.square().sum().backward()
        gradients.append({k: p.grad for k, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_clip_text__too_long_is_refused() -> None:
    with pytest.raises(ConfigError, match="77 tokens, the text encoder's context_length is 32"):
        clip_encoder(context_length=32)(torch.zeros(1, 77, dtype=torch.long))


def hf_tokens(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    return HuggingFaceTokenizer(HuggingFaceTokenizerConfig(path=folder))(TEXTS)


def test_hf_text__minilm_equals_transformers(minilm: Path) -> None:
    from transformers import AutoModel

    mine = HuggingFaceTextEncoder(HuggingFaceTextConfig(path=minilm)).eval()
    theirs = AutoModel.from_pretrained(minilm).eval()
    ids, mask = hf_tokens(minilm)
    with torch.no_grad():
        output = mine(ids, mask)
        reference = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(output.tokens, reference)
    for row in range(len(TEXTS)):  # the mean over real tokens, one text at a time
        expected = reference[row, mask[row].bool()].mean(dim=0)
        torch.testing.assert_close(output.pooled[row], expected, rtol=1e-5, atol=1e-6)
    assert mine.embed_dim == 384
    assert not any("pooler" in name for name, _ in mine.named_parameters())


def test_hf_text__sentences_of_like_meaning_are_near(minilm: Path) -> None:
    model = HuggingFaceTextEncoder(HuggingFaceTextConfig(path=minilm)).eval()
    tokenizer = HuggingFaceTokenizer(HuggingFaceTokenizerConfig(path=minilm))
    with torch.no_grad():
        a, b, c = torch.nn.functional.normalize(
            model(
                *tokenizer(["Fluid in the chest cavity.", "There is a pleural effusion.", "The train leaves at noon."])
            ).pooled
        )
    assert a @ b > a @ c + 0.1  # trained weights were really loaded


def test_hf_text__cls_pool_is_the_first_token(minilm: Path) -> None:
    model = HuggingFaceTextEncoder(HuggingFaceTextConfig(path=minilm, pool="cls", pretrained=False)).eval()
    output = model(*hf_tokens(minilm))
    torch.testing.assert_close(output.pooled, output.tokens[:, 0])


def test_hf_text__rebuilt_from_its_config_alone(minilm: Path) -> None:
    model = HuggingFaceTextEncoder(HuggingFaceTextConfig(path=minilm)).eval()
    stored = json.loads(json.dumps(model.hf_config))
    again = HuggingFaceTextEncoder(HuggingFaceTextConfig(path="/nowhere/at/all"), hf_config=stored).eval()
    again.load_state_dict(model.state_dict())
    tokens = hf_tokens(minilm)
    torch.testing.assert_close(again(*tokens).pooled, model(*tokens).pooled)


def test_hf_text__frozen_layers(minilm: Path) -> None:
    model = HuggingFaceTextEncoder(HuggingFaceTextConfig(path=minilm, pretrained=False, freeze_layers=4))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {n.split(".")[3] for n in trained if ".layer." in n} == {"4", "5"}
    assert {n.split(".")[3] for n in frozen if ".layer." in n} == {"0", "1", "2", "3"}
    assert any("word_embeddings" in n for n in frozen)
    with pytest.raises(ConfigError, match="freeze_layers: 7, but the model has 6 layers"):
        HuggingFaceTextEncoder(HuggingFaceTextConfig(path=minilm, pretrained=False, freeze_layers=7))


def test_hf_text__missing_folder_says_what_to_do(tmp_path: Path) -> None:
    for pretrained in (True, False):
        with pytest.raises(WeightsError, match=r"nowhere.*medfm does not download"):
            HuggingFaceTextEncoder(HuggingFaceTextConfig(path=tmp_path / "nowhere", pretrained=pretrained))
    with pytest.raises(WeightsError, match="some-lab/some-bert"):
        HuggingFaceTextEncoder(HuggingFaceTextConfig(path="some-lab/some-bert"))


def tiny_folder(folder: Path, minilm: Path) -> dict[str, torch.Tensor]:
    """A small BERT's folder; returns its tensors."""
    from transformers import AutoModel, BertConfig

    model = AutoModel.from_config(
        BertConfig(vocab_size=99, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    )
    model.save_pretrained(folder)
    shutil.copy(minilm / "tokenizer.json", folder)
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("change", ["missing", "unused", "shape"])
def test_hf_text__tensors_that_do_not_fit_are_named(change: str, tmp_path: Path, minilm: Path) -> None:
    from safetensors.torch import save_file

    state = tiny_folder(tmp_path, minilm)
    name = "encoder.layer.1.output.dense.weight"
    if change == "missing":
        del state[name]
    elif change == "unused":
        state["encoder.layer.7.output.dense.weight"] = state[name].clone()
        name = "encoder.layer.7.output.dense.weight"
    else:
        state[name] = state[name][:8].clone()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError) as error:
        HuggingFaceTextEncoder(HuggingFaceTextConfig(path=tmp_path))
    assert name in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_hf_text__task_heads_of_a_checkpoint_are_left_out(tmp_path: Path, minilm: Path) -> None:
    from safetensors.torch import save_file

    state = tiny_folder(tmp_path, minilm)
    state["cls.predictions.bias"] = torch.zeros(99)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = HuggingFaceTextEncoder(HuggingFaceTextConfig(path=tmp_path))
    torch.testing.assert_close(
        model.state_dict()["model.embeddings.word_embeddings.weight"], state["embeddings.word_embeddings.weight"]
    )
