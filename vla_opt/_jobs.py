"""Several jobs at once, each a process of its own that ends with this one."""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.5
_LOOK_S = 5.0


class JobError(RuntimeError):
    """A process failed for a reason that another try would not mend."""


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        call: A picklable callable without arguments; what it returns, an int or None for 0, is the
            exit code.
        output: File for what the process writes.
        threads: Of the process's numerical libraries.
    """

    call: Callable[[], int | None]
    output: Path
    threads: int = 1

    def said(self) -> str:
        """Return what the process wrote."""
        return self.output.read_text(encoding="utf-8", errors="replace").strip()


def run_jobs(
    jobs: Sequence[Job],
    *,
    parallel: int,
    look: Callable[[], None] = lambda: None,
    expected: Collection[int] = (),
) -> list[int]:
    """Run jobs to their ends, at most `parallel` at a time.

    Args:
        jobs: Their output files differ.
        parallel: Processes at once.
        look: Called now and then meanwhile, and once at the end.
        expected: Exit codes other than 0 that are results.

    Returns:
        The exit code of each job.

    Raises:
        JobError: A process failed otherwise; the others are stopped.
    """
    waiting, running, codes = list(enumerate(jobs)), dict[int, _Child](), dict[int, int]()
    looked = 0.0
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                place, job = waiting.pop(0)
                running[place] = _Child(job)
            time.sleep(_POLL_S)
            for place in [place for place, child in running.items() if child.ended()]:
                codes[place] = running.pop(place).code(expected)
            if time.monotonic() - looked > _LOOK_S or not running:
                looked = time.monotonic()
                look()
    finally:
        for child in running.values():
            child.stop()
    return [codes[place] for place in range(len(jobs))]


class _Child:
    """One process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        job.output.parent.mkdir(parents=True, exist_ok=True)
        with job.output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vla_opt._job_process"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": str(job.threads),
                    # A policy type may come from a folder that only this process knows.
                    "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                },
            )
        assert self._process.stdin is not None
        self._process.stdin.write(pickle.dumps(job.call))
        self._process.stdin.flush()

    def ended(self) -> bool:
        return self._process.poll() is not None

    def code(self, expected: Collection[int]) -> int:
        code = self._process.wait()
        self._close()
        if code == 0 or code in expected:
            return code
        raise JobError(
            f"A process ended with code {code}; all it wrote is in {self._job.output}:\n"
            f"{self._job.said()[-2000:]}"
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
