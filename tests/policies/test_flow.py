"""Flow matching: times, frequency loss and solvers against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.flow import (
    band_weights,
    dct_matrix,
    frequency_error,
    integrate,
    interpolate,
    sample_time,
    seeded_noise,
    velocity_of,
)


def test_dct_is_its_definition_and_keeps_lengths() -> None:
    x = torch.randn(6, dtype=torch.float64)
    for k in range(6):
        scale = math.sqrt((1 if k == 0 else 2) / 6)
        expected = scale * sum(
            x[n].item() * math.cos(math.pi * (n + 0.5) * k / 6) for n in range(6)
        )
        assert (dct_matrix(6).double() @ x)[k].item() == pytest.approx(expected, abs=1e-6)
    assert (dct_matrix(6).double() @ x).norm().item() == pytest.approx(x.norm().item(), rel=1e-6)


def test_equal_band_weights_are_a_plain_error_of_the_clean_actions() -> None:
    actions, noise, velocity = torch.randn(3, 8, 7), torch.randn(3, 8, 7), torch.randn(3, 8, 7)
    time, real = torch.rand(3), torch.ones(3, 8)
    noisy = interpolate(actions, noise, time)
    clean = noisy - time[:, None, None] * velocity
    found = frequency_error(velocity - (noise - actions), time, real, torch.ones(8))
    torch.testing.assert_close(found, (clean - actions).square().mean((1, 2)))


def test_low_band_sees_slow_errors_and_only_those() -> None:
    weights = band_weights(8, 0.125, 5.0, 0.0)
    assert weights.tolist() == [5.0] + [0.0] * 7
    time, real = torch.ones(1), torch.ones(1, 8)
    constant = torch.ones(1, 8, 2)
    alternating = constant * torch.tensor([1.0, -1.0]).repeat(4)[None, :, None]
    assert frequency_error(constant, time, real, weights).item() == pytest.approx(5.0)
    assert frequency_error(alternating, time, real, weights).item() == pytest.approx(0.0, abs=1e-6)


def test_steps_beyond_the_episode_do_not_count() -> None:
    error, time, real = torch.randn(1, 4, 2), torch.rand(1), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    changed = error.clone()
    changed[:, 2:] = 100.0
    weights = torch.ones(4)
    before = frequency_error(error, time, real, weights)
    assert torch.equal(frequency_error(changed, time, real, weights), before)


@pytest.mark.parametrize(
    ("distribution", "mean"), [("uniform", 0.5), ("beta", 0.001 + 0.999 * 0.6)]
)
def test_times_have_the_mean_of_their_distribution(distribution: str, mean: float) -> None:
    times = sample_time(100_000, distribution)  # type: ignore[arg-type]
    assert times.min() >= (0.001 if distribution == "beta" else 0.0)
    assert times.max() <= 1.0
    assert times.mean().item() == pytest.approx(mean, abs=0.005)
    # Beta(1.5, 1) has the distribution function x^1.5.
    share = (times < 0.5).float().mean().item()
    expected = 0.5 if distribution == "uniform" else ((0.5 - 0.001) / 0.999) ** 1.5
    assert share == pytest.approx(expected, abs=0.01)


def test_draws_of_one_sample_lie_in_parts_of_their_own() -> None:
    times = sample_time(1_000, "uniform", draws=4).unflatten(0, (1_000, 4))
    assert torch.equal((times * 4).long(), torch.arange(4).expand(1_000, 4))
    assert times.mean().item() == pytest.approx(0.5, abs=0.01)
    beta = sample_time(50_000, "beta", draws=2)
    assert beta.mean().item() == pytest.approx(0.001 + 0.999 * 0.6, abs=0.005)


def test_velocity_that_follows_from_the_clean_actions_is_the_true_one() -> None:
    actions, noise = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    time = torch.tensor([0.1, 0.5, 1.0])
    found = velocity_of(actions, interpolate(actions, noise, time), time)
    torch.testing.assert_close(found, noise - actions, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_known_actions_are_reached_without_a_velocity_at_zero(solver: str) -> None:
    """The velocity of predicted actions is asked for at no noise level of 0."""
    actions, asked = torch.randn(2, 4, 3), []

    def velocity(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        asked.append(time[0].item())
        return velocity_of(actions, x, time)

    found = integrate(velocity, torch.randn(2, 4, 3), 5, solver, correct_last=False)  # type: ignore[arg-type]
    torch.testing.assert_close(found, actions, rtol=1e-5, atol=1e-5)
    assert min(asked) == pytest.approx(0.2)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.sampled_from(["euler", "heun"]))
def test_a_straight_flow_is_followed_exactly(steps: int, solver: str) -> None:
    actions, noise = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    found = integrate(lambda x, t: noise - actions, noise, steps, solver)  # type: ignore[arg-type]
    torch.testing.assert_close(found, actions, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_solver_has_its_order(solver: str, order: int) -> None:
    """dx/ds = x from s = 1 to 0: x(0) = x(1) / e; halving the step divides the error by 2^order."""
    noise = torch.ones(1, 1, 1, dtype=torch.float64)
    errors = [
        abs(integrate(lambda x, t: x, noise, n, solver).item() - math.exp(-1))  # type: ignore[arg-type]
        for n in (20, 40)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def test_noise_of_a_row_depends_on_its_seed_alone() -> None:
    both, alone = seeded_noise((4, 7), [11, 12]), seeded_noise((4, 7), [12])
    assert torch.equal(both[1], alone[0])
    assert not torch.equal(both[0], both[1])


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="'gauss', expected"):
        sample_time(1, "gauss")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 steps of 'euler'"):
        integrate(lambda x, t: x, torch.zeros(1, 1, 1), 0, "euler")
