"""A loaded model with its preprocessing and tokenizer: what evaluation and users hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medfm.encoders.build import build_dual
from medfm.encoders.config import DualConfig
from medfm.encoders.dual import DualEncoder
from medfm.encoders.image import ImageModel
from medfm.encoders.patches import enlarge
from medfm.encoders.pooling import Pool, block_features, patch_block_features
from medfm.errors import DataError, WeightsError
from medfm.registry import ENCODERS, ComponentConfig
from medfm.text.tokenizers import Tokenizer
from medfm.types import Image

if TYPE_CHECKING:
    from medfm.transforms.preprocess import Preprocess


def build_network(
    encoder: ComponentConfig, dual: DualConfig | None, tokenizer: Tokenizer | None, hf_config: dict[str, Any] | None = None
) -> DualEncoder | ImageModel:
    """What a weight file describes, with random weights."""
    return ImageModel(ENCODERS.build(encoder)) if dual is None else build_dual(encoder, dual, tokenizer, hf_config)


class Model:
    """An image encoder, with or without a text encoder, ready for use, in eval mode, without gradients.

    Attributes:
        network: the DualEncoder, or the ImageModel of a training without text.
        preprocess: the contract the model was trained with; applied to every image it is given.
        tokenizer: likewise for texts; None without a text encoder.
        card: the weight file's metadata.
    """

    def __init__(
        self,
        network: DualEncoder | ImageModel,
        preprocess: Preprocess,
        tokenizer: Tokenizer | None,
        card: dict[str, Any],
        encoder_config: ComponentConfig,
        dual_config: DualConfig | None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.card = card
        self.encoder_config = encoder_config
        self.dual_config = dual_config

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.network.parameters())
        names = self.encoder_config.name + (f" + {self.dual_config.text_encoder.name}" if self.dual_config else "")
        return f"Model({names}, {parameters / 1e6:.1f} M parameters, {self.device})"

    @property
    def dual(self) -> DualEncoder:
        """The image and text encoder. Raises WeightsError where the model was trained without text."""
        if not isinstance(self.network, DualEncoder):
            raise WeightsError(
                f"{self.card.get('file', 'the model')} was trained without reports and has no text encoder; it gives features, "
                "for `medfm evaluate linear_probe`, `knn` and `medfm embed`. To align it: objective=contrastive init=..."
            )
        return self.network

    def _prepare(self, images: Sequence[str | Path | Image]) -> Tensor:
        """Paths or Images -> (B, C, *size) in the contract's storage dtype."""
        opened = (image if isinstance(image, Image) else self.preprocess.load(image) for image in images)
        return torch.from_numpy(np.stack([self.preprocess(image) for image in opened]))

    @torch.no_grad()
    def encode_images(self, images: Sequence[str | Path | Image] | Tensor | np.ndarray, batch_size: int = 64) -> Tensor:
        """Images -> (N, D) of unit norm, float32, on the CPU.

        Args:
            images: paths and Images, which are preprocessed; or an (N, C, *size) tensor that is preprocessed already, in the
                contract's storage dtype.

        Raises:
            DataError: an image contradicts the preprocessing contract, or the tensor has another dtype or size.
            WeightsError: a vector is not finite.
        """
        parts = [finite(self.network.encode_image(x).cpu(), self) for x in self._batches(images, batch_size)]
        return torch.cat(parts) if parts else torch.empty(0, self.network.embed_dim)

    @torch.no_grad()
    def features(
        self,
        images: Sequence[str | Path | Image] | Tensor | np.ndarray,
        pool: Pool | None = None,
        blocks: int = 1,
        batch_size: int = 64,
    ) -> Tensor:
        """The image encoder's own features, before any projection and not normalised: (N, E') float32, on the CPU.

        Args:
            images: as `encode_images` takes them.
            pool: "cls", "mean" or "cls+mean"; None takes the encoder's.
            blocks: of the last `blocks` blocks, side by side; see `medfm.encoders.pooling.block_features`.

        Raises:
            ConfigError: the encoder has no class token, or does not show that many blocks.
            DataError, WeightsError: as `encode_images`.
        """
        encoder = self.network.image_encoder
        chosen: Pool = encoder.pool if pool is None else pool  # type: ignore[assignment]
        batches = self._batches(images, batch_size)
        parts = [finite(block_features(encoder, x, chosen, blocks).float().cpu(), self) for x in batches]
        return torch.cat(parts) if parts else torch.empty(0, int(encoder.embed_dim))  # type: ignore[arg-type]

    @torch.no_grad()
    def patch_features(
        self, images: Sequence[str | Path | Image] | Tensor | np.ndarray, batch_size: int = 64, blocks: int = 1
    ) -> tuple[Tensor, tuple[int, ...]]:
        """The image encoder's patch tokens after its last norm: (N, patches, E * blocks) float32, on the CPU, and their grid,
        (H, W) or (D, H, W), the last axis running fastest.

        Args:
            images: as `encode_images` takes them.
            blocks: of the last `blocks` blocks, side by side; see `medfm.encoders.pooling.patch_block_features`.

        Raises:
            ConfigError: the encoder does not show that many blocks. DataError: as `encode_images`; there are no images.
        """
        encoder = self.network.image_encoder
        outputs = [patch_block_features(encoder, x, blocks) for x in self._batches(images, batch_size)]
        if not outputs:
            raise DataError("patch_features: no images")
        return torch.cat([finite(tokens.float().cpu(), self) for tokens, _ in outputs]), outputs[0][1]

    def _batches(self, images: Sequence[str | Path | Image] | Tensor | np.ndarray, batch_size: int) -> Iterator[Tensor]:
        """What the network takes, a batch at a time, on the device."""
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(images)
        if isinstance(images, Tensor):
            self._check(images)
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            stored = batch if isinstance(batch, Tensor) else self._prepare(batch)
            yield self.preprocess.to_float(stored.to(self.device))

    def _check(self, images: Tensor) -> None:
        config = self.preprocess.config
        shape, dtype = self.preprocess.stored_shape, getattr(torch, config.dtype)
        if tuple(images.shape[1:]) != shape or images.dtype != dtype:
            raise DataError(
                f"preprocessed images must be {dtype} of shape (N, {', '.join(map(str, shape))}), as the model's preprocess "
                f"gives them, got {images.dtype} of shape {tuple(images.shape)}; paths and Images are preprocessed for you"
            )

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts -> (N, D) of unit norm, float32, on the CPU. Raises WeightsError where a vector is not finite."""
        if isinstance(texts, str):
            texts = [texts]
        dual, parts = self.dual, []
        assert self.tokenizer is not None
        for start in range(0, len(texts), batch_size):
            tokens, mask = self.tokenizer(list(texts[start : start + batch_size]))
            parts.append(finite(dual.encode_text(tokens.to(self.device), mask.to(self.device)).cpu(), self))
        return torch.cat(parts) if parts else torch.empty(0, dual.embed_dim)

    @torch.no_grad()
    def similarity_map(self, image: str | Path | Image | Tensor | np.ndarray, text: str | Sequence[str]) -> np.ndarray:
        """Where the image resembles the text: float32 on the preprocessed grid, (H, W) or (D, H, W).

        Products of the patches' vectors with the text's, enlarged linearly to the contract's size: cosines, or shares of the
        image's cosine, see `DualEncoder.image_tokens`.

        Args:
            image: a path, an Image, or one preprocessed (C, *size) array.
            text: a sentence, or several, whose mean vector is taken (a prompt ensemble).
        """
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(image)
        stored = image[None] if isinstance(image, Tensor) else self._prepare([image])
        self._check(stored)
        direction = F.normalize(self.encode_texts([text] if isinstance(text, str) else text).mean(dim=0), dim=0)
        tokens, grid = self.dual.image_tokens(self.preprocess.to_float(stored.to(self.device)))
        likeness = (finite(tokens[0].cpu(), self) @ direction).reshape(1, 1, *grid)
        return enlarge(likeness, self.preprocess.config.size, self.dual.token_centre)[0, 0].numpy()

    def random_like(self, seed: int) -> Model:
        """The same architecture with freshly drawn weights: the baseline that a trained model is shown beside."""
        hf_config = getattr(getattr(self.network, "text_encoder", None), "hf_config", None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build_network(self.encoder_config, self.dual_config, self.tokenizer, hf_config)
        card = {**self.card, "random_weights_seed": seed}
        return Model(network, self.preprocess, self.tokenizer, card, self.encoder_config, self.dual_config, self.device)


Values = TypeVar("Values", Tensor, np.ndarray)


def finite(values: Values, model: Any) -> Values:
    """`values` of a model, themselves. Raises WeightsError where one is not finite."""
    if not torch.isfinite(torch.as_tensor(values)).all():
        raise WeightsError(
            f"{model.card.get('file', 'the model')}: its features are not finite (NaN or infinite); the training that wrote it "
            "diverged: take an earlier checkpoint"
        )
    return values
