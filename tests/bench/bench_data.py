"""CPU milliseconds per training sample: from the frame cache, and from stock LeRobotDataset.

    python tests/bench/bench_data.py [--root DATASET] [--batch_size 32] [--chunk_size 8]

A sample is all views, float and channels first, with the state and a chunk of actions. Without
--root a data set of noise with two views of 128 px is written first. CPU seconds are counted, so
that other load on the machine does not change the ratio.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from vla_opt.data import ChunkDataset, ChunkLoader, Episode, FrameCache, build_cache, write_dataset

LIMIT_MS = 1.0


def cpu_ms(run: Callable[[], object], samples: int) -> float:
    start = time.process_time()
    run()
    return (time.process_time() - start) / samples * 1e3


def sample_dataset(root: Path, episodes: int = 10, length: int = 120, size: int = 128) -> Path:
    """Moving noise: harder to encode and to decode than what a simulator renders."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (size + length, size, 3), dtype=np.uint8)
    frames = np.stack([picture[t : t + size] for t in range(length)])
    state = rng.normal(size=(length, 8)).astype(np.float32)
    one = Episode(
        frames={"image": frames, "image2": frames[::-1]}, state=state, action=state[:, :7], task="t"
    )
    return write_dataset([one] * episodes, root)


def ours(cache: FrameCache, chunk_size: int, batch_size: int, batches: int) -> dict[str, float]:
    dataset = ChunkDataset(cache, chunk_size)
    loader = ChunkLoader(dataset, batch_size, seed=0)
    loader.batch(0)

    def gather() -> None:
        for step in range(batches):
            loader.batch(step)

    def make_ready() -> None:
        for step in range(batches):
            dataset.to_policy_batch(loader.batch(step))

    samples = batches * batch_size
    return {
        "frame cache, gathered (uint8)": cpu_ms(gather, samples),
        "frame cache, ready (float)": cpu_ms(make_ready, samples),
    }


def stock(root: Path, backend: str, chunk_size: int, samples: int) -> float:
    from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata

    fps = LeRobotDatasetMetadata("local/bench", root).fps
    chunk = {"action": [i / fps for i in range(chunk_size)]}
    dataset = LeRobotDataset(
        "local/bench", root=root, delta_timestamps=chunk, video_backend=backend
    )
    chosen = np.random.default_rng(0).integers(0, len(dataset), samples).tolist()
    dataset[chosen[0]]
    return cpu_ms(lambda: torch.utils.data.default_collate([dataset[i] for i in chosen]), samples)


def backends() -> list[str]:
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        return ["pyav"]
    return ["torchcodec", "pyav"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--chunk_size", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = options.root
        if root is None:
            start = time.process_time()
            root = sample_dataset(Path(folder) / "dataset")
            written = time.process_time() - start
        start = time.process_time()
        cache = build_cache(root, Path(folder) / "cache")
        decoded = time.process_time() - start
        costs = ours(cache, options.chunk_size, options.batch_size, batches=40)
        for backend in backends():
            costs[f"stock LeRobotDataset, {backend}"] = stock(
                root, backend, options.chunk_size, samples=128
            )
    ready = costs["frame cache, ready (float)"]
    height, width = cache.image_size
    print(f"{len(cache)} frames, {len(cache.camera_keys)} views of {height}x{width}")
    if options.root is None:
        print(f"{written / len(cache) * 1e3:8.3f} CPU ms per frame to write, once (with imports)")
    print(f"{decoded / len(cache) * 1e3:8.3f} CPU ms per frame to build the cache, once")
    for name, cost in costs.items():
        print(f"{cost:8.3f} CPU ms per sample  {name}  ({cost / ready:.0f}x)")
    print(f"limit {LIMIT_MS} ms: {'ok' if ready <= LIMIT_MS else 'EXCEEDED'}")
    return 0 if ready <= LIMIT_MS else 1


if __name__ == "__main__":
    raise SystemExit(main())
