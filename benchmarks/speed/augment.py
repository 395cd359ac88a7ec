"""Multi-crop views: batched on the device, beside pipelines that take one image at a time.

    python -m benchmarks.speed.augment
    python -m benchmarks.speed.augment --device cuda --batch 256 --volumes 16

Writes benchmarks/results/augment.md (augment_cuda.md). Every candidate makes the same views, with the same strengths and
probabilities, from the same stored images in memory: DINO's for grey films (no flip, colour jitter, grey or normalisation by
colour), 2 of 224 and 8 of 96 pixels from 256; and 2 of 96 cubed and 8 of 48 cubed from CT volumes of 128 cubed. A peer that is
not installed is skipped and said.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import bar, table, write
from benchmarks.speed.timing import in_turns, rows, versions
from medfm.transforms.config import AugmentConfig, PreprocessConfig, ViewsConfig
from medfm.transforms.draws import Draws
from medfm.transforms.preprocess import Preprocess
from medfm.transforms.views import MultiCrop

GLOBAL, LOCAL = (0.4, 1.0), (0.05, 0.4)
BLUR_P, SOLARIZE_P, JITTER_P = (1.0, 0.1, 0.5), (0.0, 0.2, 0.0), 0.8
SIGMA = (0.1, 2.0)
STRENGTH = 0.4
MEAN, STD = 0.5, 0.25
HU = (-1000.0, 400.0)


def ours(
    stored: Tensor, preprocess: Preprocess, img_size: tuple[int, ...], solarize: bool, rotate: float = 0.0
) -> Callable[[], Any]:
    augment = AugmentConfig(contrast=STRENGTH, gain=STRENGTH, blur=SIGMA, rotate=rotate)
    views = ViewsConfig(blur_p=BLUR_P, solarize_p=SOLARIZE_P if solarize else (0.0, 0.0, 0.0), jitter_p=(JITTER_P,) * 3)
    crop = MultiCrop(preprocess, augment, views, img_size, (16,) * len(img_size))
    seed = iter(range(10**9))
    return lambda: synchronised(crop(stored, Draws(next(seed), stored.device)), stored.device)


def synchronised(result: Any, device: torch.device) -> Any:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result


def kinds() -> list[tuple[int, int]]:
    """(kind, views): first global, second global, local."""
    return [(0, 1), (1, 1), (2, 8)]


def torchvision_tensors(stored: Tensor) -> Callable[[], Any]:
    """torchvision v2 on tensors, an image at a time; blur with the kernel that reaches 3 sigma."""
    from torchvision.transforms import v2

    def view(kind: int) -> Any:
        size, scale = (96, LOCAL) if kind == 2 else (224, GLOBAL)
        return v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=scale, antialias=True),
                v2.RandomApply([v2.ColorJitter(brightness=STRENGTH, contrast=STRENGTH)], p=JITTER_P),
                v2.RandomApply([v2.GaussianBlur(13, SIGMA)], p=BLUR_P[kind]),
                v2.RandomSolarize(128, p=SOLARIZE_P[kind]),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([MEAN], [STD]),
            ]
        )

    pipelines = [view(kind) for kind, count in kinds() for _ in range(count)]
    return lambda: synchronised([torch.stack([made(image) for image in stored]) for made in pipelines], stored.device)


def dino_pillow(stored: Tensor) -> Callable[[], Any]:
    """DINO's own recipe for Pillow images (Caron et al. 2021, DataAugmentationDINO), as far as grey images have it."""
    from PIL import Image, ImageFilter, ImageOps
    from torchvision import transforms as tv

    def blur(p: float) -> Callable[[Any], Any]:
        def apply(image: Any) -> Any:
            return image.filter(ImageFilter.GaussianBlur(random.uniform(*SIGMA))) if random.random() < p else image

        return apply

    def solarize(p: float) -> Callable[[Any], Any]:
        return lambda image: ImageOps.solarize(image) if random.random() < p else image

    def view(kind: int) -> Any:
        size, scale = (96, LOCAL) if kind == 2 else (224, GLOBAL)
        return tv.Compose(
            [
                tv.RandomResizedCrop(size, scale=scale, interpolation=tv.InterpolationMode.BICUBIC),
                tv.RandomApply([tv.ColorJitter(brightness=STRENGTH, contrast=STRENGTH)], p=JITTER_P),
                blur(BLUR_P[kind]),
                solarize(SOLARIZE_P[kind]),
                tv.ToTensor(),
                tv.Normalize([MEAN], [STD]),
            ]
        )

    pipelines = [view(kind) for kind, count in kinds() for _ in range(count)]
    pictures = [Image.fromarray(image[0].numpy()) for image in stored]
    return lambda: [torch.stack([made(picture) for picture in pictures]) for made in pipelines]


