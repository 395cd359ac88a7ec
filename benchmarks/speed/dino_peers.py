"""Other projects' DINO training steps, as their own scripts write them: `step(views) -> loss`, views a list of B images each.

facebookresearch/dino is read from a folder; only its data loader, logging and learning-rate tables are left out. lightly's
modules are put together as in its DINO example (examples/pytorch/dino.py: one view at a time), and with views batched by size.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Step = Callable[[list[Tensor], list[Tensor]], float]
MOMENTUM, LR, DECAY, CLIP = 0.996, 5e-4, 0.04, 3.0


class Missing(Exception):
    """A peer that is not here; the text says what is missing."""


def adamw(groups: Any, fused: bool) -> torch.optim.AdamW:
    """torch's default AdamW, which the scripts take, or its fused one."""
    return torch.optim.AdamW(groups, lr=LR, fused=True) if fused else torch.optim.AdamW(groups, lr=LR)


class Facebook:
    """What is used of facebookresearch/dino."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "dino" / "main_dino.py").is_file():
            raise Missing(f"facebookresearch/dino: no {folder / 'dino'}; clone it there, or give --peers")
        if not dist.is_initialized():  # its loss reduces the centre over devices
            dist.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/meeting", rank=0, world_size=1)
        sys.path.insert(0, str(folder / "dino"))
        try:
            import main_dino
            import utils
            import vision_transformer
        finally:
            sys.path.remove(str(folder / "dino"))
        self.main, self.utils, self.vits = main_dino, utils, vision_transformer

    def network(self, sizes: Mapping[str, Any]) -> nn.Module:
        vit = self.vits.VisionTransformer(
            img_size=[sizes["size"]],
            patch_size=sizes["patch"],
            embed_dim=sizes["dim"],
            depth=sizes["depth"],
            num_heads=sizes["heads"],
            qkv_bias=True,
        )
        made: nn.Module = self.utils.MultiCropWrapper(vit, self.vits.DINOHead(sizes["dim"], sizes["out"]))
        return made

    def loss(self, out: int, views: int) -> nn.Module:
        made: nn.Module = self.main.DINOLoss(out, views, 0.04, 0.04, 0, 100)
        return made

    @staticmethod
    @torch.no_grad()
    def follow(student: nn.Module, teacher: nn.Module, m: float) -> None:
        """The loop of train_one_epoch."""
        for param_q, param_k in zip(student.parameters(), teacher.parameters(), strict=True):
            param_k.data.mul_(m).add_((1 - m) * param_q.detach().data)


def facebook(folder: Path, sizes: Mapping[str, Any], autocast: Callable[[], Any], fused: bool) -> Step:
    """main_dino.py, train_one_epoch; bfloat16 autocast in the place of its float16."""
    code = Facebook(folder)
    student, teacher = code.network(sizes), code.network(sizes)
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    loss_of = code.loss(sizes["out"], 2 + sizes["locals"])
    optimizer = adamw(code.utils.get_params_groups(student), fused)
    optimizer.param_groups[0]["weight_decay"] = DECAY

    def step(global_views: list[Tensor], local_views: list[Tensor]) -> float:
        with autocast():
            teacher_output = teacher(global_views)
            student_output = student(global_views + local_views)
            loss = loss_of(student_output, teacher_output, 1)
        value = float(loss.item())
        optimizer.zero_grad()
        loss.backward()
        code.utils.clip_gradients(student, CLIP)
        code.utils.cancel_gradients_last_layer(1, student, 1)
        optimizer.step()
        code.follow(student, teacher, MOMENTUM)
        return value

    return step


def lightly(sizes: Mapping[str, Any], autocast: Callable[[], Any], fused: bool, batched: bool) -> Step:
    """lightly's ViT wrapper over timm, head, loss and moving average."""
    try:
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead, MaskedVisionTransformerTIMM
        from lightly.models.utils import deactivate_requires_grad, update_momentum
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise Missing("lightly: not installed") from error

    def network() -> nn.ModuleList:
        vit = VisionTransformer(
            img_size=sizes["size"],
            patch_size=sizes["patch"],
            embed_dim=sizes["dim"],
            depth=sizes["depth"],
            num_heads=sizes["heads"],
            num_classes=0,
            dynamic_img_size=True,
        )
        head = DINOProjectionHead(sizes["dim"], 2048, 256, sizes["out"], norm_last_layer=True)
        return nn.ModuleList([MaskedVisionTransformerTIMM(vit=vit), head])

    student, teacher = network(), network()
    teacher.load_state_dict(student.state_dict())
    deactivate_requires_grad(teacher)
    loss_of = DINOLoss(output_dim=sizes["out"], warmup_teacher_temp_epochs=1)
    optimizer = adamw([p for p in student.parameters() if p.requires_grad], fused)

    def forward(model: nn.ModuleList, views: list[Tensor]) -> list[Tensor]:
        if batched and views:
            return list(model[1](model[0](torch.cat(views))).chunk(len(views)))
        return [model[1](model[0](view)) for view in views]

    def step(global_views: list[Tensor], local_views: list[Tensor]) -> float:
        for part in (0, 1):
            update_momentum(student[part], teacher[part], m=MOMENTUM)
        with autocast():
            with torch.no_grad():
                targets = forward(teacher, global_views)
            answers = forward(student, global_views) + forward(student, local_views)
            loss = loss_of([t.float() for t in targets], [a.float() for a in answers], epoch=1)
        value = float(loss.item())
        loss.backward()
        student[1].cancel_last_layer_gradients(current_epoch=1)
        optimizer.step()
        optimizer.zero_grad()
        return value

    return step
