"""What the configurations of all our policies have in common."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig

from policies.backbones import BACKBONES
from policies.language_models import LANGUAGE_MODELS
from policies.text import TEXT_ENCODERS


@dataclass
class ChunkPolicyConfig(PreTrainedConfig):
    """A policy that looks at one frame and answers with a chunk of actions.

    Args:
        chunk_size: actions predicted at once.
        n_action_steps: how many of them `select_action` executes before it looks again.
        normalization_mapping: per feature type. Images: identity, the encoder normalises them
            itself. Actions: identity, they are in [-1, 1] already.
        image_keys: views in the order of the tokens; empty: the image features, by name.
        image_size: side in pixels that the encoder sees; other images are resized to it.
        optimizer_lr: learning rate of the AdamW preset for stock lerobot training.
        optimizer_weight_decay: its decoupled weight decay.
        scheduler_warmup_steps: linear warm-up of the cosine preset.
        scheduler_decay_steps: length of the cosine preset.
        push_to_hub: upload after stock lerobot training; the hub is opt-in, lerobot's own default
            is True.

    Raises:
        ValueError: sizes that do not fit together.
    """

    chunk_size: int = 8
    n_action_steps: int = 4
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.IDENTITY,
        }
    )
    image_keys: list[str] = field(default_factory=list)
    image_size: int = 128

    optimizer_lr: float = 1e-3
    optimizer_weight_decay: float = 0.01
    scheduler_warmup_steps: int = 50
    scheduler_decay_steps: int = 1_000
    push_to_hub: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("chunk_size", "image_size")
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(
                f"n_action_steps is {self.n_action_steps}, "
                f"must be in 1..chunk_size={self.chunk_size}"
            )
        if self.n_obs_steps != 1:
            raise ValueError(f"n_obs_steps is {self.n_obs_steps}; {self.type} looks at 1 frame")

    def require_positive(self, *names: str) -> None:
        """Raise ValueError if a field of these is smaller than 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")

    @property
    def views(self) -> list[str]:
        """Image keys in the order of the tokens."""
        return self.image_keys or sorted(self.image_features)

    def validate_features(self) -> None:
        """Check that images, a state and an action are declared, and the views fit together.

        Raises:
            ValueError: what is missing, and what is there.
        """
        declared = sorted({**(self.input_features or {}), **(self.output_features or {})})
        if self.robot_state_feature is None:
            raise ValueError(f"no 'observation.state' of type STATE among the features {declared}")
        if self.action_feature is None:
            raise ValueError(f"no 'action' of type ACTION among the features {declared}")
        if not self.views:
            raise ValueError(f"no feature of type VISUAL among the features {declared}")
        missing = sorted(set(self.views) - set(self.image_features))
        if missing:
            raise ValueError(
                f"image_keys {missing} are not image features; "
                f"those are {sorted(self.image_features)}"
            )

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW for stock lerobot training."""
        return AdamWConfig(lr=self.optimizer_lr, weight_decay=self.optimizer_weight_decay)

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        """Linear warm-up, then cosine to 5 %."""
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
            peak_lr=self.optimizer_lr,
            decay_lr=0.05 * self.optimizer_lr,
        )

    @property
    def observation_delta_indices(self) -> None:
        """The policy sees the current frame only."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """The chunk: this action and the ones after it."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return None


@dataclass
class EmbeddedConfig(ChunkPolicyConfig):
    """A small policy on frozen encoders that come with the installation.

    Args:
        state_std_floor: smallest standard deviation a state dimension is divided by, in the
            state's own units (m, rad); an axis that hardly moves in the demonstrations would
            otherwise turn a millimetre of drift into an input never seen.
        backbone: name in `policies.backbones.BACKBONES`.
        view_pooling: per view, the side of the square of feature positions that becomes one token.
        text_encoder: name in `policies.text.TEXT_ENCODERS`.
        max_text_tokens: word pieces of the instruction that are kept.
        language_model: name in `policies.language_models.LANGUAGE_MODELS`.
        width: channels of a token.
        num_layers: layers of the language model; the action head has a block for each.
        num_heads: attention heads of both.
        mlp_ratio: feed-forward channels per channel.
        num_queries: learned tokens behind the observation's.
        fingerprints: written by the policy: which frozen encoders it was trained on.

    Raises:
        UnknownNameError: unknown backbone, text encoder or language model; names the nearest.
        ValueError: sizes that do not fit together.
    """

    state_std_floor: float = 0.01
    backbone: str = "efficientnet_lite0"
    view_pooling: list[int] = field(default_factory=lambda: [1, 2])
    text_encoder: str = "minilm_l6_v2"
    max_text_tokens: int = 24
    language_model: str = "transformer"
    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    mlp_ratio: float = 4.0
    num_queries: int = 8
    fingerprints: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Looking a name up raises with the nearest valid one.
        _ = BACKBONES[self.backbone], TEXT_ENCODERS[self.text_encoder]
        _ = LANGUAGE_MODELS[self.language_model]
        super().__post_init__()
        self.require_positive("num_layers", "num_heads", "num_queries", "max_text_tokens")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not divisible by num_heads {self.num_heads}")
        if self.state_std_floor < 0:
            raise ValueError(f"state_std_floor is {self.state_std_floor}, must not be negative")

    def validate_features(self) -> None:
        """Check the declared features, and that every view has its pooling.

        Raises:
            ValueError: what is missing, and what is there.
        """
        super().validate_features()
        if len(self.view_pooling) < len(self.views):
            raise ValueError(
                f"view_pooling has {len(self.view_pooling)} entries for {len(self.views)} views "
                f"{self.views}; give one per view"
            )


def store_config(config: PreTrainedConfig, folder: Path, **changes: Any) -> None:
    """Write a policy's configuration beside its weights, with some fields as a checkpoint has them.

    Args:
        config: stays as it is.
        folder: of the checkpoint.
        changes: fields and their values there.
    """
    stored = copy.copy(config)
    for name, value in changes.items():
        setattr(stored, name, value)
    stored._save_pretrained(folder)
