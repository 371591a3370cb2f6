"""An evaluation without a simulator: what succeeds is a function of the weights alone."""

import hashlib
from pathlib import Path

from vla_opt.evaluation.config import EvalConfig
from vla_opt.evaluation.contract import open_checkpoint
from vla_opt.evaluation.records import EpisodeRecord, append_record, load_records
from vla_opt.evaluation.runner import EvalSummary

RUN: list[Path] = []
"""Folders of the evaluations that had something to do."""


def evaluate(config: EvalConfig) -> EvalSummary:
    """Write the rows that are missing; about half of the episodes succeed."""
    assert config.checkpoint is not None
    assert config.output_dir is not None
    weights = open_checkpoint(config.checkpoint).sha256
    rows = config.output_dir / "episodes.jsonl"
    done = load_records(rows)
    assert all(record.checkpoint_hash == weights for record in done), "rows of other weights"
    if not done:
        RUN.append(config.output_dir)
        config.output_dir.mkdir(parents=True, exist_ok=True)
    for state in range(len(done), config.episodes):
        digest = hashlib.sha256(f"{weights}/{state}".encode()).digest()
        success = digest[0] % 2 == 0
        record = EpisodeRecord(
            suite="libero_object",
            task_id=0,
            init_state=state,
            seed=state,
            outcome="success" if success else "failure",
            success=success,
            steps=10,
            wall_s=0.1,
            cpu_s=0.1,
            checkpoint_hash=weights,
        )
        append_record(rows, record)
    return EvalSummary(output_dir=config.output_dir, records=tuple(load_records(rows)))
