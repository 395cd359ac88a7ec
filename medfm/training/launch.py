"""Where a run takes place: here, or in a Slurm job that submits itself anew until it is done."""

from __future__ import annotations

import math
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any, Protocol

from medfm.errors import ConfigError, TrainingError
from medfm.io.files import atomic_write
from medfm.training.config import LocalConfig, PretrainConfig, SlurmConfig
from medfm.training.run_folder import as_recipe

_OWN = ("array", "signal", "requeue", "ntasks", "ntasks-per-node", "output", "error", "open-mode")


class Launcher(Protocol):
    """Runs a recipe somewhere."""

    def launch(self, config: PretrainConfig, progress: bool) -> Path:
        """Returns the run folder, which is filled by then, or will be."""
        ...


class Local:
    """This process, and those that it starts on this machine, one a device."""

    def __init__(self, config: LocalConfig) -> None:
        self.config = config

    def launch(self, config: PretrainConfig, progress: bool) -> Path:
        from medfm.training.pretrain import train

        return train(config, progress)


class Slurm:
    """A Slurm job with one task a GPU, through submitit.

    Before its time is up the job gets SIGUSR2: it writes a checkpoint, goes into the queue again and continues there. The run
    folder's `slurm/` holds the job's recipe, its sbatch file and its logs.

    Raises:
        ConfigError: submitit or Slurm's commands are not there, or the recipe asks for other devices than the job has.
    """

    def __init__(self, config: SlurmConfig) -> None:
        self.config = config

    def launch(self, config: PretrainConfig, progress: bool) -> Path:
        try:
            import submitit
        except ImportError:
            raise ConfigError(
                "launcher=slurm needs submitit: pip install 'medfm[slurm]'; recipes/slurm/pretrain.sbatch does without"
            ) from None
        missing = [command for command in ("sbatch", "srun") if shutil.which(command) is None]
        if missing:
            raise ConfigError(f"launcher=slurm: no '{missing[0]}' on this machine; submit from a login node of the cluster")
        run = (config.out or Path("runs") / config.name).absolute()
        folder = run / "slurm"
        folder.mkdir(parents=True, exist_ok=True)
        recipe = folder / "recipe.yaml"
        _write_recipe(recipe, self.for_job(config, run))
        executor = submitit.SlurmExecutor(folder=folder, python=self.config.python, max_num_timeout=100)
        executor.update_parameters(**self.options(config.name))
        job = executor.submit(Job(str(recipe)))
        if progress:
            from rich.console import Console

            Console().print(f"job {job.job_id} submitted; its log: {job.paths.stdout}, run folder: {run}", soft_wrap=True)
        return run

    def for_job(self, config: PretrainConfig, run: Path) -> PretrainConfig:
        """The recipe that the job's tasks run: here, on the devices that the job has."""
        tasks = max(self.config.gpus_per_node, 1)
        if config.trainer.num_nodes not in (1, self.config.nodes):
            raise ConfigError(f"trainer.num_nodes={config.trainer.num_nodes}, but launcher.nodes={self.config.nodes}")
        if config.trainer.devices not in ("auto", tasks):
            raise ConfigError(
                f"trainer.devices={config.trainer.devices}, but launcher.gpus_per_node={self.config.gpus_per_node}"
            )
        tree = as_recipe(config)
        tree |= {"launcher": {"name": "local"}, "out": str(run)}
        tree["trainer"] |= {"num_nodes": self.config.nodes, "devices": tasks}
        return PretrainConfig.model_validate(tree)

    def options(self, name: str) -> dict[str, Any]:
        """What submitit writes into the sbatch file."""
        own = [key for key in self.config.extra if key.replace("_", "-") in _OWN]
        if own:
            raise ConfigError(f"launcher.extra.{own[0]}: medfm sets this option of sbatch itself")
        given = {key: getattr(self.config, key) for key in ("partition", "account", "qos", "constraint", "mem")}
        return {
            **{key: value for key, value in given.items() if value is not None},
            "job_name": re.sub(r"[^\w.-]", "_", name),
            "time": minutes(self.config.time),
            "nodes": self.config.nodes,
            "ntasks_per_node": max(self.config.gpus_per_node, 1),
            **({"gpus_per_node": self.config.gpus_per_node} if self.config.gpus_per_node else {}),
            "cpus_per_task": self.config.cpus_per_task,
            "signal_delay_s": self.config.signal_before,
            "setup": list(self.config.setup),
            "stderr_to_stdout": True,
            # srun of Slurm 22.05 and later does not take the cores over from sbatch.
            "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={self.config.cpus_per_task}"],
            "additional_parameters": {"requeue": True, **{k: v for k, v in self.config.extra.items() if v is not False}},
        }


class Job:
    """What each task of the job does: `medfm pretrain recipe=...`, in its own process, which the cluster's signals reach."""

    def __init__(self, recipe: str) -> None:
        self.recipe = recipe

    def __call__(self) -> str:
        before, sys.argv = sys.argv, ["medfm", "pretrain", f"recipe={self.recipe}"]
        try:
            runpy.run_module("medfm.cli", run_name="__main__")
        except SystemExit as end:
            if end.code == 130:
                return "stopped at a checkpoint"
            if end.code:
                raise TrainingError("the run failed; the line above says why") from None
        finally:
            sys.argv = before
        return "done"

    def checkpoint(self) -> Any:
        """For submitit, which acts on the signal while a run is not under way yet."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _write_recipe(path: Path, config: PretrainConfig) -> None:
    from omegaconf import OmegaConf

    with atomic_write(path) as temporary:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(as_recipe(config))), encoding="utf-8")


def minutes(time: str) -> int:
    """[DAYS-]HH:MM:SS in whole minutes, rounded up."""
    days, _, clock = time.rpartition("-")
    hours, minute, second = (int(part) for part in clock.split(":"))
    return (int(days or 0) * 24 + hours) * 60 + minute + math.ceil(second / 60)
