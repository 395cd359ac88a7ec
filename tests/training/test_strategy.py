"""How a recipe's trainer is put together, and the order of an optimiser step's hooks."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from safetensors.torch import load_file
from torch import nn

import medfm
from medfm.errors import ConfigError
from medfm.registry import OBJECTIVES
from medfm.training.build import build_strategy, build_trainer, check_extra, device_count
from medfm.training.checkpoint import checkpoints, read_checkpoint
from medfm.training.config import TrainerConfig
from medfm.training.logs import read_metrics

_SPY = """
from torch import nn
from medfm.encoders.image import ImageModel
from medfm.objectives.base import Objective
from medfm.objectives.config import ObjectiveConfig
from medfm.registry import OBJECTIVES
from medfm.types import ObjectiveOutput

CALLS = []
LAST = []


@OBJECTIVES.register("spy", "medfm_spy:build")
class SpyConfig(ObjectiveConfig):
    name: str = "spy"


def build(config, parts):
    return Spy(parts)


class Spy(Objective):
    def __init__(self, parts):
        super().__init__()
        self.network = ImageModel(parts.image_encoder)
        self.head = nn.Linear(self.network.embed_dim, 1)
        LAST[:] = [self]

    def forward(self, batch, draws=None):
        if self.training:
            CALLS.append(("forward", tuple(batch.index.tolist()), round(float(draws.rand(1)), 6)))
        loss = (self.head(self.network.encode_image(batch.images)) - 1).square().mean()
        return ObjectiveOutput(loss)

    def model(self):
        return self.network

    def before_step(self, step, total):
        CALLS.append(("before", step, total))

    def after_backward(self, step, total):
        CALLS.append(("backward", step, total, float(self.head.weight.detach().sum())))

    def after_optimizer_step(self, step, total):
        CALLS.append(("after", step, total, float(self.head.weight.detach().sum())))
"""


@pytest.fixture
def spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A plugin whose objective `spy` writes down when it is called."""
    (tmp_path / "medfm_spy.py").write_text(_SPY)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("medfm_spy", None)
    medfm_spy = importlib.import_module("medfm_spy")

    yield medfm_spy
    OBJECTIVES._entries.pop("spy")
    sys.modules.pop("medfm_spy")


def _spied(recipe: Path, out: Path, **keys: Any) -> Path:
    still = {"augment.scale": [1, 1], "augment.rotate": 0, "augment.brightness": 0, "encoder.dropout": 0}
    still |= {"guard.on_collapse": "off", "optimizer.name": "sgd"}
    return medfm.pretrain(str(recipe), {"objective": "spy", "out": out, **still, **keys})


