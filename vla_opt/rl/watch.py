"""Warnings that an update ruins the policy, from figures of the log alone."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vla_opt.evaluation.statistics import wilson

_ADVICE = (
    "An update as flat as Muon's moves directions that hold nothing but noise in reinforcement "
    "learning, where the gradient's signal-to-noise ratio is near 1. Lower --optimizer.lr or "
    "--optimizer.update_scale, use pion with fewer promotion_steps, or add --objective.kl_weight; "
    "and go on from an earlier checkpoint."
)


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """When to warn. Each limit can be put out of reach.

    Attributes:
        clip_fraction: Share of clipped tokens.
        approx_kl: Distance from the weights that acted, in nats per token.
        gain: Least that an update must raise the objective by on the episodes it learned from.
        entropy_drop: Nats that the entropy of a decision may fall below its first value, per
            action dimension.
        window: Updates whose episodes are counted together as the present success rate.
        confidence: Of the two Wilson intervals (best rate so far, present rate) that must not touch
            before the success rate counts as fallen.
    """

    clip_fraction: float = 0.5
    approx_kl: float = 1.0
    gain: float = 0.0
    entropy_drop: float = 1.0
    window: int = 2
    confidence: float = 0.95


@dataclass(frozen=True, kw_only=True)
class Sign:
    """One sign of a collapse.

    Attributes:
        name: "clip_fraction", "approx_kl", "gain", "entropy" or "success".
        message: what was measured and what was expected.
    """

    name: str
    message: str


@dataclass
class CollapseWatch:
    """Compares each update with the limits, and with the best there was.

    Attributes:
        config: the limits.
        dimensions: numbers whose entropy is summed: action dimensions.
        first_entropy: of the first update.
        best: successes and episodes of the best window so far.
        recent: successes and episodes of the last updates.
    """

    config: WatchConfig
    dimensions: int
    first_entropy: float | None = None
    best: tuple[int, int] = (0, 0)
    recent: list[tuple[int, int]] = field(default_factory=list)

    def check(
        self,
        *,
        successes: int,
        episodes: int,
        entropy: float,
        clip_fraction: float,
        approx_kl: float,
        gain: float,
    ) -> list[Sign]:
        """Take in one update; return what is wrong with it, nothing in the usual case."""
        config, signs = self.config, []
        for name, value in (("clip_fraction", clip_fraction), ("approx_kl", approx_kl)):
            limit = getattr(config, name)
            if value > limit:
                text = f"{name} is {value:.3g}, above {limit:g}"
                signs.append(Sign(name=name, message=text))
        if gain < config.gain:
            text = f"the objective moved by {gain:.3g} on the episodes just learned from, not up"
            signs.append(Sign(name="gain", message=text))
        self.first_entropy = entropy if self.first_entropy is None else self.first_entropy
        drop = (self.first_entropy - entropy) / self.dimensions
        if drop > config.entropy_drop:
            text = f"entropy fell by {drop:.3g} nats per action dimension"
            signs.append(Sign(name="entropy", message=text))
        return signs + self._check_success(successes, episodes)

    def _check_success(self, successes: int, episodes: int) -> list[Sign]:
        self.recent = [*self.recent, (successes, episodes)][-self.config.window :]
        k, n = (sum(counts) for counts in zip(*self.recent, strict=True))
        upper = wilson(k, n, self.config.confidence)[1]
        if upper < wilson(*self.best, self.config.confidence)[0]:
            text = f"success is {k}/{n} after {self.best[0]}/{self.best[1]} at best"
            return [Sign(name="success", message=text)]
        if n and k * max(1, self.best[1]) > self.best[0] * n:
            self.best = k, n
        return []

    def state_dict(self) -> dict[str, Any]:
        """What it has seen, ready for JSON."""
        state = asdict(self)
        return {name: state[name] for name in ("first_entropy", "best", "recent")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.first_entropy = state["first_entropy"]
        self.best = tuple(state["best"])
        self.recent = [tuple(counts) for counts in state["recent"]]


def warning_row(update: int, signs: list[Sign]) -> dict[str, Any]:
    """Return the row of the log for signs of a collapse."""
    found = "; ".join(sign.message for sign in signs)
    return {
        "kind": "warning",
        "step": update,
        "signs": [sign.name for sign in signs],
        "message": f"The policy may be collapsing: {found}. {_ADVICE}",
    }
