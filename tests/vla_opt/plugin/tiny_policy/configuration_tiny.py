"""A policy plug-in as a stranger would write one: few weights, dropout, noise, a buffer."""

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig


@PreTrainedConfig.register_subclass("tiny")
@dataclass
class TinyConfig(PreTrainedConfig):
    chunk_size: int = 4
    hidden: int = 16
    dropout: float = 0.1
    noise: float = 0.01
    past: int = 0  # how many earlier observations it wants
    frozen_encoder: bool = False
    poison_step: int = -1  # the loss of this forward pass is NaN
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )

    @property
    def observation_delta_indices(self) -> list[int] | None:
        return list(range(-self.past, 1)) if self.past else None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(-self.past, self.chunk_size - self.past))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig()

    def get_scheduler_preset(self) -> None:
        return None

    def validate_features(self) -> None:
        pass
