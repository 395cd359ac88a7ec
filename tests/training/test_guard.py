"""The collapse guard in real runs: a collapsed one is stopped by name, healthy ones are left alone and undisturbed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import medfm
from medfm.data.dataset import StudyDataset
from medfm.errors import TrainingError
from medfm.objectives.diagnostics import auroc, knn_scores
from medfm.training.checkpoint import checkpoints, read_checkpoint
from medfm.training.collapse import CollapseRules
from medfm.training.config import GuardConfig
from medfm.training.guard import Guard, _numbers
from medfm.training.logs import read_metrics

# A temperature at which no answer says anything, and nothing that centres it.
COLLAPSE = {"objective.centring": "none", "objective.teacher_temp": 1.0, "objective.warmup_teacher_temp": 1.0}


@pytest.fixture(scope="module")
def dino_recipe(tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guard") / "dino.yaml"
    path.write_text(
        f"""
name: tiny_dino
data: {{manifest: '{tiny_manifest}', batch_size: 16, eval_batch_size: 8, workers: 0, cache: memory}}
preprocess: {{size: [32, 32], window: none}}
encoder: {{name: vit, img_size: [32, 32], patch_size: [8, 8], embed_dim: 32, depth: 2, num_heads: 2}}
objective:
  name: dino
  out_dim: 64
  hidden_dim: 64
  bottleneck_dim: 32
  momentum: 0.99
  views: {{local_count: 2, local_size: [16, 16]}}
