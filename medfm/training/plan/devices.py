"""Cards and what their makers say of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from medfm.errors import ConfigError
from medfm.registry import suggest

GB = 10**9


@dataclass(frozen=True)
class Gpu:
    """One device.

    Attributes:
        name: as in `gpu=`.
        memory: bytes, by the GB of 10^9 that is printed on it. Cards hold 0 to 7 % more; that is left to fragmentation.
        half: dense matrix rate in bfloat16 (float16 where there is no bfloat16) with float32 sums, FLOP/s; None where only the
            memory is known.
        full: float32 rate of the ordinary cores, FLOP/s.
        bandwidth: of the memory, bytes/s.
        bfloat16: whether there is bfloat16.
        source: where the numbers stand.
    """

    name: str
    memory: int
    half: float | None = None
    full: float | None = None
    bandwidth: float | None = None
    bfloat16: bool = True
    source: str = ""


# name, memory GB, dense bf16 TFLOP/s, fp32 TFLOP/s, GB/s, source. Where a sheet prints the rate with sparsity, half of it.
_TABLE = (
    ("b200", 180, 2250, 75, 7700, "NVIDIA HGX B200 data sheet, an eighth of the board"),
    ("h200", 141, 989.5, 67, 4800, "NVIDIA H200 data sheet, SXM"),
    ("h100", 80, 989.5, 67, 3350, "NVIDIA H100 data sheet, SXM5"),
    ("h100_pcie", 80, 756, 51, 2000, "NVIDIA H100 data sheet, PCIe"),
    ("h100_nvl", 94, 835.5, 60, 3900, "NVIDIA H100 data sheet, NVL"),
    ("a100_80gb", 80, 312, 19.5, 2039, "NVIDIA A100 data sheet, SXM 80 GB"),
    ("a100_40gb", 40, 312, 19.5, 1555, "NVIDIA A100 data sheet, 40 GB"),
    ("l40s", 48, 362, 91.6, 864, "NVIDIA L40S data sheet"),
    ("l40", 48, 181, 90.5, 864, "NVIDIA L40 data sheet"),
    ("l4", 24, 121, 30.3, 300, "NVIDIA L4 data sheet"),
    ("a40", 48, 149.7, 37.4, 696, "NVIDIA A40 data sheet"),
    ("a30", 24, 165, 10.3, 933, "NVIDIA A30 data sheet"),
    ("a10", 24, 125, 31.2, 600, "NVIDIA A10 data sheet"),
    ("rtx_6000_ada", 48, 364.2, 91.1, 960, "NVIDIA RTX 6000 Ada data sheet"),
    ("rtx_a6000", 48, 154.8, 38.7, 768, "NVIDIA RTX A6000 data sheet"),
    ("rtx_a5000", 24, 111.1, 27.8, 768, "NVIDIA RTX A5000 data sheet"),
    ("rtx_a4000", 16, 76.7, 19.2, 448, "NVIDIA RTX A4000 data sheet"),
    ("rtx_5090", 32, 209.5, 104.8, 1792, "NVIDIA RTX Blackwell GPU Architecture, appendix"),
    ("rtx_4090", 24, 165.2, 82.6, 1008, "NVIDIA Ada GPU Architecture, appendix A"),
    ("rtx_4080", 16, 97.5, 48.7, 717, "NVIDIA Ada GPU Architecture, appendix B"),
    ("rtx_3090", 24, 71, 35.6, 936, "NVIDIA Ampere GA102 GPU Architecture, table 9"),
    ("rtx_3080", 10, 59.5, 29.8, 760, "NVIDIA Ampere GA102 GPU Architecture, table 2"),
    ("mi300x", 192, 1307.4, 163.4, 5300, "AMD Instinct MI300X data sheet"),
    ("mi210", 64, 181, 22.6, 1638, "AMD Instinct MI210 data sheet"),
)
# Cards without bfloat16: float16.
_OLDER = (
    ("v100_32gb", 32, 125, 15.7, 900, "NVIDIA V100 data sheet, SXM2 32 GB"),
    ("v100_16gb", 16, 125, 15.7, 900, "NVIDIA V100 data sheet, SXM2 16 GB"),
    ("t4", 16, 65, 8.1, 320, "NVIDIA T4 data sheet"),
)

GPUS = {
    name: Gpu(name, round(memory * GB), half * 1e12, full * 1e12, bandwidth * 1e9, row not in _OLDER, source)
    for row in (*_TABLE, *_OLDER)
    for name, memory, half, full, bandwidth, source in [row]
}
# The usual one where a name says less than the table.
_ALIASES = {"a100": "a100_80gb", "h100_sxm": "h100", "v100": "v100_32gb", "a6000": "rtx_a6000", "6000_ada": "rtx_6000_ada"}


def find_gpu(text: str) -> Gpu:
    """The card of that name, or one of that memory: `h100`, `RTX 4090`, `NVIDIA A100-SXM4-80GB`, `24GB`, `24GiB`.

    Raises:
        ConfigError: neither a known card nor a memory size.
    """
    size = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(gb|gib|g)?\s*", text.lower())
    if size:
        memory = round(float(size[1]) * (2**30 if size[2] == "gib" else GB))
        if memory < GB:
            raise ConfigError(f"gpu: '{text}' is less than 1 GB")
        return Gpu(f"{size[1]} {'GiB' if size[2] == 'gib' else 'GB'}", memory)
    name = _plain(text)
    known = {_plain(n): n for n in GPUS} | {_plain(a): n for a, n in _ALIASES.items()}
    if name in known:
        return GPUS[known[name]]
    hint = suggest(text.lower(), [*GPUS, *_ALIASES]) or f"; known: {', '.join(GPUS)}"
    raise ConfigError(f"gpu: no card '{text}'{hint.rstrip('?')}; or give its memory: gpu=24GB")


def _plain(text: str) -> str:
    """What of a name tells cards apart: 'NVIDIA A100-SXM4-80GB' and 'a100_80gb' alike."""
    text = text.lower()
    for word in (
        "nvidia",
        "geforce",
        "tesla",
        "quadro",
        "amd",
        "instinct",
        "generation",
        "hbm3e",
        "hbm3",
        "sxm2",
        "sxm4",
        "sxm5",
    ):
        text = text.replace(word, "")
    return re.sub(r"[^a-z0-9]", "", text)


def like(gpu: Gpu) -> list[Gpu]:
    """Cards of the table with the memory of one that is known by its memory alone, the slowest first."""
    same = [g for g in GPUS.values() if abs(g.memory - gpu.memory) <= 0.05 * gpu.memory and g.bfloat16]
    return sorted(same, key=lambda g: g.half or 0)


def at_hand() -> Gpu | None:
    """The CUDA device of this machine, with its name's numbers where the table knows it."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    memory = int(properties.total_memory)
    name = _plain(properties.name)
    for known in GPUS.values():
        if _plain(known.name) == name or (_plain(known.name) in name and abs(known.memory - memory) < 0.1 * memory):
            return Gpu(known.name, memory, known.half, known.full, known.bandwidth, known.bfloat16, known.source)
    return Gpu(properties.name, memory)
