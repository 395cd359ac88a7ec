"""The planner against the truth: operations against the textbook and published counts, memory against real steps.

python -m benchmarks.plan [--device cuda] [--quick]

On a CPU small models of every objective run for real; what autograd saved and the allocator's peak stand beside the estimate.
With --device cuda full-size models do, and their step times.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from typing import Any

from benchmarks.common import bar, table, write
from medfm.objectives.base import Objective, Parts
from medfm.objectives.config import ObjectiveConfig
from medfm.registry import OBJECTIVES
from medfm.training.config import PretrainConfig
from medfm.training.plan.devices import at_hand, find_gpu
from medfm.training.plan.estimate import memory_of, step_seconds
from medfm.training.plan.flops import vit_forward_flops
from medfm.training.plan.measure import measure_step
from medfm.training.plan.settings import Setting
from medfm.training.plan.trace import trace_step
from medfm.types import Batch, ObjectiveOutput


@OBJECTIVES.register("encoder_alone", f"{__name__}:build_encoder_alone")
class EncoderAloneConfig(ObjectiveConfig):
    """The encoder and nothing else, to count it."""

    name: str = "encoder_alone"


class EncoderAlone(Objective):
    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: Batch, draws: Any = None) -> ObjectiveOutput:
        return ObjectiveOutput(self.encoder(batch.images).patch_tokens.float().mean())


def build_encoder_alone(config: EncoderAloneConfig, parts: Parts) -> EncoderAlone:
    return EncoderAlone(parts.image_encoder)


def recipe(encoder: dict[str, Any], objective: dict[str, Any], precision: str = "32-true", rows: int = 4) -> PretrainConfig:
    """A recipe without a file: images are what the encoder takes."""
    size = encoder["img_size"]
    return PretrainConfig.model_validate(
        {
            "data": {"manifest": "none.parquet", "batch_size": rows},
            "preprocess": {"size": size, "channels": encoder.get("in_channels", 1)},
            "encoder": encoder,
            "objective": objective,
            "trainer": {"precision": precision},
        }
    )


def vit(size: list[int], patch: list[int], width: int, depth: int, heads: int, **more: Any) -> dict[str, Any]:
    shape = {"img_size": size, "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}
    return {"name": "vit", **shape, **more}


def timm(model: str, size: list[int]) -> dict[str, Any]:
    return {"name": "timm", "model": model, "img_size": size, "in_channels": 3}


SQUARE, PATCH = [224, 224], [16, 16]
# Published GMACs of the forward pass: DeiT (Touvron et al. 2021, table 5) for ViT-S and -B, timm's results-imagenet.csv for the
# others; both with a classifier, which is 0.001 to 0.05 % of it.
COUNTED = {
    "ViT-S/16 224": (vit(SQUARE, PATCH, 384, 12, 6, in_channels=3), 4.6),
    "ViT-B/16 224": (vit(SQUARE, PATCH, 768, 12, 12, in_channels=3), 17.6),
    "ViT-L/16 224": (vit(SQUARE, PATCH, 1024, 24, 16, in_channels=3), 61.6),
    "ViT-B 3D 96^3, patch 16": (vit([96, 96, 96], [16, 16, 16], 768, 12, 12), None),
    "ViT-B 3D 240x480x480, patch 10x20x20": (vit([240, 480, 480], [10, 20, 20], 768, 12, 12), None),
    "ResNet-50 224 (timm)": (timm("resnet50", SQUARE), 4.11),
    "Swin-T 224 (timm)": (timm("swin_tiny_patch4_window7_224", SQUARE), 4.5),
    "ConvNeXt-T 224 (timm)": (timm("convnext_tiny", SQUARE), 4.47),
}


def operations() -> tuple[str, list[str]]:
    """Counted operations beside the textbook's and the published ones."""
    rows, worst, worst_published = [], 0.0, 0.0
    for name, (encoder, published) in COUNTED.items():
        foot, _ = trace_step(recipe(encoder, {"name": "encoder_alone"}), 1)
        gmacs = foot.forward_flops / 2e9
        textbook: float | None = None
        if encoder["name"] == "vit":
            patches = math.prod(n // p for n, p in zip(encoder["img_size"], encoder["patch_size"], strict=True))
            values = math.prod(encoder["patch_size"]) * encoder.get("in_channels", 1)
            textbook = vit_forward_flops(patches + 1, patches, values, encoder["embed_dim"], encoder["depth"]) / 2e9
            worst = max(worst, abs(gmacs / textbook - 1))
        if published is not None:
            worst_published = max(worst_published, abs(gmacs / published - 1))
        shown = ["" if x is None else f"{x:.4g}" for x in (textbook, published)]
        rows.append([name, f"{gmacs:.4g}", *shown, f"{foot.flops / foot.forward_flops:.2f}"])
    head = ["encoder", "counted GMACs forward", "textbook", "published", "forward and backward / forward"]
    return table(head, rows), [
        bar(f"operations within 1 % of the textbook's: {worst:.2%}", worst <= 0.01),
        bar(f"and within 1 % of the published ones: {worst_published:.2%}", worst_published <= 0.01),
    ]  # fmt: skip


TEXT = {"text_encoder": {"name": "clip_text", "embed_dim": 128, "depth": 2, "num_heads": 2}}
SMALL_2D = vit([96, 96], [16, 16], 192, 4, 3)
SMALL_3D = vit([48, 48, 48], [16, 16, 16], 192, 4, 3)
MAE = {"name": "mae", "decoder_dim": 128, "decoder_depth": 2, "decoder_heads": 4}
ON_CPU = {
    "contrastive, ViT 2D": (SMALL_2D, {"name": "contrastive", **TEXT}),
    "contrastive, ViT 3D": (SMALL_3D, {"name": "contrastive", **TEXT}),
    "contrastive, half of the patches": (SMALL_2D, {"name": "contrastive", "patch_dropout": 0.5, **TEXT}),
    "contrastive, checkpointing": ({**SMALL_2D, "gradient_checkpointing": True}, {"name": "contrastive", **TEXT}),
    "contrastive, ResNet-10": (
        {"name": "timm", "model": "resnet10t", "img_size": [96, 96]},
        {"name": "contrastive", **TEXT},
    ),
    "MAE, ViT 2D": (SMALL_2D, MAE),
    "MAE, ViT 3D": (SMALL_3D, MAE),
    "SimMIM, ViT 2D": (SMALL_2D, {"name": "mae", "encode_all": True, "head": "linear"}),
    "DINO, ViT 2D": (SMALL_2D, {"name": "dino", "out_dim": 4096}),
    "DINO, ViT 3D": (SMALL_3D, {"name": "dino", "out_dim": 4096}),
    "SimCLR": (SMALL_2D, {"name": "simclr"}),
    "MoCo v3": (SMALL_2D, {"name": "moco", "hidden_dim": 1024}),
    "BYOL": (SMALL_2D, {"name": "byol", "hidden_dim": 1024}),
    "Barlow Twins": (SMALL_2D, {"name": "barlow", "out_dim": 1024}),
    "sum of contrastive and MAE": (SMALL_2D, {"name": "sum", "terms": [{"name": "contrastive", **TEXT}, MAE]}),
}


def on_cpu(quick: bool) -> tuple[str, list[str]]:
    """Small models for real, on the CPU."""
    rows, kept_worst, peak_worst, conv_worst = [], 0.0, 0.0, 0.0
    cases = dict(list(ON_CPU.items())[:2]) if quick else ON_CPU
    for name, (encoder, objective) in cases.items():
        for precision in ("32-true", "bf16-mixed"):
            config = recipe(encoder, objective, precision)
            foot, weights = trace_step(config, 4, cuda=False)
            memory = memory_of(foot, weights, Setting("32-true", False, 4), 1)
            estimated = memory.total - memory.margin
            real = measure_step(config, 4, "cpu", steps=1)
            assert real.kept is not None
            kept, peak = foot.kept / real.kept, estimated / real.peak
            kept_worst = max(kept_worst, abs(kept - 1))
            if encoder["name"] == "vit":
                peak_worst = max(peak_worst, abs(peak - 1))
            else:
                conv_worst = max(conv_worst, abs(peak - 1))
            mb = [f"{n / 1e6:.2f}" for n in (foot.kept, real.kept)] + [f"{kept:.3f}"]
            mb += [f"{n / 1e6:.1f}" for n in (estimated, real.peak)] + [f"{peak:.3f}"]
            rows.append([name, precision, *mb])
    head = ["4 images", "precision", "kept MB, estimate", "real", "ratio", "peak MB, estimate", "real", "ratio"]
    bars = [
        bar(f"kept activations within 5 % of what autograd saved: {kept_worst:.1%}", kept_worst <= 0.05),
        bar(f"peak within 5 % of the allocator's, transformers: {peak_worst:.1%}", peak_worst <= 0.05),
    ]
    if conv_worst:
        bars.append(
            bar(f"peak within 10 %, convolutions, whose workspaces are not counted: {conv_worst:.1%}", conv_worst <= 0.1)
        )
    return table(head, rows), bars


CT = vit([240, 480, 480], [10, 20, 20], 768, 12, 12, gradient_checkpointing=True)
LARGE_MAE = {"name": "mae", "decoder_dim": 384, "decoder_depth": 4, "decoder_heads": 12}


def volume() -> tuple[str, list[str]]:
    """CT-CLIP's volume, 480 x 480 x 240 in patches of 20 x 20 x 10: 13,824 tokens, two of them."""
    rows, worst = [], 0.0
    cases = {
        "contrastive": {"name": "contrastive", "text_encoder": {"name": "clip_text", "gradient_checkpointing": True}},
        "MAE, decoder 384 x 4": LARGE_MAE,
        "MAE, all tokens encoded (SimMIM)": {**LARGE_MAE, "encode_all": True},
    }
    for name, objective in cases.items():
        for again in (True, False):
            config = recipe({**CT, "gradient_checkpointing": again}, objective, "bf16-mixed", 2)
            foot, weights = trace_step(config, 2)
            total = memory_of(foot, weights, Setting("bf16-mixed", again, 2), 1).total / 1e9
            worst = max(worst, total) if again else worst
            seconds = step_seconds(foot, weights, 1, find_gpu("rtx_4090"), 0.35)
            rows.append([name, "yes" if again else "no", f"{foot.flops / 2e12:.1f}", f"{total:.1f}", f"{seconds:.2f}"])
    head = ["ViT-B, batch 2, bf16", "checkpointing", "TFLOP an image", "GB", "s a step, RTX 4090 at 35 %"]
    text = f"estimate for 480 x 480 x 240, ViT-B, batch 2, checkpointing, bf16 under 24 GB: {worst:.1f} GB"
    return table(head, rows), [bar(text, worst < 24)]


BASE = vit(SQUARE, PATCH, 768, 12, 12)
ON_CUDA = {
    "contrastive, ViT-B/16, CLIP text": (BASE, {"name": "contrastive"}, 128),
    "contrastive, ViT-B/16, checkpointing": ({**BASE, "gradient_checkpointing": True}, {"name": "contrastive"}, 128),
    "MAE, ViT-B/16": (BASE, {"name": "mae"}, 256),
    "DINO, ViT-S/16, 65536 prototypes": (vit(SQUARE, PATCH, 384, 12, 6), {"name": "dino", "out_dim": 65536}, 64),
    "MAE 3D, ViT-B 96^3": (vit([96, 96, 96], [16, 16, 16], 768, 12, 12), LARGE_MAE, 128),
    "MAE 3D, ViT-B 480x480x240, checkpointing": (CT, LARGE_MAE, 2),
    "contrastive 3D, ViT-B 480x480x240, checkpointing": (CT, {"name": "contrastive"}, 2),
    "contrastive, ResNet-50": (timm("resnet50", SQUARE), {"name": "contrastive"}, 128),
}


def on_cuda(quick: bool) -> tuple[str, list[str]]:
    """Full-size models for real, on the GPU."""
    gpu = at_hand()
    assert gpu is not None, "--device cuda needs a GPU"
    rows, worst = [], 0.0
    cases = dict(list(ON_CUDA.items())[:1]) if quick else ON_CUDA
    for name, (encoder, objective, images) in cases.items():
        for precision in ("bf16-mixed", "32-true")[: 1 if "480x480" in name else 2]:
            config = recipe(encoder, objective, precision, images)
            foot, weights = trace_step(config, images)
            setting = Setting("bf16-mixed", False, images)
            memory = memory_of(foot, weights, setting, 1)
            estimated = memory.total - memory.margin
            real = measure_step(config, images, "cuda")
            ratio = estimated / real.peak
            worst = max(worst, abs(ratio - 1))
            total = real.seconds + real.update_seconds
            seconds = step_seconds(foot, weights, 1, replace(gpu, name=gpu.name), 0.35)
            mfu = "" if gpu.half is None or precision == "32-true" else f"{foot.flops / total / gpu.half:.0%}"
            rows.append([
                name, images, precision, f"{estimated / 1e9:.2f}", f"{real.peak / 1e9:.2f}", f"{ratio:.3f}",
                f"{memory.total / 1e9:.2f}", f"{(real.reserved or 0) / 1e9:.2f}",
                "" if seconds is None else f"{seconds * 1e3:.0f}", f"{total * 1e3:.0f}", mfu,
            ])  # fmt: skip
    head = ["step", "images", "precision", "tensors GB, estimate", "real", "ratio", "all GB, estimate", "reserved",
            "ms, estimate at 35 %", "real", "share of the matrix rate"]  # fmt: skip
    return table(head, rows), [bar(f"peak of tensors within 10 % of max_memory_allocated: {worst:.1%}", worst <= 0.1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="two cases, to see that it runs")
    options = parser.parse_args()
    if options.device == "cuda":
        parts = [("Real steps on the GPU", on_cuda(options.quick))]
    else:
        parts = [
            ("Operations", operations()),
            ("Memory of real steps on a CPU", on_cpu(options.quick)),
            ("CT-CLIP's volume", volume()),
        ]
    sections = [f"## {title}\n\n{shown}" for title, (shown, _) in parts]
    bars = [line for _, (_, lines) in parts for line in lines]
    name = "plan" if options.device == "cpu" else "plan_gpu"
    write(name, "Planner", "\n".join(bars), *sections)


if __name__ == "__main__":
    main()
