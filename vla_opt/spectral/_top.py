"""The largest eigenvalue of Gram matrices, by a few matrix-vector products."""

import torch
from torch import Tensor

LANCZOS_STEPS = 16


def top_eigenvalue(R: Tensor, steps: int = LANCZOS_STEPS) -> Tensor:
    """Largest eigenvalue of each positive semi-definite R (B, m, m): (B,), from below.

    Lanczos with full reorthogonalisation from a fixed random vector: exact for m <= steps and for
    matrices of rank below `steps`; otherwise close where one eigenvalue stands out, and a few per
    cent low where many are nearly equal. Costs steps m^2, against m^3 for a product.
    """
    count, m, _ = R.shape
    steps = min(steps, m)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(m, 1, generator=generator, dtype=torch.float64)
    v = (start / start.norm()).to(R).expand(count, m, 1)
    basis, T = R.new_zeros(count, m, steps), R.new_zeros(count, steps, steps)
    for k in range(steps):
        basis[:, :, k] = v[:, :, 0]
        w = torch.bmm(R, v)
        T[:, :, k] = torch.bmm(basis.mT, w)[:, :, 0]
        for _ in range(2):  # once leaves rounding behind
            w = w - torch.bmm(basis, torch.bmm(basis.mT, w))
        norm = torch.linalg.vector_norm(w, dim=1, keepdim=True)
        # A residual of rounding alone: the vectors so far span all that R reaches from the start.
        scale = T.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]
        v = torch.where(norm > 100 * torch.finfo(R.dtype).eps * scale, w / norm, 0.0)
    T = torch.nan_to_num(T.triu() + T.triu(1).mT)
    values: Tensor = torch.linalg.eigvalsh(T)
    return values[:, -1].clamp_min(0.0)
