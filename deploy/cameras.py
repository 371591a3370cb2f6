"""Cameras behind one interface, each read by a thread that keeps only the newest picture.

The vendors' packages are imported when a camera is opened, never before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.drivers import needed
from deploy.errors import CameraError

logger = logging.getLogger(__name__)

Image = NDArray[np.uint8]  # (H, W, 3) RGB


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        captured: When it was taken, as far as the camera tells; s of `time.time`.
        received: When it arrived here; s of `time.time`.
        number: Counts the pictures of this camera.
    """

    image: Image
    captured: float
    received: float
    number: int


class Camera(Protocol):
    """What an environment asks of a camera."""

    def latest(self) -> Picture:
        """The newest picture; does not wait for a newer one.

        Raises:
            CameraError: There is none yet, or the camera failed.
        """

    def close(self) -> None:
        """Let go of the device."""


class Grabber(Protocol):
    """A device that is asked for one picture after the other."""

    def grab(self) -> Image | None:
        """Wait for the next picture; None if the device missed one."""

    def close(self) -> None:
        """Let go of the device."""


class ThreadedCamera:
    """Reads a `Grabber` on a thread of its own.

    Args:
        name: For messages.
        grabber: The device. It is used on that thread alone.
        first_s: How long the first picture may take.

    Raises:
        CameraError: No picture came.
    """

    def __init__(self, name: str, grabber: Grabber, *, first_s: float = 10.0) -> None:
        self._name, self._grabber = name, grabber
        self._picture: Picture | None = None
        self._error: Exception | None = None
        self._arrived, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"camera {name}")
        self._thread.start()
        if not self._arrived.wait(first_s):
            self.close()
            raise CameraError(f"camera {name!r} gave no picture within {first_s:g} s")
        self.latest()

    def latest(self) -> Picture:
        """See `Camera.latest`."""
        if self._error is not None:
            raise CameraError(f"camera {self._name!r} failed: {self._error}") from self._error
        if self._picture is None:
            raise CameraError(f"camera {self._name!r} has no picture")
        return self._picture

    def close(self) -> None:
        """See `Camera.close`."""
        self._closed.set()
        self._thread.join(5)

    def _run(self) -> None:
        try:
            self._grab_all()
        except Exception as error:  # belongs to whoever asks for a picture, not to this thread
            self._error = error
            self._arrived.set()
        finally:
            self._grabber.close()

    def _grab_all(self) -> None:
        number = 0
        while not self._closed.is_set():
            began = time.time()
            image = self._grabber.grab()
            if image is None:  # a missed picture shows as the age of the one before
                self._closed.wait(0.005)
                continue
            number += 1
            self._picture = Picture(
                image=image, captured=began, received=time.time(), number=number
            )
            self._arrived.set()


class OpenCvGrabber:
    """Any camera that OpenCV opens.

    Args:
        device: Number of the device, or a path or URL.
        width: Wanted picture width; the camera may choose a near one.
        height: Wanted picture height.
        fps: Wanted pictures per second.

    Raises:
        CameraError: OpenCV is not installed or opens no such device.
    """

    def __init__(
        self, device: int | str, *, width: int = 1280, height: int = 720, fps: int = 30
    ) -> None:
        self._cv: Any = needed("cv2", "opencv-python")
        self._capture = self._cv.VideoCapture(device)
        if not self._capture.isOpened():
            raise CameraError(f"OpenCV opens no camera {device!r}: is it connected, and free?")
        for key, value in (
            (self._cv.CAP_PROP_FRAME_WIDTH, width),
            (self._cv.CAP_PROP_FRAME_HEIGHT, height),
            (self._cv.CAP_PROP_FPS, fps),
            (self._cv.CAP_PROP_BUFFERSIZE, 1),
        ):
            self._capture.set(key, value)

    def grab(self) -> Image | None:
        """See `Grabber.grab`."""
        came, image = self._capture.read()
        if not came:
            return None
        return np.ascontiguousarray(image[..., ::-1], dtype=np.uint8)

    def close(self) -> None:
        """See `Grabber.close`."""
        self._capture.release()


class RealSenseGrabber:
    """An Intel RealSense camera; its colour picture.

    Args:
        serial: Serial number, as `rs-enumerate-devices` prints it.
        width: Picture width.
        height: Picture height.
        fps: Pictures per second.

    Raises:
        CameraError: There is no such camera, or it cannot do that.
    """

    def __init__(self, serial: str, *, width: int = 1280, height: int = 720, fps: int = 30) -> None:
        rs: Any = needed("pyrealsense2", "pyrealsense2")
        self._pipeline = rs.pipeline()
        config = rs.config()
        config.enable_device(serial)
        config.enable_stream(rs.stream.color, width, height, rs.format.rgb8, fps)
        try:
            self._pipeline.start(config)
        except RuntimeError as error:
            raise CameraError(f"RealSense {serial} does not start: {error}") from error

    def grab(self) -> Image | None:
        """See `Grabber.grab`."""
        try:
            frame = self._pipeline.wait_for_frames(1000).get_color_frame()
        except RuntimeError:  # none within a second
            return None
        return np.array(frame.get_data(), dtype=np.uint8) if frame else None

    def close(self) -> None:
        """See `Grabber.close`."""
        self._pipeline.stop()


class ZedGrabber:
    """A Stereolabs ZED; the picture of its left eye, the one that DROID's policies see.

    Args:
        serial: Serial number.
        fps: Pictures per second, at 1280x720.

    Raises:
        CameraError: There is no such camera.
    """

    def __init__(self, serial: str, *, fps: int = 30) -> None:
        self._sl: Any = needed("pyzed.sl", "pyzed (comes with Stereolabs' SDK)")
        settings = self._sl.InitParameters()
        settings.set_from_serial_number(int(serial))
        settings.camera_resolution = self._sl.RESOLUTION.HD720
        settings.camera_fps = fps
        settings.depth_mode = self._sl.DEPTH_MODE.NONE
        self._zed = self._sl.Camera()
        status = self._zed.open(settings)
        if status != self._sl.ERROR_CODE.SUCCESS:
            raise CameraError(f"ZED {serial} does not open: {status}")
        self._buffer = self._sl.Mat()

    def grab(self) -> Image | None:
        """See `Grabber.grab`."""
        if self._zed.grab() != self._sl.ERROR_CODE.SUCCESS:
            return None
        self._zed.retrieve_image(self._buffer, self._sl.VIEW.LEFT)
        bgra = self._buffer.get_data()
        return np.ascontiguousarray(bgra[..., 2::-1], dtype=np.uint8)

    def close(self) -> None:
        """See `Grabber.close`."""
        self._zed.close()


GRABBERS: Mapping[str, Callable[..., Grabber]] = {
    "opencv": OpenCvGrabber,
    "realsense": RealSenseGrabber,
    "zed": ZedGrabber,
}
"""Kind of camera -> what opens it; the first argument is the device or its serial number."""
