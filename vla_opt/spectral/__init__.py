"""Odd-polynomial maps of the singular values of a stack of matrices.

Every matrix optimizer of this project is one such map, applied to a momentum: the singular vectors
stay, each singular value s becomes p_k(...p_1(s / norm)...), where p_i(s) = a s + b s^3 + c s^5.
Muon drives all singular values towards one (arXiv 2502.16982); the high-pass Pion keeps the leading
ones and drives the others to zero (arXiv 2605.19282, appendix E).

Nothing here needs an SVD: p(X) = a X + (b A + c A^2) X with A = X X^T costs three products.
"""

from vla_opt.spectral._coefficients import (
    CUBIC,
    KAON,
    LOW_PASS,
    NEWTON_SCHULZ,
    POLAR_EXPRESS,
    PROMOTION,
    SUPPRESSION,
    YOU,
    Coefficients,
    between,
    high_pass,
    high_pass_at,
    kaon,
    polar_express,
    scalar_map,
)
from vla_opt.spectral._map import (
    SPECTRAL_MARGIN,
    Form,
    Normalize,
    Precision,
    add_spectral_map_,
    measured_spectral_map,
    spectral_map,
)
from vla_opt.spectral._measures import SpectralMeasures
from vla_opt.spectral._top import top_eigenvalue

__all__ = [
    "CUBIC",
    "KAON",
    "LOW_PASS",
    "NEWTON_SCHULZ",
    "POLAR_EXPRESS",
    "PROMOTION",
    "SPECTRAL_MARGIN",
    "SUPPRESSION",
    "YOU",
    "Coefficients",
    "Form",
    "Normalize",
    "Precision",
    "SpectralMeasures",
    "add_spectral_map_",
    "between",
    "high_pass",
    "high_pass_at",
    "kaon",
    "measured_spectral_map",
    "polar_express",
    "scalar_map",
    "spectral_map",
    "top_eigenvalue",
]
