"""Samples per second of `vla-opt train` and of stock `lerobot-train`: one policy, data, batch.

    python tests/bench/bench_train.py [--root runs/quickstart/demos] [--threads 1] [--repeats 2]
    python tests/bench/bench_train.py --policy view_pooling=[2,2] --policy mlp_ratio=2

Both are run as a person would run them, in turns, each in a process of its own with the same number
of threads, AdamW and float32; the times are those of their own logs, the first steps left out.
Stock lerobot decodes the video and runs the frozen encoder for every sample of every step; here
both are done once per frame, which is measured and shown beside. Without a data set one of noise is
written first, whose video is harder to decode than a simulator's.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench_data import sample_dataset

from vla_opt.io import read_jsonl

ROOT = Path(__file__).resolve().parents[2]
TARGET = 3.0
_WARM_UP = 3  # steps that are left out: threads start, files are opened, memory is fetched
_STOCK_LINE = re.compile(r"updt_s:([\d.]+) data_s:([\d.]+)")


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Medians over steps, in seconds.

    Args:
        step: everything between two updates. data: of that, waiting for the batch.
    """

    step: float
    data: float

    @staticmethod
    def of(rows: list[tuple[float, float]]) -> Speed:
        """From (step, data) of every step."""
        used = rows[_WARM_UP:]
        return Speed(
            step=statistics.median(step for step, _ in used),
            data=statistics.median(data for _, data in used),
        )


def run(words: list[str], folder: Path, threads: int) -> tuple[str, float]:
    """Run a command; its output, and the seconds it took."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
    }
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout + done.stderr, time.perf_counter() - start


def ours(options: argparse.Namespace, folder: Path, name: str, steps: int) -> float:
    """Train with `vla-opt train` into `folder / name`; the seconds it took."""
    words = [
        *("vla_opt.cli.train", "--policy.type=" + options.type, "--policy.device=cpu"),
        *(f"--policy.{given}" for given in options.policy),
        *(f"--data.root={options.root}", f"--data.cache_dir={options.cache or folder / 'cache'}"),
        f"--data.frame_stride={options.stride}",
        *("--optimizer.name=adamw", "--scheduler.name=constant", f"--steps={steps}"),
        *(f"--batch_size={options.batch_size}", "--log_every=1", "--save_every=0"),
        *("--spectra_every=0", "--tensorboard=false", f"--num_threads={options.threads}"),
        f"--output_dir={folder / name}",
    ]
    return run(words, folder, options.threads)[1]


def speed_of_ours(folder: Path) -> Speed:
    """What a run has logged."""
    rows = [row for row in read_jsonl(folder / "log.jsonl") if row["kind"] == "train"]
    return Speed.of([(row["step_s"], row["data_s"]) for row in rows])


def stock(options: argparse.Namespace, folder: Path, name: str, workers: int) -> Speed:
    """Train with `lerobot-train`."""
    words = [
        *("lerobot.scripts.lerobot_train", "--policy.discover_packages_path=policies"),
        *("--policy.type=" + options.type, "--policy.device=cpu"),
        *(f"--policy.{given}" for given in options.policy),
        *("--dataset.repo_id=local/bench", f"--dataset.root={options.root}"),
        f"--num_workers={workers}",
        *([f"--dataset.video_backend={options.backend}"] if options.backend else ()),
        *(f"--steps={options.steps}", f"--batch_size={options.batch_size}", "--log_freq=1"),
        *("--save_checkpoint=false", "--wandb.enable=false", f"--output_dir={folder / name}"),
    ]
    said, _ = run(words, folder, options.threads)
    found = [(float(u), float(d)) for u, d in _STOCK_LINE.findall(said)]
    if len(found) <= _WARM_UP:
        raise SystemExit(f"lerobot-train logged {len(found)} steps, expected {options.steps}")
    return Speed.of([(update + data, data) for update, data in found])


def measure(
    options: argparse.Namespace, folder: Path
) -> tuple[dict[str, list[Speed]], float | None]:
    """Speeds of every repeat by name, and the seconds that frames and features cost once."""
    once = None
    if options.cache is None:
        once = ours(options, folder, "first", 1) - ours(options, folder, "second", 1)
    found: dict[str, list[Speed]] = {}
    for number in range(options.repeats):
        ours(options, folder, f"ours{number}", options.steps)
        found.setdefault("vla-opt train", []).append(speed_of_ours(folder / f"ours{number}"))
        for workers in options.workers:
            speed = stock(options, folder, f"stock{number}_{workers}", workers)
            found.setdefault(f"lerobot-train, {workers} workers", []).append(speed)
    return found, once


def report(options: argparse.Namespace, found: dict[str, list[Speed]], once: float | None) -> float:
    """Print the table; the ratio to the fastest of stock's."""
    best = {name: min(speeds, key=lambda s: s.step) for name, speeds in found.items()}
    mine = best.pop("vla-opt train")
    given = " ".join([options.type, *options.policy])
    print(
        f"{given}, batch {options.batch_size}, {options.threads} thread(s), {options.steps} steps"
    )
    print(f"{'':28}{'samples/s':>10}{'step s':>9}{'data s':>9}{'data ms/sample':>16}{'ratio':>8}")
    for name, speed in {"vla-opt train": mine, **best}.items():
        rate, data = options.batch_size / speed.step, speed.data / options.batch_size * 1e3
        times = f"{rate:10.1f}{speed.step:9.3f}{speed.data:9.3f}{data:16.2f}"
        print(f"{name:28}{times}{speed.step / mine.step:8.2f}")
    ratio = min(speed.step for speed in best.values()) / mine.step
    saved = min(speed.step for speed in best.values()) - mine.step
    if once is not None:
        print(f"frames and features, once: {once:.0f} s, as much as {once / saved:.0f} steps save")
    print(f"target {TARGET:.0f}x: {ratio:.2f}x, {'ok' if ratio >= TARGET else 'MISSED'}")
    return ratio


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT / "runs/quickstart/demos")
    parser.add_argument("--cache", type=Path, help="filled before; what it cost is not measured")
    parser.add_argument(
        "--stride", type=int, default=1, help="our samples start at every n-th frame"
    )
    parser.add_argument("--type", default="vla_adapter", help="policy type")
    parser.add_argument("--policy", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[0], help="of lerobot's loader")
    parser.add_argument(
        "--backend", help="lerobot's video decoder: torchcodec or pyav; default: its"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options.root = options.root.resolve()
        options.cache = options.cache and options.cache.resolve()
        if not options.root.is_dir():
            options.root = sample_dataset(folder / "dataset", episodes=4)
        return 0 if report(options, *measure(options, folder)) >= TARGET else 1


if __name__ == "__main__":
    raise SystemExit(main())
