"""Losses and advantages against hand-computed cases, the papers' formulas, and differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vla_opt.rl import (
    gmpo_loss,
    group_advantages,
    grpo_loss,
    has_signal,
    kl_k3,
    ratio_reading,
    stale_weights,
)


def one_token(ratio: float, advantage: float, **options: float) -> float:
    new = torch.tensor([[math.log(ratio)]], dtype=torch.float64)
    mask = torch.ones(1, 1, dtype=torch.bool)
    return grpo_loss(
        new, torch.zeros_like(new), torch.tensor([advantage]).double(), mask, **options
    ).item()


class TestGrpo:
    @pytest.mark.parametrize(
        ("ratio", "advantage", "loss"),
        [
            (1.5, 1.0, -1.28),  # rose beyond 1 + 0.28: held there
            (0.5, 1.0, -0.5),  # fell although it was good: the gradient may bring it back
            (0.5, -1.0, 0.8),  # fell beyond 1 - 0.2: held there
            (1.5, -1.0, 1.5),  # rose although it was bad
            (1.1, 2.0, -2.2),  # inside
        ],
    )
    def test_hand_computed(self, ratio: float, advantage: float, loss: float) -> None:
        assert one_token(ratio, advantage) == pytest.approx(loss)

    def test_clip_is_asymmetric(self) -> None:
        assert one_token(2.0, 1.0, clip_low=0.1, clip_high=0.5) == pytest.approx(-1.5)
        assert one_token(0.1, -1.0, clip_low=0.1, clip_high=0.5) == pytest.approx(0.9)

    def test_dual_clip_bounds_the_loss_of_bad_tokens_alone(self) -> None:
        assert one_token(5.0, -1.0, dual_clip=3.0) == pytest.approx(3.0)
        assert one_token(2.0, -1.0, dual_clip=3.0) == pytest.approx(2.0)
        assert one_token(5.0, 1.0, dual_clip=3.0) == pytest.approx(-1.28)

    def test_long_sequences_weigh_as_the_aggregate_says(self) -> None:
        log_prob = torch.zeros(2, 3)
        mask = torch.tensor([[True, False, False], [True, True, True]])
        gains = torch.tensor([1.0, -1.0])
        arguments = (log_prob, log_prob, gains, mask)
        assert grpo_loss(*arguments, aggregate="token").item() == pytest.approx((3 - 1) / 4)
        assert grpo_loss(*arguments, aggregate="sequence").item() == pytest.approx(0.0)
        fixed = grpo_loss(*arguments, aggregate="fixed", fixed_length=5)
        assert fixed.item() == pytest.approx((3 - 1) / 10)

    def test_padding_does_not_count(self) -> None:
        new, old = torch.randn(2, 4), torch.randn(2, 4)
        mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).bool()
        gains = torch.tensor([1.0, -0.5])
        spoiled = torch.where(mask, new, 1e9)
        for loss in (grpo_loss, gmpo_loss):
            assert loss(new, old, gains, mask) == loss(spoiled, old, gains, mask)

    def test_huge_ratio_gives_finite_gradients(self) -> None:
        new = torch.tensor([[500.0]], requires_grad=True)
        mask = torch.ones(1, 1, dtype=torch.bool)
        loss = grpo_loss(new, torch.zeros(1, 1), torch.tensor([-1.0]), mask)
        (gradient,) = torch.autograd.grad(loss, new)
        assert torch.isfinite(gradient).all()

    def test_bad_arguments_are_named(self) -> None:
        x, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
        with pytest.raises(ValueError, match=r"\(S, T\) three times"):
            grpo_loss(x, x, torch.zeros(3), mask)
        with pytest.raises(ValueError, match="expected bool"):
            gmpo_loss(x, x, torch.zeros(2), mask.float())
        with pytest.raises(ValueError, match="clip_low=-1"):
            gmpo_loss(x, x, torch.zeros(2), mask, clip_low=-1)
        with pytest.raises(ValueError, match="dual_clip"):
            grpo_loss(x, x, torch.zeros(2), mask, dual_clip=0.5)
        with pytest.raises(ValueError, match="fixed_length"):
            grpo_loss(x, x, torch.zeros(2), mask, aggregate="fixed")


def published_gmpo(new: Tensor, old: Tensor, gains: Tensor, mask: Tensor, low: float, high: float):
    """arXiv 2507.20673, as it is printed: a product of clipped terms, rooted and signed."""
    total = 0.0
    for i in range(len(new)):
        gain, product, count = gains[i].item(), 1.0, 0
        for t in range(new.shape[1]):
            if not mask[i, t]:
                continue
            ratio = math.exp(new[i, t].item() - old[i, t].item())
            clipped = min(max(ratio, math.exp(-low)), math.exp(high))
            product *= abs(min(ratio * gain, clipped * gain)) / abs(gain)
            count += 1
        total += abs(gain) * product ** (1 / count) * math.copysign(1, gain)
    return -total / len(new)


class TestGmpo:
    def test_hand_computed(self) -> None:
        new, mask = torch.tensor([[0.6, -0.2]]), torch.ones(1, 2, dtype=torch.bool)
        old = torch.zeros_like(new)
        good = gmpo_loss(new, old, torch.tensor([1.0]), mask).item()
        assert good == pytest.approx(-math.exp((0.4 - 0.2) / 2))  # 0.6 is held at 0.4
        bad = gmpo_loss(new, old, torch.tensor([-1.0]), mask).item()
        assert bad == pytest.approx(math.exp((0.6 - 0.2) / 2))  # -0.2 is within -0.4

    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 2**31 - 1))
    def test_equals_the_published_product(self, seed: int) -> None:
        source = torch.Generator().manual_seed(seed)
        new = torch.randn(4, 5, generator=source, dtype=torch.float64)
        old = torch.randn(4, 5, generator=source, dtype=torch.float64)
        gains = torch.randn(4, generator=source, dtype=torch.float64)
        mask = torch.rand(4, 5, generator=source) < 0.7
        mask[:, 0] = True
        found = gmpo_loss(new, old, gains, mask, clip_low=0.3, clip_high=0.5).item()
        expected = published_gmpo(new, old, gains, mask, 0.3, 0.5)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)

    def test_geometric_mean_does_not_follow_one_wild_token(self) -> None:
        calm = torch.zeros(1, 10)
        wild = calm.clone()
        wild[0, 3] = 5.0
        mask, gain = torch.ones(1, 10, dtype=torch.bool), torch.tensor([-1.0])
        change = {
            loss: (loss(wild, calm, gain, mask) - loss(calm, calm, gain, mask)).item()
            for loss in (grpo_loss, gmpo_loss)
        }
        assert change[gmpo_loss] == pytest.approx(math.exp(0.5) - 1)
        assert change[grpo_loss] == pytest.approx((math.exp(5) - 1) / 10)


def both(which: str) -> Callable[..., Tensor]:
    return {
        "gmpo": gmpo_loss,
        "grpo": grpo_loss,
        "grpo sequence": lambda *a, **k: grpo_loss(*a, aggregate="sequence", **k),
    }[which]


@pytest.mark.parametrize("which", ["gmpo", "grpo", "grpo sequence"])
@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_the_slope(which: str, seed: int) -> None:
    """Against central differences in float64, clipped and unclipped tokens alike."""
    source = torch.Generator().manual_seed(seed)
    new = 0.6 * torch.randn(3, 4, generator=source, dtype=torch.float64)
    old = torch.zeros_like(new)
    gains = torch.randn(3, generator=source, dtype=torch.float64)
    mask = torch.rand(3, 4, generator=source) < 0.8
    loss = both(which)
    leaf = new.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf, old, gains, mask), leaf)
    step = 1e-6
    for i in range(3):
        for t in range(4):
            move = torch.zeros_like(new)
            move[i, t] = step
            ahead, behind = loss(new + move, old, gains, mask), loss(new - move, old, gains, mask)
            slope = (ahead - behind).item() / (2 * step)
            assert found[i, t].item() == pytest.approx(slope, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("which", ["gmpo", "grpo"])
def test_first_step_follows_the_policy_gradient(which: str) -> None:
    """Where the policy has not moved yet, the gradient is that of REINFORCE with the advantages."""
    log_prob = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    gains = torch.tensor([2.0, -1.0], dtype=torch.float64)
    mask = torch.ones(2, 3, dtype=torch.bool)
    loss = both(which)(log_prob, log_prob.detach(), gains, mask)
    (found,) = torch.autograd.grad(loss, log_prob)
    assert torch.allclose(found, -gains[:, None].expand(2, 3) / 6)


class TestKl:
    def test_mean_over_samples_is_the_divergence(self) -> None:
        source = torch.Generator().manual_seed(0)
        mean, other, std, other_std = 0.3, 0.0, 0.8, 1.0
        x = mean + std * torch.randn(200_000, generator=source, dtype=torch.float64)
        log_p = -0.5 * ((x - mean) / std) ** 2 - math.log(std)
        log_q = -0.5 * ((x - other) / other_std) ** 2 - math.log(other_std)
        exact = math.log(other_std / std) + (std**2 + (mean - other) ** 2) / 2 - 0.5
        estimates = kl_k3(log_p, log_q)
        error = estimates.std().item() / math.sqrt(len(x))
        assert abs(estimates.mean().item() - exact) < 5 * error
        assert estimates.min() >= -1e-15

    def test_hand_computed(self) -> None:
        found = kl_k3(torch.tensor([0.0]), torch.tensor([math.log(2.0)])).item()
        assert found == pytest.approx(2 - math.log(2) - 1)


class TestRatios:
    def test_hand_computed(self) -> None:
        new = torch.tensor([[0.5, -0.5, 0.0], [0.5, -0.5, 9.0]])
        mask = torch.tensor([[True, True, True], [True, True, False]])
        reading = ratio_reading(
            new,
            torch.zeros_like(new),
            torch.tensor([1.0, -1.0]),
            mask,
            log_low=math.log(0.8),
            log_high=math.log(1.28),
        )
        assert reading.clip_fraction == pytest.approx(2 / 5)  # good and risen, bad and fallen
        assert reading.ratio_max == pytest.approx(math.exp(0.5))
        assert reading.ratio_min == pytest.approx(math.exp(-0.5))
        terms = [math.exp(d) - 1 - d for d in (0.5, -0.5, 0.0, 0.5, -0.5)]
        assert reading.approx_kl == pytest.approx(sum(terms) / 5, rel=1e-5)

    def test_stale_samples_count_by_a_bounded_ratio(self) -> None:
        old, behaviour = torch.tensor([0.0, 3.0, -1.0]), torch.zeros(3)
        found = stale_weights(old, behaviour, largest=2.0)
        assert found.tolist() == pytest.approx([1.0, 2.0, math.exp(-1)])

    def test_weights_of_stale_samples_scale_their_loss(self) -> None:
        x, mask = torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool)
        gains = torch.tensor([1.0, 1.0])
        by_token = grpo_loss(x, x, gains, mask, weights=torch.tensor([[1.0, 1.0], [0.5, 0.0]]))
        assert by_token.item() == pytest.approx(-2.5 / 4)
        by_sequence = gmpo_loss(x, x, gains, mask, weights=torch.tensor([1.0, 0.5]))
        assert by_sequence.item() == pytest.approx(-0.75)


class TestAdvantages:
    def test_hand_computed(self) -> None:
        rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0])
        groups = torch.tensor([5, 5, 5, 5, 2, 2])
        found = group_advantages(rewards, groups)
        std = math.sqrt((0.75**2 + 3 * 0.25**2) / 3)
        expected = [0.75 / std, *[-0.25 / std] * 3, 0.0, 0.0]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)
        plain = group_advantages(rewards, groups, scale="none")
        assert plain.tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25, 0, 0])
        rloo = group_advantages(rewards, groups, baseline="leave_one_out", scale="none")
        assert rloo.tolist() == pytest.approx([1.0, *[-1 / 3] * 3, 0, 0])

    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 2**31 - 1))
    def test_each_group_is_what_numpy_says(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(4), [2, 3, 4, 5])
        rewards = rng.integers(0, 2, len(groups)).astype(float)
        shuffle = rng.permutation(len(groups))
        found = group_advantages(
            torch.from_numpy(rewards[shuffle]), torch.from_numpy(groups[shuffle])
        ).numpy()
        for g in range(4):
            mine = rewards[groups == g]
            expected = (mine - mine.mean()) / (mine.std(ddof=1) + 1e-6)
            got = found[groups[shuffle] == g]
            assert np.allclose(np.sort(got), np.sort(expected), atol=1e-9)

    def test_signal_is_a_difference_within_the_group(self) -> None:
        rewards, groups = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0]), torch.tensor([1, 1, 4, 4, 4])
        assert has_signal(rewards, groups).tolist() == [False, False, True, True, True]

    def test_a_group_of_one_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"groups \[3\] have one member"):
            group_advantages(torch.zeros(3), torch.tensor([1, 1, 3]))
