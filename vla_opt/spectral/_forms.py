"""The iteration itself, in its two forms; matrices arrive wide, normalised, with their Gram matrix.

Direct: A = X X^T, X <- a X + (b A + c A^2) X, three products per step.
Gram: everything happens on R = X X^T; Q gathers the factors and meets X once, at the end. Cheaper
for wide matrices, and all its products but two are symmetric.
"""

from functools import cache

import torch
from torch import Tensor

from vla_opt.spectral._factors import Factors
from vla_opt.spectral._products import (
    flush_,
    gram,
    negligible,
    scaled_product,
    symmetric_product,
)
from vla_opt.spectral._steps import Steps, segments

_WORTH_ASKING = 48  # rows


def direct(X: Tensor, A: Tensor, steps: Steps) -> Factors:
    """Map X (B, m, n) by iterating on it. X and its Gram matrix A are used up."""
    count, kept = X.shape[0], None
    for i, (a, b, c) in enumerate(steps):
        if a < 1:
            alive = _alive(A, steps[i:])
            if alive is not None:
                X, A, kept = X[alive], A[alive], _narrowed(kept, alive)
                if not len(alive):
                    return Factors(A, X, 0.0, kept, count)
            flush_(A)
        W = _factor(A, b, c)
        if i + 1 == len(steps):
            return Factors(W, X, a, kept, count)
        X = scaled_product(W, X, a)
        if steps[i + 1][0] < 1:
            flush_(X)
        A = gram(X)
    return Factors(torch.zeros_like(A), X, 1.0, None, count)  # no steps


def by_gram(X: Tensor, R: Tensor, steps: Steps, ridge: Tensor | None = None) -> Factors:
    """Map X (B, m, n) by iterating on R, its Gram matrix. R is used up.

    Args:
        X: normalised matrices; may be bfloat16 where R is float32.
        R: X X^T, plus ridge times the identity.
        steps: (a, b, c) each.
        ridge: (B, 1, 1), what was added to R's diagonal.
    """
    count, kept, Q = X.shape[0], None, None
    E = None if ridge is None else ridge.sqrt() * _identity_like(R)
    for segment in segments(steps, torch.finfo(R.dtype).eps):
        if Q is not None:
            X = scaled_product(Q.to(X.dtype), X)
            E = None if E is None else torch.bmm(Q, E)
            R = gram(X, exact=True) if E is None else gram(X, exact=True) + gram(E)
        Q, alive = _gram_factor(R, segment)
        if alive is not None:
            X, E, kept = X[alive], None if E is None else E[alive], _narrowed(kept, alive)
    assert Q is not None  # one step at least
    return Factors(Q.to(X.dtype), X, 0.0, kept, count)


def _identity_like(R: Tensor) -> Tensor:
    return torch.eye(R.shape[1], dtype=R.dtype, device=R.device)


def _gram_factor(R: Tensor, steps: Steps) -> tuple[Tensor, Tensor | None]:
    """Q with Q X = the mapped X, from R = X X^T: W = aI + bR + cR^2, Q <- W Q, R <- W R W.

    With it the indices of the matrices that are still there, if some have vanished.
    """
    Q, kept = None, None
    for i, (a, b, c) in enumerate(steps):
        if a < 1:
            alive = _alive(R, steps[i:])
            if alive is not None:
                R, Q, kept = R[alive], None if Q is None else Q[alive], _narrowed(kept, alive)
                if not len(alive):
                    return R, kept
            flush_(R)
            Q = None if Q is None else flush_(Q)
        W = _factor(R, b, c)
        W.diagonal(dim1=1, dim2=2).add_(a)
        Q = W if Q is None else symmetric_product(W, Q)
        if i + 1 < len(steps):
            V = symmetric_product(W, R)
            R = symmetric_product(flush_(V) if a < 1 else V, W)
    assert Q is not None  # segments are not empty
    return Q, kept


def _factor(A: Tensor, b: float, c: float) -> Tensor:
    """b A + c A^2, a new tensor."""
    return A * b if c == 0.0 else symmetric_product(A, A, A, alpha=c, beta=b)


# Matrices of which nothing passes ---------------------------------------------------------------


def _alive(A: Tensor, steps: Steps) -> Tensor | None:
    """Indices of the matrices whose map is not negligible beside one; None if that is all of them.

    On a CPU alone: elsewhere the answer would have to be waited for. Small matrices take less time
    than the question.
    """
    if A.device.type != "cpu" or A.shape[1] < _WORTH_ASKING or torch.compiler.is_compiling():
        return None
    square_norm = A.diagonal(dim1=1, dim2=2).sum(1)
    limit = vanishing_norm(steps, negligible(A.dtype))
    alive = ~(square_norm < limit * limit)  # of NaN too
    return None if alive.all() else alive.nonzero().squeeze(1)


@cache
def vanishing_norm(steps: Steps, negligible_value: float) -> float:
    """The largest norm of X, up to 1 %, below which the map certainly is negligible."""
    low, high = 1e-200, 1.0
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _bound(middle, steps) < negligible_value else (low, middle)
        if high / low < 1.01:
            break
    return low


def _bound(s: float, steps: Steps) -> float:
    """What no singular value up to `s` can exceed after `steps`."""
    for a, b, c in steps:
        if s > 1.0:
            return s
        s = abs(a) * s + abs(b) * s**3 + abs(c) * s**5
    return s


def _narrowed(kept: Tensor | None, alive: Tensor) -> Tensor:
    return alive if kept is None else kept[alive]
