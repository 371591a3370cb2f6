"""Rollout videos: h264 in mp4, as bytes, so that a worker can send them anywhere."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_QUALITY = "23"  # crf; x264's default, a 5 s episode at 128 px is about 30 kB
_LEAST_HEIGHT = 256  # pixels; players blur smaller videos, so they are enlarged without smoothing


def side_by_side(views: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Join the views of one moment, (H, W, 3) each, to one image (H, sum of W, 3)."""
    return np.concatenate(list(views), axis=1)


def encode_mp4(frames: Sequence[NDArray[np.uint8]], fps: Fraction) -> bytes:
    """Encode frames as an mp4 that browsers play (h264, yuv420p).

    Args:
        frames: (H, W, 3) each, at least one, all of one size.
        fps: frames per second.

    Raises:
        ValueError: no frames, or frames of different sizes.
    """
    import av

    av.logging.set_libav_level(
        av.logging.ERROR
    )  # x264's statistics, once somebody's code lets them out
    if not frames or len({frame.shape for frame in frames}) != 1:
        raise ValueError(
            f"expected frames of one size, got {len(frames)} frames of the sizes "
            f"{sorted({frame.shape for frame in frames})}."
        )
    zoom = max(1, _LEAST_HEIGHT // frames[0].shape[0])
    buffer = io.BytesIO()
    # No "+faststart": it reopens the output by name, and a buffer has none. Videos are embedded or
    # played from disk, so the place of the index does not matter.
    with av.open(buffer, "w", format="mp4") as container:
        # one thread: a worker owns one core, and the bytes do not depend on the machine
        stream = container.add_stream(
            "libx264", rate=fps, options={"crf": _QUALITY, "threads": "1"}
        )
        height, width = (zoom * side // 2 * 2 for side in frames[0].shape[:2])  # yuv420p: even
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            enlarged = frame.repeat(zoom, axis=0).repeat(zoom, axis=1)[:height, :width]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(enlarged), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()
