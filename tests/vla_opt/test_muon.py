"""Muon against the mathematics and against torch's own."""

import math

import pytest
import torch
from torch import Tensor, nn

from vla_opt.optim import Muon
from vla_opt.spectral import NEWTON_SCHULZ, POLAR_EXPRESS, polar_express


def by_svd(X: Tensor, coefficients: object) -> Tensor:
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    s = S / (S.square().sum().sqrt() + 1e-7)
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    return U @ torch.diag(s) @ Vh


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("coefficients", [NEWTON_SCHULZ, POLAR_EXPRESS])
@pytest.mark.parametrize("shape", [(5, 5), (4, 10), (10, 4)])
def test_twenty_steps_agree_with_the_mathematics(
    shape: tuple[int, int], coefficients: object, nesterov: bool
) -> None:
    torch.manual_seed(0)
    W, M = torch.randn(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    parameter = nn.Parameter(W.clone())
    optimizer = Muon([parameter], 0.02, nesterov=nesterov, coefficients=coefficients)
    for _ in range(20):
        G = torch.randn(shape, dtype=torch.float64)
        M = 0.95 * M + 0.05 * G
        X = 0.95 * M + 0.05 * G if nesterov else M
        W = W * (1 - 0.02 * 0.01) - 0.02 * 0.2 * math.sqrt(max(shape)) * by_svd(X, coefficients)
        parameter.grad = G
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), W, rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(32, 32), (32, 64), (64, 32)])
def test_agrees_with_torch_up_to_its_bfloat16(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.zeros(shape)) for _ in range(2))
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True}
    optimizers = (
        Muon([ours], **options),
        torch.optim.Muon([theirs], **options, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(10):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert ((ours - theirs).norm() / theirs.norm()).item() < 0.03


@pytest.mark.parametrize("shape", [(64, 64), (48, 192), (192, 48)])
def test_update_has_the_root_mean_square_of_adamw(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.randn(shape)
    Muon([parameter], lr=1.0, coefficients=polar_express(8)).step()
    rms = parameter.detach().square().mean().sqrt().item()
    assert rms == pytest.approx(0.2, rel=0.02)  # AdamW's stays within 0.2 to 0.4 in practice


def test_per_head_is_a_loop_over_heads() -> None:
    torch.manual_seed(0)
    whole = nn.Parameter(torch.randn(12, 8, dtype=torch.float64))
    slices = [nn.Parameter(s.clone()) for s in whole.detach().chunk(3)]
    whole.grad = torch.randn(12, 8, dtype=torch.float64)
    for part, gradient in zip(slices, whole.grad.chunk(3), strict=True):
        part.grad = gradient.clone()
    Muon([whole], 0.1, num_heads=3, head_axis=0).step()
    Muon(slices, 0.1).step()
    torch.testing.assert_close(whole.detach(), torch.cat([s.detach() for s in slices]))


@pytest.mark.parametrize("coefficients", [(), ((1.0, 2.0),)])
def test_coefficients_that_are_none_are_refused(coefficients: object) -> None:
    with pytest.raises(ValueError, match=r"\(a, b, c\)"):
        Muon([nn.Parameter(torch.zeros(2, 2))], 0.1, coefficients=coefficients)
