"""Evaluate a checkpoint: run the episodes that have no row yet, append a row for each.

The rows are the result. Whatever interrupts an evaluation, the same command run again does what is
left; the numbers do not depend on backend, number of workers, order or retries.
"""

import contextlib
import functools
import logging
import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.pool import Outcome, Worker, run_pool
from envs.rollout import EpisodeKey, EpisodeWorker, Policy
from envs.suites import resolve
from vla_opt._lock import only_writer
from vla_opt.evaluation._job import EvalError, Job, prepare, write_headers
from vla_opt.evaluation.config import EvalConfig
from vla_opt.evaluation.dimensions import write_dimensions
from vla_opt.evaluation.records import EpisodeRecord, append_record, load_records
from vla_opt.evaluation.server import ServerPolicy
from vla_opt.evaluation.variants import Stratum, level_of
from vla_opt.io import atomic_write_bytes

__all__ = ["EvalConfig", "EvalError", "EvalProgress", "EvalSummary", "evaluate"]

logger = logging.getLogger(__name__)

_HOPELESS = 4
"""Episodes that may end in errors, before the first that does not, until the evaluation stops."""


@dataclass(frozen=True, kw_only=True)
class EvalProgress:
    """Where an evaluation stands.

    Attributes:
        total: Episodes asked for.
        resumed: Of those, found done at the start.
        done: Of those, done by now, the resumed ones and errors included.
        successes: Episodes that reached the goal.
        errors: Episodes that the machinery failed to run.
        record: The row that was just written; None in the call before the first episode.
    """

    total: int
    resumed: int
    done: int
    successes: int
    errors: int
    record: EpisodeRecord | None = None

    @property
    def scored(self) -> int:
        """Episodes that measured the policy: the n of k/n."""
        return self.done - self.errors


