"""Signs that a policy has collapsed, from what the log holds anyway.

Muon as published collapses within a few steps of reinforcement learning (arXiv 2605.19282, figure
6): it moves every direction of a gradient that is mostly noise by the same length.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vla_opt._checks import require_at_least


@dataclass(frozen=True, kw_only=True)
class CollapseConfig:
    """When a policy counts as collapsed.

    Attributes:
        window: readings that are averaged; nothing is said before there are as many.
        reward_drop: share of its best average below which the reward has fallen; 0 = never warn.
        entropy_low: share of the first average below which the policy has stopped exploring.
        entropy_high: share of the largest possible entropy above which it chooses at random,
            having been below half of that share before.
        solved: average reward from which little entropy and equal groups are no reason to warn.
    """

    window: int = 5
    reward_drop: float = 0.5
    entropy_low: float = 0.02
    entropy_high: float = 0.8
    solved: float = 0.9

    def __post_init__(self) -> None:
        """Check the values."""
        require_at_least("collapse.window", self.window, 1)
        for name in ("reward_drop", "entropy_low", "entropy_high", "solved"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"collapse.{name}={getattr(self, name)}: expected 0 to 1.")


class CollapseWatch:
    """Tells when reward or entropy leave the range in which a policy can still learn.

    Args:
        config: the thresholds.
        max_entropy: log of the vocabulary's size, in nats.
    """

    def __init__(self, config: CollapseConfig, max_entropy: float) -> None:
        self.config, self.max_entropy = config, max_entropy
        self._rewards: deque[float] = deque(maxlen=config.window)
        self._entropies: deque[float] = deque(maxlen=config.window)
        self._equal: deque[float] = deque(maxlen=config.window)
        self._best, self._first, self._lowest = 0.0, math.nan, math.inf
        self._said: set[str] = set()

    def observe(
        self, *, reward: float, entropy: float, equal_groups: float = 0.0
    ) -> dict[str, str]:
        """Take one reading; return new complaints by kind, each once until it has recovered.

        Args:
            reward: mean over completions, from 0 to 1.
            entropy: mean over tokens, in nats.
            equal_groups: share of groups whose completions have all the same reward: these give
                no gradient.
        """
        self._rewards.append(reward)
        self._entropies.append(entropy)
        self._equal.append(equal_groups)
        if len(self._rewards) < self.config.window:
            return {}
        found = self._complaints(_mean(self._rewards), _mean(self._entropies), _mean(self._equal))
        new = {kind: text for kind, text in found.items() if kind not in self._said}
        self._said = set(found)
        return new

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: what has been seen."""
        return {
            "rewards": list(self._rewards),
            "entropies": list(self._entropies),
            "equal": list(self._equal),
            "best": self._best,
            "first": None if math.isnan(self._first) else self._first,
            "lowest": None if math.isinf(self._lowest) else self._lowest,
            "said": sorted(self._said),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        size = self.config.window
        self._rewards = deque(state["rewards"], maxlen=size)
        self._entropies = deque(state["entropies"], maxlen=size)
        self._equal = deque(state["equal"], maxlen=size)
        self._best = float(state["best"])
        self._first = math.nan if state["first"] is None else float(state["first"])
        self._lowest = math.inf if state["lowest"] is None else float(state["lowest"])
        self._said = set(state["said"])

    def _complaints(self, reward: float, entropy: float, equal: float) -> dict[str, str]:
        cfg, found = self.config, {}
        self._best = max(self._best, reward)
        self._first = entropy if math.isnan(self._first) else self._first
        self._lowest = min(self._lowest, entropy)
        if reward < cfg.reward_drop * self._best:
            found["reward"] = (
                f"the reward has fallen to {reward:.3f} from {self._best:.3f} (means of "
                f"{cfg.window} readings). {_STEP_TOO_LONG}"
            )
        limit = cfg.entropy_high * self.max_entropy
        if entropy > limit and self._lowest < 0.5 * limit:
            found["random"] = (
                f"the policy chooses nearly at random: entropy {entropy:.2f} of at most "
                f"{self.max_entropy:.2f} nats, after {self._lowest:.2f}. {_STEP_TOO_LONG}"
            )
        if reward < cfg.solved and entropy < cfg.entropy_low * self._first:
            found["deterministic"] = (
                f"the policy has stopped exploring: entropy {entropy:.4f} nats, {self._first:.2f} "
                f"at first, at a reward of {reward:.3f}. Raise the temperature, widen the clip "
                "range, or lower lr."
            )
        if reward < cfg.solved and equal >= 1.0:
            found["equal"] = (
                f"all completions of every group have the same reward ({reward:.3f} on average): "
                "there is no gradient. Take easier or harder prompts, larger groups, or a reward "
                "with more steps."
            )
        return found


_STEP_TOO_LONG = (
    "The step is too long for this gradient: lower lr or update_scale. Muon moves every direction "
    "of the momentum alike, noise included; Pion only those that stand out; per-head updates "
    "(num_heads) keep heads apart."
)


def _mean(values: deque[float]) -> float:
    return math.fsum(values) / len(values)
