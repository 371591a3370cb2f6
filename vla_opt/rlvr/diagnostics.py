"""What papers on reinforcement learning with verifiable rewards look at beside the reward.

The gradient's signal-to-noise ratio, the spread of attention heads, and signs of a policy that has
collapsed: Muon as published does so within a few steps (arXiv 2605.19282, figure 6), because it
moves every direction of a gradient that is mostly noise by the same length.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn


class GradientNoise:
    """Signal-to-noise ratio of a gradient, from independent samples of it.

    SNR(G) = |E G|^2 / E |G - E G|^2 (arXiv 2605.19282). The squared norm of a mean of k samples
    overestimates the signal by 1/k of the noise, which is taken off here: pure noise gives 0, not
    1. A published value near 1 may therefore be no signal at all, if it was not taken off.
    """

    def __init__(self) -> None:
        self._sum: list[Tensor] = []
        self._squares = 0.0
        self._count = 0

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add one sample: the gradients of the same parameters each time; None counts as zero."""
        self._count += 1
        self._squares += sum(float(g.double().square().sum()) for g in gradients if g is not None)
        if not self._sum:
            self._sum = [torch.zeros((), dtype=torch.float64) for _ in gradients]
        self._sum = [
            total if g is None else total.to(g.device) + g.detach().float()
            for total, g in zip(self._sum, gradients, strict=True)
        ]

    def ratio(self, samples: float = 1.0) -> float | None:
        """The ratio for a gradient that is the mean of so many samples.

        None with fewer than two samples, and where all are equal (no noise to compare with).
        """
        if self._count < 2:
            return None
        mean = sum(float(t.double().square().sum()) for t in self._sum) / self._count**2
        noise = (self._squares / self._count - mean) * self._count / (self._count - 1)
        if noise <= 1e-12 * self._squares / self._count:
            return None
        return max(0.0, mean - noise / self._count) / noise * samples


@dataclass(frozen=True, kw_only=True)
class HeadReading:
    """How different the attention heads are; means over layers.

    Attributes:
        norm_variance: variance over heads of the Frobenius norms of the query weights.
        update_variance: the same of what training has changed since the start.
        logit_scale: largest |W_Q| |W_K| / sqrt(head size) of any head; logits scale with it.
    """

    norm_variance: float
    update_variance: float
    logit_scale: float

    def row(self) -> dict[str, float]:
        """JSON-able."""
        return asdict(self)


class HeadMeter:
    """Reads the norms of attention heads, and remembers where they began.

    Args:
        model: any model whose attention modules have `q_proj`, `k_proj` and `head_dim`, such as
            Qwen3.

    Raises:
        ValueError: it has none.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [
            module
            for module in model.modules()
            if all(hasattr(module, name) for name in ("q_proj", "k_proj", "head_dim"))
        ]
        if not self._layers:
            raise ValueError(
                f"{type(model).__name__} has no module with q_proj, k_proj and head_dim: heads "
                "cannot be told apart"
            )
        self._start = [_weight(layer, "q_proj").clone().cpu() for layer in self._layers]

    def read(self) -> HeadReading:
        """The present figures."""
        norms, changes, scales = [], [], []
        for layer, start in zip(self._layers, self._start, strict=True):
            size = int(layer.head_dim)  # type: ignore[arg-type]
            query, key = _weight(layer, "q_proj"), _weight(layer, "k_proj")
            heads, shared = head_norms(query, size), head_norms(key, size)
            norms.append(heads.var(correction=0).item())
            change = head_norms(query - start.to(query.device), size)
            changes.append(change.var(correction=0).item())
            scale = heads * shared.repeat_interleave(len(heads) // len(shared)) / math.sqrt(size)
            scales.append(scale.max().item())
        return HeadReading(
            norm_variance=_mean(norms), update_variance=_mean(changes), logit_scale=max(scales)
        )


def head_norms(weight: Tensor, head_size: int) -> Tensor:
    """Frobenius norm of each head of a query, key or value weight (heads * size, in) -> (heads,).

    >>> head_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), head_size=1)
    tensor([5., 0.])
    """
    heads = weight.detach().float().unflatten(0, (-1, head_size)).flatten(1)
    return torch.linalg.vector_norm(heads, dim=1)


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
        if self.window < 1:
            raise ValueError(f"collapse.window={self.window}: expected at least 1.")
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


def _weight(layer: nn.Module, name: str) -> Tensor:
    weight = getattr(layer, name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _mean(values: Sequence[float] | deque[float]) -> float:
    return math.fsum(values) / len(values)
