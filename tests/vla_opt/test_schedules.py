"""Learning-rate factors, and what they do to groups with different rates."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from vla_opt.schedules import SCHEDULES, SchedulerConfig


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    warmup=st.integers(0, 50),
    total=st.integers(1, 200),
    step=st.integers(0, 400),
    floor=st.floats(0, 1),
    decay=st.floats(0, 1),
)
@example(name="wsd", warmup=0, total=1, step=1, floor=0.0, decay=0.005)
def test_factor_stays_between_zero_and_one(
    name: str, warmup: int, total: int, step: int, floor: float, decay: float
) -> None:
    config = SchedulerConfig(name=name, warmup_steps=warmup, min_ratio=floor, decay_fraction=decay)
    factor = config.factor(step, total)
    assert 0.0 <= factor <= 1.0 + 1e-12
    if step >= warmup:
        assert factor >= floor - 1e-12


def test_warmup_is_linear_and_never_zero() -> None:
    config = SchedulerConfig(name="constant", warmup_steps=4)
    assert [config.factor(step, 10) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_ends_at_its_floor() -> None:
    config = SchedulerConfig(name="cosine", warmup_steps=10, min_ratio=0.1)
    assert config.factor(10, 110) == 1.0
    assert math.isclose(config.factor(60, 110), 0.55)
    assert math.isclose(config.factor(110, 110), 0.1)


def test_wsd_is_flat_then_linear() -> None:
    config = SchedulerConfig(name="wsd", decay_fraction=0.25)
    assert [config.factor(step, 100) for step in (0, 50, 75)] == [1.0, 1.0, 1.0]
    assert math.isclose(config.factor(90, 100), 0.4)
    assert math.isclose(config.factor(100, 100), 0.0, abs_tol=1e-12)


def test_every_group_keeps_its_own_rate() -> None:
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1e-3},
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1e-4},
    ]
    optimizer = torch.optim.SGD(groups)
    scheduler = SchedulerConfig(name="cosine", warmup_steps=2).build(optimizer, 10)
    for step in range(10):
        factor = SchedulerConfig(name="cosine", warmup_steps=2).factor(step, 10)
        assert [g["lr"] for g in optimizer.param_groups] == [1e-3 * factor, 1e-4 * factor]
        optimizer.step()
        scheduler.step()


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'cosin'.*cosine"):
        SchedulerConfig(name="cosin")


@pytest.mark.parametrize("bad", [{"warmup_steps": -1}, {"min_ratio": 1.5}, {"decay_fraction": -1}])
def test_numbers_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"scheduler\.\w+: expected"):
        SchedulerConfig(**bad)  # type: ignore[arg-type]
