"""What a video encoder costs and spoils, on frames that LIBERO renders.

    python tests/bench/bench_video.py [--suite libero_object] [--tasks 2] [--frames 150]

Per encoder: peak signal-to-noise ratio (mean and worst frame), the largest error of a pixel, bytes
and CPU time per frame. Policies are trained on decoded frames and tested on rendered ones, so what
an encoder spoils is a difference between the two.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_opt._video import VideoReader, VideoWriter, default_encoder


def render(suite: str, task_id: int, count: int, size: int) -> list[NDArray[np.uint8]]:
    """Both views while the arm wanders about and the gripper opens and closes."""
    from envs.libero import LiberoEnv

    env = LiberoEnv(suite, task_id, image_size=size)
    observation, _ = env.reset(seed=task_id)
    rng = np.random.default_rng(task_id)
    views: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in observation["pixels"]}
    for step in range(count):
        if step % 15 == 0:
            action = np.append(
                rng.uniform(-1, 1, 6) * [1, 1, 0.6, 0.3, 0.3, 0.3], rng.choice([-1, 1])
            )
        observation = env.step(action)[0]
        for name, picture in observation["pixels"].items():
            views[name].append(picture)
    env.close()
    return [np.stack(frames) for frames in views.values()]


def encoders() -> dict[str, Any]:
    from lerobot.configs import RGBEncoderConfig

    h264 = {"vcodec": "h264", "g": 10, "crf": 8, "preset": "veryfast"}
    return {
        "default of vla_opt": default_encoder(),
        "  without tune=psnr": RGBEncoderConfig(pix_fmt="yuv444p", **h264),
        "  in yuv420p": RGBEncoderConfig(extra_options={"tune": "psnr"}, **h264),
        "  crf 18, yuv420p": RGBEncoderConfig(**{**h264, "crf": 18}),
        "default of lerobot": RGBEncoderConfig(),
    }


def measure(encoder: Any, videos: list[NDArray[np.uint8]], folder: Path) -> dict[str, float]:
    size, errors, wrote, read = 0, [], 0.0, 0.0
    for number, frames in enumerate(videos):
        path = folder / f"{number}.mp4"
        start = time.process_time()
        writer = VideoWriter(path, fps=20, encoder=encoder)
        writer.write(frames)
        writer.close()
        wrote += time.process_time() - start
        start = time.process_time()
        decoded = VideoReader(path, fps=20).read(0.0, len(frames))
        read += time.process_time() - start
        size += path.stat().st_size
        errors.append(np.abs(frames.astype(np.int16) - decoded))
    count = sum(map(len, videos))
    squares = np.concatenate([(e.astype(float) ** 2).mean((1, 2, 3)) for e in errors])
    psnr = 10 * np.log10(255**2 / np.maximum(squares, 1e-9))
    return {
        "PSNR dB": psnr.mean(),
        "worst": psnr.min(),
        "max error": max(int(e.max()) for e in errors),
        "kB": size / count / 1e3,
        "write ms": wrote / count * 1e3,
        "read ms": read / count * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="libero_object")
    parser.add_argument("--tasks", type=int, default=2)
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    videos = [
        view
        for task_id in range(options.tasks)
        for view in render(options.suite, task_id, options.frames, options.size)
    ]
    print(f"{sum(map(len, videos))} frames of {options.size} px, {options.suite}; per frame:")
    heads = ("PSNR dB", "worst", "max error", "kB", "write ms", "read ms")
    print(f"{'':<20}" + "".join(f"{head:>11}" for head in heads))
    with tempfile.TemporaryDirectory() as folder:
        for name, encoder in encoders().items():
            figures = measure(encoder, videos, Path(folder))
            print(f"{name:<20}" + "".join(f"{figures[h]:>11.4g}" for h in heads), flush=True)


if __name__ == "__main__":
    main()
