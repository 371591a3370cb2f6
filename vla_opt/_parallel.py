"""Several trainings at once, each a process with one thread."""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vla_opt._train_process import DIVERGED
from vla_opt.config import TrainConfig
from vla_opt.io import read_jsonl

OUTPUT = "train_output.txt"
"""In the run folder: what the process wrote."""

_POLL_S = 0.5
_LOOK_S = 5.0


class TrainProcessError(RuntimeError):
    """A training process failed for a reason that another try or seed would not mend."""


def train_in_processes(
    configs: Sequence[TrainConfig],
    *,
    parallel: int,
    progress: Callable[[int, int], None],
) -> dict[Path, str]:
    """Run trainings to their ends, at most `parallel` at a time.

    Args:
        configs: The runs; their output folders differ.
        parallel: Processes at once.
        progress: Called now and then with (steps done, steps in all) over all runs.

    Returns:
        For each run that diverged its output folder and what it said.

    Raises:
        TrainProcessError: A process failed otherwise; the others are stopped.
    """
    waiting, running, diverged = list(configs), list[_Child](), dict[Path, str]()
    total, looked = sum(config.steps for config in configs), 0.0
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                running.append(_Child(waiting.pop(0)))
            time.sleep(_POLL_S)
            for child in [child for child in running if child.ended()]:
                running.remove(child)
                if said := child.diverged():
                    diverged[child.config.output_dir] = said
            if time.monotonic() - looked > _LOOK_S or not running:
                looked = time.monotonic()
                progress(sum(map(_steps_done, configs)), total)
    finally:
        for child in running:
            child.stop()
    return diverged


class _Child:
    """One training process."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self._output = config.output_dir.parent / OUTPUT
        self._output.parent.mkdir(parents=True, exist_ok=True)
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vla_opt._train_process"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": str(config.num_threads or 1),
                    # A policy type may come from a folder that only this process knows.
                    "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                },
            )
        assert self._process.stdin is not None
        self._process.stdin.write(pickle.dumps(config))
        self._process.stdin.flush()

    def ended(self) -> bool:
        return self._process.poll() is not None

    def diverged(self) -> str:
        """What a diverged run said, "" after a good end."""
        code = self._process.wait()
        self._close()
        if code == 0:
            return ""
        said = self._output.read_text(encoding="utf-8", errors="replace").strip()
        if code == DIVERGED:
            return said.splitlines()[-1] if said else "diverged"
        raise TrainProcessError(
            f"The training in {self.config.output_dir} ended with code {code}; all it wrote is in "
            f"{self._output}:\n{said[-2000:]}"
        )

    def stop(self) -> None:
        self._close()  # which the process takes as the end of its parent
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()


def _steps_done(config: TrainConfig) -> int:
    rows = read_jsonl(config.output_dir / "log.jsonl")
    return max((int(row["step"]) for row in rows if row["kind"] == "train"), default=0)
