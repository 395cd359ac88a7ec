"""Which patches an objective shows to the encoder, drawn on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from medfm.transforms.draws import Draws


def draw_keep(
    batch: int, tokens: int, drop: float, *, device: torch.device | str | None = None, draws: Draws | None = None
) -> Tensor:
    """Indices of the patches that stay when a share `drop` is dropped, uniformly and separately for every image.

    Source: FLIP (Li et al. 2023, section 3).

    Args:
        batch, tokens: B images of N patches.
        drop: share dropped, in [0, 1); at least one patch stays.
        draws: must live on `device`; None draws from the device's global generator.

    Returns:
        (B, K) int64, each row ascending and without repeats, K = round((1 - drop) * N).

    Raises:
        ValueError: `drop` lies outside [0, 1).
    """
    if not 0.0 <= drop < 1.0:
        raise ValueError(f"the share of dropped patches must lie in [0, 1), got {drop}")
    kept = max(1, round((1.0 - drop) * tokens))
    noise = torch.rand(batch, tokens, device=device) if draws is None else draws.rand(batch, tokens)
    order = noise.argsort(dim=1)
    return order[:, :kept].sort(dim=1).values
