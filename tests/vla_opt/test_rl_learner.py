"""Updates: the gradient that is applied, what is measured, and that success rises by them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

from rl_toys import batch, tiny_policy  # noqa: E402

from envs.rollout import EpisodeKey  # noqa: E402
from vla_opt.evaluation.statistics import wilson  # noqa: E402
from vla_opt.optim.config import OptimizerConfig  # noqa: E402
from vla_opt.rl import gmpo_loss, group_advantages, grpo_loss, kl_k3, stale_weights  # noqa: E402
from vla_opt.rl.actors import Actor, Draw, ExplorationConfig, build_actor  # noqa: E402
from vla_opt.rl.batch import build_rows, to_tokens  # noqa: E402
from vla_opt.rl.diagnostics import gradient_noise, head_norm_variance  # noqa: E402
from vla_opt.rl.learner import Learner, NonFiniteGradientError, UpdateReading  # noqa: E402
from vla_opt.rl.likelihood import gaussian_entropy, gaussian_log_prob  # noqa: E402
from vla_opt.rl.objective import ObjectiveConfig  # noqa: E402
from vla_opt.rl.trajectories import Trajectory  # noqa: E402
from vla_opt.rl.watch import CollapseWatch, WatchConfig, warning_row  # noqa: E402

LENGTHS = (3, 1, 2, 4)


def episodes(actor: Actor, version: int = 0) -> list[Trajectory]:
    """Two groups of two episodes of several lengths, drawn by the actor."""
    found = []
    for i, length in enumerate(LENGTHS):
        seen = batch(length, seed=i)
        with torch.no_grad():
            draw = actor.sample(seen, list(range(10 * i, 10 * i + length)))
        executed = np.ones((length, 2), bool)
        executed[-1, 1] = i % 2 == 0
        found.append(
            Trajectory(
                key=EpisodeKey(suite="toy", task_id=0, init_state=i // 2, trial=i % 2),
                success=i % 2 == 0,
                steps=int(executed.sum()),
                wall_s=0.0,
                version=version,
                task="go",
                inputs={k: v.numpy() for k, v in seen.items() if k != "task"},
                latents=draw.latents.numpy(),
                log_prob=draw.log_prob.numpy(),
                executed=executed,
            )
        )
    return found


def whole_loss(
    actor: Actor, reference: Actor, found: list[Trajectory], config: ObjectiveConfig, old: Actor
) -> Tensor:
    """The loss in one piece: every episode forward at once, one after the other, padded by hand."""
    new, before, behaviour, ref, mask = [], [], [], [], []
    for i, t in enumerate(found):
        seen, latents = batch(LENGTHS[i], seed=i), torch.from_numpy(t.latents)
        real = actor.real(torch.from_numpy(t.executed))
        columns = [own.log_prob(seen, latents) for own in (actor, old, reference)]
        columns.append(torch.from_numpy(t.log_prob))
        if config.level == "chunk":
            columns = [(c * real).sum(1, keepdim=True) for c in columns]
            real = real.any(1, keepdim=True)
        for store, c in zip((new, before, ref, behaviour), columns, strict=True):
            store.append(c.flatten())
        mask.append(real.flatten())
    pad = nn.utils.rnn.pad_sequence
    n, b, a, r = (pad(x, batch_first=True) for x in (new, before, behaviour, ref))
    m = pad(mask, batch_first=True)
    gains = group_advantages(
        torch.tensor([t.reward for t in found]), torch.tensor([t.group for t in found])
    )
    b, a, r = b.detach(), a.detach(), r.detach()
    stale = found[0].version != 0
    if config.name == "gmpo":
        means = [(x * m).sum(1) / m.sum(1) for x in (b, a)]
        loss = gmpo_loss(n, b, gains, m, weights=stale_weights(*means) if stale else None)
    else:
        loss = grpo_loss(n, b, gains, m, weights=stale_weights(b, a) if stale else None)
    return loss + config.kl_weight * kl_k3(n, r)[m].mean()


@pytest.mark.parametrize("kind", ["adapter", "flow"])
@pytest.mark.parametrize(
    "config",
    [
        ObjectiveConfig(name="grpo", kl_weight=0.5, max_rows=3, micro_batches=3),
        ObjectiveConfig(name="gmpo", level="part", max_rows=2, micro_batches=2),
    ],
    ids=["grpo", "gmpo"],
)
@pytest.mark.parametrize("version", [0, -1], ids=["fresh", "stale"])
def test_pieces_add_up_to_the_gradient_of_the_whole(
    kind: str, config: ObjectiveConfig, version: int
) -> None:
    """SGD at rate 1 moves by the gradient, which autograd finds for the loss in one piece."""
    exploration = ExplorationConfig(std=0.5, noise_level=0.5, flow_steps=2)
    actor, reference, behaviour = (build_actor(tiny_policy(kind), 2, exploration) for _ in range(3))
    for other, factor in ((reference, 1.01), (behaviour, 0.99)):
        for parameter in other.policy.parameters():
            parameter.data.mul_(factor)
    found = episodes(behaviour if version else actor, version)
    loss = whole_loss(actor, reference, found, config, actor)
    parameters = [p for p in actor.parameters() if p.requires_grad]
    expected = torch.autograd.grad(loss, parameters, allow_unused=True)
    before = [p.detach().clone() for p in parameters]
    learner = Learner(
        actor, torch.optim.SGD(parameters, lr=1.0), config, grad_clip=0.0, reference=reference
    )
    reading = learner.update(found, version=0)
    scale = max(float(g.abs().max()) for g in expected if g is not None)
    assert scale > 1e-4
    for p, was, g in zip(parameters, before, expected, strict=True):
        if g is not None:
            assert torch.allclose(was - p, g, atol=2e-3 * scale + 1e-6)
    assert reading.loss == pytest.approx(float(loss.detach()), abs=1e-4)
    total = torch.stack([g.square().sum() for g in expected if g is not None]).sum().sqrt()
    assert reading.gradient.norm == pytest.approx(float(total), rel=1e-2)


def test_entropy_bonus_widens_a_learned_deviation() -> None:
    """d entropy / d log std is 1: at rate 1 the bonus adds its weight to each log std."""
    ends = []
    for weight in (0.0, 0.25):
        exploration = ExplorationConfig(std=0.5, learn_std=True)
        actor = build_actor(tiny_policy("adapter"), 2, exploration)
        sgd = torch.optim.SGD(actor.parameters(), lr=1.0)
        config = ObjectiveConfig(entropy_weight=weight)
        Learner(actor, sgd, config, grad_clip=0.0).update(episodes(actor), 0)
        ends.append(actor.get_parameter("log_std").detach())
    assert torch.allclose(ends[1] - ends[0], torch.full((7,), 0.25), atol=1e-4)


class TestTokens:
    def test_some_decisions_of_each_episode_in_order(self) -> None:
        actor = build_actor(tiny_policy("adapter"), 2, ExplorationConfig())
        found = episodes(actor)
        rows = build_rows(found, actor, decisions=2, seed=3)
        assert rows.episode.tolist() == [0, 0, 1, 2, 2, 3, 3]
        last = [np.flatnonzero((found[3].latents == x.numpy()).all((1, 2))) for x in rows.latents]
        places = [int(p[0]) for p in last[-2:]]
        assert places == sorted(set(places))
        again = build_rows(found, actor, decisions=2, seed=3)
        assert torch.equal(rows.latents, again.latents)

    def test_parts_and_chunks(self) -> None:
        values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        real = torch.tensor([[True, True], [True, False], [True, True]])
        episode = torch.tensor([0, 0, 1])
        parts, mask = to_tokens(values, real, episode, "part")
        assert parts[mask].tolist() == [1.0, 2.0, 3.0, 5.0, 6.0]
        assert mask.tolist() == [[True, True, True, False], [True, True, False, False]]
        chunks, mask = to_tokens(values, real, episode, "chunk")
        assert chunks.tolist() == [[3.0, 3.0], [11.0, 0.0]]
        assert mask.tolist() == [[True, True], [True, False]]


class TestDiagnostics:
    def test_signal_to_noise_ratio_is_unbiased(self) -> None:
        """Parts with mean m and variance s^2: that of their sum is n ||m||^2 / s^2."""
        source = torch.Generator().manual_seed(0)
        count, signal, squares, noise = 8, [], [], torch.tensor(0.5)
        mean = torch.full((50,), 0.1)
        for _ in range(4000):
            parts = mean + noise * torch.randn(count, 50, generator=source)
            total = float(parts.sum(0).square().sum())
            own = parts.square().sum(1).tolist()
            reading = gradient_noise(total, own)
            assert reading.snr is not None
            variance = (sum(own) - total / count) / (count - 1) * count
            signal.append(reading.snr * variance)
            squares.append(variance)
        expected = count * float(mean.square().sum()) / (50 * 0.25)
        assert np.mean(signal) / np.mean(squares) == pytest.approx(expected, rel=0.05)

    def test_one_part_says_nothing_about_noise(self) -> None:
        assert gradient_noise(4.0, [4.0]).snr is None

    def test_variance_over_heads(self) -> None:
        weight = torch.zeros(4, 3)
        weight[0, 0], weight[3, 1] = 3.0, 1.0  # two heads with norms 3 and 1
        assert head_norm_variance(weight, 2) == pytest.approx(1.0)


class TestWatch:
    def watch(self, **changes: Any) -> CollapseWatch:
        return CollapseWatch(WatchConfig(**changes), dimensions=2)

    def usual(self, **changes: Any) -> dict[str, Any]:
        return {
            "successes": 20,
            "gain": 0.01,
            "episodes": 32,
            "entropy": 4.0,
            "clip_fraction": 0.1,
            "approx_kl": 0.01,
            **changes,
        }

    def test_usual_updates_are_passed_over(self) -> None:
        watch = self.watch()
        assert all(not watch.check(**self.usual(successes=k)) for k in (20, 24, 18, 28))

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("clip_fraction", {"clip_fraction": 0.9}),
            ("approx_kl", {"approx_kl": 5.0}),
            ("gain", {"gain": -0.2}),
            ("entropy", {"entropy": 1.0}),
        ],
    )
    def test_each_sign_is_named(self, name: str, change: dict[str, Any]) -> None:
        watch = self.watch()
        watch.check(**self.usual())
        (sign,) = watch.check(**self.usual(**change))
        assert sign.name == name
        row = warning_row(7, [sign])
        assert (row["kind"], row["step"], row["signs"]) == ("warning", 7, [name])
        assert "update_scale" in row["message"]

    def test_lost_success_is_seen_when_intervals_part(self) -> None:
        watch = self.watch(window=1)
        watch.check(**self.usual(successes=28))
        assert not watch.check(**self.usual(successes=22))  # could be chance
        (sign,) = watch.check(**self.usual(successes=2))
        assert sign.message == "success is 2/32 after 28/32 at best"

    def test_goes_on_where_it_was(self) -> None:
        one, other = self.watch(window=1), self.watch(window=1)
        one.check(**self.usual(successes=28))
        other.load_state_dict(one.state_dict())
        assert other.check(**self.usual(successes=2)) == one.check(**self.usual(successes=2))


# -- a world without a simulator ------------------------------------------------------------------


class BanditActor(Actor):
    """A Gaussian around what a small network says of the context; one decision per episode."""

    def __init__(self, hidden: int = 24, std: float = 0.35) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 2))
        super().__init__(network)  # type: ignore[arg-type]
        self.log_std = nn.Parameter(torch.full((2,), std).log(), requires_grad=False)

    def sample(self, batch: Any, seeds: list[int]) -> Draw:
        mean = self.policy(batch["context"])
        noise = torch.stack(
            [torch.randn(2, generator=torch.Generator().manual_seed(s)) for s in seeds]
        )
        action = mean + self.log_std.exp() * noise
        log_prob = gaussian_log_prob(action, mean, self.log_std).sum(1, keepdim=True)
        return Draw(chunk=action[:, None], latents=action, log_prob=log_prob)

    def log_prob(self, batch: Any, latents: Tensor) -> Tensor:
        mean = self.policy(batch["context"])
        return gaussian_log_prob(latents, mean, self.log_std).sum(1, keepdim=True)

    def real(self, executed: Tensor) -> Tensor:
        return executed

    def entropy(self) -> Tensor:
        return gaussian_entropy(self.log_std).sum()


CONTEXTS = torch.eye(4)
TARGETS = torch.tensor([[0.8, 0.0], [-0.8, 0.0], [0.0, 0.8], [0.0, -0.8]])
RADIUS = 0.45


def pull(actor: BanditActor, groups: int, members: int, version: int) -> list[Trajectory]:
    """Episodes of one decision; success is an action near the target of its context."""
    which = torch.arange(groups).repeat_interleave(members) % len(CONTEXTS)
    seeds = [1_000_000 * (version + 1) + i for i in range(len(which))]
    with torch.no_grad():
        draw = actor.sample({"context": CONTEXTS[which]}, seeds)
    near = (draw.latents - TARGETS[which]).norm(dim=1) < RADIUS
    return [
        Trajectory(
            key=EpisodeKey(
                suite="bandit", task_id=0, init_state=version * groups + i // members, trial=i
            ),
            success=bool(near[i]),
            steps=1,
            wall_s=0.0,
            version=version,
            task="",
            inputs={"context": CONTEXTS[which[i]][None].numpy()},
            latents=draw.latents[i : i + 1].numpy(),
            log_prob=draw.log_prob[i : i + 1].numpy(),
            executed=np.ones((1, 1), bool),
        )
        for i in range(len(which))
    ]


def learn(optimizer: OptimizerConfig, objective: ObjectiveConfig, updates: int) -> Any:
    """Successes of 400 episodes before and after, and the readings in between."""
    actor = BanditActor()
    learner = Learner(actor, optimizer.build(actor), objective)

    def score() -> int:
        return sum(t.success for t in pull(actor, 4, 100, version=900))

    first = score()
    readings: list[UpdateReading] = [
        learner.update(pull(actor, 8, 8, version), version) for version in range(updates)
    ]
    return first, score(), readings


ADAMW = OptimizerConfig(name="adamw", preset="default", lr=1e-2)
PION = OptimizerConfig(name="pion", preset="default", lr=3e-2)


@pytest.mark.parametrize("optimizer", [ADAMW, PION], ids=lambda o: o.name)
@pytest.mark.parametrize(
    "objective",
    [
        ObjectiveConfig(name="grpo", epochs=2, minibatches=2, max_rows=64),
        ObjectiveConfig(name="gmpo", epochs=2, minibatches=2, max_rows=64),
    ],
    ids=lambda o: o.name,
)
def test_success_rises(optimizer: OptimizerConfig, objective: ObjectiveConfig) -> None:
    """The 95 % intervals before and after do not touch, and most episodes succeed at the end."""
    first, last, readings = learn(optimizer, objective, updates=25)
    assert wilson(first, 400)[1] < wilson(last, 400)[0], f"{first}/400 -> {last}/400"
    assert last > 200
    assert all(reading.rollout_mismatch < 1e-4 for reading in readings)
    assert all(reading.gradient.snr is not None for reading in readings)


def test_muon_like_steps_that_are_too_large_are_seen() -> None:
    """A flat update at a rate that wrecks the policy: clip fraction or distance explode."""
    optimizer = OptimizerConfig(name="muon", preset="default", lr=1.0)
    objective = ObjectiveConfig(epochs=2, minibatches=2, max_rows=64)
    _, _, readings = learn(optimizer, objective, updates=3)
    watch = CollapseWatch(WatchConfig(), dimensions=2)
    signs = [
        sign.name
        for reading in readings
        for sign in watch.check(
            successes=10,
            episodes=64,
            entropy=reading.entropy,
            clip_fraction=max(reading.clip_fraction, reading.after.clip_fraction),
            approx_kl=reading.after.approx_kl,
            gain=reading.gain,
        )
    ]
    assert {"clip_fraction", "approx_kl"} & set(signs)


def test_learning_repeats_bit_for_bit() -> None:
    objective = ObjectiveConfig(minibatches=2, max_rows=16)
    runs = [learn(PION, objective, updates=3)[2] for _ in range(2)]
    assert [dataclasses.asdict(r) for r in runs[0]] == [dataclasses.asdict(r) for r in runs[1]]


def test_gradient_that_is_not_finite_changes_nothing() -> None:
    actor = BanditActor()
    learner = Learner(actor, ADAMW.build(actor), ObjectiveConfig())
    found = pull(actor, 2, 4, 0)
    found[0] = dataclasses.replace(found[0], latents=np.full((1, 2), np.nan, np.float32))
    before = [p.detach().clone() for p in actor.parameters()]
    with pytest.raises(NonFiniteGradientError, match="learning rate"):
        learner.update(found, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, actor.parameters(), strict=True))
