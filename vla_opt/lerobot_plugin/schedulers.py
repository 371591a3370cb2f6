"""The schedules of `vla_opt.schedules` as a lerobot scheduler type."""

import logging
from dataclasses import dataclass
from typing import Any

from lerobot.optim.schedulers import LRSchedulerConfig

from vla_opt.schedules import SchedulerConfig

logger = logging.getLogger(__name__)


@LRSchedulerConfig.register_subclass("vla_opt")
@dataclass
class VlaOptSchedulerConfig(LRSchedulerConfig):  # type: ignore[misc]
    """A schedule whose length is that of the run.

    Attributes:
        num_warmup_steps: steps over which the rate rises linearly; 0 or None for none.
        name: "constant", "cosine" or "wsd" (warm-up, stable, decay).
        min_ratio: where "cosine" and "wsd" end, as a share of the base rate.
        decay_fraction: share of the steps after warm-up over which "wsd" decays.
    """

    num_warmup_steps: int | None = 0
    name: str = "cosine"
    min_ratio: float = 0.0
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        """Refuse unknown names and numbers out of range."""
        try:
            self._config()
        except ValueError as error:
            logger.error("%s", error)  # draccus shows nothing of what a dataclass says
            raise

    def _config(self) -> SchedulerConfig:
        return SchedulerConfig(
            name=self.name,
            warmup_steps=self.num_warmup_steps or 0,
            min_ratio=self.min_ratio,
            decay_fraction=self.decay_fraction,
        )

    def build(self, optimizer: Any, num_training_steps: int) -> Any:
        """The torch scheduler for a run of so many steps."""
        return self._config().build(optimizer, num_training_steps)
