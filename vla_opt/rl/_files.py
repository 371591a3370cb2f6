"""The files of a run.

config.yaml        as `vla-opt rl --config_path` reads it
metadata.json      versions, routing, and the hash of the checkpoint it began with
log.jsonl          one row per update ("rl"), evaluation ("eval") and warning
rollouts.jsonl     one row per episode
success.md, .html  the curve of success with its intervals
checkpoints/       as `vla-opt eval` reads them, with what resuming needs
eval/              episodes of the periodic evaluations
weights/           the present weights, for processes that act
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vla_opt.config import changed_settings, to_yaml
from vla_opt.errors import ConfigError
from vla_opt.io import atomic_write_json, atomic_write_text
from vla_opt.provenance import run_metadata
from vla_opt.rl.config import RLConfig

CONFIG, METADATA, CHECKPOINTS = "config.yaml", "metadata.json", "checkpoints"
ROLLOUTS, WEIGHTS = "rollouts.jsonl", "weights"

# A run may go on although these differ: they do not change what is computed.
_FREE = (
    *("output_dir", "checkpoint", "updates", "save_every", "keep_last", "eval", "eval_every"),
    *("tensorboard", "watch", "rollouts.backend", "rollouts.num_workers", "rollouts.timeout_s"),
    *("rollouts.max_retries", "no_signal.stop_after"),
)


def write_description(config: RLConfig, **facts: Any) -> None:
    """Write what identifies a new run."""
    atomic_write_text(config.output_dir / CONFIG, to_yaml(config))
    atomic_write_json(config.output_dir / METADATA, {**run_metadata(), **facts})


def check_same_run(config: RLConfig) -> None:
    """Refuse to go on with a run whose computation was configured otherwise.

    Raises:
        ConfigError: lists the differences.
    """
    file = config.output_dir / CONFIG
    if not file.exists():
        return
    earlier = yaml.safe_load(file.read_text(encoding="utf-8"))
    changed = [
        f"{key}: {then!r} then, {now!r} now"
        for key, then, now in changed_settings(earlier, config, free=_FREE)
    ]
    if changed:
        raise ConfigError(
            f"{config.output_dir} holds another run ({'; '.join(changed)}). Give its configuration "
            "to go on with it, or another --output_dir."
        )


def checkpoint_folder(config: RLConfig) -> Path:
    """Return the folder of the run's checkpoints."""
    return config.output_dir / CHECKPOINTS
