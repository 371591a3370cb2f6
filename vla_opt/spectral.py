"""Odd-polynomial maps of the singular values of a stack of matrices.

Every matrix optimizer of this project is one such map, applied to a momentum: the singular vectors
stay, each singular value s becomes p_k(...p_1(s / norm)...), where p_i(s) = a s + b s^3 + c s^5.
Muon drives all singular values towards one (arXiv 2502.16982); the high-pass Pion keeps the leading
ones and drives the others to zero (arXiv 2605.19282, appendix E).

Nothing here needs an SVD: p(X) = a X + (b A + c A^2) X with A = X X^T costs three products.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor

type Coefficients = Sequence[tuple[float, float, float]]
type Precision = Literal["auto", "bfloat16", "float32", "float64"]
type Form = Literal["auto", "direct", "gram"]

PROMOTION = (15 / 8, -10 / 8, 3 / 8)  # largest slope at 0 among the monotone maps with f(1) = 1
SUPPRESSION = (0.0, 5 / 2, -3 / 2)  # slope 0 at 0: small singular values are cubed away

# Keller Jordan's Muon: five equal steps, singular values above 0.01 end within [0.68, 1.14].
NEWTON_SCHULZ: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5

# The minimax-optimal steps of arXiv 2505.16932 for singular values in [0.001, 1].
_POLAR_EXPRESS_RAW = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
_SAFETY = 1.01  # the paper's margin against rounding that pushes a singular value above one


def polar_express(steps: int = 5) -> Coefficients:
    """Coefficients of Polar Express (arXiv 2505.16932), with its safety factor of 1.01.

    Args:
        steps: number of iterations, at least 1; past the seventh they equal Pion's promotion.

    Raises:
        ValueError: if steps is below 1.
    """
    if steps < 1:
        raise ValueError(f"polar_express needs steps >= 1, got {steps}")
    scaled = tuple((a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in _POLAR_EXPRESS_RAW)
    return (scaled + (PROMOTION,) * steps)[:steps]


POLAR_EXPRESS: Coefficients = polar_express()


def high_pass(promotion_steps: int = 1, suppression_steps: int = 4) -> Coefficients:
    """Coefficients of the high-pass Pion (arXiv 2605.19282): promotion first, then suppression.

    With 1 + 4 steps a direction passes if it holds about 24 % of the squared norm, so up to four
    do; with 0 + 5 it must hold about 64 %, so one does or none. Each further promotion step lets
    about four times as many directions pass.

    Args:
        promotion_steps: steps of 15/8 s - 10/8 s^3 + 3/8 s^5, which lift small singular values.
        suppression_steps: steps of 5/2 s^3 - 3/2 s^5, which split them into zeros and ones.

    Raises:
        ValueError: if a number is negative or both are zero.
    """
    for name, steps in (("promotion", promotion_steps), ("suppression", suppression_steps)):
        if not isinstance(steps, int) or steps < 0:
            raise ValueError(f"{name}_steps must be a non-negative integer, got {steps!r}")
    if promotion_steps + suppression_steps == 0:
        raise ValueError("promotion_steps and suppression_steps are both 0: nothing to apply")
    return (PROMOTION,) * promotion_steps + (SUPPRESSION,) * suppression_steps


def scalar_map(sigma: Tensor, coefficients: Coefficients) -> Tensor:
    """What `spectral_map` does to singular values that are already divided by the norm.

    >>> scalar_map(torch.tensor([1.0, 0.7, 0.3]), high_pass(1, 4)).round(decimals=2)
    tensor([1., 1., 0.])
    """
    for a, b, c in coefficients:
        square = sigma * sigma
        sigma = sigma * (a + square * (b + square * c))
    return sigma


def spectral_map(
    X: Tensor,
    coefficients: Coefficients,
    *,
    eps: float = 1e-7,
    precision: Precision = "auto",
    form: Form = "auto",
) -> Tensor:
    """Map the singular values of each matrix of X, divided by its Frobenius norm + eps.

    Pure: X is not changed. A zero matrix gives zeros. NaN or infinity in a matrix stays in it.

    Args:
        X: (..., m, n), real floating point; leading dimensions are a batch.
        coefficients: (a, b, c) per step, applied in order.
        eps: added to the norm; a matrix with a norm far below it counts as zero.
        precision: dtype of the iteration; "auto" is float64 for float64 input, bfloat16 on a GPU
            that has it, float32 elsewhere (bfloat16 without hardware is 4-40 times slower).
        form: "direct" iterates on X, "gram" on X X^T (cheaper from n = 1.5 m on, and never in
            bfloat16, where X X^T loses the small singular values); "auto" chooses.

    Returns:
        Same shape and dtype as X.

    Raises:
        ValueError: if X is not a real floating-point tensor of at least two dimensions.
    """
    if X.ndim < 2 or not X.is_floating_point():
        raise ValueError(
            "spectral_map needs a real floating-point tensor (..., m, n), "
            f"got shape {tuple(X.shape)} of {X.dtype}"
        )
    if X.numel() == 0:
        return X.clone()
    compute = _compute_dtype(X, precision)
    stack = X.reshape(-1, *X.shape[-2:])
    if tall := stack.shape[1] > stack.shape[2]:
        stack = stack.mT
    iterate = _iteration(stack.shape[1], stack.shape[2], compute, form)
    mapped = iterate(_normalise(stack, eps, compute), tuple(map(tuple, coefficients)))
    return (mapped.mT if tall else mapped).reshape(X.shape).to(X.dtype)


def _compute_dtype(X: Tensor, precision: str) -> torch.dtype:
    if precision != "auto":
        dtypes = {d: getattr(torch, d) for d in ("bfloat16", "float32", "float64")}
        if precision not in dtypes:
            raise ValueError(f"precision is {precision!r}; choose auto, {', '.join(dtypes)}")
        chosen: torch.dtype = dtypes[precision]
        return chosen
    if X.dtype == torch.float64:
        return torch.float64
    if X.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def _normalise(stack: Tensor, eps: float, compute: torch.dtype) -> Tensor:
    wide = stack.to(torch.promote_types(stack.dtype, torch.float32))
    norm = torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True)
    return _flush(wide.div(norm + eps).to(compute))


type _Steps = tuple[tuple[float, float, float], ...]


def _iteration(m: int, n: int, compute: torch.dtype, form: str) -> Callable[..., Tensor]:
    if form not in ("auto", "direct", "gram"):
        raise ValueError(f"form is {form!r}; choose auto, direct or gram")
    # Direct costs 20 m^2 n + 10 m^3 for five steps, Gram 4 m^2 n + 34 m^3: equal at n = 1.5 m.
    pays = n > 1.5 * m and compute != torch.bfloat16
    return _gram if form == "gram" or (form == "auto" and pays) else _direct


def _direct(X: Tensor, steps: _Steps) -> Tensor:
    for a, b, c in steps:
        small = _small(a)
        X = small(X)
        A = small(torch.bmm(X, X.mT))
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, B, X, beta=a)
    return X


def _gram(X: Tensor, steps: _Steps) -> Tensor:
    for segment in _segments(steps, torch.finfo(X.dtype).eps):
        X = torch.bmm(_gram_factor(torch.bmm(X, X.mT), segment), X)
    return X


def _gram_factor(R: Tensor, steps: _Steps) -> Tensor:
    """Q with Q X = the mapped X, from R = X X^T: W = aI + bR + cR^2, Q <- W Q, R <- W R W."""
    Q = None
    for i, (a, b, c) in enumerate(steps):
        small = _small(a)
        R = small(R)
        W = torch.baddbmm(R, R, R, beta=b, alpha=c)
        W.diagonal(dim1=1, dim2=2).add_(a)
        Q = W if Q is None else torch.bmm(W, small(Q))
        if i + 1 < len(steps):
            R = torch.bmm(small(torch.bmm(W, R)), W)
    assert Q is not None  # segments are not empty
    return Q


@cache
def _segments(steps: _Steps, eps: float) -> tuple[_Steps, ...]:
    """Cut the steps where the Gram form must start again from X.

    Rounding gives R eigenvalues of about -eps. Muon's steps multiply those by a^2 each time (12 to
    70), Pion's contract them. A new segment begins before they would reach 1 %.
    """
    segments: list[list[tuple[float, float, float]]] = [[]]
    noise = 4 * eps
    for a, b, c in steps:
        if noise > 1e-2 and segments[-1]:
            segments.append([])
            noise = 4 * eps
        segments[-1].append((a, b, c))
        noise *= (a + b * -noise + c * noise * noise) ** 2
    return tuple(tuple(segment) for segment in segments if segment)


def _flush(X: Tensor) -> Tensor:
    """Zero what is negligible beside norm one, so that no product becomes subnormal.

    Many CPUs take a hundred times longer over such numbers; GPUs do not.
    """
    if X.device.type != "cpu":
        return X
    return torch.nn.functional.hardshrink(X, torch.finfo(X.dtype).tiny ** (1 / 3))


def _small(a: float) -> Callable[[Tensor], Tensor]:
    """What to do with small numbers in a step of slope `a` at zero.

    A step that suppresses leaves s^3: four of them take any small s below the smallest normal
    number. Other steps lift small singular values, and need no pass over the matrices.
    """
    return _flush if a < 1 else lambda X: X
