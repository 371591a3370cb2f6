"""Schedule-free optimizers: the package's own numbers, a reference, averages in and out."""

import builtins
import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vla_opt.optim import (
    OptimizerConfig,
    Rule,
    ScheduleFreeAdamW,
    SFNorMuon,
    build_optimizer,
)

schedulefree = pytest.importorskip("schedulefree")

SHAPES = [(4, 6), (6, 4), (3, 3)]


def feed(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def tensors(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(7)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]


def test_adamw_is_the_package_bit_by_bit_and_leaves_gradients_alone() -> None:
    options: dict[str, Any] = {
        "betas": (0.8, 0.95), "weight_decay": 0.1, "warmup_steps": 5, "r": 0.5,
        "weight_lr_power": 1.5, "eps": 1e-6,
    }  # fmt: skip
    ours, theirs = tensors(), tensors()
    mine = ScheduleFreeAdamW(ours, 0.05, **options)
    package = schedulefree.AdamWScheduleFree(theirs, 0.05, **options)
    package.train()
    for seed in range(20):
        feed(ours, seed)
        feed(theirs, seed)
        before = [p.grad.clone() for p in ours]
        mine.step()
        package.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(ours, before, strict=True))
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        mine.eval()
        package.eval()
    mine.train()
    package.train()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def normuon_reference(W: np.ndarray, gradients: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(y, x) after all steps, with x kept for itself; written from the formulas."""
    lr, mu, b, beta, decay, scale, warmup = 0.05, 0.9, 0.8, 0.7, 0.1, 0.3, 4
    m, n = W.shape
    x, y, z = W.copy(), W.copy(), W.copy()
    M, v, total = np.zeros_like(W), np.zeros(m), 0.0
    for t, G in enumerate(gradients, 1):
        M = mu * M + (1 - mu) * G
        U, sigma, V = np.linalg.svd(M / (np.linalg.norm(M) + 1e-7), full_matrices=False)
        for _ in range(5):
            sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
        P = (U * sigma) @ V
        v = b * v + (1 - b) * (P**2).mean(1)
        D = P / (np.sqrt(v) + 1e-8)[:, None]
        rate = lr * min(1.0, t / warmup)
        z = z - lr * decay * z - rate * scale * np.sqrt(m * n) * D / np.linalg.norm(D)
        total += rate**2
        x = x + rate**2 / total * (z - x)
        y = (1 - beta) * z + beta * x
    return y, x


@pytest.mark.parametrize("shape", SHAPES)
def test_twenty_steps_of_normuon_are_the_reference(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(shape))
    W, gradients = rng.normal(size=shape), [rng.normal(size=shape) for _ in range(20)]
    parameter = nn.Parameter(torch.tensor(W))
    optimizer = SFNorMuon(
        [parameter], 0.05, momentum=0.9, row_beta=0.8, averaging=0.7, weight_decay=0.1,
        update_scale=0.3, warmup_steps=4,
    )  # fmt: skip
    for G in gradients:
        parameter.grad = torch.tensor(G)
        optimizer.step()
    y, x = normuon_reference(W, gradients)
    # The sum of squared rates is kept in float32.
    np.testing.assert_allclose(parameter.detach().numpy(), y, rtol=1e-5, atol=1e-6)
    optimizer.eval()
    np.testing.assert_allclose(parameter.detach().numpy(), x, rtol=1e-5, atol=1e-6)


def test_average_of_a_constant_rate_is_the_mean_of_the_fast_iterates() -> None:
    W = nn.Parameter(torch.randn(4, 4, dtype=torch.float64))
    optimizer = SFNorMuon([W], 0.1)
    fast = []
    for seed in range(10):
        feed([W], seed)
        optimizer.step()
        fast.append(optimizer.state[W]["z"].clone())
    with optimizer.averaged():
        torch.testing.assert_close(W.detach(), torch.stack(fast).mean(0), rtol=1e-6, atol=1e-6)


KINDS = {"schedule_free_adamw": ScheduleFreeAdamW, "sf_normuon": SFNorMuon}
each = pytest.mark.parametrize("name", sorted(KINDS))


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_averaged_block_changes_nothing_after_it(name: str, dtype: torch.dtype) -> None:
    plain, looked_at = tensors(dtype), tensors(dtype)
    optimizers = [KINDS[name](p, 0.1) for p in (plain, looked_at)]
    for seed in range(6):
        for parameters, optimizer in zip((plain, looked_at), optimizers, strict=True):
            feed(parameters, seed)
            optimizer.step()
        before = [p.detach().clone() for p in looked_at]
        with optimizers[1].averaged():
            changed = [not torch.equal(a, b) for a, b in zip(before, looked_at, strict=True)]
            # After the first step z, x and y are one.
            assert all(changed) or seed == 0
    assert all(torch.equal(a, b) for a, b in zip(plain, looked_at, strict=True))


@each
def test_step_with_averaged_weights_is_refused(name: str) -> None:
    parameters = tensors()
    optimizer = KINDS[name](parameters, 0.1)
    feed(parameters, 0)
    optimizer.step()
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"call optimizer.train\(\)"):
        optimizer.step()
    optimizer.train().step()


@each
def test_run_saved_while_averaged_goes_on(name: str) -> None:
    """Weights and state saved in eval mode, as for deployment, up to one rounding."""
    whole = tensors()
    optimizer = KINDS[name](whole, 0.1)
    for seed in range(3):
        feed(whole, seed)
        optimizer.step()
    with optimizer.averaged():
        weights, state = copy.deepcopy(whole), copy.deepcopy(optimizer.state_dict())
    resumed = KINDS[name](weights, 0.1)
    resumed.load_state_dict(state)
    assert not resumed.param_groups[0]["train_mode"]
    resumed.train()
    for seed in range(3, 6):
        for parameters, o in ((whole, optimizer), (weights, resumed)):
            feed(parameters, seed)
            o.step()
    for a, b in zip(whole, weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_other_optimizers_have_nothing_to_average() -> None:
    model = nn.Linear(3, 3)
    optimizer = build_optimizer(model, [Rule("", "adamw")], lr=0.1)
    before = model.weight.detach().clone()
    with optimizer.averaged():
        assert torch.equal(model.weight, before)
    assert torch.equal(model.weight, before)


def test_configuration_averages_what_is_no_matrix_too() -> None:
    optimizer = OptimizerConfig(name="sf_normuon", preset="default").build(nn.Linear(3, 2))
    kinds = [group["algorithm"] for group in optimizer.param_groups]
    assert kinds == ["schedule_free_adamw", "sf_normuon"]


def test_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "schedulefree":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'vla-opt\[schedulefree\]'"):
        ScheduleFreeAdamW([nn.Parameter(torch.zeros(2))])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ScheduleFreeAdamW, {"betas": (0.0, 0.9)}, "betas"),
        (SFNorMuon, {"averaging": 0.0}, "averaging"),
        (SFNorMuon, {"row_beta": 1.0}, "row_beta"),
        (SFNorMuon, {"warmup_steps": -1}, "warmup_steps"),
    ],
)
def test_options_out_of_range_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind([nn.Parameter(torch.randn(2, 2))], 0.1, **options)
