"""A checkpoint whose weights are being optimized, and which can act at any time."""

from pathlib import Path
from typing import Any

from lerobot.policies.pretrained import PreTrainedPolicy

from vla_opt.evaluation.inference import CheckpointPolicy
from vla_opt.io import atomic_write_json
from vla_opt.zo_training.adapters import merged


class LivePolicy(CheckpointPolicy):
    """A `CheckpointPolicy` that gives access to what it is made of.

    Args:
        path: See `vla_opt.evaluation.contract.open_checkpoint`.
        device: As torch names it.
        num_threads: torch's threads during inference.
    """

    def __init__(self, path: Path, *, device: str = "cpu", num_threads: int = 1) -> None:
        super().__init__(path, device=device, num_threads=num_threads)

    @property
    def module(self) -> PreTrainedPolicy:
        """The policy."""
        module: PreTrainedPolicy = self._policy
        return module

    @property
    def preprocessor(self) -> Any:
        """From a batch of data to what the policy takes."""
        return self._pre

    def save(self, folder: Path) -> None:
        """Write what `vla-opt eval` reads, with adapters merged."""
        folder.mkdir(parents=True, exist_ok=True)
        merged(self.module).save_pretrained(folder)
        self._pre.save_pretrained(folder)
        self._post.save_pretrained(folder)
        if self.spec is not None:
            atomic_write_json(folder / "env_spec.json", self.spec.to_dict())
