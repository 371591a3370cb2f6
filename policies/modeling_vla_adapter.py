"""VLA-Adapter as a lerobot policy."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from policies._vla_adapter_model import VLAAdapterModel
from policies.configuration_vla_adapter import VLAAdapterConfig

OBS_FEATURES = "observation.features"
ACTION_IS_PAD = "action_is_pad"
TASK = "task"


class CheckpointMismatchError(RuntimeError):
    """A checkpoint whose weights or frozen encoders are not those of the policy."""


class VLAAdapterPolicy(PreTrainedPolicy):
    """Images of all views, an instruction and the robot's state to a chunk of actions.

    A batch holds
        ``observation.images.*``: (B, 3, H, W) per view, float in [0, 1] or uint8; or instead
        ``observation.features``: (B, V, T, C), what `encode_images` returned, any float dtype;
        ``observation.state``: (B, S), normalised by the pre-processor;
        ``task``: B strings;
        for training ``action``: (B, chunk, A), and optionally ``action_is_pad``: (B, chunk) bool.

    Args:
        config: features declared.
        dataset_stats: given by lerobot's factory; not needed, normalisation is in the processors.
        dataset_meta: the same.

    Raises:
        ValueError: features that the policy cannot work with.
        CheckpointMismatchError: the configuration comes from a policy trained on other encoders.
    """

    config_class = VLAAdapterConfig
    name = "vla_adapter"

    def __init__(
        self,
        config: VLAAdapterConfig,
        dataset_stats: Mapping[str, Any] | None = None,
        dataset_meta: object | None = None,
    ) -> None:
        super().__init__(config)
        config.validate_features()
        self.config: VLAAdapterConfig = config
        self.model = VLAAdapterModel(config)
        self._check_fingerprints()
        self.reset()

    @property
    def fingerprints(self) -> dict[str, str]:
        """Identity of the encoders; stored in a checkpoint's configuration, checked on loading."""
        return {
            "backbone": self.model.vision_backbone.fingerprint,
            "text_encoder": self.model.text_encoder.fingerprint,
        }

    @property
    def features_fingerprint(self) -> str | None:
        """Identity of what `encode_images` computes; None if that changes while training."""
        backbone = self.model.vision_backbone
        return f"{backbone.fingerprint}/{self.config.image_size}" if backbone.frozen else None

    def _check_fingerprints(self) -> None:
        for part, expected in self.config.fingerprints.items():
            found = self.fingerprints.get(part)
            if found != expected:
                raise CheckpointMismatchError(
                    f"this policy was trained with the {part} '{expected}', but here it is "
                    f"'{found}'; use the same encoder, image size and package version"
                )

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        """The trainable parameters; the frozen encoders are not among them."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def reset(self) -> None:
        """Forget the actions that are left of the last chunk."""
        self._actions: deque[Tensor] = deque(maxlen=self.config.n_action_steps)

    def prepare(self, instructions: Sequence[str] = ()) -> None:
        """Load the frozen encoders and embed ``instructions`` now rather than at the first call."""
        device = self._device
        self.encode_images(
            torch.zeros(
                1, len(self.config.views), 3, self.config.image_size, self.config.image_size
            ).to(device)
        )
        self.model.text_encoder.encode(list(instructions) or [""], device)

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images to the features that may stand in ``observation.features``.

        Args:
            images: (B, V, 3, H, W), float in [0, 1] or uint8, views in the order of `config.views`.

        Returns:
            (B, V, T, C), float32; differentiable if the backbone is trained.

        Raises:
            ValueError: not five dimensions, or a wrong number of views or colours.
        """
        views = len(self.config.views)
        if images.ndim != 5 or images.shape[1:3] != (views, 3):
            raise ValueError(
                f"images have shape {tuple(images.shape)}, expected (B, {views}, 3, H, W)"
            )
        if images.dtype == torch.uint8:
            images = images.float() / 255
        side = self.config.image_size
        if images.shape[-2:] != (side, side):
            flat = images.flatten(0, 1)
            flat = F.interpolate(flat, (side, side), mode="bilinear", antialias=True)
            images = flat.unflatten(0, images.shape[:2])
        return self.model.vision_backbone.encode(images)

    def forward(
        self, batch: Mapping[str, Any], reduction: str = "mean"
    ) -> tuple[Tensor, dict[str, float]]:
        """L1 loss of the predicted chunk; padded actions do not count.

        Args:
            batch: see the class.
            reduction: "mean" over all real actions, or "none" for one loss per sample, (B,).

        Returns:
            the loss, and figures for the log.

        Raises:
            ValueError: a key is missing or has the wrong shape.
        """
        error = (self._predict(batch) - self._target(batch)).abs()
        real = torch.ones_like(error[..., 0])
        if ACTION_IS_PAD in batch:
            real = (~batch[ACTION_IS_PAD].to(error.device)).to(error.dtype)
        per_sample = (error.mean(-1) * real).sum(1)
        if reduction == "none":
            loss = per_sample / real.sum(1).clamp(min=1)
        elif reduction == "mean":
            loss = per_sample.sum() / real.sum().clamp(min=1)
        else:
            raise ValueError(f"reduction is '{reduction}', expected 'mean' or 'none'")
        return loss, {"l1_loss": loss.detach().mean().item()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: Mapping[str, Any]) -> Tensor:
        """Actions (B, chunk, A) for the observations of ``batch``; see the class."""
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
        return self.model.queries.device

    def _predict(self, batch: Mapping[str, Any]) -> Tensor:
        features = self._features(batch)
        state = _require(batch, OBS_STATE).to(self._device, torch.float32)
        tasks = _require(batch, TASK)
        tasks = [tasks] * len(features) if isinstance(tasks, str) else list(tasks)
        if not len(features) == len(state) == len(tasks):
            raise ValueError(
                f"batch sizes differ: {len(features)} images, {len(state)} states, "
                f"{len(tasks)} tasks"
            )
        text = self.model.text_encoder.encode(tasks, self._device)
        actions: Tensor = self.model(features, text, state)
        return actions

    def _features(self, batch: Mapping[str, Any]) -> Tensor:
        if OBS_FEATURES not in batch:
            images = [_require(batch, key) for key in self.config.views]
            return self.encode_images(torch.stack(images, dim=1).to(self._device))
        if not self.model.vision_backbone.frozen:
            raise ValueError(
                f"backbone '{self.config.backbone}' is trained: "
                f"it needs images, not '{OBS_FEATURES}'"
            )
        features: Tensor = batch[OBS_FEATURES].to(self._device)
        if features.shape[1:] != self.model.features_shape:
            raise ValueError(
                f"'{OBS_FEATURES}' has shape {tuple(features.shape)}, "
                f"expected (B, {', '.join(map(str, self.model.features_shape))})"
            )
        return features

    def _target(self, batch: Mapping[str, Any]) -> Tensor:
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

    def _save_pretrained(
        self, save_directory: Path, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        super()._save_pretrained(save_directory, state_dict=state_dict)
        config = copy.copy(self.config)
        config.fingerprints = self.fingerprints
        config._save_pretrained(save_directory)

    @classmethod
    def _load_as_safetensor(
        cls, model: VLAAdapterPolicy, model_file: str, map_location: str, strict: bool
    ) -> VLAAdapterPolicy:
        """Load all weights or raise; lerobot's default only logs what did not fit."""
        if not Path(model_file).is_file():
            raise FileNotFoundError(f"no weights at {model_file}")
        try:
            stored = safetensors.torch.load_file(model_file)
        except safetensors.SafetensorError as error:
            raise CheckpointMismatchError(
                f"{model_file} is not a readable safetensors file: {error}"
            ) from error
        own = model.state_dict()
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
                f"{model_file} does not fit this policy ({len(problems)} differences): {shown}"
            )
        model.load_state_dict(stored)
        return model


def _require(batch: Mapping[str, Any], key: str) -> Any:
    if key not in batch:
        raise ValueError(f"the batch has no '{key}'; it has {sorted(batch)}")
    return batch[key]
