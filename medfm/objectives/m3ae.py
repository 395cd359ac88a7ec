"""M3AE: masked autoencoding of image and report together, on one encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfm.encoders.image import ImageModel
from medfm.encoders.positions import sincos_positions
from medfm.encoders.vit import VisionTransformer
from medfm.errors import ConfigError, DataError
from medfm.objectives.base import Objective, Parts
from medfm.objectives.config import M3aeConfig
from medfm.objectives.gather import Gather, SingleDevice, current_gather, mean_of_rows, mean_of_sums
from medfm.objectives.m3ae_decoder import M3aeDecoder, run_block
from medfm.objectives.mae import Target
from medfm.objectives.masking import Masks, TextMasks, check_split, draw_noise, masks_by_score, split_counts, split_text
from medfm.transforms.draws import Draws
from medfm.types import Batch, EncoderOutput, ObjectiveOutput


def build(config: M3aeConfig, parts: Parts) -> M3aeObjective:
    """The objective of a recipe."""
    tokenizer = parts.tokenizer
    assert tokenizer is not None
    network = ImageModel(parts.image_encoder)
    return M3aeObjective(config, network, tokenizer.vocab_size, tokenizer.context_length, tokenizer.special_ids)


class M3aeObjective(Objective):
    """The encoder sees some patches of an image and some tokens of its report; a decoder predicts the pixels and words hidden.

    `loss = image_weight * (squared error of masked patches) + text_weight * (cross entropy of masked tokens)`, each the mean
    over a row's masked ones, then over rows. Start, end and padding are never masked nor counted. Rows without text learn from
    their image alone and do not count in the text's mean.

    The encoder is the image ViT, which weight files keep; the embedding of words belongs to the objective. A text token is
    its word's embedding, plus fixed positions, plus a learned vector that says "text"; the image's counterpart is the bias of
    the patch projection.

    Source: Geng et al. 2022, "Multimodal Masked Autoencoders Learn Transferable Representations", section 3 and m3ae/model.py.
    Other than there masks are drawn for each row, of its real tokens alone.

    Args:
        network: its encoder is a `VisionTransformer`.
        vocab_size, context_length: of the tokenizer.
        special: token ids that the tokenizer adds to every text.
        gather: the devices of the batch; None is the default process group where one runs.

    Raises:
        ConfigError: another kind of encoder, or a context that holds nothing but special tokens.
        DataError: a batch has no text.
    """

    text_positions: Tensor
    special: Tensor

    def __init__(
        self,
        config: M3aeConfig,
        network: ImageModel,
        vocab_size: int,
        context_length: int,
        special: Sequence[int],
        gather: Gather | None = None,
    ) -> None:
        super().__init__()
        encoder: Any = network.image_encoder
        if not isinstance(encoder, VisionTransformer):
            raise ConfigError("objective: m3ae puts words among the patches of a transformer; use the encoder 'vit'")
        if context_length < len(special) + 2:
            raise ConfigError(f"objective.tokenizer.context_length: {context_length} leaves no two words to tell apart")
        check_split(math.prod(encoder.grid_size), config.image_mask_ratio, "objective.image_mask_ratio")
        self.config = config
        self.network = network
        self._gather = gather
        self.context_length = context_length
        self.special_count = len(special)
        self.register_buffer("special", torch.tensor(sorted(set(special))), persistent=False)
        self.token_embedding = nn.Embedding(vocab_size, encoder.embed_dim)
        self.text_type = nn.Parameter(torch.empty(encoder.embed_dim))
        nn.init.normal_(self.token_embedding.weight, std=config.token_std)
        nn.init.normal_(self.text_type, std=0.02)
        self.register_buffer("text_positions", sincos_positions((context_length,), encoder.embed_dim)[0], persistent=False)
        self.decoder = M3aeDecoder(
            encoder.embed_dim,
            tuple(encoder.grid_size),
            math.prod(encoder.patch_size) * encoder.in_channels,
            vocab_size,
            context_length,
            dim=config.decoder_dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_heads,
            mlp_ratio=config.decoder_mlp_ratio,
            gradient_checkpointing=encoder.gradient_checkpointing,
        )

    @property
    def gather(self) -> Gather:
        return (self._gather or current_gather()) if self.training else SingleDevice()

    def model(self) -> ImageModel:
        return self.network

    def compile_encoders(self) -> None:
        encoder: Any = self.network.image_encoder
        for block in (*encoder.blocks, *self.decoder.blocks):
            block.compile()

    def forward(self, batch: Batch, draws: Draws | None = None) -> ObjectiveOutput:
        """One batch of normalised images and token ids to a loss and numbers to log. `draws` decides the masks."""
        if batch.tokens is None or batch.attention_mask is None:
            raise DataError("m3ae learns from images and reports, but the batch has no text; index with reports=...")
        encoder: Any = self.network.image_encoder
        images, tokens = batch.images, batch.tokens
        masks = self._image_masks(images, draws)
        has_text = batch.text_group >= 0
        if batch.drawn is not None:
            has_text = has_text & (batch.drawn >= 0)
        words = self._text_masks(tokens, (batch.attention_mask == 1) & has_text[:, None], draws)
        pixels, hidden = self.decoder(*self._encode(images, masks, tokens, words), masks, words)

        target = Target.of(images, tuple(encoder.patch_size), masks.masked, self.config.norm_pix).wanted
        gather = self.gather
        image_loss = mean_of_rows((pixels.to(target.dtype) - target).square().mean(dim=(1, 2)), gather)
        text_loss, accuracy = self._text_loss(hidden, tokens, words, gather)
        loss = self.config.image_weight * image_loss + self.config.text_weight * text_loss
        logs = {
            "loss": loss.detach(),
            "image_loss": image_loss.detach(),
            "text_loss": text_loss.detach(),
            "text_accuracy": accuracy,
            "rows_without_text": gather.sum((~has_text).sum().to(loss.dtype)),
        }
        return ObjectiveOutput(loss, logs)

    def _image_masks(self, images: Tensor, draws: Draws | None) -> Masks:
        patch: Any = self.network.image_encoder.patch_size
        count = math.prod(n // p for n, p in zip(images.shape[2:], patch, strict=True))
        noise = draw_noise(len(images), count, device=images.device, draws=draws)
        return masks_by_score(noise, *split_counts(count, self.config.image_mask_ratio))

    def _text_masks(self, tokens: Tensor, real: Tensor, draws: Draws | None) -> TextMasks:
        if tokens.shape[1] > self.context_length:
            raise ConfigError(
                f"texts have {tokens.shape[1]} tokens, objective.tokenizer.context_length is {self.context_length}"
            )
        # Devices may have padded to different lengths: they draw for the longest there can be.
        noise = draw_noise(len(tokens), self.context_length, device=tokens.device, draws=draws)[:, : tokens.shape[1]]
        special = torch.isin(tokens, self.special)
        return split_text(real & ~special, real & special, noise, self.config.text_mask_ratio, self.special_count)

    def _encode(self, images: Tensor, masks: Masks, tokens: Tensor, words: TextMasks) -> tuple[EncoderOutput, Tensor]:
        """Features of the seen patches, and of the seen words (B, V, E)."""
        encoder: Any = self.network.image_encoder
        seen, grid = encoder.embed(images, masks.keep)
        text = self.token_embedding(tokens.gather(1, words.seen)) + self.text_positions[words.seen] + self.text_type
        x = torch.cat([seen, text.to(seen.dtype)], dim=1)
        visible = torch.cat([words.seen_real.new_ones(seen.shape[:2]), words.seen_real], dim=1)[:, None, None]
        for block in encoder.blocks:
            x = run_block(block, x, visible, checkpointing=encoder.gradient_checkpointing and self.training)
        patches, text = encoder.norm(x).split([seen.shape[1], text.shape[1]], dim=1)
        first = encoder.num_prefix_tokens
        return EncoderOutput(patches[:, first:], patches[:, 0] if encoder.cls_token is not None else None, grid), text

    def _text_loss(self, hidden: Tensor, tokens: Tensor, words: TextMasks, gather: Gather) -> tuple[Tensor, Tensor]:
        """Cross entropy and accuracy: the mean over a row's masked words, then over the rows of all devices that have some.

        Args:
            hidden: (B, M, dim) of the decoder. Only masked words meet the vocabulary, the widest layer of all.
        """
        asked = words.masked_real
        places = asked.flatten().nonzero().squeeze(1)  # asked of the device once, not for each of what follows
        logits = self.decoder.text_pred(hidden.flatten(0, 1).index_select(0, places))
        wanted = tokens.gather(1, words.masked).flatten().index_select(0, places)
        count = asked.sum(dim=1)
        share = count.clamp(min=1).to(torch.float64 if hidden.dtype == torch.float64 else torch.float32).reciprocal()
        weight = share[:, None].expand(asked.shape).flatten().index_select(0, places)
        with torch.autocast(hidden.device.type, enabled=False):
            losses = F.cross_entropy(logits.to(weight.dtype), wanted, reduction="none")
        right = (logits.detach().argmax(dim=1) == wanted).to(weight.dtype)
        rows = (count > 0).sum().to(weight.dtype)
        return mean_of_sums((losses * weight).sum(), rows, gather), mean_of_sums((right * weight).sum(), rows, gather)