def lightly_pillow(stored: Tensor) -> Callable[[], Any]:
    from lightly.transforms import DINOTransform
    from PIL import Image

    transform = DINOTransform(
        n_local_views=8, hf_prob=0, cj_strength=1.0, cj_bright=STRENGTH, cj_contrast=STRENGTH, cj_sat=0, cj_hue=0,
        random_gray_scale=0, normalize={"mean": [MEAN], "std": [STD]},
    )  # fmt: skip
    pictures = [Image.fromarray(image[0].numpy()) for image in stored]
    return lambda: [torch.stack(views) for views in zip(*[transform(picture) for picture in pictures], strict=True)]


def monai_volumes(stored: Tensor, affine: bool) -> Callable[[], Any]:
    """A random box, scaled by one RandAffine or cut and resized; smoothing; contrast; per volume."""
    from monai import transforms as mt

    device = stored.device

    def view(kind: int) -> Any:
        side, (low, high) = (48, LOCAL) if kind == 2 else (96, GLOBAL)
        low, high = low ** (1 / 3), high ** (1 / 3)
        boxes: list[Any]
        if affine:
            # RandAffine samples `side` voxels times the scale about a shifted middle.
            scale = tuple(128 * share / side - 1 for share in (low, high))
            room = 64 * (1 - (low + high) / 2)
            boxes = [
                mt.RandAffine(1.0, scale_range=[scale] * 3, translate_range=[room] * 3, spatial_size=(side,) * 3,
                              padding_mode="border", device=device)
            ]  # fmt: skip
        else:
            boxes = [
                mt.RandSpatialCrop((int(128 * low),) * 3, (int(128 * high),) * 3, random_size=True),
                mt.Resize((side,) * 3, mode="trilinear"),
            ]
        return mt.Compose(
            [
                mt.EnsureType(track_meta=False),
                *boxes,
                mt.RandGaussianSmooth(SIGMA, SIGMA, SIGMA, prob=BLUR_P[kind]),
                mt.ScaleIntensityRange(*HU, 0, 1, clip=True),
                mt.RandScaleIntensityFixedMean(factors=STRENGTH, prob=JITTER_P),
                mt.RandScaleIntensity(factors=STRENGTH, prob=JITTER_P),
                mt.NormalizeIntensity(np.array(MEAN), np.array(STD)),
            ]
        )

    pipelines = [view(kind) for kind, count in kinds() for _ in range(count)]
    return lambda: synchronised([torch.stack([made(v.float()) for v in stored]) for made in pipelines], device)


def available(candidates: dict[str, Callable[[], Callable[[], Any]]]) -> tuple[dict[str, Callable[[], Any]], list[str]]:
    """Those whose packages are here, and what is missing."""
    made, missing = {}, []
    for name, build in candidates.items():
        try:
            made[name] = build()
        except ImportError as error:
            missing.append(f"{name} skipped: {error.name} is not installed")
    return made, missing


