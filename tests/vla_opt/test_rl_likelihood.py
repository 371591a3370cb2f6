"""Log-probabilities against independent computations, and as importance weights."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

from rl_toys import batch, tiny_policy  # noqa: E402

from policies.flow import integrate  # noqa: E402
from vla_opt.errors import ConfigError  # noqa: E402
from vla_opt.rl.actors import Actor, ExplorationConfig, build_actor  # noqa: E402
from vla_opt.rl.likelihood import (  # noqa: E402
    chunk_log_prob,
    correlate,
    gaussian_entropy,
    path_entropy,
    path_log_prob,
    sde_sample,
    sde_transition,
)


def joint(mean: Tensor, std: Tensor, correlation: float) -> MultivariateNormal:
    """The density of k actions in full: covariance std_a std_b rho^|i - j| between same entries."""
    k, size = mean.shape
    lags = (torch.arange(k)[:, None] - torch.arange(k)).abs().double()
    covariance = torch.kron(correlation**lags, torch.diag(std.double() ** 2))
    return MultivariateNormal(mean.double().reshape(k * size), covariance)


class TestGaussian:
    @pytest.mark.parametrize("correlation", [0.0, 0.6])
    @pytest.mark.parametrize("executed", [1, 3, 4])
    def test_any_first_actions_have_their_own_density(
        self, correlation: float, executed: int
    ) -> None:
        source = torch.Generator().manual_seed(1)
        mean = torch.randn(1, 4, 3, generator=source, dtype=torch.float64)
        std = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
        noise = torch.randn(1, 4, 3, generator=source, dtype=torch.float64)
        x = mean + std * correlate(noise, correlation)
        found = chunk_log_prob(x, mean, std.log(), correlation)[0, :executed].sum()
        expected = joint(mean[0, :executed], std, correlation).log_prob(x[0, :executed].reshape(-1))
        assert found.item() == pytest.approx(expected.item(), rel=1e-9)

    def test_correlated_noise_keeps_its_variance(self) -> None:
        noise = torch.randn(50_000, 4, 1, generator=torch.Generator().manual_seed(2))
        shaken = correlate(noise, 0.7)[..., 0]
        covariance = torch.cov(shaken.T)
        lags = (torch.arange(4)[:, None] - torch.arange(4)).abs()
        assert torch.allclose(covariance, 0.7 ** lags.float(), atol=0.03)

    def test_entropy_is_that_of_torch(self) -> None:
        std = torch.tensor([0.1, 3.0])
        expected = torch.distributions.Normal(0.0, std).entropy()
        assert torch.allclose(gaussian_entropy(std.log()), expected)


def flow_grpo_transition(
    x: float, v: float, t: float, step: float, a: float
) -> tuple[float, float]:
    """arXiv 2505.05470, scalar: x + [v + sigma^2 / (2 t) (x + (1 - t) v)] dt, dt < 0."""
    sigma = a * math.sqrt(t / (1 - t))
    drift = v + sigma**2 / (2 * t) * (x + (1 - t) * v)
    return x + drift * (-step), sigma * math.sqrt(step)


def exact_velocity(mean: float, std: float):
    """That of data N(mean, std^2): E[noise - data | x], from Gaussian conditioning."""

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        s = time[:, None, None]
        variance = (1 - s) ** 2 * std**2 + s**2
        deviation = (x - (1 - s) * mean) / variance
        return s * deviation - (mean + (1 - s) * std**2 * deviation)

    return velocity


class TestFlow:
    def test_step_is_the_published_one(self) -> None:
        for now, then in ((0.9, 0.8), (0.5, 0.4), (0.1, 0.0)):
            mean, std = sde_transition(
                torch.tensor([[[0.7]]]), torch.tensor([[[-1.3]]]), now, then, 0.6
            )
            expected = flow_grpo_transition(0.7, -1.3, now, now - then, 0.6)
            assert (mean.item(), std) == pytest.approx(expected, rel=1e-5)

    def test_first_step_has_no_pole(self) -> None:
        _, std = sde_transition(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), 1.0, 0.9, 0.5)
        assert std == pytest.approx(0.5 * math.sqrt(0.9 / 0.1) * math.sqrt(0.1))

    @pytest.mark.parametrize("level", [0.3, 0.8])
    def test_marginals_are_those_of_the_deterministic_flow(self, level: float) -> None:
        noise = torch.randn(4000, 201, 1, 1, generator=torch.Generator().manual_seed(3))
        end = sde_sample(exact_velocity(0.5, 0.4), noise, level)[:, -1].flatten()
        assert end.mean().item() == pytest.approx(0.5, abs=0.03)
        assert end.std().item() == pytest.approx(0.4, abs=0.03)

    def test_hardly_any_noise_is_the_deterministic_solver(self) -> None:
        velocity = exact_velocity(0.2, 0.5)
        noise = torch.randn(5, 11, 3, 2, generator=torch.Generator().manual_seed(4))
        path = sde_sample(velocity, noise, 1e-6)
        expected = integrate(velocity, noise[:, 0], 10, "euler")
        assert torch.allclose(path[:, -1], expected, atol=1e-4)

    def test_path_density_is_that_of_its_steps(self) -> None:
        velocity = exact_velocity(0.2, 0.5)
        noise = torch.randn(2, 5, 3, 2, generator=torch.Generator().manual_seed(5)).double()
        path = sde_sample(velocity, noise, 0.5)
        found = path_log_prob(velocity, path, 0.5)
        for b in range(2):
            for i in range(4):
                now, then = 1 - i / 4, 1 - (i + 1) / 4
                at = now if now < 1 else then
                sigma = 0.5 * math.sqrt(at / (1 - at))
                x, after = path[b, i], path[b, i + 1]
                v = velocity(path[b : b + 1, i], torch.tensor([now]).double())[0]
                mean = x - 0.25 * (v + sigma**2 / (2 * now) * (x + (1 - now) * v))
                normal = torch.distributions.Normal(mean, sigma * 0.5)
                assert found[b, i].item() == pytest.approx(normal.log_prob(after).sum().item())

    def test_entropy_is_the_mean_surprise(self) -> None:
        velocity = exact_velocity(0.0, 1.0)
        noise = torch.randn(4000, 4, 2, 1, generator=torch.Generator().manual_seed(6))
        surprise = -path_log_prob(velocity, sde_sample(velocity, noise, 0.5), 0.5).sum(1)
        error = surprise.std().item() / math.sqrt(4000)
        assert abs(path_entropy(3, 2, 0.5) - surprise.mean().item()) < 5 * error


def actor(kind: str) -> Actor:
    exploration = ExplorationConfig(std=0.4, correlation=0.5, noise_level=0.5, flow_steps=3)
    return build_actor(tiny_policy(kind), 2, exploration)


@pytest.mark.parametrize("kind", ["adapter", "flow"])
class TestActors:
    @torch.no_grad()
    def test_what_was_noted_while_acting_is_computed_again(self, kind: str) -> None:
        own, seen = actor(kind), batch(3)
        draw = own.sample(seen, [1, 2, 3])
        assert torch.allclose(own.log_prob(seen, draw.latents), draw.log_prob, atol=1e-3)
        assert draw.chunk.shape == (3, 4, 7)

    @torch.no_grad()
    def test_a_draw_does_not_depend_on_its_company(self, kind: str) -> None:
        own, seen = actor(kind), batch(3)
        together = own.sample(seen, [1, 2, 3]).latents
        for i in range(3):
            alone = {k: v[i : i + 1] for k, v in seen.items()}
            assert torch.allclose(own.sample(alone, [i + 1]).latents[0], together[i], atol=1e-5)

    @torch.no_grad()
    def test_ratio_to_other_weights_has_mean_one(self, kind: str) -> None:
        """E under the old policy of new / old: only true of densities that fit the samples."""
        old, new, count = actor(kind), actor(kind), 300
        for parameter in new.policy.parameters():
            parameter.mul_(1.02)
        one = {k: v[:1] for k, v in batch(1).items()}
        many = {k: v.expand(count, *v.shape[1:]) for k, v in one.items() if k != "task"}
        many["task"] = ["go"] * count
        draw = old.sample(many, list(range(count)))
        ratio = (new.log_prob(many, draw.latents) - draw.log_prob).double().sum(1).exp()
        error = ratio.std().item() / math.sqrt(count)
        assert 1e-4 < error < 0.05, "too alike or too different to say anything"
        assert abs(ratio.mean().item() - 1) < 4 * error

    def test_gradients_reach_the_policy(self, kind: str) -> None:
        own, seen = actor(kind), batch(2)
        with torch.no_grad():
            latents = own.sample(seen, [1, 2]).latents
        own.log_prob(seen, latents).sum().backward()
        moved = [p for p in own.policy.parameters() if p.grad is not None and p.grad.any()]
        assert len(moved) > 10


def test_policy_without_a_likelihood_is_refused() -> None:
    class Other(torch.nn.Module):
        name = "act"

    with pytest.raises(ConfigError, match="'act' has no likelihood"):
        build_actor(Other(), 2, ExplorationConfig())  # type: ignore[arg-type]


def test_exploration_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="std=0"):
        ExplorationConfig(std=0.0)
    with pytest.raises(ValueError, match="correlation=1"):
        ExplorationConfig(correlation=1.0)
