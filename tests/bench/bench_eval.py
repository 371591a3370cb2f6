"""A whole evaluation against stock lerobot-eval: same policy, tasks and episodes, in one run.

    python tests/bench/bench_eval.py [runs/quickstart/train] [--suite libero_object]
        [--task_ids 0,1] [--episodes 5] [--workers 2,3] [--no_serial] [--execute_steps 4]

Each is a process of its own, started from nothing; what is counted is what a person waits for and
what the machine must have: start, imports and scenes included. Memory is the largest sum over all
processes of the proportional set size, so that what they share counts once. Both render as stock
LIBERO does, with the same step limits and chunk lengths. Beside it stands what an episode takes
once everything is started: with many episodes that is what remains.

Episodes of different length are different work: the success counts are printed so that one sees
whether both did the same. (lerobot-eval seeds in its own way, so the same policy may need other
steps there. Its progress is not told per episode, so its steps are not known.)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from envs._libero_setup import assets_root, libero_root
from envs._suite_names import STEP_LIMITS
from vla_opt.evaluation.contract import open_checkpoint
from vla_opt.evaluation.records import load_records

_SAMPLE_S = 2.0  # reading the memory of all processes costs some CPU time itself


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a command took, all its processes together."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


def measured(command: list[str], environment: dict[str, str], log: Path) -> Cost:
    """Run a command to its end; its output is shown if it fails."""
    begin, peak, cpu = time.perf_counter(), 0, {}
    with log.open("wb") as output:
        process = psutil.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            memory = 0
            for one in _family(process):
                try:
                    memory += one.memory_full_info().pss
                    times = one.cpu_times()
                    cpu[one.pid, one.create_time()] = times.user + times.system
                except psutil.Error:
                    continue  # it ended meanwhile
            peak = max(peak, memory)
            time.sleep(_SAMPLE_S)
    if process.returncode:
        sys.exit(
            f"{' '.join(command)}\nended with {process.returncode}:\n{log.read_text()[-4000:]}"
        )
    return Cost(wall_s=time.perf_counter() - begin, cpu_s=sum(cpu.values()), peak_bytes=peak)


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


@dataclass(frozen=True, kw_only=True)
class Result:
    """What an evaluation cost and found; `episode_s` is wall seconds without start and scenes."""

    cost: Cost
    won: int
    episode_s: float
    note: str


def ours(
    args: argparse.Namespace, folder: Path, *extra: str, render_profile: str = "exact"
) -> Result:
    """`vla-opt eval`."""
    out = folder / "eval"
    command = [
        *(sys.executable, "-m", "vla_opt.cli.main", "eval"),
        f"--checkpoint={args.checkpoint}",
        f"--suites=[{args.suite}]",
        f"--task_ids=[{args.task_ids}]",
        f"--episodes={args.episodes}",
        f"--execute_steps={args.execute_steps}",
        f"--output_dir={out}",
        *(f"--render_profile={render_profile}", "--videos=none"),
        *extra,
    ]
    folder.mkdir()
    cost = measured(command, dict(os.environ), folder / "log")
    records = load_records(out / "episodes.jsonl")
    steps = sum(record.steps for record in records)
    return Result(
        cost=cost,
        won=sum(record.success for record in records),
        episode_s=sum(record.wall_s for record in records) / len(records),
        note=f"{steps} control steps",
    )


def stock(args: argparse.Namespace, folder: Path, size: int) -> Result:
    """`lerobot-eval`, one environment at a time, as it is used without a GPU."""
    folder.mkdir()
    command = [
        str(Path(sys.executable).with_name("lerobot-eval")),
        f"--policy.path={open_checkpoint(args.checkpoint).folder.resolve()}",
        "--env.discover_packages_path=policies",
        *("--policy.device=cpu", f"--policy.n_action_steps={args.execute_steps}"),
        *("--env.type=libero", f"--env.task={args.suite}", f"--env.task_ids=[{args.task_ids}]"),
        f"--env.episode_length={STEP_LIMITS[args.suite]}",
        *(f"--env.observation_height={size}", f"--env.observation_width={size}"),
        *(f"--eval.n_episodes={args.episodes}", "--eval.batch_size=1"),
        f"--output_dir={folder / 'out'}",
    ]
    environment = {**os.environ, **_offline_home(folder / "home")}
    cost = measured(command, environment, folder / "log")
    told = json.loads((folder / "out" / "eval_info.json").read_text())
    won = sum(sum(task["metrics"]["successes"]) for task in told["per_task"])
    episode_s = float(told["overall"]["eval_ep_s"])
    return Result(cost=cost, won=won, episode_s=episode_s, note="steps not told")


def _offline_home(home: Path) -> dict[str, str]:
    """What keeps stock LIBERO from asking questions and from the hub."""
    (home / ".libero").mkdir(parents=True)
    (home / ".cache/libero").mkdir(parents=True)
    (home / ".cache/libero/assets").symlink_to(assets_root())
    root = libero_root()
    entries = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": home,
        "assets": assets_root(),
    }
    text = "".join(f"{key}: {path}\n" for key, path in entries.items())
    (home / ".libero/config.yaml").write_text(text)
    return {"HOME": str(home), "LIBERO_CONFIG_PATH": str(home / ".libero")}


def read_arguments(parser: argparse.ArgumentParser, *, episodes: int) -> argparse.Namespace:
    """Add what says which evaluation is measured, and read the command line.

    Without a checkpoint there is nothing to measure: that is said, and the program ends.

    Args:
        parser: with what the benchmark takes beside it.
        episodes: of each task, if the command line does not say.
    """
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path("runs/quickstart/train"))
    parser.add_argument("--suite", default="libero_object", choices=sorted(STEP_LIMITS))
    parser.add_argument("--task_ids", default="0,1")
    parser.add_argument("--episodes", type=int, default=episodes, help="per task")
    parser.add_argument("--execute_steps", type=int, default=4)
    args = parser.parse_args()
    if not args.checkpoint.exists():
        print(f"{args.checkpoint} does not exist: give a checkpoint, or make quickstart first.")
        sys.exit(0)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return args


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="2", help="as 2,3; 0: in one process only")
    parser.add_argument("--no_serial", action="store_true", help="workers alone")
    args = read_arguments(parser, episodes=5)
    size = open_checkpoint(args.checkpoint).image_size or 128
    episodes = args.episodes * len(args.task_ids.split(","))
    print(f"{episodes} episodes of {args.suite}, {size} px, chunks of {args.execute_steps}")
    columns = f"{'episodes/min':>14}{'CPU s/episode':>15}{'s/episode alone':>17}{'peak GB':>9}"
    print(f"{'':26}{columns}  outcome")
    kinds = [] if args.no_serial else [("vla-opt eval, serial", 1, ["--backend=serial"])]
    for workers in filter(None, map(int, args.workers.split(","))):
        ray = ["--backend=ray", f"--num_workers={workers}"]
        kinds.append((f"vla-opt eval, {workers} workers", workers, ray))
    results = []
    with tempfile.TemporaryDirectory(prefix="bench_eval_") as root:
        for place, (name, _, options) in enumerate(kinds):
            results.append(ours(args, Path(root, str(place)), *options))
            show(name, results[-1], episodes)
        peer = stock(args, Path(root, "stock"), size)
        show("lerobot-eval", peer, episodes)
    for (name, workers, _), result in zip(kinds, results, strict=True):
        print(f"{name}: {ratios(result, peer, workers)}")


def ratios(result: Result, peer: Result, workers: int) -> str:
    """How the peer compares, with start and scenes and without."""
    cost, other = result.cost, peer.cost
    return (
        f"{other.wall_s / cost.wall_s:.1f}x the episodes per minute of lerobot-eval, "
        f"{workers * peer.episode_s / result.episode_s:.1f}x once everything is started, "
        f"{other.cpu_s / cost.cpu_s:.1f}x the episodes per CPU second, "
        f"{cost.peak_bytes / other.peak_bytes:.1f}x the memory"
    )


def show(name: str, result: Result, episodes: int) -> None:
    """Print a row."""
    cost = result.cost
    print(
        f"{name:26}{60 * episodes / cost.wall_s:14.2f}{cost.cpu_s / episodes:15.1f}"
        f"{result.episode_s:17.1f}{cost.peak_bytes / 1e9:9.2f}  "
        f"{result.won}/{episodes}, {result.note}",
        flush=True,
    )


if __name__ == "__main__":
    main()