def films(count: int) -> Tensor:
    """Smooth random pictures with fine structure, (N, 1, 256, 256) uint8."""
    rough = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(rough, (256, 256), mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu takes one thread; pipelines of Pillow images stay on it")
    parser.add_argument("--batch", type=int, default=16, help="films")
    parser.add_argument("--volumes", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--name", default=None, help="file in benchmarks/results; default: augment, augment_cuda")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if hasattr(os, "sched_setaffinity") and device.type == "cpu":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)

    stored = films(arguments.batch)
    film = Preprocess(PreprocessConfig(size=(256, 256)))
    here = stored.to(device)
    flat, missing = available(
        {
            "medfm": lambda: ours(here, film, (224, 224), True),
            "medfm, turned by up to 10 degrees": lambda: ours(here, film, (224, 224), True, rotate=10),
            "torchvision v2, tensors": lambda: torchvision_tensors(here),
            "DINO's recipe, Pillow": lambda: dino_pillow(stored),
            "lightly DINOTransform, Pillow": lambda: lightly_pillow(stored),
        }
    )
    volumes = torch.from_numpy(np.random.default_rng(0).integers(-1024, 1500, (arguments.volumes, 1, 128, 128, 128), np.int16))
    chest = Preprocess(PreprocessConfig(size=(128, 128, 128), window="hu", hu_window=HU, dtype="int16"))
    volumes = volumes.to(device)
    deep, absent = available(
        {
            "medfm": lambda: ours(volumes, chest, (96, 96, 96), False),
            "medfm, turned by up to 10 degrees": lambda: ours(volumes, chest, (96, 96, 96), False, rotate=10),
            "MONAI RandSpatialCrop, Resize": lambda: monai_volumes(volumes, affine=False),
            "MONAI RandAffine": lambda: monai_volumes(volumes, affine=True),
        }
    )
    flat_seconds, deep_seconds = in_turns(flat, arguments.runs), in_turns(deep, max(3, arguments.runs // 2))

    def best(seconds: dict[str, list[float]]) -> tuple[str, float]:
        peers = {name: median(s) for name, s in seconds.items() if not name.startswith("medfm")}
        name = min(peers, key=peers.__getitem__)
        return name, peers[name] / median(seconds["medfm"])

    name, times = best(flat_seconds)
    deep_name, deep_times = best(deep_seconds) if len(deep) > 2 else ("", float("nan"))
    per_film, per_volume = (
        {n: [x / count for x in s] for n, s in seconds.items()}
        for seconds, count in ((flat_seconds, arguments.batch), (deep_seconds, arguments.volumes))
    )
    head = ("views by", "best ms an image", "median ms an image", "times medfm")
    bars = [bar(f"2D: at least as fast as the best peer, {name}: {times:.1f} times", times >= 1)]
    if deep_name:
        bars.append(bar(f"3D: at least as fast as the best peer, {deep_name}: {deep_times:.1f} times", deep_times >= 1))
    write(
        arguments.name or ("augment" if device.type == "cpu" else f"augment_{device.type}"),
        f"Multi-crop views on {'one thread' if device.type == 'cpu' else torch.cuda.get_device_name()}",
        f"Blur of sigma {SIGMA[0]:g} to {SIGMA[1]:g} with probability {BLUR_P} for first global, second global and local "
        f"views, contrast and brightness by up to {STRENGTH:g} with probability {JITTER_P:g}; "
        f"{versions('torch', 'torchvision', 'lightly', 'monai', 'pillow')}; {arguments.runs} interleaved runs. medfm and "
        "torchvision interpolate linearly and antialiased; DINO's recipe and lightly bicubically, antialiased; MONAI "
        "trilinearly, without antialiasing. medfm gives one float batch a size; the others' views are stacked, normalised too.",
        f"{arguments.batch} films of 256 x 256, uint8: 2 views of 224, 8 of 96, a fifth of the second solarised.",
        table(head, rows(per_film, "medfm")),
        f"{arguments.volumes} volumes of 128 x 128 x 128, int16 HU: 2 views of 96 cubed, 8 of 48 cubed.",
        table(head, rows(per_volume, "medfm")),
        "\n".join([*bars, *[f"- {line}" for line in (*missing, *absent)]]),
    )


if __name__ == "__main__":
    main()
