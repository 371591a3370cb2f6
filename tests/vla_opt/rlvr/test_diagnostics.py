"""Noise of a gradient, spread of heads, and when a policy counts as collapsed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vla_opt.rlvr import (
    CollapseConfig,
    CollapseWatch,
    GradientNoise,
    HeadMeter,
    SmallModelConfig,
    head_norms,
)
from vla_opt.rlvr.text_models import small_model

# Gradient noise ----------------------------------------------------------------------------------


def test_ratio_computed_by_hand() -> None:
    noise = GradientNoise()
    for value in (1.0, 3.0):  # mean 2, variance 2, so |E G|^2 = 4 - 2 / 2
        noise.add([torch.tensor([value])])
    assert noise.ratio() == pytest.approx(1.5)
    assert noise.ratio(samples=4) == pytest.approx(6.0)


def test_ratio_is_estimated_without_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.full((50,), 0.2)  # |E G|^2 = 2, noise 50
    ratios = []
    for _ in range(400):
        noise = GradientNoise()
        for _ in range(8):
            noise.add([mean + torch.randn(50, generator=generator)])
        ratios.append(noise.ratio())
    assert sum(ratios) / len(ratios) == pytest.approx(2 / 50, rel=0.5)


def test_pure_noise_has_hardly_any_signal() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = GradientNoise()
    for _ in range(64):
        noise.add([torch.randn(300, generator=generator), None])
    assert noise.ratio(64) < 0.3  # without the correction it would be near 1


def test_ratio_does_not_depend_on_the_scale_of_the_loss() -> None:
    small, large = GradientNoise(), GradientNoise()
    for seed in range(4):
        gradient = torch.randn(9, generator=torch.Generator().manual_seed(seed)) + 1.0
        small.add([gradient * 1e-3])
        large.add([gradient * 1e3])
    assert small.ratio() == pytest.approx(large.ratio(), rel=1e-4)


def test_no_ratio_from_one_sample_or_without_noise() -> None:
    noise = GradientNoise()
    noise.add([torch.ones(3)])
    assert noise.ratio() is None
    noise.add([torch.ones(3)])
    assert noise.ratio() is None


# Heads -------------------------------------------------------------------------------------------


def test_norms_of_heads_are_of_blocks_of_rows() -> None:
    weight = torch.arange(24.0).reshape(6, 4)
    expected = [weight[:3].norm().item(), weight[3:].norm().item()]
    assert head_norms(weight, 3).tolist() == pytest.approx(expected)


def test_meter_reads_spread_change_and_scale() -> None:
    sizes = SmallModelConfig(layers=1, heads=4, kv_heads=2, head_size=4, hidden_size=8)
    model = small_model(sizes)
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        attention.q_proj.weight.fill_(1.0)
        attention.k_proj.weight.fill_(0.5)
    meter = HeadMeter(model)
    norm = math.sqrt(4 * 8)
    first = meter.read()
    assert first.norm_variance == pytest.approx(0.0, abs=1e-9)
    assert first.update_variance == 0.0
    assert first.logit_scale == pytest.approx(norm * 0.5 * norm / 2.0)
    with torch.no_grad():
        attention.q_proj.weight[4:8] += 1.0  # the second head
        attention.k_proj.weight[4:8] *= 8.0  # shared by the third and fourth
    second = meter.read()
    changes = torch.tensor([0.0, norm, 0.0, 0.0])
    assert second.update_variance == pytest.approx(changes.var(correction=0).item(), rel=1e-5)
    assert second.norm_variance == pytest.approx(changes.var(correction=0).item(), rel=1e-5)
    assert second.logit_scale == pytest.approx(norm * 4.0 * norm / 2.0)


def test_a_model_without_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no module with q_proj"):
        HeadMeter(nn.Linear(2, 2))


# Collapse ----------------------------------------------------------------------------------------


def watched(readings: list[dict[str, float]], **config: float) -> list[set[str]]:
    watch = CollapseWatch(CollapseConfig(window=2, **config), math.log(100))  # type: ignore[arg-type]
    return [set(watch.observe(**reading)) for reading in readings]


def steady(reward: float, entropy: float = 1.0, **more: float) -> dict[str, float]:
    return {"reward": reward, "entropy": entropy, **more}


def test_learning_gives_no_complaint() -> None:
    rising = [steady(0.1 * k, 2.0 - 0.15 * k) for k in range(10)]
    assert watched(rising) == [set()] * 10


def test_a_fallen_reward_is_told_once_and_again_after_recovery() -> None:
    rewards = [0.5, 0.5, 0.1, 0.1, 0.1, 0.5, 0.5, 0.1, 0.0]
    said = watched([steady(r) for r in rewards])
    assert [bool(s) for s in said] == [0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert said[3] == {"reward"}


def test_nothing_is_said_before_the_window_is_full() -> None:
    assert watched([steady(0.0, 0.0, equal_groups=1.0)]) == [set()]


def test_a_policy_that_turns_random_is_told_but_a_random_start_is_not() -> None:
    high = 0.95 * math.log(100)
    assert watched([steady(0.1, high)] * 4) == [set()] * 4
    assert watched([steady(0.1)] * 2 + [steady(0.1, high)] * 2)[-1] == {"random"}


def test_a_policy_without_entropy_is_told_unless_it_is_right() -> None:
    stuck = [steady(0.3, 2.0)] * 2 + [steady(0.3, 0.001)] * 2
    solved = [steady(0.3, 2.0)] * 2 + [steady(0.99, 0.001)] * 2
    assert watched(stuck)[-1] == {"deterministic"}
    assert watched(solved)[-1] == set()


def test_groups_of_equal_rewards_are_told() -> None:
    assert watched([steady(0.0, equal_groups=1.0)] * 2)[-1] == {"equal"}
    assert watched([steady(0.0, equal_groups=0.9)] * 2)[-1] == set()


def test_a_watch_goes_on_where_it_was_stored() -> None:
    readings = [steady(r, e) for r, e in [(0.5, 2.0), (0.5, 2.0), (0.2, 1.0), (0.1, 0.01)] * 2]
    whole = CollapseWatch(CollapseConfig(window=2), 4.0)
    expected = [whole.observe(**reading) for reading in readings]
    for stop in range(len(readings)):
        first = CollapseWatch(CollapseConfig(window=2), 4.0)
        said = [first.observe(**reading) for reading in readings[:stop]]
        second = CollapseWatch(CollapseConfig(window=2), 4.0)
        second.load_state_dict(first.state_dict())
        assert said + [second.observe(**r) for r in readings[stop:]] == expected


@pytest.mark.parametrize("change", [{"window": 0}, {"reward_drop": 1.5}, {"solved": -0.1}])
def test_thresholds_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"collapse.{next(iter(change))}"):
        CollapseConfig(**change)  # type: ignore[arg-type]
