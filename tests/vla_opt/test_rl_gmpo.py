"""GMPO's objective against its definition, by hand, and its gradient against differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from vla_opt.rl import geometric_mean_objective


def calm(examples: int) -> settings:
    """On a crowded machine a microsecond's work may take a second: time decides nothing here."""
    slow = [HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=slow)


def objective(ratio: list[float], advantage: float, clip: float = 0.4) -> float:
    log = torch.tensor([ratio], dtype=torch.float64)
    result = geometric_mean_objective(
        log,
        torch.zeros_like(log),
        torch.tensor([advantage], dtype=torch.float64),
        torch.ones_like(log),
        clip_low=clip,
        clip_high=clip,
    )
    return result.objective.item()


def by_definition(logs: list[float], advantage: float, low: float, high: float) -> float:
    """Sign of A times the geometric mean of |min(rho A, clip(rho, e^-low, e^high) A)|."""
    if advantage == 0.0:
        return 0.0
    product = 1.0
    for log in logs:
        ratio = math.exp(log)
        bounded = min(max(ratio, math.exp(-low)), math.exp(high))
        product *= abs(min(ratio * advantage, bounded * advantage))
    return math.copysign(product ** (1.0 / len(logs)), advantage)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        ([0.0, 0.0, 0.0], 1.5, 1.5),
        ([0.3, 0.1], 1.0, math.exp(0.2)),
        ([1.0, 0.1], 2.0, 2.0 * math.exp(0.25)),  # 1.0 held at 0.4
        ([-1.0, 0.1], 2.0, 2.0 * math.exp(-0.45)),  # moved the other way: not held
        ([-1.0, 0.1], -1.0, -math.exp(-0.15)),  # -1.0 held at -0.4
        ([1.0, 0.1], -1.0, -math.exp(0.55)),
        ([5.0, -5.0], 0.0, 0.0),
    ],
)
def test_objective_computed_by_hand(ratio: list[float], advantage: float, expected: float) -> None:
    assert objective(ratio, advantage) == pytest.approx(expected, rel=1e-12)


@given(
    logs=st.lists(st.floats(-2, 2), min_size=1, max_size=6),
    advantage=st.floats(-3, 3).filter(lambda a: a == 0.0 or abs(a) > 1e-3),
    low=st.floats(0.01, 1.0),
    high=st.floats(0.01, 1.0),
)
@calm(100)
def test_objective_is_that_of_the_definition(
    logs: list[float], advantage: float, low: float, high: float
) -> None:
    row = torch.tensor([logs], dtype=torch.float64)
    result = geometric_mean_objective(
        row,
        torch.zeros_like(row),
        torch.tensor([advantage], dtype=torch.float64),
        torch.ones_like(row),
        clip_low=low,
        clip_high=high,
    )
    expected = by_definition(logs, advantage, low, high)
    assert result.objective.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three completions of 5, 3 and 1 tokens, none of them near a bound."""
    generator = torch.Generator().manual_seed(3)
    old = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    step = torch.tensor(
        [[0.1, 0.7, -0.8, 0.2, -0.1], [0.6, -0.6, 0.3, 9.0, 9.0], [-0.7, 9.0, 9.0, 9.0, 9.0]],
        dtype=torch.float64,
    )
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    return old + step, old, torch.tensor([1.3, -0.7, -0.2], dtype=torch.float64), mask


def test_gradient_agrees_with_differences() -> None:
    new, old, advantages, mask = batch()

    def loss(x: Tensor) -> Tensor:
        return geometric_mean_objective(x, old, advantages, mask).objective

    assert torch.autograd.gradcheck(loss, (new.clone().requires_grad_(),), eps=1e-6, atol=1e-7)


def test_clipped_tokens_and_padding_have_no_gradient_and_are_counted() -> None:
    new, old, advantages, mask = batch()
    new.requires_grad_()
    result = geometric_mean_objective(new, old, advantages, mask)
    result.objective.sum().backward()
    held = torch.tensor([[0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    assert new.grad is not None
    assert torch.equal(new.grad == 0, held | ~mask.bool())
    assert torch.equal(result.clipped_high | result.clipped_low, held)
    assert result.clipped_high.sum() == 1


def test_on_policy_gradient_is_the_advantage_shared_among_the_tokens() -> None:
    log = torch.zeros(1, 4, requires_grad=True)
    result = geometric_mean_objective(log, log, torch.tensor([2.0]), torch.ones(1, 4))
    result.objective.sum().backward()
    assert torch.allclose(log.grad, torch.full((1, 4), 0.5))  # the old policy gets none


def test_what_padding_holds_does_not_matter() -> None:
    new, old, advantages, mask = batch()
    clean = geometric_mean_objective(new, old, advantages, mask).objective
    dirty_new = new.masked_fill(mask == 0, -math.inf).requires_grad_()
    dirty_old = old.masked_fill(mask == 0, -math.inf)
    result = geometric_mean_objective(dirty_new, dirty_old, advantages, mask).objective
    assert torch.equal(result, clean)
    result.sum().backward()
    assert dirty_new.grad is not None
    assert dirty_new.grad.isfinite().all()


def test_a_completion_without_tokens_moves_nothing() -> None:
    log = torch.randn(1, 3, requires_grad=True)
    result = geometric_mean_objective(log, log, torch.ones(1), torch.zeros(1, 3))
    result.objective.sum().backward()
    assert log.grad is not None
    assert not log.grad.any()


def test_one_outlier_moves_the_geometric_mean_less_than_the_arithmetic_one() -> None:
    logs = [0.0] * 9 + [-6.0]  # a token that has become very unlikely, positive advantage
    arithmetic = sum(map(math.exp, logs)) / len(logs)
    gradient_share = math.exp(-6.0) / len(logs)
    row = torch.tensor([logs], requires_grad=True)
    geometric_mean_objective(
        row, torch.zeros(1, 10), torch.ones(1), torch.ones(1, 10)
    ).objective.backward()
    assert row.grad is not None
    assert objective(logs, 1.0) < arithmetic
    assert row.grad[0, -1] > 10 * gradient_share  # it is pulled back, not given up


@pytest.mark.parametrize(
    "change",
    [
        {"advantages": torch.ones(2)},
        {"mask": torch.ones(1, 3)},
        {"old_log_probabilities": torch.ones(4)},
        {"clip_low": -0.1},
        {"clip_high": float("nan")},
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object]) -> None:
    fitting = {
        "log_probabilities": torch.zeros(1, 4),
        "old_log_probabilities": torch.zeros(1, 4),
        "advantages": torch.ones(1),
        "mask": torch.ones(1, 4),
    }
    with pytest.raises(ValueError, match="expected"):
        geometric_mean_objective(**{**fitting, **change})  # type: ignore[arg-type]
