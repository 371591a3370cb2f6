"""A checkpoint that explores: the policy's side of a rollout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_model, save_model
from torch import Tensor

from envs.rollout import Observation
from vla_opt.evaluation.inference import to_batch
from vla_opt.rl._worker import StaleWeightsError
from vla_opt.rl.actors import Actor, ExplorationConfig, build_actor, model_inputs
from vla_opt.rl.trajectories import Act
from vla_opt.seeding import derive_seed
from vla_opt.zo_training.live_policy import LivePolicy


class ActingPolicy(LivePolicy):
    """Answers observations with decisions drawn around the checkpoint's own.

    What is drawn depends on the observation's seed and the run's, on the weights, and on nothing
    else: not on the batch, the worker or the order.

    Args:
        path: see `vla_opt.evaluation.contract.open_checkpoint`.
        exploration: how it deviates.
        execute_steps: actions of a chunk that are executed.
        seed: of the run.
        weights: folder where other versions of the weights are found; None: the present ones alone.
        device: as torch names it.
        num_threads: torch's threads.
    """

    def __init__(
        self,
        path: Path,
        *,
        exploration: ExplorationConfig,
        execute_steps: int,
        seed: int,
        weights: Path | None = None,
        device: str = "cpu",
        num_threads: int = 1,
    ) -> None:
        super().__init__(path, device=device, num_threads=num_threads)
        self.actor: Actor = build_actor(self.module, execute_steps, exploration)
        self.version = 0
        self._seed, self._weights = seed, weights

    # decisions instead of bare chunks; `Recorder` makes a Policy of it
    def infer(self, observations: Sequence[Observation]) -> list[Act]:  # type: ignore[override]
        """Return one decision per observation, one at a time."""
        return [self._act(observation) for observation in observations]

    def _act(self, observation: Observation) -> Act:
        self._use(int(observation["weights"]))
        seed = derive_seed(self._seed, "act", int(observation["seed"]))
        with self._quarantine(seed), torch.inference_mode():
            batch = self._pre(to_batch([observation]))
            inputs = model_inputs(self.module, batch)
            draw = self.actor.sample({**inputs, "task": [observation["task"]]}, [seed])
            actions: Tensor = self._post(draw.chunk[0])
        return Act(
            chunk=actions.to("cpu", torch.float64).numpy(),
            latents=_array(draw.latents[0]),
            log_prob=_array(draw.log_prob[0]),
            inputs={name: _array(value[0]) for name, value in inputs.items()},
            version=self.version,
        )

    def _use(self, version: int) -> None:
        """Make sure that this version of the weights acts."""
        if version == self.version:
            return
        if self._weights is None:
            raise StaleWeightsError(
                f"version {version} of the weights was asked for, but here is only {self.version}."
            )
        load_version(self.actor, self._weights, version)
        self.version = version


def save_version(actor: Actor, folder: Path, version: int) -> None:
    """Write weights where acting processes find them; older versions are deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{version:06d}.tmp"
    save_model(actor, str(temporary))
    temporary.replace(_file(folder, version))
    for old in folder.glob("*.safetensors"):
        if old != _file(folder, version):
            old.unlink()


def load_version(actor: Actor, folder: Path, version: int) -> None:
    """Read weights that `save_version` wrote, into the actor.

    Raises:
        StaleWeightsError: that version is not there.
    """
    file = _file(folder, version)
    if not file.is_file():
        found = sorted(path.stem for path in folder.glob("*.safetensors"))
        raise StaleWeightsError(f"no weights {file.name} in {folder}; it holds {found}.")
    load_model(actor, file)


def _file(folder: Path, version: int) -> Path:
    return folder / f"{version:06d}.safetensors"


def _array(tensor: Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
