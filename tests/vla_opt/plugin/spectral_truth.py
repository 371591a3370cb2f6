"""Spectral maps written out with singular values, and matrices to try them on."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from vla_opt import spectral
from vla_opt.spectral import (
    CUBIC,
    KAON,
    LOW_PASS,
    NEWTON_SCHULZ,
    POLAR_EXPRESS,
    YOU,
    high_pass,
    high_pass_at,
    polar_express,
    scalar_map,
)

LISTS = {
    "newton_schulz": NEWTON_SCHULZ,
    "polar_express": POLAR_EXPRESS,
    "polar_express_9": polar_express(9),
    "you": YOU,
    "cubic": CUBIC,
    "kaon": KAON,
    "low_pass": LOW_PASS,
    "high_pass_at": high_pass_at(0.1),
    **{f"high_pass_{p}_{5 - p}": high_pass(p, 5 - p) for p in range(6)},
}

SPECTRA = {
    "1/i": 1 / torch.arange(1, 97, dtype=torch.float64),
    "1/i^2": torch.arange(1, 97, dtype=torch.float64) ** -2,
    "one and a tail": torch.tensor([1.0] + [0.01] * 95, dtype=torch.float64),
}


def by_svd(X: Tensor, coefficients: spectral.Coefficients) -> Tensor:
    """U p(S / |X|) V^T, written out with float arithmetic on each singular value."""
    U, S, Vh = torch.linalg.svd(X.double(), full_matrices=False)
    mapped = []
    for s in (S / (S.norm() + 1e-7)).tolist():
        for a, b, c in coefficients:
            s = a * s + b * s**3 + c * s**5
        mapped.append(s)
    return U @ torch.diag(torch.tensor(mapped, dtype=torch.float64)) @ Vh


def with_spectrum(sigma: Tensor, m: int, n: int, seed: int = 0) -> Tensor:
    """A float64 matrix (m, n) with these singular values and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    r = sigma.numel()
    U = torch.linalg.qr(torch.randn(m, r, dtype=torch.float64, generator=generator))[0]
    V = torch.linalg.qr(torch.randn(n, r, dtype=torch.float64, generator=generator))[0]
    return U @ torch.diag(sigma.double()) @ V.T


def relative(X: Tensor, reference: Tensor) -> float:
    return ((X.double() - reference).norm() / reference.norm()).item()


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    m, n = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    decay = draw(st.floats(0.0, 3.0))
    scale = 10.0 ** draw(st.integers(-2, 4))
    sigma = scale * torch.arange(1, min(m, n) + 1, dtype=torch.float64) ** -decay
    return with_spectrum(sigma, m, n, seed=draw(st.integers(0, 2**16)))


@st.composite
def deficient(draw: st.DrawFn) -> Tensor:
    """(B, m, n) with ranks from zero on."""
    m, n = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    ranks = draw(st.lists(st.integers(0, min(m, n)), min_size=1, max_size=4))
    seed = draw(st.integers(0, 2**16))
    return torch.stack([with_spectrum(torch.ones(r), m, n, seed) for r in ranks])


def rounding(name: str) -> float:
    """What a float64 map may be off by. Kaon's steps take one to zero and then amplify by 4.1^4:
    of a matrix of rank one the Gram form keeps seven digits fewer than the direct form."""
    return 1e-7 if name == "kaon" else 1e-9


def first_above(level: float, coefficients: spectral.Coefficients) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        value = scalar_map(torch.tensor(middle, dtype=torch.float64), coefficients).item()
        low, high = (middle, high) if value < level else (low, middle)
    return high
