"""Text encoders: CLIP's causal transformer, and any Hugging Face encoder or decoder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medfm.encoders.attention import attend
from medfm.encoders.config import ClipTextConfig, HuggingFaceTextConfig
from medfm.encoders.lora import add_lora
from medfm.encoders.positions import stretch_positions
from medfm.encoders.pretrained import load_strict, read_state_dict, shown
from medfm.errors import ConfigError, WeightsError
from medfm.types import TextOutput


class QuickGELU(nn.Module):
    """`x * sigmoid(1.702 x)`, the approximation that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class CausalAttention(nn.Module):
    """Causal self-attention with the parameter names of `nn.MultiheadAttention`."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, t, e = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(b, t, 3, self.num_heads, e // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out_proj(attend(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, e))


class ResidualAttentionBlock(nn.Module):
    """CLIP's pre-norm block."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        dim, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.ln_1 = nn.LayerNorm(dim)
        self.attn = CausalAttention(dim, config.num_heads)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(dim, hidden))
        self.mlp.add_module("gelu", QuickGELU() if config.activation == "quick_gelu" else nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attn(self.ln_1(x)))
        return x + self.dropout(self.mlp(self.ln_2(x)))


class TextTransformer(nn.Module):
    """The stack of blocks, a module of its own because CLIP's names say so."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(config) for _ in range(config.depth))
        self.gradient_checkpointing = config.gradient_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = checkpoint(block, x, use_reentrant=False) if self.gradient_checkpointing and self.training else block(x)
        return x


class ClipTextEncoder(nn.Module):
    """CLIP's text transformer; the feature at the last token (end of text) stands for the text.

    State-dict names are those of CLIP and open_clip, without `text_projection`, which belongs to the DualEncoder. Dropout,
    which CLIP does not have, acts on both residual branches.

    Raises:
        ConfigError: more tokens than `context_length`.
        WeightsError: `config.weights` is missing, broken or does not fit; its text side must, tensor by tensor.
    """

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.embed_dim = config.embed_dim
        self.context_length = config.context_length
        self.token_embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.embed_dim))
        self.transformer = TextTransformer(config)
        self.ln_final = nn.LayerNorm(config.embed_dim)
        self._init_weights(config)
        if config.weights is not None:
            load_strict(self, _text_side(read_state_dict(config.weights), self.context_length), config.weights, _NOT_TEXT)

    def _init_weights(self, config: ClipTextConfig) -> None:
        """As open_clip's `TextTransformer.init_parameters`."""
        width = config.embed_dim
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        block: Any
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * config.depth) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * config.depth) ** -0.5)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> TextOutput:
        """tokens (B, T) -> features (B, T', E) and (B, E).

        Padding stands at the end and the mask is causal, so columns that are padding in every row change nothing: on a CPU they
        are not computed, and T' is the longest text of the batch. (Elsewhere the look at the mask would stall the device.)

        Args:
            attention_mask: (B, T), 1 for real tokens; without it the end token is the one of the highest id, as in CLIP.
        """
        if tokens.shape[1] > self.context_length:
            raise ConfigError(
                f"texts have {tokens.shape[1]} tokens, the text encoder's context_length is {self.context_length}"
            )
        last = tokens.argmax(dim=1) if attention_mask is None else attention_mask.sum(dim=1).clamp(min=1) - 1
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling() and len(tokens):
            tokens = tokens[:, : int(last.max()) + 1]
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.ln_final(self.transformer(x))
        return TextOutput(tokens=x, pooled=x[torch.arange(len(x), device=x.device), last])


# Tensors of a checkpoint that a bare encoder has no use for: pooler, task heads, and a buffer of transformers 4.
HEADS = ("pooler.", "cls.", "lm_head.", "classifier.", "qa_outputs.", "predictions.", "vocab_", "discriminator_", "score.")


# What CLIP's files hold beside the text transformer; the projection belongs to the DualEncoder, whose space is another.
_NOT_TEXT = (
    "visual.", "text_projection", "logit_scale", "logit_bias", "attn_mask", "mask1", "mask2", "input_resolution",
    "context_length", "vocab_size",
)  # fmt: skip


def _text_side(state: dict[str, Tensor], context_length: int) -> dict[str, Tensor]:
    """CLIP's names out of a whole file, float32, with positions for `context_length` tokens."""
    # open_clip's models with a text tower of their own keep it under "text."; CLIP's own names have no prefix.
    state = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    name = "positional_embedding"
    residual = state.pop(f"{name}_res", None)
    if residual is not None and name in state:
        state[name] = torch.cat([state[name][:20], residual[20:]])  # Long-CLIP's files hold both parts whole
    if name in state:
        state[name] = stretch_positions(state[name], context_length)
    return state


