"""Fit the low-pass control of `vla_opt.spectral`: five odd quintics that drop leading directions.

    python tests/bench/fit_low_pass.py

The opposite of Pion (arXiv 2605.19282, appendix L, whose fifteen numbers are not published):
singular values up to 0.5 go to one, those above 0.75 to zero. Many random starts side by side under
Adam, the best few polished by L-BFGS; prints the best list and where it lies in both bands.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from vla_opt.spectral import scalar_map

PASS, STOP = (0.05, 0.5), (0.75, 1.0)
SAFE = 1.0  # values between the steps stay below this far above one


def points(band: tuple[float, float], count: int = 120) -> Tensor:
    """(count,) singular values, evenly spaced in the logarithm: small ones are the most."""
    low, high = torch.tensor(band, dtype=torch.float64).log10().tolist()
    return torch.logspace(low, high, count, dtype=torch.float64)


def loss(steps: Tensor, passed: Tensor, stopped: Tensor) -> Tensor:
    """Mean squared error in both bands, and what leaves [-0.05, 1.05]; steps (..., 5, 3)."""
    anywhere = torch.linspace(0, 1.001, 200, dtype=torch.float64)
    sigma = torch.cat([passed, stopped, anywhere])
    excess = torch.zeros((), dtype=torch.float64)
    for a, b, c in (step.unsqueeze(-1).unbind(-2) for step in steps.unbind(-2)):
        square = sigma * sigma
        sigma = sigma * (a + square * (b + square * c))
        excess = excess + (sigma.abs() - 1 - SAFE).clamp_min(0).square().mean(-1)
        sigma = sigma.clamp(-3, 3)  # a wild start shall not overflow
    inside, outside, everywhere = sigma.split([len(passed), len(stopped), len(anywhere)], -1)
    error = (inside - 1).square().mean(-1) + outside.square().mean(-1)
    beyond = (everywhere - 1.05).clamp_min(0) + (-0.05 - everywhere).clamp_min(0)
    return error + beyond.square().mean(-1) + excess


def fit(starts: int, iterations: int, seed: int) -> tuple[float, Tensor]:
    """Loss and coefficients (5, 3) of the best of `starts`."""
    generator = torch.Generator().manual_seed(seed)
    passed, stopped = points(PASS), points(STOP)
    centre = torch.tensor((2.5, -2.5, 0.8), dtype=torch.float64)
    noise = torch.randn(starts, 5, 3, dtype=torch.float64, generator=generator)
    steps = (centre * (1 + 0.5 * noise)).requires_grad_()
    adam = torch.optim.Adam([steps], lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations)
    for _ in range(iterations):
        adam.zero_grad()
        loss(steps, passed, stopped).sum().backward()
        adam.step()
        schedule.step()
    best = loss(steps, passed, stopped).topk(4, largest=False).indices
    polished = [polish(steps[i].detach().clone(), passed, stopped) for i in best]
    return min(polished, key=lambda found: found[0])


def polish(steps: Tensor, passed: Tensor, stopped: Tensor) -> tuple[float, Tensor]:
    """L-BFGS from `steps`."""
    steps.requires_grad_()
    optimizer = torch.optim.LBFGS([steps], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(steps, passed, stopped)
        value.backward()
        return value

    optimizer.step(closure)
    return loss(steps, passed, stopped).item(), steps.detach()


def describe(steps: Sequence[tuple[float, ...]]) -> str:
    """Range of the composition in both bands and on [0, 1]."""
    bands = (points(PASS, 1000), points(STOP, 1000), torch.linspace(0, 1, 2001).double())
    ranges = [scalar_map(band, steps).aminmax() for band in bands]
    low_high = [f"[{low:.3f}, {high:.3f}]" for low, high in ranges]
    return f"pass band {low_high[0]}, stop band {low_high[1]}, everywhere {low_high[2]}"


def main() -> None:
    """Print the best list and its ranges."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=192)
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    best, steps = fit(arguments.starts, arguments.iterations, arguments.seed)
    rounded = [tuple(round(x, 6) for x in step) for step in steps.tolist()]
    print(f"loss {best:.2e}")
    print(*(f"    {step}," for step in rounded), sep="\n")
    print(describe(rounded))


if __name__ == "__main__":
    main()
