"""Updates where the right answer is known: a hand pushed along a line, and rewards of a coin."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

from rl_toys import tiny_policy  # noqa: E402

from envs.rollout import EpisodeKey  # noqa: E402
from vla_opt.errors import ConfigError  # noqa: E402
from vla_opt.rl.actors import Draw, ExplorationConfig, GaussianActor  # noqa: E402
from vla_opt.rl.learner import Learner, UpdateReading  # noqa: E402
from vla_opt.rl.objective import ObjectiveConfig  # noqa: E402
from vla_opt.rl.trajectories import Trajectory  # noqa: E402

STEPS, STD, EPISODES, SIZE = 4, 0.1, 4096, 64
HALF = -0.3 * STEPS
"""Where the hand of a new actor is pushed on average: half of the episodes get beyond it."""
STATE = {"observation.state": np.zeros((1, 1), np.float32)}


class ShiftedActor(GaussianActor):
    """Predicts the same for every scene: seven numbers that learn."""

    def __init__(self, **exploration: Any) -> None:
        super().__init__(
            tiny_policy("adapter").requires_grad_(False),
            STEPS,
            ExplorationConfig(**{"std": STD, **exploration}),
        )
        self.shift = nn.Parameter(torch.linspace(-0.3, 0.3, 7))

    def _mean(self, batch: Any) -> Tensor:
        return self.shift.expand(len(batch["observation.state"]), STEPS, 7)


def draw(actor: ShiftedActor, count: int, first_seed: int = 0) -> Draw:
    with torch.no_grad():
        seen = {"observation.state": torch.zeros(count, 1)}
        return actor.sample(seen, list(range(first_seed, first_seed + count)))


def play(
    actor: ShiftedActor, rewards: Any, episodes: int = EPISODES, version: int = 0
) -> list[Trajectory]:
    """Episodes of one decision, all from the same scene, in groups.

    Args:
        rewards: successes (N,) bool of executed chunks (N, STEPS, 7).
    """
    drawn = draw(actor, episodes, version * episodes)
    success = rewards(drawn.latents)
    return [
        Trajectory(
            key=EpisodeKey(suite="line", task_id=0, init_state=i // SIZE, trial=i % SIZE),
            success=bool(success[i]),
            steps=STEPS,
            wall_s=0.0,
            version=version,
            task="go",
            inputs=STATE,
            latents=drawn.latents[i : i + 1].numpy(),
            log_prob=drawn.log_prob[i : i + 1].numpy(),
            executed=np.ones((1, STEPS), bool),
        )
        for i in range(episodes)
    ]


def update(
    actor: ShiftedActor, found: list[Trajectory], lr: float, **objective: Any
) -> UpdateReading:
    sgd = torch.optim.SGD([actor.shift], lr=lr)
    config = ObjectiveConfig(**{"max_rows": 4096, **objective})
    return Learner(actor, sgd, config, grad_clip=0.0).update(found, found[0].version)


def beyond(place: float) -> Any:
    """Success is to have pushed the hand, by the first entry of each action, beyond a place."""
    return lambda chunks: chunks[..., 0].sum(1) > place


@pytest.mark.parametrize("correlation", [0.0, 0.8])
@pytest.mark.parametrize("level", ["chunk", "part"])
def test_mean_moves_by_the_gradient_of_the_success_probability(
    correlation: float, level: str
) -> None:
    """P(success) = Phi((sum of means - place) / s), s^2 = std^2 1'C1, so dP/dbias = K phi / s."""
    actor = ShiftedActor(correlation=correlation)
    where = STEPS * float(actor.shift[0].detach())
    lags = np.abs(np.subtract.outer(range(STEPS), range(STEPS)))
    spread = STD * math.sqrt((correlation**lags).sum())
    place = where + 0.5 * spread
    slope = STEPS * math.exp(-0.125) / math.sqrt(2 * math.pi) / spread
    before = actor.shift.detach().clone()
    reading = update(actor, play(actor, beyond(place)), lr=1e-3, level=level, scale="none")
    moved = (actor.shift.detach() - before) / 1e-3
    tokens = STEPS if level == "part" else 1  # the loss is a mean over tokens
    own_group = 1 - 1 / SIZE  # each episode is part of the mean it is compared with
    assert float(moved[0]) * tokens == pytest.approx(slope * own_group, rel=0.1)
    assert float(moved[1:].abs().max()) * tokens < 0.1 * slope  # these decide nothing
    assert reading.gradient.snr is not None
    assert reading.gradient.snr > 1
    assert reading.rollout_mismatch < 1e-4


def test_ratios_are_one_before_the_first_step() -> None:
    actor = ShiftedActor(correlation=0.8)
    reading = update(actor, play(actor, beyond(HALF), episodes=64), lr=0.0)
    assert (reading.after.ratio_min, reading.after.ratio_max) == pytest.approx((1, 1), abs=1e-4)
    assert reading.after.clip_fraction == 0.0
    assert reading.gain == pytest.approx(0.0, abs=1e-6)


