"""Cameras keep the newest picture, and say when there is none."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path

import numpy as np
import pytest

from deploy.cameras import GRABBERS, Image, OpenCvGrabber, ThreadedCamera
from deploy.errors import CameraError, RobotError

LONG_S = 30.0


class Scripted:
    """Gives what it is told to, then waits until it is closed."""

    def __init__(self, *script: Image | Exception | None) -> None:
        self.script, self.closed = list(script), threading.Event()
        self.exhausted = threading.Event()

    def grab(self) -> Image | None:
        if not self.script:
            self.exhausted.set()
            self.closed.wait(0.01)
            return None
        item = self.script.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self.closed.set()


def picture(value: int) -> Image:
    return np.full((2, 3, 3), value, np.uint8)


def test_the_newest_picture_is_kept_and_missed_ones_change_nothing() -> None:
    device = Scripted(picture(1), None, picture(2), None)
    camera = ThreadedCamera("left", device, first_s=LONG_S)
    assert device.exhausted.wait(LONG_S)
    latest = camera.latest()
    assert latest.number == 2
    assert latest.image[0, 0, 0] == 2
    assert camera.latest() is latest  # frozen: the same picture, ever older
    camera.close()
    assert device.closed.is_set()


def test_a_camera_without_a_picture_is_an_error_that_names_it() -> None:
    with pytest.raises(CameraError, match="'left' gave no picture"):
        ThreadedCamera("left", Scripted(), first_s=0.05)


def test_a_camera_that_fails_later_says_so_when_asked() -> None:
    device = Scripted(picture(1))
    camera = ThreadedCamera("left", device, first_s=LONG_S)
    device.script.append(RuntimeError("unplugged"))
    assert device.closed.wait(LONG_S)
    with pytest.raises(CameraError, match="unplugged"):
        camera.latest()


def test_opencv_pictures_come_as_rgb(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "red.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 2] = 255  # OpenCV's order is BGR
    for _ in range(3):
        writer.write(red)
    writer.release()
    grabber = OpenCvGrabber(str(path))
    image = grabber.grab()
    assert image is not None
    assert image.shape == (48, 64, 3)
    assert image[24, 32, 0] > 200
    assert image[24, 32, 2] < 60
    grabber.close()


def test_a_camera_that_opencv_cannot_open_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="opens no camera"):
        OpenCvGrabber(str(tmp_path / "none.avi"))


@pytest.mark.parametrize(("kind", "module"), [("realsense", "pyrealsense2"), ("zed", "pyzed")])
def test_a_missing_vendor_package_is_named(kind: str, module: str) -> None:
    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    with pytest.raises(RobotError, match=f"needs the package {module}"):
        GRABBERS[kind]("123")