def test_accumulate__hooks_come_once_an_optimiser_step(spy: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    keys = {"trainer.max_steps": 3, "trainer.accumulate": 2, "data.batch_size": 4, "trainer.log_every": 1}
    run = _spied(tiny_recipe, tmp_path / "run", **keys)
    order = [call[0] for call in spy.CALLS]
    assert order == ["before", "forward", "before", "forward", "backward", "after"] * 3
    assert [call[1] for call in spy.CALLS if call[0] == "before"] == [0, 0, 1, 1, 2, 2]
    assert [call[1] for call in spy.CALLS if call[0] == "backward"] == [0, 1, 2]
    assert [call[1] for call in spy.CALLS if call[0] == "after"] == [1, 2, 3]
    assert all(call[2] == 3 for call in spy.CALLS if call[0] != "forward")
    batches = [call for call in spy.CALLS if call[0] == "forward"]
    assert len({call[1] for call in batches}) == len({call[2] for call in batches}) == 6  # images and draws differ
    # The weights have moved between the two hooks, and are those of the checkpoint.
    moved = [(a[3], b[3]) for a, b in zip(spy.CALLS, spy.CALLS[1:], strict=False) if b[0] == "after"]
    assert all(before != after for before, after in moved)
    state = read_checkpoint(run / "checkpoints" / "step=00000003.ckpt")["state_dict"]
    assert float(state["objective.head.weight"].sum()) == moved[-1][1]
    # One line of numbers a step, not one a batch.
    assert [s for s, n, _ in read_metrics(run / "metrics.csv") if n == "train/loss"] == [1, 2, 3]


def test_accumulate__is_the_larger_batch(spy: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    """A mean over rows, in two halves; lr_scale sees the same batch of an optimiser step."""
    keys = {"trainer.max_steps": 4, "optimizer.lr": 1.0, "optimizer.lr_scale": "linear256"}
    whole = _spied(tiny_recipe, tmp_path / "whole", **keys, **{"data.batch_size": 8})
    halves = _spied(tiny_recipe, tmp_path / "halves", **keys, **{"data.batch_size": 4, "trainer.accumulate": 2})
    left, right = (read_checkpoint(checkpoints(run / "checkpoints")[-1][1]) for run in (whole, halves))
    for name, value in left["state_dict"].items():
        torch.testing.assert_close(right["state_dict"][name], value, atol=1e-6, rtol=1e-5)
    for run in (left, right):
        assert run["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 8 / 256


def test_accumulate__stops_and_resumes_between_steps(spy: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    keys = {"trainer.max_steps": 4, "trainer.accumulate": 2, "data.batch_size": 4}
    whole = _spied(tiny_recipe, tmp_path / "whole", **keys)
    original, seen = spy.Spy.forward, []

    def interrupted(self: Any, batch: Any, draws: Any = None) -> Any:
        seen.append(1)
        if self.training and len(seen) == 3:  # in the first half of the second step
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch, draws)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spy.Spy, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _spied(tiny_recipe, tmp_path / "parts", **keys)
    assert [step for step, _ in checkpoints(tmp_path / "parts" / "checkpoints")] == [2]
    parts = _spied(tiny_recipe, tmp_path / "parts", **keys)
    left, right = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("teacher", ["byol", "dino"])
def test_resume__a_teacher_has_followed_in_every_checkpoint(teacher: str, tiny_recipe: Path, tmp_path: Path) -> None:
    """Bit for bit: the moving average of the step that a checkpoint was written after is in it."""
    sizes = {"hidden_dim": 16, "out_dim": 8} | ({"bottleneck_dim": 8} if teacher == "dino" else {})
    objective = {"name": teacher, **sizes, "momentum": 0.5}
    keys = {"objective": objective, "augment": {}, "trainer.max_steps": 4, "guard.on_collapse": "off"}
    keys |= {"trainer.checkpoint_every": 0.25, "trainer.keep": 9, "encoder.dropout": 0.1}
    whole = medfm.pretrain(str(tiny_recipe), {**keys, "out": tmp_path / "whole"})
    second = tmp_path / "whole" / "checkpoints" / "step=00000002.ckpt"
    parts = medfm.pretrain(str(tiny_recipe), {**keys, "out": tmp_path / "parts", "resume": second})
    left, right = (read_checkpoint(run / "checkpoints" / "step=00000004.ckpt")["state_dict"] for run in (whole, parts))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert any("teacher" in name for name in left)


def test_precision__bf16_weights_train(tiny_recipe: Path, tmp_path: Path) -> None:
    run = medfm.pretrain(str(tiny_recipe), {"out": tmp_path, "trainer.precision": "bf16-true", "trainer.max_steps": 3})
    tensors = load_file(run / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())


def test_clip_grad_by__parameter_clips_each(spy: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    norms: list[float] = []

    def look(self: Any, step: int, total: int) -> None:
        norms.extend(float(p.grad.norm()) for p in self.parameters() if p.grad is not None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spy.Spy, "after_backward", look)
        keys = {"trainer.max_steps": 1, "trainer.clip_grad": 1e-3, "trainer.clip_grad_by": "parameter"}
        _spied(tiny_recipe, tmp_path / "run", **keys)
    assert max(norms) == pytest.approx(1e-3, rel=1e-2)
    assert sum(norm > 0.9e-3 for norm in norms) > 1  # one factor for all would leave the largest alone at the limit


def test_clip_grad__float16_gradients_are_clipped_unscaled(
    spy: Any, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning leaves it to fused optimisers to take the loss scale out, which comes after clipping."""

    def norm(out: Path, precision: str) -> float:
        keys = {"trainer.max_steps": 1, "trainer.log_every": 1, "trainer.precision": precision, "optimizer.name": "adamw"}
        run = _spied(tiny_recipe, tmp_path / out, **keys)
        return next(value for _, name, value in read_metrics(run / "metrics.csv") if name == "train/grad_norm")

    plain = norm(Path("full"), "32-true")
    # Lightning has float16 on GPUs only; on a CPU its plugin takes the place of bf16-true's.
    scaled = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024))
    monkeypatch.setattr("medfm.training.build.Bf16Weights", lambda device: scaled)
    assert norm(Path("half"), "bf16-true") == pytest.approx(plain, rel=0.05)


@pytest.mark.slow
def test_compile__names_stay_clean_and_numbers_the_same(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all of torch.compile but the last stage, which takes minutes on a CPU."""
    compile_module, compiled_modules = nn.Module.compile, []

    def traced(self: nn.Module) -> None:
        compiled_modules.append(type(self).__name__)
        compile_module(self, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", traced)
    still = {"encoder.depth": 1, "encoder.dropout": 0, "objective.text_encoder.dropout": 0, "trainer.max_steps": 2}
    plain = medfm.pretrain(str(tiny_recipe), {**still, "out": tmp_path / "plain"})
    compiled = tmp_path / "compiled"
    medfm.pretrain(str(tiny_recipe), {**still, "out": compiled, "trainer.compile": True, "trainer.checkpoint_every": 0.25})
    assert compiled_modules == ["VisionTransformer", "ClipTextEncoder"]
    state = read_checkpoint(compiled / "checkpoints" / "step=00000002.ckpt")["state_dict"]
    assert not any("_orig_mod" in name for name in state)
    left, right = load_file(plain / "model.safetensors"), load_file(compiled / "model.safetensors")
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, atol=1e-4, rtol=1e-3)
    # Compiled or not is no other run.
    first = compiled / "checkpoints" / "step=00000001.ckpt"
    again = medfm.pretrain(str(tiny_recipe), {**still, "out": tmp_path / "again", "resume": first})
    resumed = load_file(again / "model.safetensors")
    for name, value in left.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-4, rtol=1e-3)


def test_two_devices__a_signal_to_one_stops_both_at_the_same_step(tiny_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [f"recipe={tiny_recipe}", f"out={out}", "trainer.devices=2", "trainer.max_epochs=400", "trainer.log_every=1"]
    words += ["trainer.checkpoint_every=400", "trainer.val_every=400", "guard.on_collapse='off'"]
    process = subprocess.Popen(
        [sys.executable, "-m", "medfm.cli", "pretrain", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not read_metrics(out / "metrics.csv") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "goes on where it stopped" in errors
    assert len(checkpoints(out / "checkpoints")) == 1


def test_extra__conflicts_are_named() -> None:
    def refuse(match: str, **keys: Any) -> None:
        with pytest.raises(ConfigError, match=match):
            check_extra(TrainerConfig(**keys))

    refuse(r"trainer\.extra\.devices: medfm sets this option itself; use trainer\.devices", extra={"devices": 2})
    refuse(r"use trainer\.strategy", strategy="ddp", extra={"strategy": "fsdp"})
    refuse(r"trainer\.extra\.callbacks: medfm sets this option itself", extra={"callbacks": []})
    refuse(r"no such option; did you mean 'limit_val_batches'\?", extra={"limit_val_batch": 3})
    check_extra(TrainerConfig(extra={"limit_val_batches": 3, "strategy": "ddp_spawn"}))


def test_build_trainer__what_lightning_refuses_is_a_config_error() -> None:
    config = TrainerConfig(accelerator="cpu", devices=0)
    with pytest.raises(ConfigError, match=r"trainer: Lightning refuses these options: .*devices=0"):
        build_trainer(config, steps=1, batches=1, per_epoch=1, loggers=[], callbacks=[], progress=False)


def test_build_strategy__auto_is_ddp_on_several_devices() -> None:
    assert build_strategy(TrainerConfig(devices=1, accelerator="cpu")) == "auto"
    assert type(build_strategy(TrainerConfig(devices=2, accelerator="cpu"))).__name__ == "DDPStrategy"
    assert type(build_strategy(TrainerConfig(devices=1, num_nodes=2, accelerator="cpu"))).__name__ == "DDPStrategy"
    assert type(build_strategy(TrainerConfig(strategy="ddp", devices=1))).__name__ == "DDPStrategy"
    assert type(build_strategy(TrainerConfig(strategy="fsdp2"))).__name__ == "ShardedStrategy"
    assert build_strategy(TrainerConfig(devices=2, extra={"strategy": "ddp_spawn"})) == "ddp_spawn"
    assert device_count(TrainerConfig(devices=[0, 2], num_nodes=3)) == 6
    assert device_count(TrainerConfig(accelerator="cpu")) == 1
    with pytest.raises(ConfigError, match=r"use trainer\.precision=bf16-mixed"):
        build_strategy(TrainerConfig(strategy="fsdp2", precision="16-mixed"))


def test_first_process__of_whatever_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from medfm.training.pretrain import _first_process

    def first(**names: str) -> bool:
        for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        return _first_process()

    assert first()
    assert first(SLURM_PROCID="0")
    assert not first(SLURM_PROCID="3")
    assert not first(LOCAL_RANK="1", SLURM_PROCID="0")  # started by Lightning from a shell that Slurm gave out
    assert not first(LOCAL_RANK="0", NODE_RANK="1")
    assert not first(RANK="4", LOCAL_RANK="0")


def test_blocks__are_what_is_sharded() -> None:
    from medfm.encoders.config import VitConfig
    from medfm.encoders.vit import VisionTransformer
    from medfm.training.sharding import _blocks

    encoder = VisionTransformer(VitConfig(img_size=(8, 8), patch_size=(4, 4), embed_dim=8, depth=3, num_heads=2))
    assert set(_blocks(encoder)) == set(encoder.blocks)
    head = nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2))  # nothing in it has parts of its own
    assert _blocks(head) == []


def test_help__shows_the_new_keys() -> None:
    done = subprocess.run([sys.executable, "-m", "medfm.cli", "pretrain", "--help"], capture_output=True, text=True, timeout=60)
    for key in ("optimizer.lr_scale", "optimizer.layer_decay", "schedule.warmup_start", "trainer.strategy", "launcher"):
        assert any(line.split()[:1] == [key] for line in textwrap.dedent(done.stdout).splitlines()), key
