"""The spectral map of a stack: precision, normalisation, choice of form, cache-sized pieces."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vla_opt.spectral._coefficients import Coefficients
from vla_opt.spectral._factors import Factors, add_product_, product
from vla_opt.spectral._forms import by_gram, direct
from vla_opt.spectral._measures import SpectralMeasures, measures
from vla_opt.spectral._products import flush_, full_float32, gram
from vla_opt.spectral._steps import Steps, as_steps, cheaper_form
from vla_opt.spectral._top import top_eigenvalue

type Precision = Literal["auto", "bfloat16", "float32", "float64"]
type Form = Literal["auto", "direct", "gram"]
type Normalize = Literal["frobenius", "spectral"]

# Above the largest singular value by more than what top_eigenvalue misses where it matters.
SPECTRAL_MARGIN = 1.02

# Matrices that a CPU works on at a time, in elements: they and what is made of them stay in its
# cache, and memory for temporary results is reused instead of being asked of the system each time.
_CPU_PIECE = 1 << 20


class _Options(NamedTuple):
    steps: Steps
    eps: float
    compute: torch.dtype
    form: str
    normalize: str
    measure: bool
    overwrite: bool = False  # the input


@torch.no_grad()
def spectral_map(
    X: Tensor,
    coefficients: Coefficients,
    *,
    eps: float = 1e-7,
    precision: Precision = "auto",
    form: Form = "auto",
    normalize: Normalize = "frobenius",
    regularization: float | Tensor = 0.0,
) -> Tensor:
    """Map the singular values of each matrix of X, divided by its Frobenius norm + eps.

    Pure: X is not changed. A zero matrix gives zeros. NaN or infinity in a matrix stays in it. Not
    differentiable. float32 products are made in float32 even where the process allows TF32.

    Args:
        X: (..., m, n), real floating point; leading dimensions are a batch.
        coefficients: (a, b, c) per step, applied in order.
        eps: added to the norm; a matrix with a norm far below it counts as zero.
        precision: dtype of the iteration; "auto" is float64 for float64 input, bfloat16 on a GPU
            that has it, float32 elsewhere (bfloat16 without hardware is 4-40 times slower).
        form: "direct" iterates on X, "gram" on X X^T, in float32 where X is bfloat16, which alone
            would lose the small singular values; "auto" takes the cheaper.
        normalize: what the singular values are divided by. "spectral" is ours, from no paper: 1.02
            times the largest one, so that under a high-pass list the leading direction always
            passes; the Frobenius norm's meaning of a cut-off as a share of energy is lost.
        regularization: epsilon of arXiv 2605.23871, in the units of X: singular values s enter as
            sqrt(s^2 + epsilon^2), while the result keeps the factor s / sqrt(s^2 + epsilon^2). A
            list that takes all values to one then gives U s / sqrt(s^2 + epsilon^2) V^T. A number,
            or one for each matrix, of shape X.shape[:-2].

    Returns:
        Same shape and dtype as X.

    Raises:
        ValueError: if X is not a real floating-point tensor of at least two dimensions, or an
            option is none.
    """
    options = _checked(X, coefficients, eps, precision, form, normalize, measure=False)
    return _run(X, options, regularization)[0]


@torch.no_grad()
def measured_spectral_map(
    X: Tensor,
    coefficients: Coefficients,
    *,
    eps: float = 1e-7,
    precision: Precision = "auto",
    form: Form = "auto",
    normalize: Normalize = "frobenius",
    regularization: float | Tensor = 0.0,
) -> tuple[Tensor, SpectralMeasures]:
    """`spectral_map` with figures of each matrix, at no further product of matrices.

    Directions passed are a norm of the result; the energy of the leading direction comes from a few
    matrix-vector products with X X^T, which either form makes anyway.

    >>> _, figures = measured_spectral_map(torch.eye(4), ((1.875, -1.25, 0.375),) * 7)
    >>> round(figures.directions_passed.item(), 3), round(figures.stable_rank.item(), 3)
    (4.0, 4.0)
    """
    options = _checked(X, coefficients, eps, precision, form, normalize, measure=True)
    mapped, top_energy = _run(X, options, regularization)
    return mapped, measures(mapped, top_energy.reshape(X.shape[:-2]))


@torch.no_grad()
def add_spectral_map_(
    parts: Sequence[Tensor],
    X: Tensor,
    coefficients: Coefficients,
    *,
    scales: Sequence[float],
    keep: float = 1.0,
    measure: bool = False,
    eps: float = 1e-7,
    precision: Precision = "auto",
    normalize: Normalize = "frobenius",
) -> SpectralMeasures | None:
    """W <- keep W + scale D, in place, where D is `spectral_map(X, ...)`: what optimizers do.

    Faster than the two steps, as the map's last product goes straight into W. All of X is worked on
    at once.

    Args:
        parts: the matrices W as stacks (k, p, q), one after the other as long as X; to each comes
            the upper left corner of its matrices D, which may be larger.
        X: (count, m, n); its memory is used up.
        coefficients: (a, b, c) per step, applied in order.
        scales: one for each part.
        keep: one for all.
        measure: whether to return figures of the mapped matrices; W is the same. The last product
            is then made twice.
        eps: as for `spectral_map`, like all that follow.
        precision: see there.
        normalize: see there.

    Raises:
        ValueError: as for `spectral_map`.

    >>> W, X = torch.zeros(1, 2, 3), 5.0 * torch.eye(2, 3).expand(1, 2, 3).clone()
    >>> add_spectral_map_([W], X, ((1.875, -1.25, 0.375),) * 7, scales=[0.5])
    >>> W
    tensor([[[0.5000, 0.0000, 0.0000],
             [0.0000, 0.5000, 0.0000]]])
    """
    options = _checked(X, coefficients, eps, precision, "auto", normalize, measure=measure)
    options = options._replace(overwrite=True)
    tall = X.shape[1] > X.shape[2]
    figures = None
    with full_float32(X.device):
        factors, top_energy = _piece(X.mT if tall else X, options, None)
        if measure:
            figures = measures(product(factors), top_energy)
        add_product_([W.mT for W in parts] if tall else parts, factors, scales, keep)
    return figures


def _checked(
    X: Tensor,
    coefficients: Coefficients,
    eps: float,
    precision: str,
    form: str,
    normalize: str,
    *,
    measure: bool,
) -> _Options:
    if X.ndim < 2 or not X.is_floating_point():
        raise ValueError(
            "spectral_map needs a real floating-point tensor (..., m, n), "
            f"got shape {tuple(X.shape)} of {X.dtype}"
        )
    if form not in ("auto", "direct", "gram"):
        raise ValueError(f"form is {form!r}; choose auto, direct or gram")
    if normalize not in ("frobenius", "spectral"):
        raise ValueError(f"normalize is {normalize!r}; choose frobenius or spectral")
    compute = _compute_dtype(X, precision)
    return _Options(as_steps(coefficients), eps, compute, form, normalize, measure)


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


def _run(X: Tensor, options: _Options, regularization: float | Tensor) -> tuple[Tensor, Tensor]:
    """The mapped X and, if measured, the leading direction's share of energy per matrix (B,)."""
    count, (m, n) = X.shape[:-2].numel(), X.shape[-2:]
    shares = torch.zeros(count, dtype=torch.float32, device=X.device)
    if X.numel() == 0:
        return X.clone(), shares
    stack = X.reshape(count, m, n)
    epsilon = _per_matrix(regularization, X)
    if m > n:
        stack = stack.mT
    step = count if X.device.type != "cpu" else max(1, _CPU_PIECE // (m * n))
    with full_float32(X.device):
        if step >= count:
            factors, shares = _piece(stack, options, epsilon)
            mapped = product(factors)
        else:
            mapped = torch.empty_like(stack)
            for i in range(0, count, step):
                part = slice(i, i + step)
                some = None if epsilon is None else epsilon[part]
                factors, shares[part] = _piece(stack[part], options, some)
                mapped[part] = product(factors)
    return (mapped.mT if m > n else mapped).reshape(X.shape).to(X.dtype), shares


def _per_matrix(regularization: float | Tensor, X: Tensor) -> Tensor | None:
    """Epsilon as (B, 1, 1), or None for zero."""
    if isinstance(regularization, Tensor):
        if regularization.shape != X.shape[:-2]:
            raise ValueError(
                f"regularization has shape {tuple(regularization.shape)}; expected one number per "
                f"matrix, {tuple(X.shape[:-2])}"
            )
        return regularization.reshape(-1, 1, 1)
    if not regularization >= 0.0:
        raise ValueError(f"regularization must be >= 0, got {regularization!r}")
    if regularization == 0.0:
        return None
    count = X.shape[:-2].numel()
    dtype = torch.promote_types(X.dtype, torch.float32)
    return torch.full((count, 1, 1), float(regularization), dtype=dtype, device=X.device)


def _piece(stack: Tensor, options: _Options, epsilon: Tensor | None) -> tuple[Factors, Tensor]:
    """Wide matrices (B, m, n), m <= n, mapped in the dtype of the iteration; shares (B,)."""
    form = _form(stack, options, regularized=epsilon is not None)
    X, divisor = _normalised(stack, options, epsilon)
    R = gram(X, exact=form == "gram")
    share = torch.zeros(len(X), dtype=torch.float32, device=X.device)
    top = None
    if options.measure or options.normalize == "spectral":
        top = top_eigenvalue(R.to(torch.promote_types(R.dtype, torch.float32)))
        trace = R.diagonal(dim1=1, dim2=2).sum(1)
        share = torch.where(trace > 0.0, top / trace, 0.0).to(torch.float32)
    ridge = None
    if epsilon is not None:
        ridge = (epsilon / divisor).square().to(R.dtype)
        R.diagonal(dim1=1, dim2=2).add_(ridge[:, :, 0])
    if options.normalize == "spectral" and top is not None:
        k = _leading(top, ridge) + options.eps / divisor
        X, R = X.div_(k), R.div_(k.square())
        ridge = None if ridge is None else ridge / k.square().to(ridge.dtype)
    if form == "gram":
        return by_gram(X, R, options.steps, ridge), share
    return direct(X, R, options.steps), share


def _form(stack: Tensor, options: _Options, *, regularized: bool) -> str:
    if regularized and options.form == "direct":
        raise ValueError('regularization works on X X^T: choose form "gram" or "auto"')
    if regularized or options.form != "auto":
        return "gram" if regularized else options.form
    m, n = stack.shape[1:]
    return cheaper_form(m, n, options.steps, options.compute, stack.device)


def _normalised(stack: Tensor, options: _Options, epsilon: Tensor | None) -> tuple[Tensor, Tensor]:
    """X over its norm, and what it was divided by, (B, 1, 1)."""
    wide = stack.to(torch.promote_types(stack.dtype, torch.float32))
    norm = torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True)
    if epsilon is not None:
        norm = torch.hypot(norm, stack.shape[1] ** 0.5 * epsilon.to(norm.dtype))
    divisor = norm + options.eps
    X = wide.div_(divisor) if options.overwrite else wide.div(divisor)
    return flush_(X.to(options.compute)), divisor


def _leading(top: Tensor, ridge: Tensor | None) -> Tensor:
    """A little above the largest singular value, (B, 1, 1), from that of the Gram matrix (B,)."""
    top = top[:, None, None]
    return SPECTRAL_MARGIN * (top if ridge is None else top + ridge).sqrt()
