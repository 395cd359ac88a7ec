"""The MLPs of a transformer block."""

from __future__ import annotations

from torch import Tensor, nn

from medfm.encoders.linear import Linear


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class SwiGlu(nn.Module):
    """`fc2(silu(a) * b)`, (a, b) = fc1(x) (Shazeer 2020, "GLU Variants Improve Transformer"); names as timm's SwiGLUPacked.

    Its width is two thirds of `hidden`, in whole eights, as DINOv2's SwiGLUFFNFused: as many weights as an Mlp of `hidden`.
    """

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        width = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.fc1 = Linear(dim, 2 * width)
        self.act = nn.SiLU()
        self.fc2 = Linear(width, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.drop(self.fc2(self.drop(self.act(gate) * value)))
