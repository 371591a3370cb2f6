"""Camera streams as video files: one encoder over many episodes, one sequential decoder."""

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_opt.errors import DataError

if TYPE_CHECKING:
    from lerobot.configs import RGBEncoderConfig


def default_encoder() -> "RGBEncoderConfig":
    """H.264 with full chroma at crf 8: visually lossless at 128 px and cheap to encode.

    On rendered LIBERO frames of 128 px: 47 dB PSNR, worst frame 44 dB, worst pixel off by 16 of
    255, 4.1 kB per frame. lerobot's default (AV1, yuv420p, crf 30) has 36 dB, worst frame 29 dB,
    worst pixel off by 139, 2.1 kB, and takes three times as long to encode. Half the chroma
    resolution costs most: objects are a few pixels wide, and yuv420p alone loses 6 dB. (Some
    browsers cannot play 4:4:4; for them copy this with ``pix_fmt="yuv420p"``.)
    ``tests/bench/bench_video.py`` measures this.
    """
    from lerobot.configs import RGBEncoderConfig

    return RGBEncoderConfig(
        vcodec="h264",
        pix_fmt="yuv444p",
        g=10,
        crf=8,
        preset="veryfast",
        extra_options={"tune": "psnr"},
    )


class VideoWriter:
    """Writes the frames of consecutive episodes into one file.

    Each episode starts with a key frame, so that it can be cut out without encoding it again.
    """

    def __init__(self, path: Path, *, fps: int, encoder: "RGBEncoderConfig") -> None:
        import av

        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.frames = 0
        self._fps = fps
        self._encoder = encoder
        self._file = open(path, "wb")  # noqa: SIM115  a python file reports a full disk at once
        self._container = av.open(self._file, "w", format="mp4")
        self._stream: Any = None

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append one episode, (T, H, W, 3) uint8."""
        import av
        from av.video.frame import PictureType

        if self._stream is None:
            self._stream = self._open_stream(*frames.shape[1:3])
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = self.frames, Fraction(1, self._fps)
            frame.pict_type = PictureType.I if number == 0 else PictureType.NONE
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def close(self) -> None:
        """Finish the file and check that every frame is in it.

        Raises:
            OSError: The file could not be written, or holds another number of frames.
        """
        import av

        try:
            if self._stream is not None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            self._file.close()
        finally:
            self.abort()
        with av.open(str(self.path)) as container:
            stored = container.streams.video[0].frames
        if stored != self.frames:
            raise OSError(f"{self.path} holds {stored} frames after writing {self.frames}")

    def abort(self) -> None:
        """Let go of the file, finished or not; harmless after `close`.

        The container must be closed by hand: collected as garbage it writes through a file object
        that may be gone, and crashes the process.
        """
        with contextlib.suppress(Exception):
            self._container.close()
        with contextlib.suppress(OSError):
            self._file.close()

    def _open_stream(self, height: int, width: int) -> Any:
        import av

        options = self._encoder.get_codec_options(encoder_threads=1, as_strings=True)
        if av.Codec(self._encoder.vcodec, "w").name == "libx264":
            options["forced-idr"] = "1"
        stream: Any = self._container.add_stream(self._encoder.vcodec, self._fps, options=options)
        stream.pix_fmt = self._encoder.pix_fmt
        stream.width, stream.height = width, height
        stream.time_base = Fraction(1, self._fps)
        return stream


class VideoReader:
    """Decodes stretches of a file from front to back, each frame once."""

    def __init__(self, path: Path, *, fps: float, size: tuple[int, int] | None = None) -> None:
        """Open `path`.

        Args:
            path: The video.
            fps: Frames per second that the data set promises.
            size: (height, width) to scale to; None keeps the size of the video.
        """
        self.path = path
        self._period = 1.0 / fps
        self._size = size
        self._frames: Iterator[tuple[float, Any]] = self._decode()
        self._time = -np.inf

    def read(self, start_s: float, length: int) -> NDArray[np.uint8]:
        """Decode `length` frames from `start_s` seconds on: (T, H, W, 3) uint8 RGB.

        Raises:
            DataError: The file ends early, or holds no frame within half a period of a time.
        """
        if start_s - self._period / 2 < self._time:
            self._frames, self._time = self._decode(), -np.inf
        times = start_s + np.arange(length) * self._period
        return np.stack([self._frame_at(time) for time in times])

    def _frame_at(self, time: float) -> NDArray[np.uint8]:
        for found, frame in self._frames:
            self._time = found
            if self._time >= time - self._period / 2:
                if self._time > time + self._period / 2:
                    raise DataError(
                        f"{self.path} has no frame at {time:.3f} s; the next one is at "
                        f"{self._time:.3f} s. The video and the table of frames do not match."
                    )
                return self._pixels(frame)
        raise DataError(
            f"{self.path} ends before {time:.3f} s, where the data set expects a frame. "
            "The file is truncated: write or download the data set again."
        )

    def _decode(self) -> Iterator[tuple[float, Any]]:
        import av

        try:
            with av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                for frame in container.decode(stream):
                    if frame.pts is not None and stream.time_base is not None:
                        yield float(frame.pts * stream.time_base), frame
        except av.error.InvalidDataError as error:
            raise DataError(
                f"{self.path} is not a readable video ({error.strerror}). It is damaged or "
                "truncated: write or download the data set again."
            ) from error

    def _pixels(self, frame: Any) -> NDArray[np.uint8]:
        if self._size is None or self._size == (frame.height, frame.width):
            pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
            return pixels
        height, width = self._size
        return scale(frame.to_ndarray(format="rgb24"), height, width)


def scale(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize one image, (H, W, 3) uint8, averaging over the pixels that fall together."""
    from PIL import Image

    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
    return np.asarray(resized)


def decode_image(encoded: bytes, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decode one PNG or JPEG to (H, W, 3) uint8 RGB, scaled to `size` (height, width) if given."""
    import io

    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    return pixels if size is None or size == pixels.shape[:2] else scale(pixels, *size)