def test_better_episodes_alone_point_the_same_way() -> None:
    """At a success rate p their gradient is expected to be 1 - p of the whole one."""
    moves = []
    for weight in (1.0, 0.0):
        actor = ShiftedActor()
        before = actor.shift.detach().clone()
        place = STEPS * float(actor.shift[0].detach()) + STD * math.sqrt(STEPS)  # p = 0.16
        found = play(actor, beyond(place))
        update(actor, found, lr=1e-3, failure_weight=weight)
        moves.append(float((actor.shift.detach() - before)[0]))
    rate = sum(t.success for t in found) / EPISODES
    assert moves[1] / moves[0] == pytest.approx(1 - rate, rel=0.1)


def coin(chunks: Tensor) -> Tensor:
    return torch.rand(len(chunks), generator=torch.Generator().manual_seed(0)) < 0.6


def test_signal_to_noise_ratio_is_that_of_the_rewards_and_not_of_the_clip() -> None:
    """Rewards of a coin teach nothing; that the clip pulls a long step back is no signal."""
    values = []
    for seed in range(6):
        actor = ShiftedActor()
        found = play(actor, coin, episodes=256, version=seed)
        reading = update(actor, found, lr=0.02, level="chunk", epochs=4, scale="none")
        assert reading.clip_fraction > 0.1, "the clip had no part in it: the test shows nothing"
        assert reading.gradient.snr is not None
        values.append(reading.gradient.snr)
    assert np.mean(values) < 1


def test_steps_that_were_too_long_lower_the_objective() -> None:
    gains = []
    for lr in (1e-4, 1.0):
        actor = ShiftedActor()
        gains.append(update(actor, play(actor, beyond(HALF), episodes=256), lr=lr).gain)
    assert gains[1] < 0 < gains[0]


def test_update_is_shortened_to_its_limit() -> None:
    """The same step as without a limit, less far."""
    moves, readings = [], []
    for limit in (0.0, 0.01):
        actor = ShiftedActor()
        before = actor.shift.detach().clone()
        found = play(actor, beyond(HALF), episodes=256)
        readings.append(update(actor, found, lr=1.0, max_kl=limit))
        moves.append(actor.shift.detach() - before)
    assert readings[0].after.approx_kl > 0.1
    assert 0.001 < readings[1].after.approx_kl <= 0.01
    assert readings[0].kept == 1.0
    assert torch.allclose(moves[1], readings[1].kept * moves[0], rtol=1e-3, atol=1e-6)
    assert readings[1].gain > 0


class TestShakenDimensions:
    STDS = (0.1, 0.0, 0.3, 0.0, 0.0, 0.0, 0.5)

    def test_others_stay_as_predicted_and_are_not_counted(self) -> None:
        actor = ShiftedActor(std=self.STDS, correlation=0.5)
        found = play(actor, beyond(HALF), episodes=512)
        shakes = np.concatenate([t.latents for t in found]) - actor.shift.detach().numpy()
        assert shakes.std((0, 1)) == pytest.approx(self.STDS, rel=0.06, abs=1e-6)
        moved = actor.shift.detach().clone()
        update(actor, found, lr=1e-3)
        moved = actor.shift.detach() - moved
        assert (moved != 0).tolist() == [std > 0 for std in self.STDS]

    def test_entropy_is_that_of_the_shaken_ones(self) -> None:
        entropies = [math.log(s) + 0.5 * math.log(2 * math.pi * math.e) for s in (0.1, 0.3, 0.5)]
        assert float(ShiftedActor(std=self.STDS).entropy()) == pytest.approx(
            sum(entropies), abs=1e-5
        )

    @pytest.mark.parametrize("std", [0.0, (0.1, -0.1), (0.0, 0.0)])
    def test_no_noise_at_all_is_refused(self, std: Any) -> None:
        with pytest.raises(ValueError, match="std="):
            ExplorationConfig(std=std)

    def test_as_many_as_the_action_has(self) -> None:
        with pytest.raises(ConfigError, match=r"exploration.std has 2 numbers; .* 7"):
            ShiftedActor(std=(0.1, 0.2))

    def test_one_number_is_one_for_all(self) -> None:
        one, seven = (ShiftedActor(std=std) for std in (0.1, (0.1,) * 7))
        draws = [draw(a, 3) for a in (one, seven)]
        assert torch.equal(draws[0].latents, draws[1].latents)
        assert torch.equal(draws[0].log_prob, draws[1].log_prob)


def test_episodes_of_a_rescaled_exploration_are_wider() -> None:
    actor = ShiftedActor()
    narrow = draw(actor, 2).latents - actor.shift.detach()
    actor.rescale(2.0)
    assert torch.allclose(draw(actor, 2).latents - actor.shift.detach(), 2 * narrow, atol=1e-6)
    assert actor.exploration == pytest.approx(2 * STD)
