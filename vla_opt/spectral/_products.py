"""Batched products of (B, m, m) and (B, m, n) matrices, and what keeps them fast on a CPU."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# A product that is symmetric needs half its blocks. From these sides on smaller blocks multiply as
# fast as the whole, for short and for long sums (measured with MKL: 22 % saved at 2 blocks, 33 % at
# 4; blocks of 64 rows cost more than they save where it uses AVX-512).
_BLOCK, _BLOCK_OF_LONG_SUMS = 192, 128
_MAX_BLOCKS = 8


def symmetric_product(
    A: Tensor, B: Tensor, plus: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0
) -> Tensor:
    """A B, or alpha A B + beta plus, known to be symmetric: (B, m, k) times (B, k, m).

    Blocks above the diagonal are copies of those below. On a GPU the whole product is one kernel.
    """
    m, k = A.shape[1:]
    blocks = _blocks(m, k, A.device)
    if blocks < 2 or A.dtype == torch.bfloat16:
        if plus is None:
            return torch.bmm(A, B)
        return torch.baddbmm(plus, A, B, alpha=alpha, beta=beta)
    side = -(-m // (16 * blocks)) * 16  # a multiple of the vector width
    C = A.new_empty(A.shape[0], m, m)
    for i in range(0, m, side):
        rows, columns = slice(i, i + side), slice(0, i + side)
        left, right, out = A[:, rows], B[:, :, columns], C[:, rows, columns]
        if plus is None:
            torch.bmm(left, right, out=out)
        else:
            torch.baddbmm(plus[:, rows, columns], left, right, alpha=alpha, beta=beta, out=out)
    for i in range(side, m, side):
        C[:, :i, i : i + side] = C[:, i : i + side, :i].mT
    return C


def symmetric_share(m: int, k: int, device: torch.device) -> float:
    """Multiplications that `symmetric_product` makes, relative to the whole product."""
    blocks = max(1, _blocks(m, k, device))
    return (blocks + 1) / (2 * blocks)


def _blocks(m: int, k: int, device: torch.device) -> int:
    if device.type != "cpu":
        return 1
    return min(_MAX_BLOCKS, m // (_BLOCK_OF_LONG_SUMS if k >= 4 * m else _BLOCK))


def gram(X: Tensor, *, exact: bool = False) -> Tensor:
    """X X^T, (B, m, m); `exact` accumulates and returns float32 where X is bfloat16."""
    if exact and X.dtype == torch.bfloat16:
        if X.is_cuda:
            return torch.bmm(X, X.mT, out_dtype=torch.float32)
        X = X.float()
    return symmetric_product(X, X.mT)


def scaled_product(W: Tensor, X: Tensor, a: float = 0.0) -> Tensor:
    """W X + a X, with W (B, m, m) symmetric; in memory the result lies as X does.

    A tall matrix comes as a transposed view. Copying it costs more than this care.
    """
    if X.stride(2) != 1 and X.stride(1) == 1:
        Y = X.mT
        return (torch.baddbmm(Y, Y, W, beta=a) if a else torch.bmm(Y, W)).mT
    return torch.baddbmm(X, W, X, beta=a) if a else torch.bmm(W, X)


def flush_(X: Tensor) -> Tensor:
    """Zero, in place, what is negligible beside norm one, so that no product becomes subnormal.

    Many CPUs take a hundred times longer over such numbers; GPUs do not.
    """
    if X.device.type == "cpu":
        torch.ops.aten.hardshrink.out(X, negligible(X.dtype), out=X)
    return X


def negligible(dtype: torch.dtype) -> float:
    """What counts as zero beside one: three such factors are still normal numbers."""
    return math.cbrt(torch.finfo(dtype).tiny)


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Within: float32 products in float32, whatever the process allows elsewhere.

    TF32 has ten bits of mantissa; rounding like that makes the Gram form's small eigenvalues
    negative, which Muon's steps then multiply. bfloat16 in place of float32, which
    `torch.set_float32_matmul_precision("medium")` allows, likewise.
    """
    backends: Any = torch.backends
    matmul = (backends.cuda if device.type == "cuda" else backends.mkldnn).matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "ieee"
        yield
    finally:
        matmul.fp32_precision = before
