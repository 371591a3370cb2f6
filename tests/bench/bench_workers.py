"""One evaluation with no worker process, and with one to several: what each adds and costs.

    python tests/bench/bench_workers.py [runs/quickstart/train] [--workers 1,2,3,4]
        [--suite libero_object] [--task_ids 0,1] [--episodes 10] [--render_profile fast]

Beside what was measured stands what docs/scaling.md reckons with: W workers on C cores run
min(W, C) episodes at a time, at the pace of the serial run. Memory is the sum over all processes of
the proportional set size.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from bench_eval import Result, ours, read_arguments

HEAD = f"{'':12}{'wall s':>8}{'start s':>9}{'episodes/min':>14}{'model':>8}{'CPU s/episode':>15}"


def pace(serial: Result, workers: int, cores: int) -> float:
    """Episodes per minute, once started, that the model expects."""
    return 60 * min(workers, cores) / serial.episode_s


def show(name: str, result: Result, episodes: int, workers: int, expected: float) -> None:
    """Print a row; the pace leaves out what a person waits for before the first step."""
    cost = result.cost
    start_s = cost.wall_s - episodes * result.episode_s / workers
    print(
        f"{name:12}{cost.wall_s:8.0f}{start_s:9.0f}{60 * workers / result.episode_s:14.1f}"
        f"{expected:8.1f}{cost.cpu_s / episodes:15.1f}{cost.peak_bytes / 1e9:9.2f}  "
        f"{result.won}/{episodes}, {result.note}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="1,2,3,4")
    parser.add_argument("--render_profile", default="fast", choices=("exact", "fast"))
    args = read_arguments(parser, episodes=10)
    episodes = args.episodes * len(args.task_ids.split(","))
    cores = len(os.sched_getaffinity(0))
    print(f"{episodes} episodes of {args.suite}, {args.render_profile}, {cores} cores")
    print(f"{HEAD}{'peak GB':>9}  outcome")
    profile = args.render_profile
    with tempfile.TemporaryDirectory(prefix="bench_workers_") as root:
        serial = ours(args, Path(root, "0"), "--backend=serial", render_profile=profile)
        show("serial", serial, episodes, 1, pace(serial, 1, cores))
        for workers in map(int, args.workers.split(",")):
            options = ["--backend=ray", f"--num_workers={workers}"]
            result = ours(args, Path(root, str(workers)), *options, render_profile=profile)
            expected = pace(serial, workers, cores)
            show(f"{workers} workers", result, episodes, workers, expected)


if __name__ == "__main__":
    main()
