"""A teleoperator of lerobot's that nobody holds: sways two joints, opens and closes the hand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from lerobot.teleoperators import Teleoperator, TeleoperatorConfig

from deploy.lerobot_robot_fr3.fr3 import NAMES
from deploy.limits import RESET_POSE


@TeleoperatorConfig.register_subclass("scripted")
@dataclass(kw_only=True)
class ScriptedConfig(TeleoperatorConfig):
    """Nothing to say."""


class Scripted(Teleoperator):
    """Joint targets as a leader arm would give them."""

    config_class = ScriptedConfig
    name = "scripted"

    def __init__(self, config: ScriptedConfig) -> None:
        super().__init__(config)
        self._begin: float | None = None

    @property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(NAMES, float)

    @property
    def feedback_features(self) -> dict[str, type]:
        return {}

    @property
    def is_connected(self) -> bool:
        return self._begin is not None

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        self._begin = time.monotonic()

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_action(self) -> dict[str, Any]:
        assert self._begin is not None
        at = time.monotonic() - self._begin
        q = RESET_POSE + 0.1 * np.sin(2 * at) * np.array([1, 0, 0, 0, 0, 0, 1])
        return dict(zip(NAMES, map(float, [*q, float(at % 2 > 1)]), strict=True))

    def send_feedback(self, feedback: dict[str, Any]) -> None: ...

    def disconnect(self) -> None:
        self._begin = None
