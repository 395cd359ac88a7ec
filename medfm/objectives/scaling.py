"""Numbers of a recipe that follow from batch and data, where they are left at `auto`."""

from __future__ import annotations

import math

_IMAGENET = 1_281_167  # training images
_PROTOTYPES = 65_536  # of DINO on ImageNet ...
_BATCH = 1024  # ... at this batch


def auto_momentum(base: float, base_batch: int, batch: int, total_steps: int | None = None) -> float:
    """A teacher's EMA momentum for another batch size than it was published with: `base ** (batch / base_batch)`.

    An EMA's memory is counted in optimiser steps, of which a smaller batch makes more for the same images; the rule keeps the
    memory in images. DINO's .996 at batch 1024 becomes .9990 at 256 and .9998 at 64 (DINO's README advises .9995 at 256, half
    way further in the same direction).

    A memory as long as the run would leave a short run's teacher near its random start, so with `total_steps` it is at most a
    twentieth of the run (the start's share of the teacher then ends below e^-10, also where the momentum rises to 1 on a
    cosine), but 100 steps in any case: a teacher on its student's heels collapses (benchmarks/guard.py: DINO at .95, where
    .99 is healthy). The result lies in [0.9, 0.99999], and equals `base` at `base_batch` unless the run is too short for it.

    Source: Busbridge et al. 2023, "How to Scale Your EMA", definition 1.2 (EMA scaling rule).

    Args:
        base: momentum at `base_batch`, in [0, 1).
        base_batch: batch that `base` was published for.
        batch: images an optimiser step sees, over all devices and accumulated batches.
        total_steps: optimiser steps of the whole run; None where not known.

    Raises:
        ValueError: `base` is outside [0, 1), or a batch is below 1.
    """
    if not 0 <= base < 1:
        raise ValueError(f"EMA momentum must lie in [0, 1), got {base}")
    if base_batch < 1 or batch < 1:
        raise ValueError(f"batch sizes must be at least 1, got {base_batch} and {batch}")
    scaled = base if batch == base_batch else min(max(base ** (batch / base_batch), 0.9), 0.99999)
    if total_steps is None:
        return scaled
    return min(scaled, max(0.99, 1 - 20 / max(total_steps, 1)))


def auto_out_dim(batch: int, images: int) -> int:
    """How many prototypes a self-distillation head has: a power of two from 256 to 131072.

    The smaller of two densities that DINO's 65536 had on ImageNet, rounded to the nearest power of two:

    - 20 training images a prototype (1.28 million / 65536): more prototypes than that have no images to tell them apart, and
      unused ones cost memory and time (batch x prototypes x crops, often more than a small encoder);
    - 64 prototypes an image of the batch (65536 / 1024): with the centre's memory of ten steps each prototype is then met as
      often as in DINO; fewer meetings make the centre, which is what holds collapse off, an estimate from too few answers.

    ImageNet at batch 1024 gives 65536 (DINO), 142 million images at 3072 131072 (DINOv2), 377,000 radiographs at 256 16384, and
    5,000 at any batch 256.

    Raises:
        ValueError: `batch` or `images` is below 1.
    """
    if batch < 1 or images < 1:
        raise ValueError(f"batch and images must be at least 1, got {batch} and {images}")
    wanted = min(images * _PROTOTYPES / _IMAGENET, batch * _PROTOTYPES / _BATCH)
    return int(min(max(2 ** round(math.log2(wanted)), 256), 131_072))
