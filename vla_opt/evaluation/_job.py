"""Everything an evaluation checks and writes down before its first episode."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.rollout import EpisodeKey, RolloutConfig
from vla_opt.evaluation.config import EvalConfig, identity, identity_hash, plan_episodes
from vla_opt.evaluation.contract import (
    Checkpoint,
    check_contract,
    open_checkpoint,
    rollout_as_trained,
)
from vla_opt.evaluation.records import EpisodeRecord, load_records
from vla_opt.evaluation.server import check_server, open_server
from vla_opt.evaluation.variants import VARIANTS_FILE, VariantPlan
from vla_opt.io import atomic_write_json, atomic_write_text
from vla_opt.provenance import run_metadata, versions_line

logger = logging.getLogger(__name__)

_SESSION = ("time_utc", "git_commit", "git_dirty", "versions", "command", "episodes_planned")


class EvalError(RuntimeError):
    """An evaluation cannot start, or cannot go on."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """An evaluation that may start.

    Attributes:
        config: As asked for.
        checkpoint: What is evaluated.
        rollout: How episodes are run.
        keys: Episodes asked for.
        plan: The variants among them, and what they stand for.
        identity: All that decides the numbers, see `config.identity`.
        config_hash: Stands for it in the rows.
        versions: The code, as the rows say it.
        output_dir: Where rows and videos go.
        records: Rows found there.
        notes: What the user should know.
    """

    config: EvalConfig
    checkpoint: Checkpoint
    rollout: RolloutConfig
    keys: tuple[EpisodeKey, ...]
    plan: VariantPlan
    identity: dict[str, Any]
    config_hash: str
    versions: str
    output_dir: Path
    records: tuple[EpisodeRecord, ...]
    notes: tuple[str, ...]

    @property
    def rows(self) -> Path:
        """The file of the rows."""
        return self.output_dir / "episodes.jsonl"


def prepare(config: EvalConfig) -> Job:
    """Check everything that can be checked without a simulator.

    Raises:
        CheckpointError: No checkpoint, or none that is whole.
        ContractError: The checkpoint does not fit the environment.
        DeployError: The server cannot be reached, or does not speak openpi's protocol.
        EvalError: No checkpoint given, or the folder holds rows of another evaluation.
        LiberoPlusError: A LIBERO-Plus task that was named cannot run here, or none can.
        UnknownNameError: A suite, task or render profile does not exist.
    """
    if config.checkpoint is None and config.server is None:
        raise EvalError(
            "No checkpoint given: --checkpoint=runs/<name>/train/checkpoints/<step>, a folder "
            "written by lerobot, or --server=ws://HOST:PORT of a policy server."
        )
    keys, plan = plan_episodes(config)
    checkpoint, rollout, warnings = _policy_of(config)
    differences = (f"Trained and tested differently, {w}." for w in warnings)
    notes = (*checkpoint.notes, *differences, *plan.notes())
    for note in notes:
        logger.warning(note)
    values = identity(
        config,
        checkpoint_hash=checkpoint.sha256,
        image_size=rollout.image_size,
        render_profile=rollout.render_profile,
    )
    output_dir = config.output_dir or _default_output_dir(checkpoint.folder, config.shard)
    job = Job(
        config=config,
        checkpoint=checkpoint,
        rollout=rollout,
        keys=tuple(keys),
        plan=plan,
        identity=values,
        config_hash=identity_hash(values),
        versions=versions_line(),
        output_dir=output_dir,
        records=tuple(load_records(output_dir / "episodes.jsonl")),
        notes=notes,
    )
    _refuse_other_rows(job)
    return job


def _policy_of(config: EvalConfig) -> tuple[Checkpoint, RolloutConfig, list[str]]:
    """What is evaluated, how, and what differs from how it was trained."""
    if config.server is not None:
        checkpoint, said = open_server(config.server)
        rollout = rollout_config(config, checkpoint)
        steps = config.execute_steps
        check_server(config.server, said, rollout.env_spec, execute_steps=steps)
        return checkpoint, rollout, []
    assert config.checkpoint is not None
    checkpoint = open_checkpoint(config.checkpoint)
    rollout = rollout_config(config, checkpoint)
    spec = rollout.env_spec
    return checkpoint, rollout, check_contract(checkpoint, spec, execute_steps=config.execute_steps)


def rollout_config(config: EvalConfig, checkpoint: Checkpoint) -> RolloutConfig:
    """How an evaluation runs the episodes of a checkpoint."""
    return rollout_as_trained(
        checkpoint,
        execute_steps=config.execute_steps,
        image_size=config.image_size,
        render_profile=config.render_profile,
        videos=config.videos,
        variants=config.variants.options,
    )


def _default_output_dir(folder: Path, shard: str | None) -> Path:
    """`runs/x/eval` for a checkpoint of run x, else `runs/<name of the folder>/eval`.

    A shard has a folder of its own beside it, so that machines may share a disk.
    """
    name = "eval" if shard is None else f"eval_shard{shard.replace('/', 'of')}"
    for parent in folder.absolute().parents:
        if parent.name == "checkpoints":
            run = parent.parent
            return (run.parent if run.name == "train" else run) / name
    return Path("runs") / folder.absolute().name / name


def _refuse_other_rows(job: Job) -> None:
    if {record.config_hash for record in job.records} <= {job.config_hash}:
        return
    before = _read_metadata(job).get("identity") or {}
    changed = "; ".join(
        f"{name}: {before.get(name)} then, {value} now"
        for name, value in job.identity.items()
        if before and before.get(name) != value
    )
    raise EvalError(
        f"{job.rows} holds episodes of another evaluation{f' ({changed})' if changed else ''}. "
        "Give another --output_dir, or move that folder away."
    )


def write_headers(job: Job) -> None:
    """Write down what is about to be run, and with which versions; earlier sessions stay listed."""
    import draccus
    import yaml

    before = _read_metadata(job)
    sessions = before.get("earlier_sessions", [])
    if before:
        sessions.append({name: before.get(name) for name in _SESSION})
    tree = draccus.encode(job.config, EvalConfig)
    atomic_write_text(job.output_dir / "config.yaml", yaml.safe_dump(tree, sort_keys=False))
    if job.plan.variants:
        atomic_write_json(job.output_dir / VARIANTS_FILE, job.plan.to_dict())
    metadata = {
        **run_metadata(),
        "identity": job.identity,
        "config_hash": job.config_hash,
        "checkpoint": job.config.server or str(job.checkpoint.folder),
        "policy": job.checkpoint.config.get("type"),
        "env_spec": job.rollout.env_spec.to_dict(),
        "episodes_planned": len(job.keys),
        "notes": list(job.notes),
        "earlier_sessions": sessions,
    }
    atomic_write_json(job.output_dir / "metadata.json", metadata)


def _read_metadata(job: Job) -> dict[str, Any]:
    try:
        metadata = json.loads((job.output_dir / "metadata.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return metadata if isinstance(metadata, dict) else {}