optimizer: {{lr: 1e-3}}
trainer: {{max_steps: 60, accelerator: cpu, devices: 1, log_every: 10, val_every: 20, checkpoint_every: 10, clip_grad: 3}}
guard: {{steps: 5, feature_steps: 20, every: 10, share: 1}}
""",
        encoding="utf-8",
    )
    return path


def _guard(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run / "guard.json").read_text(encoding="utf-8"))
    return facts


@pytest.fixture(scope="module")
def healthy(dino_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return medfm.pretrain(str(dino_recipe), {"out": tmp_path_factory.mktemp("healthy") / "run"})


def test_guard__a_healthy_run_raises_no_alarm_and_is_measured(healthy: Path, tiny_manifest: Path) -> None:
    facts = _guard(healthy)
    assert facts["alarms"] == []
    assert not facts["stopped"]
    assert [check["step"] for check in facts["checks"]] == [1, *range(5, 61, 5)]
    rows = read_metrics(healthy / "metrics.csv")
    by_name = {name: value for _, name, value in rows}
    for name in ("information", "mean_cosine", "student/mean_cosine", "effective_rank", "koleo_distance", "feature_std"):
        assert f"guard/{name}" in by_name
    # What was logged at the end is what the weight file's features give.
    model = medfm.load_model(healthy)
    sets = [StudyDataset(medfm.read_manifest(tiny_manifest), model.preprocess, split=split) for split in ("train", "val")]
    train, val = (model.features(torch.stack([part.image(n) for n in range(len(part))])) for part in sets)
    scores = knn_scores(train, sets[0].labels, val, k=20)
    assert by_name["guard/knn_auroc"] == pytest.approx(float(auroc(scores, sets[1].labels).nanmean()))
    assert 0 <= by_name["guard/probe_auroc"] <= 1
    assert [step for step, name, _ in rows if name == "guard/effective_rank"] == [1, 20, 40, 60]


def test_guard__a_collapsed_run_of_two_devices_is_stopped_naming_the_evidence(dino_recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [f"{key}={value}" for key, value in COLLAPSE.items()]
    command = [sys.executable, "-m", "medfm.cli", "pretrain", f"recipe={dino_recipe}", f"out={run}", "trainer.devices=2"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "the run has collapsed and is stopped: the teacher gives the same answer to every image" in done.stderr
    facts = _guard(run)
    assert facts["stopped"]
    (alarm,) = facts["alarms"]
    assert alarm["step"] < 60
    assert alarm["kind"] == "uniform"
    assert alarm["evidence"]["information"] < alarm["evidence"]["min_information"]
    assert facts["checks"][0]["effective_rank"] > 1
    newest = checkpoints(run / "checkpoints")[-1]
    assert newest[0] == alarm["step"]
    assert read_checkpoint(newest[1])["global_step"] == alarm["step"]
    assert (run / "curves.png").is_file()


def test_guard__warn_says_so_once_and_goes_on(dino_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = medfm.pretrain(
        str(dino_recipe), {"out": tmp_path / "run", "guard.on_collapse": "warn", "trainer.max_steps": 30, **COLLAPSE}
    )
    facts = _guard(run)
    assert not facts["stopped"]
    assert len(facts["alarms"]) == 1
    assert sum("same answer to every image" in message for message in caplog.messages) == 1
    assert read_metrics(run / "metrics.csv")[-1][0] == 30


def test_guard__an_alarm_is_not_repeated_by_a_resumed_run(
    dino_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = {"guard.on_collapse": "warn", "trainer.max_steps": 34, "trainer.checkpoint_every": 14, **COLLAPSE}
    overrides |= {"out": tmp_path / "run"}
    run = medfm.pretrain(str(dino_recipe), overrides)
    (alarm,) = _guard(run)["alarms"]
    newest = checkpoints(run / "checkpoints")[-1]
    newest[1].unlink()
    assert alarm["step"] <= checkpoints(run / "checkpoints")[-1][0] < newest[0]
    caplog.clear()
    medfm.pretrain(str(dino_recipe), overrides)
    assert _guard(run)["alarms"] == [alarm]
    assert not any("same answer to every image" in message for message in caplog.messages)


def test_guard__what_is_not_finite_is_null_in_its_file(tmp_path: Path) -> None:
    guard: Any = Guard.__new__(Guard)
    guard.guard, guard.path, guard.images, guard.seconds, guard.alarms = GuardConfig(), tmp_path / "guard.json", 2, 0.0, []
    guard.checks = [{"step": 1, **_numbers(torch.full((2, 4), torch.nan))}]
    guard._write(stopped=False)
    facts = json.loads(guard.path.read_text(), parse_constant=pytest.fail)
    assert facts["checks"] == [{"step": 1, "mean_cosine": None}]


def test_guard__off_looks_at_nothing_and_training_is_the_same(healthy: Path, dino_recipe: Path, tmp_path: Path) -> None:
    # As the command line gives `guard.on_collapse=off`, which YAML reads as false.
    run = medfm.pretrain(str(dino_recipe), {"out": tmp_path / "run", "guard.on_collapse": False})
    assert not (run / "guard.json").exists()
    assert not any(name.startswith("guard/") for _, name, _ in read_metrics(run / "metrics.csv"))
    left, right = load_file(healthy / "model.safetensors"), load_file(run / "model.safetensors")
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_guard__a_resumed_run_takes_the_same_looks(healthy: Path, dino_recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(healthy, run)
    (run / "checkpoints" / "step=00000060.ckpt").unlink()
    medfm.pretrain(str(dino_recipe), {"out": run, "guard.patience": 4})  # the guard may be changed on the way
    left, right = load_file(healthy / "model.safetensors"), load_file(run / "model.safetensors")
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert _guard(run)["checks"] == _guard(healthy)["checks"]


@pytest.mark.parametrize("split", [True, False])
def test_guard__contrastive_runs_are_watched_too(tiny_recipe: Path, tmp_path: Path, split: bool) -> None:
    overrides: dict[str, Any] = {"out": tmp_path / "run", "guard.share": 1, "guard.feature_steps": 8, "guard.every": 2}
    if not split:  # a third of the patients is held back from the probes instead
        manifest = medfm.read_manifest(str(tiny_recipe.parent / "manifest.parquet"))
        frame = manifest.frame[manifest.frame["split"] == "train"]
        frame.to_csv(tmp_path / "train.csv", index=False)
        overrides |= {"data.manifest": tmp_path / "train.csv", "data.root": manifest.root}
    run = medfm.pretrain(str(tiny_recipe), overrides)
    facts = _guard(run)
    assert facts["alarms"] == []
    assert [check["step"] for check in facts["checks"] if "mean_cosine" in check] == [1, 8, 16]
    assert [check["step"] for check in facts["checks"] if "knn_auroc" in check] == [8, 16]


def test_guard__features_that_are_all_the_same_stop_a_run(tiny_recipe: Path, tmp_path: Path) -> None:
    """An encoder whose features shrink to their mean, as BYOL without a predictor."""
    from medfm.encoders.vit import VisionTransformer
    from medfm.types import EncoderOutput

    original = VisionTransformer.forward
    calls = 0

    def shrinking(self: Any, *args: Any, **kwargs: Any) -> EncoderOutput:
        nonlocal calls
        calls += self.training
        output = original(self, *args, **kwargs)
        scale = 1.0 if calls < 3 else 1e-5
        assert output.cls_token is not None
        output.cls_token = torch.ones_like(output.cls_token) + scale * output.cls_token
        return output

    overrides = {"out": tmp_path / "run", "guard.feature_steps": 2, "guard.steps": 100}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VisionTransformer, "forward", shrinking)
        with pytest.raises(TrainingError, match=r"step 8: .*the features are the same for every image.*start again"):
            medfm.pretrain(str(tiny_recipe), overrides)


def test_guard__one_image_cannot_be_told_from_others() -> None:
    guard: Any = Guard.__new__(Guard)
    guard.rules, guard._fit, guard.images = CollapseRules(GuardConfig(), 100), object(), 1
    guard._encode = lambda *arguments: ([torch.ones(1, 4)] * 2, torch.tensor([0]))
    branch = SimpleNamespace(image_encoder=object())
    module = SimpleNamespace(objective=SimpleNamespace(model=lambda: branch, learner=lambda: branch))
    assert guard._look_at_features(1, None, module, {}) == []


def test_guard__fewer_images_than_a_batch_are_the_batch(tmp_path: Path) -> None:
    guard: Any = Guard.__new__(Guard)
    guard.guard, guard.path, guard._kept = GuardConfig(), tmp_path / "guard.json", {}
    guard.config, guard.loaders = SimpleNamespace(data=SimpleNamespace(batch_size=64)), SimpleNamespace(train=range(3))
    guard._choose = lambda *arguments: None
    guard.on_train_start(SimpleNamespace(global_step=0), SimpleNamespace(total_steps=10, objective=object()))
    assert guard.rules.batch == 3