@dataclass(frozen=True, kw_only=True)
class EvalSummary:
    """The outcome of an evaluation.

    Attributes:
        output_dir: Folder with episodes.jsonl.
        records: One row per episode asked for, in the order of the keys.
        strata: The variants among them by dimension, level and suite, and those that cannot run.
        notes: What the user should know, for example that another checkpoint was used.
    """

    output_dir: Path
    records: tuple[EpisodeRecord, ...]
    strata: tuple[Stratum, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def successes(self) -> int:
        """The k of k/n."""
        return sum(record.success for record in self.records)

    @property
    def scored(self) -> int:
        """The n of k/n."""
        return sum(record.scored for record in self.records)

    @property
    def errors(self) -> int:
        """Episodes that the machinery failed to run; they count neither way."""
        return len(self.records) - self.scored


def evaluate(
    config: EvalConfig, progress: Callable[[EvalProgress], None] | None = None
) -> EvalSummary:
    """Run an evaluation to its end, or what is left of it.

    Args:
        config: What to evaluate.
        progress: Called once before the first episode and after each.

    Raises:
        CheckpointError: No checkpoint, or none that is whole.
        ConfigError: Another process is evaluating into the same folder.
        ContractError: The checkpoint does not fit the environment.
        LiberoPlusError: A LIBERO-Plus task that was named cannot run here, or none can.
        EvalError: No checkpoint given; the folder holds rows of another evaluation; nothing works.
        PoolError: No simulation worker could be started, or the policy could not be built.
        UnknownNameError: A suite, task or render profile does not exist.
    """
    job = prepare(config)
    done = {record.key for record in job.records if record.scored}
    wanted = [key for key in job.keys if _as_tuple(key) not in done]
    score = _Score(job, progress)
    score.tell(None)
    if wanted:
        with (
            only_writer(job.output_dir, "evaluating into"),
            contextlib.closing(_outcomes(job, wanted)) as outcomes,
        ):
            write_headers(job)
            for outcome in outcomes:
                record = _store(job, outcome)
                score.add(record)
                score.tell(record)
    final = {record.key: record for record in load_records(job.rows)}
    records = tuple(final[_as_tuple(key)] for key in job.keys)
    write_dimensions(job.output_dir, records, job.plan.strata)
    return EvalSummary(
        output_dir=job.output_dir, records=records, strata=job.plan.strata, notes=job.notes
    )


# -- running --------------------------------------------------------------------------------------


def _outcomes(job: Job, keys: Sequence[EpisodeKey]) -> Generator[Outcome]:
    run = _serial_outcomes if job.config.backend == "serial" else _ray_outcomes
    return run(job, keys)


def _serial_outcomes(job: Job, keys: Sequence[EpisodeKey]) -> Generator[Outcome]:
    policy = _policy_recipe(job)()
    make_worker = functools.partial(EpisodeWorker, policy, job.rollout)
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - LIBERO seeds both
    try:
        yield from _pool(job, keys, make_worker)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _ray_outcomes(job: Job, keys: Sequence[EpisodeKey]) -> Generator[Outcome]:
    from envs._ray_cluster import ray_cluster
    from envs.policy_server import serve_policy

    threads = {"OMP_NUM_THREADS": str(job.config.policy_threads)}
    on_gpu = job.config.device.startswith("cuda")
    with (
        ray_cluster(num_cpus=job.config.num_workers) as ray,
        serve_policy(
            ray,
            _policy_recipe(job),
            count=job.config.policy_actors,
            max_batch=job.config.policy_batch,
            num_gpus=1.0 if on_gpu else 0.0,
            timeout_s=job.config.timeout_s / 2,  # the episode that waits must see it
            wait=False,
            env=threads,
        ) as policy,
    ):
        make_worker = functools.partial(EpisodeWorker, policy, job.rollout)
        yield from _pool(job, keys, make_worker, policy.wait_until_ready)


def _pool(
    job: Job,
    keys: Sequence[EpisodeKey],
    make_worker: Callable[[], Worker],
    wait_for: Callable[[], None] | None = None,
) -> Generator[Outcome]:
    variants = job.plan.by_task

    def scene_of(key: EpisodeKey) -> tuple[str, ...]:
        """Variants of one scene go to one worker: it turns one into the other without building."""
        variant = variants.get(key.task)
        return variant.scene_key if variant else (key.suite, str(key.task_id))

    return run_pool(
        keys,
        make_worker,
        backend=job.config.backend,
        num_workers=job.config.num_workers,
        affinity=scene_of,
        timeout_s=job.config.timeout_s,
        max_retries=job.config.max_retries,
        wait_for=wait_for,
    )


def _policy_recipe(job: Job) -> Callable[[], Policy]:
    if job.config.server is not None:
        timeout_s = job.config.timeout_s / 2
        return functools.partial(ServerPolicy, job.config.server, timeout_s)
    return functools.partial(
        _build_policy,
        job.checkpoint.folder,
        device=job.config.device,
        num_threads=job.config.policy_threads,
        batch_size=job.config.policy_batch,
    )


def _build_policy(folder: Path, **options: Any) -> Policy:
    from vla_opt.evaluation.inference import CheckpointPolicy  # torch, only where the policy lives

    return CheckpointPolicy(folder, **options)


# -- storing --------------------------------------------------------------------------------------


def _store(job: Job, outcome: Outcome) -> EpisodeRecord:
    """Keep the video, then the row, so that a row never names a video that is not there."""
    key, result = outcome.item, outcome.result
    video = None
    if result is not None and result.video_error is not None:
        logger.warning("%s: no video: %s", key, result.video_error)
    if result is not None and result.video is not None:
        video = f"videos/{key.suite}/{key.task_id}_{key.init_state}_{key.trial}.mp4"
        atomic_write_bytes(job.output_dir / video, result.video)
    task = resolve(key.suite, key.task_id, job.config.variants.options).task
    variant = job.plan.by_task.get(key.task)
    verdict = "error" if result is None else ("success" if result.success else "failure")
    record = EpisodeRecord.from_dict(
        {
            **{name: getattr(key, name) for name in ("suite", "task_id", "init_state", "trial")},
            "seed": key.seed,
            "outcome": verdict,
            "success": verdict == "success",
            "steps": result.steps if result else 0,
            "wall_s": round(result.wall_s, 3) if result else 0.0,
            "cpu_s": round(result.cpu_s, 3) if result else 0.0,
            "worker": outcome.worker,
            "retries": outcome.retries,
            "error": outcome.error,
            "video": video,
            "language": task.language,
            "variant": variant.name if variant else "",
            "dimension": variant.dimension if variant else "",
            "level": level_of(variant) if variant else None,
            "config_hash": job.config_hash,
            "checkpoint_hash": job.checkpoint.sha256,
            "versions": job.versions,
            "render_profile": job.rollout.render_profile,
        }
    )
    append_record(job.rows, record)
    return record


@dataclass
class _Score:
    """The running count."""

    job: Job
    progress: Callable[[EvalProgress], None] | None

    def __post_init__(self) -> None:
        asked = {_as_tuple(key) for key in self.job.keys}
        before = [r for r in self.job.records if r.scored and r.key in asked]
        self.resumed = self.done = len(before)
        self.successes = sum(record.success for record in before)
        self.errors = 0

    def add(self, record: EpisodeRecord) -> None:
        """Count a row; stop when nothing has worked so far."""
        self.done += 1
        self.successes += record.success
        self.errors += not record.scored
        if self.errors == self.done - self.resumed == _HOPELESS:
            raise EvalError(
                f"The first {_HOPELESS} episodes all ended in errors, so the others are not tried. "
                f"They will be run again by the same command. The last error:\n{record.error}"
            )

    def tell(self, record: EpisodeRecord | None) -> None:
        """Report to the caller."""
        if self.progress is not None:
            self.progress(
                EvalProgress(
                    total=len(self.job.keys),
                    resumed=self.resumed,
                    done=self.done,
                    successes=self.successes,
                    errors=self.errors,
                    record=record,
                )
            )


def _as_tuple(key: EpisodeKey) -> tuple[str, int, int, int]:
    return key.suite, key.task_id, key.init_state, key.trial
