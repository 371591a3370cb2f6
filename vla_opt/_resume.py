"""Where a run goes on: its last whole checkpoint, held by one writer."""

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from vla_opt import _lock
from vla_opt._numerics import resolve_threads
from vla_opt.checkpoint import (
    TRAINING_STATE,
    CheckpointError,
    checkpoint_name,
    list_checkpoints,
    newest_for_writer,
    verify_checkpoint,
)
from vla_opt.config import TrainConfig, check_same_run
from vla_opt.errors import ConfigError

CURSOR = "cursor.json"
CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """The checkpoint a run goes on from.

    Attributes:
        path: The checkpoint.
        cursor: What `Session.save` wrote about the position in the run.
        complaints: What was wrong with newer checkpoints.
    """

    path: Path | None = None
    cursor: dict[str, Any] = field(default_factory=dict)
    complaints: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Updates done so far."""
        return int(self.cursor.get("step", 0))

    def threads(self, wanted: int) -> int:
        """Threads to use: those of the run, unless others are asked for."""
        return wanted or int(self.cursor.get("num_threads", 0))


def threads_of(config: TrainConfig, resume: ResumePoint) -> int:
    """Return the number of torch's threads for this run."""
    return resolve_threads(resume.threads(config.num_threads))


def only_writer(folder: Path) -> AbstractContextManager[None]:
    """Hold the lock of a run folder; see `vla_opt._lock.only_writer`."""
    return _lock.only_writer(folder, "training in")


def checkpoint_folder(config: TrainConfig) -> Path:
    """Return the folder of a run's checkpoints."""
    return config.output_dir / "checkpoints"


def find_resume_point(config: TrainConfig, accelerator: Accelerator) -> ResumePoint:
    """Return where to go on: the newest checkpoint that is whole, or the beginning.

    Raises:
        ConfigError: The folder holds a run and `resume` is off, or one of another configuration.
    """
    folder = checkpoint_folder(config)
    path: Path | None = None
    complaints: list[str] = []
    if not config.resume and list_checkpoints(folder):
        raise ConfigError(
            f"{config.output_dir} holds a run already. Go on with it (--resume=true), give another "
            "--output_dir, or delete the folder."
        )
    if accelerator.is_main_process:
        path, complaints = newest_for_writer(folder)
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:  # the main process has put damaged ones aside
        path = next(reversed(list_checkpoints(folder)), None)
    if path is None:
        return ResumePoint(complaints=tuple(complaints))
    state = path / TRAINING_STATE
    earlier = json.loads((state / CONFIG).read_text(encoding="utf-8"))
    cursor = json.loads((state / CURSOR).read_text(encoding="utf-8"))
    check_same_run(config, _cut_as_now(earlier, cursor, config, accelerator.num_processes))
    return ResumePoint(path=path, cursor=cursor, complaints=tuple(complaints))


def _cut_as_now(
    earlier: dict[str, Any], cursor: dict[str, Any], config: TrainConfig, processes: int
) -> dict[str, Any]:
    """The earlier configuration, with the present cut of an update if that has as many samples.

    Two processes with half the batch take the same samples as one: a run may go on with another
    number of them.
    """
    keys = ("batch_size", "gradient_accumulation")
    then = earlier[keys[0]] * earlier[keys[1]] * cursor["data"]["world_size"]
    if then != config.batch_size * config.gradient_accumulation * processes:
        return earlier
    return {**earlier, **{key: getattr(config, key) for key in keys}}


def is_finished(config: TrainConfig) -> bool:
    """Whether the run is done: its last checkpoint is there, whole, and of this configuration.

    Raises:
        ConfigError: The folder holds a run of another configuration.
    """
    path = checkpoint_folder(config) / checkpoint_name(config.steps)
    try:
        verify_checkpoint(path)
    except CheckpointError:
        return False
    earlier = (path / TRAINING_STATE / CONFIG).read_text(encoding="utf-8")
    check_same_run(config, json.loads(earlier))
    return True
