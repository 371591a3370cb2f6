"""Pictures of other formats, as data sets hold them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_opt.errors import DataError

Frames = NDArray[np.uint8]


def upright(frames: NDArray[Any]) -> Frames:
    """Turn LIBERO's raw renderings, which stand on their head, by half a turn: (T, H, W, 3)."""
    return np.ascontiguousarray(frames[:, ::-1, ::-1])


def resized(frames: Frames, height: int, width: int) -> Frames:
    """Scale (T, H, W, 3), bicubic with averaging, as openpi prepares DROID."""
    from PIL import Image

    if frames.shape[1:3] == (height, width):
        return frames
    scaled = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
        for frame in frames
    ]
    return np.stack(scaled)


def squares(frames: Frames, size: int) -> Frames:
    """Scale to squares; 0 keeps the size."""
    return resized(frames, size, size) if size else frames


def decoded(encoded: list[bytes], where: str) -> Frames:
    """JPEG or PNG pictures of one size: (T, H, W, 3).

    Raises:
        DataError: One is no picture, or they differ in size.
    """
    from PIL import Image, UnidentifiedImageError

    frames = []
    for number, data in enumerate(encoded):
        try:
            frames.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{where}: picture {number} cannot be decoded: {error}") from error
    if len({frame.shape for frame in frames}) != 1:
        raise DataError(f"{where}: expected pictures of one size, got {len(frames)} that differ")
    return np.stack(frames)
