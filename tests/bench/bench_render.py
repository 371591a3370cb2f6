"""What each simplification of the `fast` render profile costs in fidelity and gains in time.

    python tests/bench/bench_render.py [--suites libero_object libero_spatial] [--looks 6]

The same simulator states are drawn by the `exact` profile and by others. Differences are of 8-bit
pixel values over both views; the baseline to read them against is how much a picture changes while
the arm moves for eight control steps.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np

from envs._decimate import Decimation
from envs.libero import LiberoEnv
from envs.rendering import RENDER_PROFILES, RenderProfile

CHUNK = 8
VARIANTS = {
    "exact": RENDER_PROFILES["exact"],
    "decimated meshes": RenderProfile(name="decimated", decimation=Decimation()),
    "no reflections": RenderProfile(name="flat", reflections=False),
    "no multisampling": RenderProfile(name="aliased", samples=0),
    "all three (fast)": RENDER_PROFILES["fast"],
}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What one profile drew: `images` (looks, views, H, W, 3) uint8, and CPU seconds per chunk."""

    images: np.ndarray
    seconds: float


def draw(suite: str, task_id: int, size: int, profile: str, looks: int) -> Drawn:
    env = LiberoEnv(suite, task_id, image_size=size, render_profile=profile)
    env.reset(seed=0, options={"init_state": 0})
    actions = np.random.default_rng(0).uniform(-0.6, 0.6, (looks, CHUNK, 7))
    images, seconds = [], 0.0
    for chunk in actions:
        start = time.process_time()
        seen = env.step_chunk(chunk)[0]
        seconds += time.process_time() - start
        images.append(np.stack([seen["pixels"][view] for view in sorted(seen["pixels"])]))
    env.close()
    return Drawn(images=np.stack(images), seconds=seconds / looks)


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Mean absolute difference, share of pixels off by more than 16, and PSNR in dB."""
    error = np.abs(a.astype(np.float64) - b)
    worst = error.max(axis=-1)
    mse = float((error**2).mean())
    psnr = 10 * np.log10(255**2 / mse) if mse else float("inf")
    return float(error.mean()), float((worst > 16).mean()), psnr


def report(suite: str, task_id: int, size: int, looks: int) -> None:
    drawn = {}
    for label, profile in VARIANTS.items():
        RENDER_PROFILES.setdefault(profile.name, profile)
        drawn[label] = draw(suite, task_id, size, profile.name, looks)
    truth = drawn["exact"]
    print(f"\n{suite}/{task_id}, {size} px, {looks} looks")
    print(f"{'':28}{'mean |d|':>9}{'> 16':>8}{'PSNR dB':>9}{'CPU ms/chunk':>14}")
    rows = [(label, d.images, truth.images, d.seconds) for label, d in drawn.items()]
    rows.append(("eight control steps later", truth.images[1:], truth.images[:-1], None))
    for label, images, reference, seconds in rows:
        mean, off, psnr = difference(images, reference)
        cost = "" if seconds is None else f"{1000 * seconds:14.0f}"
        print(f"{label:28}{mean:9.2f}{off:8.1%}{psnr:9.1f}{cost}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suites", nargs="+", default=["libero_object", "libero_spatial"])
    parser.add_argument("--task_id", type=int, default=0)
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--looks", type=int, default=6)
    args = parser.parse_args()
    for suite in args.suites:
        report(suite, args.task_id, args.image_size, args.looks)


if __name__ == "__main__":
    main()
