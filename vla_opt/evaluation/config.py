"""What to evaluate, and which part of it decides the numbers."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from envs.rollout import EpisodeKey
from envs.suites import expand_suites
from envs.tasks import SUITES, get_task, list_tasks, load_init_states
from vla_opt.evaluation.variants import VariantConfig, VariantPlan, plan_variants

Backend = Literal["serial", "ray"]
Videos = Literal["failures", "all", "none"]


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """One evaluation of one checkpoint.

    Attributes:
        checkpoint: `runs/x/train/checkpoints/000600`, the `pretrained_model` folder in it, a run
            folder (its last checkpoint), or any folder written by lerobot.
        server: Instead of a checkpoint, the address of a policy server that speaks openpi's
            protocol: ws://host:8000. It gets what openpi's LIBERO client sends.
        suites: Task suites. libero_plus and libero_style stand for all their suites,
            libero_plus/libero_object for one.
        task_ids: Tasks of each suite; all if not given.
        variants: Which variants of libero_plus and libero_style, and how.
        episodes: Fixed initial states per task. LIBERO has 50. Variants run from the first alone,
            as LIBERO-Plus has it.
        first_init_state: The first of them; they are first_init_state + 0 to episodes - 1.
        trials: Repetitions per initial state, with different seeds.
        execute_steps: Actions of a predicted chunk that are executed before the policy looks again.
        image_size: Pixels; what the checkpoint was trained with if not given.
        render_profile: "exact" or "fast"; what the checkpoint was trained with if not given, else
            "exact".
        device: Of the policy.
        policy_threads: Threads of torch in the policy's process. Sums are added in another order
            with another number: numbers may then differ in the last bit.
        policy_batch: Observations per forward pass. With 1 the numbers cannot depend on which
            requests meet; more is for GPUs: batches are padded to this size, so that the shapes,
            and with them the kernels, are always the same. A policy that samples needs 1.
        policy_actors: Processes that hold the policy ("ray"): one keeps some two workers busy on
            CPUs (docs/scaling.md). With device "cuda", one GPU each. Same numbers.
        backend: "ray" (processes, survives crashes) or "serial" (this process). Same numbers.
        num_workers: Simulator processes, one CPU each.
        timeout_s: Wall seconds for one attempt at an episode.
        max_retries: Attempts after the first before an episode is recorded as an error.
        videos: Which episodes keep a video.
        shard: "2/8" runs the second of eight parts, for eight machines: `vla-opt eval merge` puts
            them together. Every part has its share of each suite, task after task.
        output_dir: Where rows and videos go; the folder `eval` of the checkpoint's run if not
            given.

    Raises:
        ValueError: A number is out of range.
    """

    checkpoint: Path | None = None
    server: str | None = None
    suites: tuple[str, ...] = ("libero_object",)
    task_ids: tuple[int, ...] | None = None
    variants: VariantConfig = field(default_factory=VariantConfig)
    episodes: int = 10
    first_init_state: int = 0
    trials: int = 1
    execute_steps: int = 4
    image_size: int | None = None
    render_profile: str | None = None
    device: str = "cpu"
    policy_threads: int = 1
    policy_batch: int = 1
    policy_actors: int = 1
    backend: Backend = "ray"
    num_workers: int = 2
    timeout_s: float = 600.0
    max_retries: int = 2
    videos: Videos = "failures"
    shard: str | None = None
    output_dir: Path | None = None

    def __post_init__(self) -> None:
        """Check the values that need no simulator."""
        counts = (
            "episodes",
            "trials",
            "execute_steps",
            "policy_threads",
            "policy_batch",
            "policy_actors",
        )
        for name in (*counts, "num_workers", "max_retries", "first_init_state"):
            from_zero = name in ("max_retries", "first_init_state")
            value, least = getattr(self, name), 0 if from_zero else 1
            if value < least:
                raise ValueError(f"{name}={value}: expected {least} or more.")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s={self.timeout_s}: expected a positive number of seconds.")
        if self.checkpoint is not None and self.server is not None:
            raise ValueError(
                f"checkpoint={self.checkpoint} and server={self.server}: expected one of the two."
            )
        if not self.suites:
            raise ValueError("suites is empty: name at least one, for example libero_object.")
        if self.shard is not None:
            parse_shard(self.shard)


def parse_shard(text: str) -> tuple[int, int]:
    """Return (number, of how many), both counted from 1.

    Raises:
        ValueError: It is not I/N with 1 <= I <= N.

    >>> parse_shard("2/8")
    (2, 8)
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"shard={text!r}: expected I/N with I from 1 to N, for example 2/8.")
    return int(number), int(count)


