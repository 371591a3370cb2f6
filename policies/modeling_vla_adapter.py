"""VLA-Adapter as a lerobot policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from policies._chunk_policy import (
    ACTION_IS_PAD,
    TASK,
    CheckpointMismatchError,
)
from policies._embedded import OBS_FEATURES, EmbeddedPolicy
from policies._l1_policy import L1Policy
from policies._vla_adapter_model import VLAAdapterModel
from policies.configuration_vla_adapter import VLAAdapterConfig

__all__ = [
    "ACTION_IS_PAD",
    "OBS_FEATURES",
    "TASK",
    "CheckpointMismatchError",
    "VLAAdapterPolicy",
]


class VLAAdapterPolicy(L1Policy, EmbeddedPolicy):
    """Images of all views, an instruction and the robot's state to a chunk of actions.

    What a batch holds is said in `EmbeddedPolicy`.

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
    config: VLAAdapterConfig

    def __init__(
        self,
        config: VLAAdapterConfig,
        dataset_stats: Mapping[str, Any] | None = None,
        dataset_meta: object | None = None,
    ) -> None:
        super().__init__(config)
        config.validate_features()
        self.model = VLAAdapterModel(config)
        self._check_fingerprints()
        self.reset()

    def _predict(self, batch: Mapping[str, Any]) -> Tensor:
        actions: Tensor = self.model(*self._observe(batch))
        return actions
