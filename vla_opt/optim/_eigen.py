"""Singular vectors where a polynomial will not do, by an eigendecomposition of the Gram matrix."""

import math

import torch
from torch import Tensor

# Beside the largest singular value; below it float32 momenta hold rounding alone.
_RANK_TOLERANCE = 1e-6


def left_singular(X: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors U (B, m, r) and singular values (B, r), ascending, r = min(m, n).

    Both in float64, where squaring in the Gram matrix costs nothing that float32 input has; a
    fraction of the time of an SVD of wide matrices. Singular values below 1e-6 of the largest
    come as zero.
    """
    X = X.to(torch.float64)
    scale = X.abs().amax((1, 2), keepdim=True)
    X = X / torch.where(scale > 0.0, scale, 1.0)
    values, U = torch.linalg.eigh(torch.bmm(X, X.mT))
    sigma = values.clamp_min(0.0).sqrt()
    sigma = torch.where(sigma > _RANK_TOLERANCE * sigma[:, -1:], sigma, 0.0)
    rank = min(X.shape[1:])
    return U[:, :, -rank:], sigma[:, -rank:] * scale[:, :, 0]


def with_singular_values(X: Tensor, U: Tensor, sigma: Tensor, target: Tensor) -> Tensor:
    """X with singular values `target` (B, r) in place of `sigma`, zero where that is zero."""
    ratio = torch.where(sigma > 0.0, target / sigma, 0.0)
    P = torch.bmm(U * ratio[:, None, :], U.mT)
    return torch.bmm(P, X.to(P.dtype)).to(X.dtype)


def matched(D: Tensor) -> Tensor:
    """Directions (count, m, n) scaled to the norm of an orthogonal matrix, sqrt(min(m, n))."""
    norm = torch.linalg.vector_norm(D, dim=(1, 2), keepdim=True)
    return D * torch.where(norm > 0.0, math.sqrt(min(D.shape[1:])) / norm, 0.0)
