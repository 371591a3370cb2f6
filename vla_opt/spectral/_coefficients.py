"""Lists of odd quintics s -> a s + b s^3 + c s^5, with their sources, and what they do to a number.

A list acts on singular values that were divided by the Frobenius norm, hence lie in [0, 1].
"""

from collections.abc import Sequence

from torch import Tensor

type Coefficients = Sequence[tuple[float, float, float]]

PROMOTION = (15 / 8, -10 / 8, 3 / 8)  # largest slope at 0 among the monotone maps with f(1) = 1
SUPPRESSION = (0.0, 5 / 2, -3 / 2)  # slope 0 at 0: small singular values are cubed away

# Keller Jordan's Muon: five equal steps, singular values above 0.01 end within [0.68, 1.14].
NEWTON_SCHULZ: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5

# Jiacheng You's five different steps for Muon (2025): as far up, and flatter at the end.
YOU: Coefficients = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)

# Cubics (arXiv 2606.00371): without c a step needs two products instead of three.
CUBIC: Coefficients = (
    (3.36566, -3.34210, 0.0),
    (2.57444, -1.49574, 0.0),
    (2.53690, -1.43126, 0.0),
    (2.44189, -1.27640, 0.0),
    (2.22305, -0.963065, 0.0),
)

# The negative control of arXiv 2605.19282, appendix L, whose numbers are not published; fitted by
# tests/bench/fit_low_pass.py: [0.05, 0.5] ends within [0.997, 1.001], [0.75, 1] below 0.002.
LOW_PASS: Coefficients = (
    (1.642213, -1.452098, 0.566883),
    (2.636269, -2.089287, 0.697749),
    (2.087229, -3.233439, 1.54063),
    (1.988708, -3.635962, 2.627999),
    (2.581627, -2.815852, 0.767734),
)

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


def between(promotion: float) -> tuple[float, float, float]:
    """The quintic this far from suppression (0) towards promotion (1).

    f(1) = 1, f'(1) = 0, f''(1) <= 0 and f monotone on [0, 1] leave one free number, the slope at
    zero, here 15/8 promotion (arXiv 2605.19282, appendix E): Pion's two maps are its ends.

    Raises:
        ValueError: promotion is not in [0, 1].

    >>> between(0.0) == SUPPRESSION, between(1.0) == PROMOTION
    (True, True)
    """
    if not 0.0 <= promotion <= 1.0:
        raise ValueError(f"promotion must lie in [0, 1], got {promotion!r}")
    ends = zip(PROMOTION, SUPPRESSION, strict=True)
    a, b, c = (promotion * up + (1.0 - promotion) * down for up, down in ends)
    return a, b, c


def high_pass_at(share: float, steps: int = 5) -> Coefficients:
    """A high-pass list by what it takes to pass, between those of whole numbers of steps; ours.

    Promotion steps, one quintic `between`, suppression steps: as many of each as place the output
    0.5 at a direction that holds `share` of the squared norm, so that at most 1 / share pass.

    Args:
        share: 0.636 for five steps is high_pass(0, 5), 0.242 is high_pass(1, 4), 0.0692
            high_pass(2, 3), ...
        steps: the list's length.

    Raises:
        ValueError: no list of this length does it; the message gives the possible range.
    """
    low, high = (_half_share(_mixture(level, steps)) for level in (float(steps), 0.0))
    if not low <= share <= high:
        raise ValueError(f"{steps} steps reach shares from {low:.3g} to {high:.3g}, not {share!r}")
    least, most = 0.0, float(steps)
    for _ in range(50):
        middle = (least + most) / 2
        if _half_share(_mixture(middle, steps)) > share:
            least = middle
        else:
            most = middle
    return _mixture(most, steps)


def _mixture(level: float, steps: int) -> Coefficients:
    """`level` promotion steps of `steps`, the fraction as one quintic in between."""
    if steps < 1:
        raise ValueError(f"high_pass_at needs steps >= 1, got {steps}")
    return tuple(between(min(1.0, max(0.0, level - i))) for i in range(steps))


def _half_share(coefficients: Coefficients) -> float:
    """Square of the number that a monotone list maps to 0.5."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        value = middle
        for a, b, c in coefficients:
            value = a * value + b * value**3 + c * value**5
        low, high = (middle, high) if value < 0.5 else (low, middle)
    return high * high


def kaon(steps: int = 5) -> Coefficients:
    """Coefficients of Kaon, a control: X <- 4.1 (I - X X^T)^2 X, at the end over 1.175.

    Singular values end anywhere in [0, 1], chaotically (arXiv 2605.11181). Where it trains as
    well as Muon or Pion, the spectrum of the update is not the reason.

    Raises:
        ValueError: if steps is below 1.
    """
    if steps < 1:
        raise ValueError(f"kaon needs steps >= 1, got {steps}")
    chaotic = (4.1, -8.2, 4.1)
    a, b, c = chaotic
    return (*(chaotic,) * (steps - 1), (a / 1.175, b / 1.175, c / 1.175))


KAON: Coefficients = kaon()


def scalar_map(sigma: Tensor, coefficients: Coefficients) -> Tensor:
    """What `spectral_map` does to singular values that are already divided by the norm.

    >>> import torch
    >>> scalar_map(torch.tensor([1.0, 0.7, 0.3]), high_pass(1, 4)).round(decimals=2)
    tensor([1., 1., 0.])
    """
    for a, b, c in coefficients:
        square = sigma * sigma
        sigma = sigma * (a + square * (b + square * c))
    return sigma
