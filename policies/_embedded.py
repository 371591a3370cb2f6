"""Policies on frozen encoders: features that can be cached, words that are encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from policies._chunk_policy import CheckpointMismatchError, ChunkPolicy, resize
from policies._configuration import EmbeddedConfig, store_config
from policies._tokens import ProprioProjector, TextProjector, VisionProjector
from policies.backbones import Backbone, build_backbone
from policies.text import TextEncoder, TextFeatures, build_text_encoder

OBS_FEATURES = "observation.features"


class ObservationModel(nn.Module):
    """Encoders and projectors: an observation to tokens of the language model's width.

    The frozen encoders are plain attributes, not sub-modules: neither their parameters nor their
    weights belong to this model.

    Args:
        config: with its features validated.
    """

    text_encoder: TextEncoder
    vision_backbone: Backbone

    def __init__(self, config: EmbeddedConfig) -> None:
        super().__init__()
        assert config.robot_state_feature is not None
        width = config.width
        self.vision_backbone = build_backbone(config.backbone, config.image_size)
        self.text_encoder = build_text_encoder(config.text_encoder, config.max_text_tokens)
        grid, channels = self.vision_backbone.grid, self.vision_backbone.channels
        self.vision_projector = nn.ModuleList(
            VisionProjector(channels, width, grid, pooling)
            for _, pooling in zip(config.views, config.view_pooling, strict=False)
        )
        self.text_projector = TextProjector(self.text_encoder.channels, width)
        self.proprio_projector = ProprioProjector(config.robot_state_feature.shape[0], width)

    @property
    def features_shape(self) -> tuple[int, int, int]:
        """Views, positions per view, channels of the features that the model takes."""
        rows, columns = self.vision_backbone.grid
        return len(self.vision_projector), rows * columns, self.vision_backbone.channels

    def task_tokens(self, features: Tensor, text: TextFeatures) -> tuple[Tensor, Tensor]:
        """Tokens of vision and words.

        Args:
            features: (B, V, T, C) of the backbone, any float dtype.
            text: B encoded instructions.

        Returns:
            tokens (B, N, width), and a mask (B, N), True where a token is real.
        """
        vision = [project(features[:, v]) for v, project in enumerate(self.vision_projector)]
        tokens = torch.cat([*vision, self.text_projector(text.pooled, text.tokens)], dim=1)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        mask[:, tokens.shape[1] - text.mask.shape[1] :] = text.mask
        return tokens, mask


class EmbeddedPolicy(ChunkPolicy):
    """A policy whose `model` is an `ObservationModel`.

    A batch holds
        ``observation.images.*``: (B, 3, H, W) per view, float in [0, 1] or uint8; or instead
        ``observation.features``: (B, V, T, C), what `encode_images` returned, any float dtype;
        ``observation.state``: (B, S), normalised by the pre-processor;
        ``task``: B strings;
        for training ``action``: (B, chunk, A), and optionally ``action_is_pad``: (B, chunk) bool.
    """

    config_class: ClassVar[type[EmbeddedConfig]] = EmbeddedConfig
    name = "embedded_policy"
    _no_split_modules = ("TransformerLayer", "BridgeBlock", "FlowBlock")
    config: EmbeddedConfig
    model: ObservationModel

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

    @property
    def features_shape(self) -> tuple[int, int, int] | None:
        """(V, T, C) of what `encode_images` computes per frame; None as above."""
        return self.model.features_shape if self.model.vision_backbone.frozen else None

    def _check_fingerprints(self) -> None:
        for part, expected in self.config.fingerprints.items():
            found = self.fingerprints.get(part)
            if found != expected:
                raise CheckpointMismatchError(
                    f"this policy was trained with the {part} '{expected}', but here it is "
                    f"'{found}'; use the same encoder, image size and package version"
                )

    def prepare(self, instructions: Sequence[str] = ()) -> None:
        """Load the frozen encoders and embed ``instructions`` now rather than at the first call."""
        side = self.config.image_size
        images = torch.zeros(1, len(self.config.views), 3, side, side)
        self.encode_images(images.to(self._device))
        self.model.text_encoder.encode(list(instructions) or [""], self._device)

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
        return self.model.vision_backbone.encode(resize(images, self.config.image_size))

    def _observe(self, batch: Mapping[str, Any]) -> tuple[Tensor, TextFeatures, Tensor]:
        """Features (B, V, T, C), encoded instructions and states (B, S) of a batch."""
        features = self._features(batch)
        state, tasks = self._state_and_tasks(batch, len(features))
        return features, self.model.text_encoder.encode(tasks, self._device), state

    def _features(self, batch: Mapping[str, Any]) -> Tensor:
        if OBS_FEATURES not in batch:
            return self.encode_images(self._images(batch))
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

    def _save_pretrained(
        self, save_directory: Path, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        super()._save_pretrained(save_directory, state_dict=state_dict)
        store_config(self.config, save_directory, fingerprints=self.fingerprints)
