"""The collapse guard: looks at a run while it trains, says in plain words when it has collapsed, and stops it."""

from __future__ import annotations

import json
import logging
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from medfm.errors import TrainingError
from medfm.io.files import atomic_write
from medfm.objectives import diagnostics
from medfm.objectives.base import Objective
from medfm.objectives.gather import current_gather
from medfm.training.callbacks import Checkpoints
from medfm.training.collapse import Alarm, CollapseRules
from medfm.training.config import PretrainConfig
from medfm.training.fixed_images import FixedImages, chosen, encode, prepare, split_patients
from medfm.training.loaders import Loaders
from medfm.training.logs import draw_curves
from medfm.transforms.preprocess import Preprocess

log = logging.getLogger(__name__)

_KEPT_BYTES = 512 * 2**20  # of images kept in memory
_ENTROPY, _MARGINAL = "teacher_entropy", "teacher_marginal_entropy"


def build_guard(
    config: PretrainConfig, objective: Objective, loaders: Loaders, run: Path, preprocess: Preprocess
) -> Callback | None:
    """The guard of a recipe; None with guard.on_collapse=off."""
    if config.guard.on_collapse == "off":
        return None
    return Guard(config, loaders, run, preprocess)


class Guard(Callback):
    """Looks at three things, each as seldom as its cost asks for, and judges the first two by `CollapseRules`.

    - every `guard.steps` steps at the objective's own `teacher_entropy` and `teacher_marginal_entropy`, where it logs them: two
      numbers that are there already;
    - every `guard.feature_steps` steps at the features of some training images (mean cosine, effective rank, KoLeo distance,
      deviation), of the model that is kept and, as `guard/student/...`, of the student where that is another;
    - every `guard.every` epochs at what can be read off the kept model's features: kNN and a linear probe, mean area under the
      ROC curve over the findings that have both classes. They are fitted on training images and scored on validation images;
      without a validation split on a third of the training images' patients, never on a patient they were fitted on.

    The latter two pass at most `guard.share` (5 %) as many images through the encoder, each, as are trained on, without
    gradients. A forward pass is a third of a plain training step, and less of one with several views, so that both take 3 % of
    the time at most; of masked autoencoding, whose own encoder sees a quarter of each image, up to 6 %. Up to
    2 x `guard.images` images are read once for it.

    Numbers go to the loggers as `guard/...` and to `guard.json` with every alarm. On a collapse the run ends with a checkpoint
    and a TrainingError, or with on_collapse=warn goes on after a warning. Nothing of the run changes by being looked at: modes
    of modules and random generators are as before, and a resumed run takes the same looks. All devices encode their share of
    the images; the first judges, and tells the others.

    Args:
        config: of the run.
        loaders: with the data sets.
        run: the run folder.
        preprocess: the contract.
    """

    def __init__(self, config: PretrainConfig, loaders: Loaders, run: Path, preprocess: Preprocess) -> None:
        self.config = config
        self.guard = config.guard
        self.loaders = loaders
        self.path = run / "guard.json"
        self.preprocess = preprocess
        size = getattr(config.encoder, "img_size", None)
        self.img_size = None if size is None else tuple(size)
        per_image = _bytes(preprocess)
        images = min(self.guard.images, max(16, _KEPT_BYTES // (2 * per_image)))
        affordable = max(16, math.floor(self.guard.share * self.guard.feature_steps * loaders.step_batch))
        self.images = min(images, affordable, len(loaders.train))
        self.probe_images = images
        self.rules: CollapseRules | None = None
        self.alarms: list[dict[str, Any]] = []
        self.checks: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._warned: set[str] = set()
        self._kept: dict[str, Any] = {}
        self._fit: FixedImages | None = None
        self._score: FixedImages | None = None
        self._probe_steps = 0

    def state_dict(self) -> dict[str, Any]:
        rules = self.rules.state_dict() if self.rules is not None else self._kept
        return {"rules": rules, "warned": sorted(self._warned)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Checkpoints of medfm before this had the rules' alone.
        self._kept = state_dict.get("rules", state_dict)
        self._warned = set(state_dict.get("warned", ()))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        total = int(module.total_steps)
        batch = min(self.config.data.batch_size, len(self.loaders.train))
        self.rules = CollapseRules(self.guard, total, _prototypes(module.objective), batch)
        self.rules.load_state_dict(self._kept)
        if trainer.global_step and self.path.is_file():
            self._go_on(trainer.global_step)
        self._choose(trainer, module)

    def _go_on(self, step: int) -> None:
        """Keep what an interrupted run wrote up to `step`."""
        try:
            written = json.loads(self.path.read_text(encoding="utf-8"))
            self.alarms = [alarm for alarm in written["alarms"] if alarm["step"] <= step]
            self.checks = [check for check in written["checks"] if check["step"] <= step]
            self.seconds = float(written["seconds"])
        except (ValueError, KeyError, TypeError):
            log.warning("'%s' is damaged; begun anew", self.path)

    def _choose(self, trainer: Trainer, module: Any) -> None:
        """The fixed images, and how often probes are affordable."""
        train, val, seed = self.loaders.train, self.loaders.val, self.config.seed
        devices = {"rank": trainer.global_rank, "world": trainer.world_size, "threads": max(1, self.config.data.workers)}
        positions = chosen(train, min(max(self.probe_images, self.images), len(train)), seed)
        self._fit = FixedImages(train, positions, **devices)
        self._held: list[int] = []
        if not self.guard.probes or not len(train.findings):
            return
        if val is not None:
            self._score = FixedImages(val, chosen(val, self.probe_images, seed), **devices)
        else:
            self._held = split_patients(train.patients[positions], seed)
        passes = len(positions) + (len(self._score) if self._score is not None else 0)
        epoch = module.batches_per_epoch / self.config.trainer.accumulate
        self._probe_steps = max(
            round(self.guard.every * epoch), math.ceil(passes / (self.guard.share * self.loaders.step_batch)), 1
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.config.trainer.accumulate:
            return
        step, start = trainer.global_step, time.perf_counter()
        found: list[Alarm] = []
        values: dict[str, float] = {}
        looked = False
        if step == 1 or step % self.guard.steps == 0:
            looked = True
            found += self._look_at_teacher(step, pl_module, values)
        if step == 1 or step % self.guard.feature_steps == 0:
            looked = True
            found += self._look_at_features(step, trainer, pl_module, values)
        if self._probe_steps and step % self._probe_steps == 0:
            looked = True
            values |= self._probe(trainer, pl_module)
        if not looked:
            return
        self.seconds += time.perf_counter() - start
        # What the first device finds counts for all: a device that stopped alone would leave the others waiting.
        found = trainer.strategy.broadcast(found, src=0)
        self._report(trainer, step, values, found)

    def _look_at_teacher(self, step: int, module: Any, values: dict[str, float]) -> list[Alarm]:
        assert self.rules is not None
        # With a handful of images there is nothing to tell apart: the answers to two views of one image should be equal.
        if module._last is None or self.rules.batch < 8:
            return []
        logs: dict[str, Tensor] = module._last.logs
        found = []
        for name in logs:
            if not name.endswith(_MARGINAL) or name.replace(_MARGINAL, _ENTROPY) not in logs:
                continue
            prefix = name.removesuffix(_MARGINAL)
            entropy, marginal = float(logs[prefix + _ENTROPY]), float(logs[name])
            values[f"{prefix}information"] = max(marginal - entropy, 0.0)
            found.append(self.rules.teacher(step, entropy, marginal, prefix))
        return [alarm for alarm in found if alarm is not None]

    def _look_at_features(self, step: int, trainer: Trainer, module: Any, values: dict[str, float]) -> list[Alarm]:
        assert self.rules is not None
        assert self._fit is not None
        kept, student = module.objective.model().image_encoder, module.objective.learner().image_encoder
        names = ["", "student/"] if student is not kept else [""]
        features, rows = self._encode(trainer, module, self._fit, self.images, [kept, student][: len(names)])
        if len(rows) < 2:
            return []  # one image has no other to be told from
        found = []
        for name, of_images in zip(names, features, strict=True):
            numbers = _numbers(of_images)
            values.update({name + key: value for key, value in numbers.items()})
            found.append(self.rules.features(step, numbers, name))
        return [alarm for alarm in found if alarm is not None]

    def _probe(self, trainer: Trainer, module: Any) -> dict[str, float]:
        """kNN and linear probe: mean area under the ROC curve over findings."""
        assert self._fit is not None
        encoders = [module.objective.model().image_encoder]
        (features,), rows = self._encode(trainer, module, self._fit, len(self._fit), encoders)
        labels = self._fit.labels[rows]
        if self._score is not None:
            (tests,), test_rows = self._encode(trainer, module, self._score, len(self._score), encoders)
            truth = self._score.labels[test_rows]
        else:
            held = torch.isin(rows, torch.tensor(self._held))
            tests, truth, features, labels = features[held], labels[held], features[~held], labels[~held]
        if not trainer.is_global_zero or not len(features) or not len(tests) or not bool(features.isfinite().all()):
            return {}
        scores = {
            "knn_auroc": diagnostics.knn_scores(features, labels, tests, self.guard.neighbours),
            "probe_auroc": diagnostics.logistic_probe(features, labels, tests, l2=0.1 * len(features)),
        }
        means = {name: float(diagnostics.auroc(score, truth).nanmean()) for name, score in scores.items()}
        return {name: value for name, value in means.items() if value == value}

    def _encode(
        self, trainer: Trainer, module: Any, images: FixedImages, count: int, encoders: list[Any]
    ) -> tuple[list[Tensor], Tensor]:
        world = trainer.world_size
        with ExitStack() as stack:
            stack.enter_context(module.gathered())
            stack.enter_context(trainer.precision_plugin.forward_context())
            if self.config.trainer.compile:
                # Another batch size and mode would be compiled anew.
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            return encode(
                encoders,
                images,
                count,
                lambda stored: prepare(stored, self.preprocess, self.img_size),
                module.device,
                # What training holds with gradients fits without them.
                batch_size=min(64, max(1, self.config.data.batch_size // world)),
                all_gather=_of_all_devices if world > 1 else None,
            )

    def _report(self, trainer: Trainer, step: int, values: dict[str, float], found: list[Alarm]) -> None:
        stopping = bool(found) and self.guard.on_collapse == "stop"
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics({f"guard/{name}": value for name, value in values.items()}, step)
            self.checks.append({"step": step, **{name: round(value, 8) for name, value in values.items()}})
            new = [alarm for alarm in found if alarm.kind not in self._warned]
            self.alarms += [{"kind": a.kind, "step": a.step, "text": a.text, "evidence": a.evidence} for a in new]
            if not stopping:
                for alarm in new:
                    log.warning("step %d: %s", step, alarm.text)
            # A look at entropies alone waits for the next one at features to be written.
            if new or len(values) > 1:
                self._write(stopped=stopping)
        self._warned = {alarm.kind for alarm in found}
        if stopping:
            self._stop(trainer, step, found)

    def _write(self, stopped: bool) -> None:
        facts = {
            "stopped": stopped,
            "guard": self.guard.model_dump(mode="json"),
            "images": self.images,
            "seconds": round(self.seconds, 3),
            "alarms": self.alarms,
            "checks": self.checks,
        }
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(_plain(facts), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def _stop(self, trainer: Trainer, step: int, found: list[Alarm]) -> None:
        keeper = next((c for c in trainer.callbacks if isinstance(c, Checkpoints)), None)  # type: ignore[attr-defined]
        if keeper is not None:
            keeper.save(trainer)
        if trainer.is_global_zero:
            draw_curves(self.path.parent / "metrics.csv", self.path.parent / "curves.png")
        text = "; ".join(alarm.text for alarm in found)
        raise TrainingError(
            f"step {step}: the run has collapsed and is stopped: {text}. The evidence is in {self.path}, the state in "
            "checkpoints/; a collapsed network does not recover: start again with another out=, or set guard.on_collapse=warn "
            "to go on with this one"
        )


def _of_all_devices(x: Tensor) -> Tensor:
    """(m, ...) of each device, m the same on all -> (world, m, ...)."""
    gather = current_gather()
    return gather.rows(x, [len(x)] * gather.world_size).unflatten(0, (gather.world_size, len(x)))


def _numbers(features: Tensor) -> dict[str, float]:
    """What is logged of (n, E) features; NaN where they are not finite."""
    if not bool(features.isfinite().all()):
        return {"mean_cosine": math.nan}
    return {
        "mean_cosine": diagnostics.mean_cosine(features),
        "effective_rank": diagnostics.effective_rank(features),
        "koleo_distance": diagnostics.koleo_distance(features),
        "feature_std": diagnostics.feature_std(features),
    }


def _plain(value: Any) -> Any:
    """With null in place of numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _prototypes(objective: Any) -> int | None:
    """K of a self-distillation objective, also as a term of a sum."""
    terms = getattr(objective, "terms", [objective])
    return next((int(k) for term in terms if isinstance(k := getattr(term, "out_dim", None), int)), None)


def _bytes(preprocess: Preprocess) -> int:
    """Of one image as stored."""
    return math.prod(preprocess.stored_shape) * torch.empty(0, dtype=getattr(torch, preprocess.config.dtype)).element_size()
