"""The whole of `medfm pretrain`: what a run folder holds, resuming, refusing, stopping at what is not finite."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import medfm
from medfm.errors import ConfigError, DataError, TrainingError, WeightsError
from medfm.training.checkpoint import checkpoints
from medfm.training.logs import read_metrics
from medfm.weights.load import read_card


def _same(a: Path, b: Path) -> bool:
    left, right = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def _copy(run: Path, target: Path) -> Path:
    """The same run in another folder, so that a test may break it."""
    shutil.copytree(run, target)
    return target


def test_run_folder__holds_what_it_says(tiny_run: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    names = {p.name for p in tiny_run.iterdir()}
    assert {"model.safetensors", "checkpoints", "resolved.yaml", "environment.json", "metrics.csv", "curves.png"} <= names
    facts = json.loads((tiny_run / "environment.json").read_text())
    assert facts["manifest_hash"]
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]
    steps = {step for step, name, _ in read_metrics(tiny_run / "metrics.csv") if name == "train/loss"}
    assert steps == set(range(2, 17, 2))
    assert any(name == "val/loss" for _, name, _ in read_metrics(tiny_run / "metrics.csv"))
    assert [step for step, _ in checkpoints(tiny_run / "checkpoints")] == [14, 16]
    # resolved.yaml is itself a recipe, and gives the same weights.
    again = medfm.pretrain(str(tiny_run / "resolved.yaml"), {"out": tmp_path / "again"})
    assert _same(tiny_run, again)


def test_pretrain__learns(tiny_run: Path) -> None:
    values = [value for _, name, value in read_metrics(tiny_run / "metrics.csv") if name == "train/loss"]
    assert all(value == value for value in values)
    assert min(values[-3:]) < values[0]


def test_pretrain__no_report_text_in_what_it_writes(tiny_run: Path) -> None:
    for path in tiny_run.rglob("*"):
        if path.is_file():
            assert b"pleural effusion. Case" not in path.read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_resume__after_sigkill_gives_the_same_weights_bit_for_bit(
    tiny_run: Path, tiny_recipe: Path, tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "medfm.cli", "pretrain", f"recipe={tiny_recipe}", f"out={out}", f"data.workers={workers}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(checkpoints(out / "checkpoints")) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # Whatever instant the kill came at, the run goes on from a checkpoint in the middle of an epoch.
    for step, path in checkpoints(out / "checkpoints"):
        if step > 6:
            path.unlink()
    assert checkpoints(out / "checkpoints")
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert _same(tiny_run, out)
    assert [s for s, n, _ in read_metrics(out / "metrics.csv") if n == "train/loss"] == list(range(2, 17, 2))


def test_sigterm__saves_and_resumes(tiny_run: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "preempted"
    command = [
        sys.executable,
        "-m",
        "medfm.cli",
        "pretrain",
        f"recipe={tiny_recipe}",
        f"out={out}",
        "trainer.checkpoint_every=100",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not read_metrics(out / "metrics.csv") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert checkpoints(out / "checkpoints")
    if process.returncode != 0:  # 0: the signal came after the last step
        assert process.returncode == 130
        assert "goes on where it stopped" in errors
    medfm.pretrain(str(tiny_recipe), {"out": out, "trainer.checkpoint_every": 100})
    assert _same(tiny_run, out)


def test_resume__passes_over_a_damaged_checkpoint(tiny_run: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    run = _copy(tiny_run, tmp_path / "run")
    newest = checkpoints(run / "checkpoints")[-1][1]
    newest.write_bytes(newest.read_bytes()[:-200])
    medfm.pretrain(str(tiny_recipe), {"out": run})
    assert _same(tiny_run, run)


def test_resume__reads_the_checkpoint_once(
    tiny_run: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _copy(tiny_run, tmp_path / "run")
    checkpoints(run / "checkpoints")[-1][1].unlink()
    read: list[Any] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: read.append(args) or load(*args, **kwargs))
    medfm.pretrain(str(tiny_recipe), {"out": run})
    assert len(read) == 1
    assert _same(tiny_run, run)


def test_resume__a_checkpoint_of_other_sizes_is_one_clear_error(tiny_run: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    run = _copy(tiny_run, tmp_path / "run")
    (run / "resolved.yaml").unlink()
    with pytest.raises(WeightsError, match=r"embed_dim|is of another model: .*\(.* there, .* in this recipe\).*and \d+ more"):
        medfm.pretrain(str(tiny_recipe), {"out": run, "encoder.embed_dim": 16})
    with pytest.raises(WeightsError, match="another optimiser"):
        medfm.pretrain(str(tiny_recipe), {"out": run, "optimizer.layer_decay": 0.5})


@pytest.mark.parametrize("killed", ["before any weights", "before the last weights"])
def test_resume__a_run_killed_before_its_weights_were_written_gets_them(
    tiny_run: Path, tiny_recipe: Path, tmp_path: Path, killed: str
) -> None:
    run = _copy(tiny_run, tmp_path / "run")
    weights = run / "model.safetensors"
    written = weights.stat().st_mtime_ns
    medfm.pretrain(str(tiny_recipe), {"out": run})
    assert weights.stat().st_mtime_ns == written  # a finished run is left alone
    weights.unlink()
    (run / "curves.png").unlink()
    if killed == "before the last weights":  # those of the last validation are there
        early = medfm.pretrain(str(tiny_recipe), {"out": tmp_path / "early", "trainer.max_steps": 4})
        assert read_card(early)["step"] == 4
        shutil.copy(early / "model.safetensors", weights)
    medfm.pretrain(str(tiny_recipe), {"out": run})
    assert read_card(run)["step"] == 16
    assert _same(tiny_run, run)
    assert (run / "curves.png").is_file()


def test_pretrain__without_a_validation_split_weights_are_written_along_the_way(
    tiny_recipe: Path, tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medfm.training import pretrain

    frame = medfm.read_manifest(tiny_manifest).frame
    frame[frame["split"] == "train"].to_csv(tmp_path / "train.csv", index=False)
    steps: list[int] = []
    write = pretrain._save

    def spy(*args: Any) -> None:
        write(*args)
        steps.append(read_card(args[0])["step"])

    monkeypatch.setattr(pretrain, "_save", spy)
    overrides = {"data.manifest": tmp_path / "train.csv", "data.root": tiny_manifest.parent, "trainer.max_epochs": 2}
    often = medfm.pretrain(str(tiny_recipe), {**overrides, "out": tmp_path / "often"})
    assert steps == [4, 8, 8]
    assert not any(name.startswith("val/") for _, name, _ in read_metrics(often / "metrics.csv"))
    once = medfm.pretrain(str(tiny_recipe), {**overrides, "out": tmp_path / "once", "trainer.val_every": 2})
    assert steps[3:] == [8, 8]
    assert _same(often, once)  # what is looked at beside training changes nothing of it


def test_pretrain__what_follows_from_the_batch_follows_from_the_one_that_occurs(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """32 training images make no batch of 64: rate, momentum and prototypes are those of a recipe that asks for 32."""
    from medfm.objectives import dino

    asked: list[tuple[str, int]] = []
    for name in ("auto_momentum", "auto_out_dim"):
        rule = getattr(dino, name)
        place = 2 if name == "auto_momentum" else 0
        monkeypatch.setattr(dino, name, lambda *a, n=name, r=rule, p=place: asked.append((n, a[p])) or r(*a))
    objective = {"name": "dino", "hidden_dim": 16, "bottleneck_dim": 8, "views": {"local_count": 0}}
    common = {"objective": objective, "optimizer.lr_scale": "linear256", "trainer.max_steps": 2, "trainer.accumulate": 2}
    runs = [
        medfm.pretrain(str(tiny_recipe), {**common, "data.batch_size": batch, "out": tmp_path / str(batch)})
        for batch in (32, 64)
    ]
    assert set(asked) == {("auto_momentum", 64), ("auto_out_dim", 64)}
    assert _same(*runs)
    assert sum("a batch holds 32 of the 32 training images" in message for message in caplog.messages) == 1


def test_resume__another_recipe_in_the_folder_is_refused(tiny_run: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    run = _copy(tiny_run, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"objective\.temperature: 0\.07 then, 0\.2 now"):
        medfm.pretrain(str(tiny_recipe), {"out": run, "objective.temperature": 0.2})
    with pytest.raises(ConfigError, match="holds a run already"):
        medfm.pretrain(str(tiny_recipe), {"out": run, "resume": "never"})


def test_pretrain__a_start_that_failed_does_not_lock_its_folder(tiny_recipe: Path, tmp_path: Path) -> None:
    once = {"out": tmp_path / "run", "trainer.max_steps": 1}
    with pytest.raises(ConfigError, match="barebones"):
        medfm.pretrain(str(tiny_recipe), {**once, "trainer.extra": {"barebones": True}})
    assert (tmp_path / "run" / "resolved.yaml").is_file()
    assert (medfm.pretrain(str(tiny_recipe), once) / "model.safetensors").is_file()


def test_pretrain__a_loss_that_is_not_finite_is_named(tiny_recipe: Path, tmp_path: Path) -> None:
    from medfm.objectives.contrastive import ContrastiveObjective

    original = ContrastiveObjective.forward
    calls = 0

    def spoiled(self: Any, batch: Any, generator: Any = None) -> Any:
        nonlocal calls
        calls += self.training
        output = original(self, batch, generator)
        if calls == 5 and self.training:
            output.loss = output.loss * float("nan")
            output.logs["loss_image_to_text"] = torch.tensor(float("nan"))
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContrastiveObjective, "forward", spoiled)
        with pytest.raises(TrainingError, match=r"step 4: loss terms loss, loss_image_to_text not finite.*Lower optimizer\.lr"):
            medfm.pretrain(str(tiny_recipe), {"out": tmp_path / "nan"})
    assert [step for step, _ in checkpoints(tmp_path / "nan" / "checkpoints")] == [2, 4]


def test_pretrain__bad_rows_are_counted_before_training(tiny_manifest: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    manifest = medfm.read_manifest(tiny_manifest)
    frame = manifest.frame.copy()
    frame.loc[0, "image"] = "images/gone.png"
    frame.loc[1, "report"] = ""
    frame.loc[2, "label:Left Pleural Effusion"] = 7.0
    bad = tmp_path / "bad.csv"
    frame.to_csv(bad, index=False)
    overrides = {"data.manifest": bad, "data.root": tiny_manifest.parent, "out": tmp_path / "run"}
    with pytest.raises(DataError) as error:
        medfm.pretrain(str(tiny_recipe), overrides)
    text = str(error.value)
    assert "3 of 48 rows cannot be used" in text
    assert "images/gone.png" in text
    assert "Case" not in text
    assert not (tmp_path / "run").exists()
    run = medfm.pretrain(str(tiny_recipe), {**overrides, "data.on_error": "skip", "trainer.max_steps": 2})
    assert (run / "model.safetensors").is_file()


def test_init__starts_from_a_weight_file(tiny_run: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    run = medfm.pretrain(
        str(tiny_recipe), {"out": tmp_path / "tuned", "init": tiny_run, "trainer.max_steps": 1, "optimizer.lr": 1e-12}
    )
    left, right = load_file(tiny_run / "model.safetensors"), load_file(run / "model.safetensors")
    assert all(torch.allclose(left[k], right[k], atol=1e-6) for k in left)


def test_two_devices__give_the_weights_of_one(tiny_recipe: Path, tmp_path: Path) -> None:
    """Two gloo processes, each with half of every batch; without dropout and augmentation nothing else may differ."""
    still = [
        "augment.scale=[1,1]",
        "augment.rotate=0",
        "augment.brightness=0",
        "encoder.dropout=0",
        "objective.patch_dropout=0",
        "objective.text_encoder.dropout=0",
        "trainer.max_steps=6",
        "optimizer.lr=1e-4",
    ]
    for devices in (1, 2):
        command = [sys.executable, "-m", "medfm.cli", "pretrain", f"recipe={tiny_recipe}", *still]
        command += [f"trainer.devices={devices}", f"out={tmp_path / str(devices)}", "resume=never"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("1", "2"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=2e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


def test_pretrain__views_of_a_size_that_evaluation_will_not_give_are_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    """Training sees views of 32 pixels; the whole images of 48 would first meet the encoder in evaluation."""
    encoder = {"name": "timm", "model": "vit_tiny_patch16_224", "img_size": [32, 32]}
    keys = {"objective": "simclr", "encoder": encoder, "preprocess.size": [48, 48], "out": tmp_path / "run"}
    with pytest.raises(ConfigError, match=r"whole images of \[48, 48\], which it does not take .*set it to encoder.img_size"):
        medfm.pretrain(str(tiny_recipe), keys)
