"""Pictures as openpi's policies take them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploy.errors import ProtocolError

Picture = NDArray[np.uint8]  # (H, W, 3) RGB


def resize_with_pad(picture: Picture, height: int, width: int) -> Picture:
    """Scale a picture into a frame without distorting it; bilinear, black bars, centred.

    Exactly openpi's function of that name: a policy was trained on its pictures.

    Args:
        picture: (h, w, 3).
        height: Of the frame.
        width: Of the frame.

    Returns:
        (height, width, 3); `picture` itself where it has that size already.
    """
    h, w = picture.shape[:2]
    if (h, w) == (height, width):
        return picture
    ratio = max(w / width, h / height)
    small_h, small_w = int(h / ratio), int(w / ratio)
    small = Image.fromarray(picture).resize((small_w, small_h), Image.Resampling.BILINEAR)
    framed = np.zeros((height, width, 3), np.uint8)
    top, left = max(0, (height - small_h) // 2), max(0, (width - small_w) // 2)
    framed[top : top + small_h, left : left + small_w] = np.asarray(small)
    return framed


def without_bars(picture: Picture, height: int, width: int) -> Picture:
    """Undo `resize_with_pad`, as far as its size goes, for a policy of another shape of picture.

    openpi's clients frame whatever they see in a square. A policy that was trained on the pictures
    themselves would see them smaller than it knows them, and framed a second time.

    Args:
        picture: (h, w, 3).
        height: Of the pictures the policy knows.
        width: Of them.

    Returns:
        The part inside the bars that a (height, width) picture would have been given, or `picture`
        where there is something else than black.
    """
    h, w = picture.shape[:2]
    ratio = max(width / w, height / h)
    inner_h, inner_w = int(height / ratio), int(width / ratio)
    top, left = (h - inner_h) // 2, (w - inner_w) // 2
    inner = picture[top : top + inner_h, left : left + inner_w]
    framed = np.count_nonzero(inner) == np.count_nonzero(picture)
    return inner if framed and inner.size else picture


def as_picture(value: Any, name: str) -> Picture:
    """Read a picture from a request as openpi does.

    Floats are taken for [0, 1], and (3, H, W) is turned to (H, W, 3).

    Args:
        value: What came.
        name: Its key.

    Raises:
        ProtocolError: It is no picture.
    """
    if not isinstance(value, np.ndarray) or value.ndim != 3 or value.dtype.kind not in "fu":
        got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value)
        raise ProtocolError(f"`{name}` must be a picture (H, W, 3) of uint8, got {got}.")
    if value.shape[0] == 3 and value.shape[2] != 3:
        value = value.transpose(1, 2, 0)
    if value.shape[2] != 3 or not value.size:
        raise ProtocolError(f"`{name}` must be a picture (H, W, 3), got {value.shape}.")
    if value.dtype.kind == "f":
        if not np.isfinite(value).all():
            raise ProtocolError(f"`{name}` holds numbers that are not finite.")
        value = (255 * value.clip(0, 1)).astype(np.uint8)
    elif value.dtype != np.uint8:
        raise ProtocolError(f"`{name}` must be of uint8, got {value.dtype}.")
    return np.ascontiguousarray(value)
