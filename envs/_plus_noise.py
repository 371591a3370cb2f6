"""The five image corruptions of LIBERO-Plus's sensor noise, drawn from a generator of one's own.

They are those of Hendrycks & Dietterich, "Benchmarking neural network robustness to common
corruptions and perturbations", 2019, with severities of LIBERO-Plus's own, which are read from its
package. Motion blur follows ImageMagick's definition, which the benchmark calls, without
ImageMagick.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float64]

_PLASMA_SIZE = 256
_WIBBLE = 100.0


def motion_blur(image: Image, parameters: Any, rng: np.random.RandomState) -> Image:
    """Blur to one side along a line at a random angle up to 45 degrees.

    Args:
        image: (H, W, 3).
        parameters: (radius, sigma) in pixels.
        rng: draws the angle.
    """
    radius, sigma = parameters
    angle = math.radians(rng.uniform(-45, 45))
    taps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(taps**2) / (2.0 * sigma**2))
    weights /= weights.sum()
    # ImageMagick rounds halves down, and repeats the border.
    columns = np.ceil(taps * math.cos(angle) - 0.5).astype(int)
    rows = np.ceil(taps * math.sin(angle) - 0.5).astype(int)
    height, width = image.shape[:2]
    blurred = np.zeros(image.shape)
    for weight, right, down in zip(weights, columns, rows, strict=True):
        y = np.clip(np.arange(height) + down, 0, height - 1)
        x = np.clip(np.arange(width) + right, 0, width - 1)
        blurred += weight * image[y][:, x]
    return np.clip(np.floor(blurred + 0.5), 0, 255).astype(np.uint8)


def gaussian_blur(image: Image, parameters: Any, rng: np.random.RandomState) -> Image:
    """Blur with a Gaussian; draws nothing.

    Args:
        image: (H, W, 3).
        parameters: sigma in pixels.
        rng: not used.
    """
    return _to_bytes(_gaussian(image / 255.0, parameters))


def zoom_blur(image: Image, parameters: Any, rng: np.random.RandomState) -> Image:
    """Mean of the image and its magnified centre at a row of factors; draws nothing.

    Args:
        image: (H, W, 3), square.
        parameters: the factors, from 1.
        rng: not used.
    """
    x = (image / 255.0).astype(np.float32)
    total = np.zeros_like(x)
    for factor in parameters:
        total += _magnified(x, float(factor))
    return _to_bytes((x + total) / (len(parameters) + 1))


def fog(image: Image, parameters: Any, rng: np.random.RandomState) -> Image:
    """Brighten by a fractal cloud, keeping the brightest value where it was.

    Args:
        image: (H, W, 3).
        parameters: (strength, decay of the cloud's roughness per halving of its grid).
        rng: draws the cloud.
    """
    strength, decay = parameters
    x = image / 255.0
    brightest = x.max()
    height, width = image.shape[:2]
    cloud = plasma(max(_PLASMA_SIZE, _power_of_two(max(height, width))), decay, rng)
    x = x + strength * cloud[:height, :width, None]
    return _to_bytes(x * brightest / (brightest + strength))


def glass_blur(image: Image, parameters: Any, rng: np.random.RandomState) -> Image:
    """Blur, replace pixels by near ones at random, blur again.

    Args:
        image: (H, W, 3).
        parameters: (sigma in pixels, largest distance, rounds).
        rng: draws the distances.
    """
    sigma, distance, rounds = parameters
    x = (_gaussian(image / 255.0, sigma) * 255).astype(np.uint8)
    x = _scattered(x, distance, rounds, rng)
    return _to_bytes(_gaussian(x / 255.0, sigma))


CORRUPTIONS: Sequence[tuple[str, Callable[[Image, Any, np.random.RandomState], Image]]] = (
    ("motion_blur", motion_blur),
    ("gaussian_blur", gaussian_blur),
    ("zoom_blur", zoom_blur),
    ("fog", fog),
    ("glass_blur", glass_blur),
)
"""Name in the benchmark's source, function: ten severities of each, numbered through from 1."""

SEVERITIES = 10


def plasma(size: int, decay: float, rng: np.random.RandomState) -> Floats:
    """A height field on a torus by the diamond-square method.

    Each pass halves the grid: a new point is the mean of its four neighbours plus a draw whose size
    falls by `decay` per pass.

    Args:
        size: side, a power of two.
        decay: larger is smoother.
        rng: draws the field.

    Returns:
        (size, size), from 0 to 1.
    """
    field: Floats = np.zeros((size, size))
    step, wibble = size, _WIBBLE

    def drawn(corner_sum: Floats) -> Floats:
        return corner_sum / 4 + wibble * rng.uniform(-wibble, wibble, corner_sum.shape)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        rows = corners + np.roll(corners, -1, axis=0)
        field[half::step, half::step] = drawn(rows + np.roll(rows, -1, axis=1))
        centres, corners = field[half::step, half::step], field[::step, ::step]
        beside = centres + np.roll(centres, 1, axis=0)
        field[::step, half::step] = drawn(beside + (corners + np.roll(corners, -1, axis=1)))
        above = centres + np.roll(centres, 1, axis=1)
        field[half::step, ::step] = drawn(above + (corners + np.roll(corners, -1, axis=0)))
        step //= 2
        wibble /= decay
    field -= field.min()
    scaled: Floats = field / field.max()
    return scaled


def _gaussian(x: Floats, sigma: float) -> Floats:
    from scipy.ndimage import gaussian_filter

    blurred: Floats = gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=4.0)
    return blurred


def _magnified(x: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """The centre of a square image, magnified to the image's size."""
    from scipy.ndimage import zoom

    side = x.shape[0]
    crop = math.ceil(side / factor)
    top = (side - crop) // 2
    large = zoom(x[top : top + crop, top : top + crop], (factor, factor, 1), order=1)
    trim = (large.shape[0] - side) // 2
    magnified: NDArray[np.float32] = large[trim : trim + side, trim : trim + side]
    return magnified


def _scattered(x: Image, distance: int, rounds: int, rng: np.random.RandomState) -> Image:
    """Each pixel, from the last to the first, takes the present value of a near one.

    The benchmark means to swap the two, but both sides of its swap are views of one array, so the
    second pixel keeps its value. What counts is what it does.
    """
    height, width = x.shape[:2]
    rows, columns = np.mgrid[height - distance : distance : -1, width - distance : distance : -1]
    source = list(range(height * width))
    targets = (rows * width + columns).ravel()
    for _ in range(rounds):
        shift = rng.randint(-distance, distance, size=(len(targets), 2))
        froms = targets + shift[:, 1] * width + shift[:, 0]
        for target, origin in zip(targets.tolist(), froms.tolist(), strict=True):
            source[target] = source[origin]
    return x.reshape(-1, 3)[source].reshape(x.shape)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _to_bytes(x: NDArray[np.floating[Any]]) -> Image:
    """From shares of full brightness; fractions are cut off, as the benchmark does."""
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)