class HuggingFaceTextEncoder(nn.Module):
    """Any Hugging Face encoder (BERT, RoBERTa, MiniLM, ...) or decoder (Qwen3, Llama, ...) from a local folder or the local
    hub cache, float32. With `lora` it is frozen but for low-rank adapters, see `add_lora`.

    No network is touched. Every tensor of the checkpoint is accounted for, pooler and task heads aside.

    Attributes:
        embed_dim: E.
        hf_config: the model's config.json as a dict; with it and a state dict the encoder is rebuilt without the folder.

    Raises:
        WeightsError: nothing at `config.path`, or weights that do not fit.
        ConfigError: `freeze_layers` exceeds the layers there are, `lora.target` names none, or there are no layers.
    """

    def __init__(self, config: HuggingFaceTextConfig, hf_config: dict[str, Any] | None = None) -> None:
        """`hf_config` builds that architecture with random weights and leaves `config.path` alone."""
        super().__init__()
        self.pool = config.pool
        self.model: Any
        if hf_config is None and config.pretrained:
            self.model = _load_pretrained(str(config.path))
        else:
            self.model = _build(_read_config(str(config.path)) if hf_config is None else _config_from_dict(hf_config))
        if getattr(self.model.config, "use_cache", False):
            self.model.config.use_cache = False  # a decoder would keep keys and values for words to come
        self.hf_config: dict[str, Any] = json.loads(self.model.config.to_json_string(use_diff=False))
        self.embed_dim = int(self.model.config.hidden_size)
        self._freeze(config.freeze_layers)
        if config.lora is not None:
            add_lora(self.model, self.layers, config.lora)
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer's layers, under whichever name the architecture has them."""
        depth = self.model.config.num_hidden_layers
        for module in self.model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == depth:
                return module
        raise ConfigError(f"text_encoder: no layers found in a {type(self.model).__name__}; use a BERT- or Llama-like model")

    def _freeze(self, count: int) -> None:
        if count == 0:
            return
        layers = self.layers
        if count > len(layers):
            raise ConfigError(f"text_encoder.freeze_layers: {count}, but the model has {len(layers)} layers")
        within = {id(p) for p in layers.parameters()}
        frozen = [p for p in self.model.parameters() if id(p) not in within]
        # What is outside the layers and behind them (a final norm) stays trainable: only the embedding modules are frozen.
        embeddings = [m for name, m in self.model.named_children() if "embed" in name]
        if embeddings:
            frozen = [p for module in embeddings for p in module.parameters()]
        for parameter in [*frozen, *(p for layer in layers[:count] for p in layer.parameters())]:
            parameter.requires_grad_(False)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> TextOutput:
        """tokens (B, T) -> features (B, T, E) and the masked mean, the first or the last real token, (B, E)."""
        if attention_mask is None:
            attention_mask = torch.ones_like(tokens)
        features = self.model(input_ids=tokens, attention_mask=attention_mask).last_hidden_state
        if self.pool == "cls":
            return TextOutput(tokens=features, pooled=features[:, 0])
        if self.pool == "last":
            columns = torch.arange(tokens.shape[1], device=tokens.device)
            last = (columns * attention_mask).argmax(dim=1)  # padding may stand on either side
            return TextOutput(tokens=features, pooled=features[torch.arange(len(features), device=last.device), last])
        weights = attention_mask[:, :, None].to(features.dtype)
        return TextOutput(tokens=features, pooled=(features * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1))


def _missing(path: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"text_encoder.path: no usable Hugging Face model at '{path}': neither a folder with config.json and model.safetensors "
        f"nor a hub model in the local cache ({type(error).__name__}). medfm does not download; copy the model's folder here "
        "and give its path"
    )


def _read_config(path: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise _missing(path, error) from error


def _config_from_dict(values: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    values = dict(values)
    kind = values.pop("model_type", "")
    values.pop("auto_map", None)  # names code of the hub, which is never fetched or run
    try:
        return AutoConfig.for_model(kind, **values)
    except ValueError as error:
        raise WeightsError(f"the installed transformers knows no text encoder of type '{kind}'; install a newer one") from error


def _build(config: Any) -> nn.Module:
    from transformers import AutoModel

    try:
        return AutoModel.from_config(config, add_pooling_layer=False)
    except TypeError:  # architectures without a pooler do not know the option
        return AutoModel.from_config(config)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without the loading report and the progress bar: what they say is checked here and raised."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load_pretrained(path: str) -> nn.Module:
    from transformers import AutoModel

    # Other shapes are let through so that they are listed by name below.
    options: dict[str, Any] = {
        "local_files_only": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
        "dtype": torch.float32,
    }
    _read_config(path)
    try:
        with _quiet_transformers():
            try:
                model, info = AutoModel.from_pretrained(path, add_pooling_layer=False, **options)
            except TypeError:
                model, info = AutoModel.from_pretrained(path, **options)
    except Exception as error:  # transformers and safetensors raise many kinds here
        raise _missing(path, error) from error
    base = f"{model.base_model_prefix}."
    unused = [
        k for k in info["unexpected_keys"] if not k.removeprefix(base).startswith(HEADS) and not k.endswith("position_ids")
    ]
    missing = [k for k in info["missing_keys"] if not k.startswith("pooler.")]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of the model's tensors are not in the file: {shown(sorted(missing))}")
    if unused:
        problems.append(f"{len(unused)} of the file's tensors have no place in the model: {shown(sorted(unused))}")
    if info["mismatched_keys"]:
        shapes = [f"{k} {tuple(theirs)} for {tuple(own)}" for k, theirs, own in sorted(info["mismatched_keys"])]
        problems.append(f"{len(shapes)} tensors have other shapes: {shown(shapes)}")
    if problems:
        raise WeightsError(f"text_encoder.path: the weights in '{path}' do not fit their config.json: " + "; ".join(problems))
    return model
