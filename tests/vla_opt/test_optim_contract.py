"""What every optimizer here promises, whatever its algorithm."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from vla_opt.optim import (
    ALGORITHMS,
    MixedOptimizer,
    NonFiniteGradientError,
    Pion,
    Rule,
    StepOptions,
    build_optimizer,
)

ALGORITHM_NAMES = sorted(ALGORITHMS)
each = pytest.mark.parametrize("name", ALGORITHM_NAMES)


def make(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> MixedOptimizer:
    """Two named matrices and a third that never gets a gradient, under one algorithm."""
    if name == "schedule_free_adamw":
        pytest.importorskip("schedulefree")
    generator = torch.Generator().manual_seed(1)
    model = nn.Module()
    for key, shape in (("wide", (4, 6)), ("tall", (6, 4)), ("unused", (3, 3))):
        value = torch.randn(shape, generator=generator).to(dtype)
        model.register_parameter(key, nn.Parameter(value))
    optimizer = build_optimizer(model, [Rule("", name, options=options)], lr=0.01)
    optimizer.model = model
    return optimizer


def parameters(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    return (p for group in optimizer.param_groups for p in group["params"])


def set_gradients(optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            p.grad = None if name == "unused" else grad


def weights(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in parameters(optimizer)]


def step(optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    set_gradients(optimizer, seed)
    optimizer.step()


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@each
def test_gradient_is_not_written(name: str) -> None:
    optimizer = make(name)
    for seed in range(3):
        set_gradients(optimizer, seed)
        before = [None if p.grad is None else p.grad.clone() for p in parameters(optimizer)]
        optimizer.step()
        for p, grad in zip(parameters(optimizer), before, strict=True):
            assert (p.grad is None) == (grad is None)
            assert grad is None or torch.equal(p.grad, grad)


@each
def test_parameter_without_gradient_is_left_alone(name: str) -> None:
    optimizer = make(name)
    [unused] = [p for p in parameters(optimizer) if p.shape == (3, 3)]
    before = unused.detach().clone()
    step(optimizer)
    assert torch.equal(unused, before)
    assert not optimizer.state.get(unused)


@each
def test_closure_is_called_once_with_gradients_on_and_its_loss_returned(name: str) -> None:
    optimizer = make(name)
    calls = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        set_gradients(optimizer, 0)
        return 1.5

    assert optimizer.step(closure) == 1.5
    assert calls == [True]


@each
def test_group_added_later_is_trained(name: str) -> None:
    optimizer = make(name)
    step(optimizer)
    late = nn.Parameter(torch.randn(5, 4))
    optimizer.add_param_group({"params": [("late", late)], "algorithm": name, "lr": 0.1})
    before = late.detach().clone()
    step(optimizer, 1)
    assert not torch.equal(late, before)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(state)
    step(optimizer, 2)


@each
@pytest.mark.parametrize("choice", ["master", "stochastic", "nearest"])
def test_resumed_run_has_the_same_bits_in_bfloat16(name: str, choice: str) -> None:
    whole, resumed = (make(name, torch.bfloat16).configure(low_precision=choice) for _ in range(2))
    for seed in range(3):
        step(whole, seed)
    resumed.load_state_dict(pickle.loads(pickle.dumps(whole.state_dict())))
    with torch.no_grad():
        for theirs, ours in zip(parameters(whole), parameters(resumed), strict=True):
            ours.copy_(theirs)
    for seed in range(3, 6):
        step(whole, seed)
        step(resumed, seed)
    assert same(weights(whole), weights(resumed))
    for entry in whole.state_dict()["state"].values():
        assert all(value.dtype == torch.float32 for value in entry.values())
        assert all(value.is_contiguous() for value in entry.values())
        assert ("master" in entry) == (choice == "master")


@pytest.mark.slow
@each
def test_compiled_step_is_the_step(name: str) -> None:
    torch.compiler.reset()
    plain, compiled = make(name), make(name)
    compiled_step = torch.compile(compiled.step, backend="aot_eager")
    for seed in range(3):
        step(plain, seed)
        set_gradients(compiled, seed)
        compiled_step()
    for a, b in zip(weights(plain), weights(compiled), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_step_compiled_to_machine_code_is_the_step() -> None:
    torch.compiler.reset()
    plain, compiled = make("pion"), make("pion")
    compiled_step = torch.compile(compiled.step)
    for seed in range(3):
        step(plain, seed)
        set_gradients(compiled, seed)
        compiled_step()
    for a, b in zip(weights(plain), weights(compiled), strict=True):
        torch.testing.assert_close(a, b)


@each
def test_nonfinite_gradient_is_an_error_that_names_the_parameter(name: str) -> None:
    optimizer = make(name)
    step(optimizer)
    before, state = weights(optimizer), copy.deepcopy(optimizer.state_dict())
    set_gradients(optimizer, 1)
    next(p for p in parameters(optimizer) if p.shape == (6, 4)).grad[2, 1] = float("inf")
    with pytest.raises(NonFiniteGradientError, match="Gradient of tall is not finite") as info:
        optimizer.step()
    assert info.value.names == ("tall",)
    twin = pickle.loads(pickle.dumps(info.value))  # as a worker process hands it over
    assert (twin.names, str(twin)) == (("tall",), str(info.value))
    assert same(before, weights(optimizer))
    for index, entry in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, state["state"][index][key]) for key, value in entry.items())


@each
def test_nonfinite_gradient_can_be_skipped_and_counted(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = make(name).configure(nonfinite="skip")
    step(optimizer)
    before = weights(optimizer)
    for count in (1, 2):
        set_gradients(optimizer, 1)
        next(p for p in parameters(optimizer) if p.shape == (6, 4)).grad[0, 0] = float("nan")
        optimizer.step()
        assert optimizer.skipped_steps == count
    assert "gradient of tall is not finite" in caplog.text
    assert same(before, weights(optimizer))
    step(optimizer, 2)
    assert not same(before, weights(optimizer))
    assert optimizer.skipped_steps == 2


def test_check_can_be_left_out() -> None:
    optimizer = make("pion").configure(nonfinite="ignore")
    set_gradients(optimizer, 0)
    next(p for p in parameters(optimizer) if p.shape == (6, 4)).grad.fill_(float("nan"))
    optimizer.step()
    assert any(p.isnan().any() for p in parameters(optimizer))


def test_norm_that_overflows_is_no_error() -> None:
    W = nn.Parameter(torch.ones(2, 2))
    W.grad = torch.full((2, 2), 3e38)
    Pion([W], 0.1).step()
    assert W.isfinite().all()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_keep_how_steps_are_made(clone: Any) -> None:
    optimizer = make("pion", torch.bfloat16).configure(nonfinite="skip", low_precision="nearest")
    optimizer.skipped_steps = 3
    twin = clone(optimizer)
    assert twin.options == StepOptions(nonfinite="skip", low_precision="nearest")
    assert twin.skipped_steps == 3


def test_unknown_choices_come_with_the_nearest() -> None:
    optimizer = make("pion")
    with pytest.raises(ValueError, match=r"Unknown nonfinite 'skp'. Did you mean 'skip'"):
        optimizer.configure(nonfinite="skp")
    with pytest.raises(ValueError, match=r"'low_precison'. Did you mean 'low_precision'"):
        optimizer.configure(low_precison="master")
    with pytest.raises(ValueError, match="wide is float16: stochastic"):
        make("pion", torch.float16).configure(low_precision="stochastic")


def moved_after(choice: str, steps: int = 200) -> float:
    """Mean change of bfloat16 ones under gradients of one and a rate far below their grid."""
    W = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    groups = [{"params": [W], "algorithm": "adamw", "weight_decay": 0.0}]
    optimizer = MixedOptimizer(groups, 1e-4).configure(low_precision=choice)
    for _ in range(steps):
        W.grad = torch.ones_like(W)
        optimizer.step()
    return (W.float() - 1.0).mean().item()


def test_small_updates_survive_in_a_master_and_in_the_mean_of_stochastic_rounding() -> None:
    # Half a step of bfloat16 below one is 2^-9 = 2e-3: plain rounding loses every update of 1e-4.
    assert moved_after("nearest") == 0.0
    assert moved_after("master") == pytest.approx(-0.02, abs=2.0**-9)
    # 4096 entries of spread sqrt(200 * 1e-4 * 2^-8): the mean's is 1.4e-4.
    assert moved_after("stochastic") == pytest.approx(-0.02, abs=7e-4)


def test_stochastic_rounding_hits_the_two_neighbours_with_the_right_frequency() -> None:
    from vla_opt.optim._precision import round_stochastically

    generator = torch.Generator().manual_seed(0)
    for value in (1.0 + 2.0**-7 * 0.3, -(1.0 + 2.0**-7 * 0.3)):
        rounded = round_stochastically(torch.full((20000,), value), generator).float()
        assert set(rounded.abs().tolist()) == {1.0, 1.0 + 2.0**-7}
        assert ((rounded.abs() > 1.0).float().mean().item()) == pytest.approx(0.3, abs=0.02)
    exact = torch.tensor([0.0, -0.0, 1.5, -2.0, float("inf"), float("nan")])
    torch.testing.assert_close(
        round_stochastically(exact, generator).float(), exact, equal_nan=True, rtol=0, atol=0
    )


# figures of a step -------------------------------------------------------------------------------

MEASURED = {"kaon", "mimuon", "muon", "normuon", "pion", "regularized_muon", "sf_normuon"}


@each
def test_measured_step_has_the_same_bits_and_figures_of_what_was_mapped(name: str) -> None:
    plain, watched = make(name), make(name)
    step(plain)
    set_gradients(watched, 0)
    with watched.measured() as figures:
        watched.step()
    assert same(weights(plain), weights(watched))
    mapped = [p for p in parameters(watched) if p.grad is not None and name in MEASURED]
    assert set(figures) == set(mapped)
    for parameter in mapped:
        sigma = torch.linalg.svdvals(parameter.grad.double()).square()
        expected = (sigma[0] / sigma.sum()).item()
        assert figures[parameter].top_energy.tolist() == pytest.approx([expected], rel=1e-4)
    with watched.measured() as later:
        pass
    step(watched, 1)
    assert not later


@pytest.mark.parametrize("name", ["pion", "normuon", "sf_normuon"])
def test_measured_experts_come_in_their_order_whatever_shares_their_stack(name: str) -> None:
    ranks = (1, 3, 2, 4)
    experts, small = nn.Parameter(torch.zeros(4, 4, 6)), nn.Parameter(torch.zeros(3, 5))
    experts.grad = torch.stack([torch.eye(4, 6) * (torch.arange(4) < r)[:, None] for r in ranks])
    small.grad = torch.ones(3, 5)  # padded with zeros beside the experts
    named = [("small", small), ("experts", experts)]
    optimizer = build_optimizer(named, [Rule("", name)], lr=0.1)
    with optimizer.measured() as figures:
        optimizer.step()
    assert figures[experts].stable_rank.tolist() == pytest.approx(ranks, rel=1e-4)
    assert figures[small].stable_rank.tolist() == pytest.approx([1.0], rel=1e-4)