def episode_keys(config: EvalConfig) -> list[EpisodeKey]:
    """Return the episodes of an evaluation, task by task.

    Raises:
        LiberoPlusError: A variant that was named cannot run here, or none can.
        UnknownNameError: A suite or task does not exist; names the nearest.
        ValueError: More episodes than a task has initial states.
    """
    return plan_episodes(config)[0]


def plan_episodes(config: EvalConfig) -> tuple[list[EpisodeKey], VariantPlan]:
    """Return the episodes of an evaluation, and what its variants stand for.

    Raises:
        Exception: See `episode_keys`.
    """
    suites = expand_suites(config.suites)
    plan = plan_variants(suites, config.task_ids, config.variants)
    keys = [key for suite in suites if suite in SUITES for key in _libero_keys(suite, config)]
    keys += [
        EpisodeKey(suite=suite, task_id=task_id, init_state=0, trial=trial)
        for suite, task_id in plan.by_task
        for trial in range(config.trials)
    ]
    return _part_of(keys, config.shard), plan


def _part_of(keys: list[EpisodeKey], shard: str | None) -> list[EpisodeKey]:
    """The share of one machine: a run of neighbours of each suite, so that it builds few scenes."""
    if shard is None:
        return keys
    number, count = parse_shard(shard)
    part = []
    for suite in dict.fromkeys(key.suite for key in keys):
        own = [key for key in keys if key.suite == suite]
        part += own[(number - 1) * len(own) // count : number * len(own) // count]
    return part


def _libero_keys(suite: str, config: EvalConfig) -> list[EpisodeKey]:
    keys = []
    known = range(len(list_tasks(suite)))
    for task_id in dict.fromkeys(known if config.task_ids is None else config.task_ids):
        available = len(load_init_states(get_task(suite, task_id)))
        first, end = config.first_init_state, config.first_init_state + config.episodes
        if end > available:
            raise ValueError(
                f"episodes={config.episodes}{f' from state {first}' if first else ''}: {suite} "
                f"task {task_id} has {available} fixed initial states. Use at most "
                f"{max(0, available - first)}, and trials for repetitions."
            )
        keys += [
            EpisodeKey(suite=suite, task_id=task_id, init_state=init_state, trial=trial)
            for init_state in range(first, end)
            for trial in range(config.trials)
        ]
    return keys


def identity(
    config: EvalConfig, *, checkpoint_hash: str, image_size: int, render_profile: str
) -> dict[str, Any]:
    """Return what decides the outcome of an episode beside its key.

    Neither the list of episodes, nor backend, workers, retries or videos are part of it: an
    evaluation can be extended, and continued on another machine.
    """
    values = {
        "checkpoint_hash": checkpoint_hash,
        "execute_steps": config.execute_steps,
        "image_size": image_size,
        "render_profile": render_profile,
        "device": config.device.partition(":")[0],
        "policy_threads": config.policy_threads,
        "policy_batch": config.policy_batch,
    }
    if config.variants.published_compat:  # absent from rows that were made before it existed
        values["published_compat"] = True
    return values


def identity_hash(values: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that stand for an identity in every row."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
