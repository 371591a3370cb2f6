"""What all our policies have in common: a queue of actions, checked batches, strict loading."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from policies._configuration import ChunkPolicyConfig

ACTION_IS_PAD = "action_is_pad"
TASK = "task"


class CheckpointMismatchError(RuntimeError):
    """A checkpoint whose weights or frozen encoders are not those of the policy."""


class ChunkPolicy(PreTrainedPolicy):
    """A policy that answers one observation with a chunk of actions.

    Subclasses implement `_predict` and `forward`.
    """

    config_class: ClassVar[type[ChunkPolicyConfig]] = ChunkPolicyConfig
    name = "chunk_policy"
    config: ChunkPolicyConfig

    def _predict(self, batch: Mapping[str, Any]) -> Tensor:
        """Actions (B, chunk, A) as the network gives them."""
        raise NotImplementedError

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        """The trainable parameters; frozen encoders are not among them."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def reset(self) -> None:
        """Forget the actions that are left of the last chunk."""
        self._actions: deque[Tensor] = deque(maxlen=self.config.n_action_steps)

    @torch.no_grad()
    def predict_action_chunk(self, batch: Mapping[str, Any]) -> Tensor:
        """Actions (B, chunk, A) for the observations of ``batch``; see the class.

        Leaves the policy in evaluation mode, as lerobot's policies do: an answer must not depend
        on what the policy was used for before.
        """
        self.eval()
        return self._predict(batch)

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any]) -> Tensor:
        """The next action (B, A); a new chunk is predicted every ``n_action_steps`` calls."""
        if not self._actions:
            chunk = self.predict_action_chunk(batch)[:, : self.config.n_action_steps]
            self._actions.extend(chunk.transpose(0, 1))
        return self._actions.popleft()

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _images(self, batch: Mapping[str, Any]) -> Tensor:
        """All views of a batch, (B, V, 3, H, W)."""
        images = [_require(batch, key) for key in self.config.views]
        return torch.stack(images, dim=1).to(self._device)

    def _state_and_tasks(self, batch: Mapping[str, Any], rows: int) -> tuple[Tensor, list[str]]:
        """Normalised states (B, S) and B instructions, for ``rows`` observations."""
        state = _require(batch, OBS_STATE).to(self._device, torch.float32)
        tasks = _require(batch, TASK)
        tasks = [tasks] * rows if isinstance(tasks, str) else list(tasks)
        if not rows == len(state) == len(tasks):
            raise ValueError(
                f"batch sizes differ: {rows} images, {len(state)} states, {len(tasks)} tasks"
            )
        return state, tasks

    def _target(self, batch: Mapping[str, Any]) -> Tensor:
        """The demonstrated chunk, (B, chunk, A)."""
        action: Tensor = _require(batch, ACTION).to(self._device)
        feature = self.config.action_feature
        assert feature is not None
        expected = (self.config.chunk_size, feature.shape[0])
        if action.shape[1:] != expected:
            raise ValueError(
                f"'{ACTION}' has shape {tuple(action.shape)}, "
                f"expected (B, {expected[0]}, {expected[1]})"
            )
        return action

    def _real_steps(self, batch: Mapping[str, Any], like: Tensor) -> Tensor:
        """1 for demonstrated actions, 0 beyond the episode's end; (B, chunk), as ``like``."""
        if ACTION_IS_PAD not in batch:
            return torch.ones_like(like[..., 0])
        return (~batch[ACTION_IS_PAD].to(like.device)).to(like.dtype)

    @classmethod
    def _load_as_safetensor(
        cls, model: Self, model_file: str, map_location: str, strict: bool
    ) -> Self:
        """Load all weights or raise; lerobot's default only logs what did not fit."""
        if not Path(model_file).is_file():
            raise FileNotFoundError(f"no weights at {model_file}")
        try:
            stored = safetensors.torch.load_file(model_file)
        except safetensors.SafetensorError as error:
            raise CheckpointMismatchError(
                f"{model_file} is not a readable safetensors file: {error}"
            ) from error
        check_state(model.state_dict(), stored, model_file)
        model.load_state_dict(stored)
        return model


def reduce_steps(error: Tensor, real: Tensor, reduction: str) -> Tensor:
    """Average an error over the real steps.

    Args:
        error: (B, K), per step. real: (B, K), 1 for real steps, 0 for others.
        reduction: "mean" over all real steps of the batch, or "none" for one loss per sample, (B,).

    Raises:
        ValueError: another reduction.
    """
    per_sample = (error * real).sum(1)
    if reduction == "none":
        return per_sample / real.sum(1).clamp(min=1)
    if reduction == "mean":
        return per_sample.sum() / real.sum().clamp(min=1)
    raise ValueError(f"reduction is '{reduction}', expected 'mean' or 'none'")


def resize(images: Tensor, side: int, mode: str = "bilinear") -> Tensor:
    """Images (B, V, 3, H, W), float in [0, 1] or uint8, as floats of ``side`` pixels."""
    if images.dtype == torch.uint8:
        images = images.float() / 255
    if images.shape[-2:] == (side, side):
        return images
    flat = F.interpolate(images.flatten(0, 1), (side, side), mode=mode, antialias=True)
    flat = flat.clamp(0.0, 1.0) if mode == "bicubic" else flat  # it overshoots at edges
    return flat.unflatten(0, images.shape[:2])


def check_state(own: Mapping[str, Tensor], stored: Mapping[str, Tensor], file: str | Path) -> None:
    """Compare the names and shapes of a file's weights with those of a policy.

    Raises:
        CheckpointMismatchError: lists weights that are missing, left over or of another shape.
    """
    problems = [f"missing {key}" for key in own.keys() - stored.keys()]
    problems += [f"unexpected {key}" for key in stored.keys() - own.keys()]
    problems += [
        f"{key} has shape {tuple(stored[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own.keys() & stored.keys()
        if stored[key].shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:8])
        raise CheckpointMismatchError(
            f"{file} does not fit this policy ({len(problems)} differences): {shown}"
        )


def _require(batch: Mapping[str, Any], key: str) -> Any:
    if key not in batch:
        raise ValueError(f"the batch has no '{key}'; it has {sorted(batch)}")
    return batch[key]
