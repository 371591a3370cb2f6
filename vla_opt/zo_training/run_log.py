"""The files of a run: its configuration, where it began, and one row of scalars per step.

config.yaml     as `vla-opt zo train --config_path` reads it
metadata.json   versions, and the hashes of the checkpoint it began with
steps.jsonl     one `StepRecord` per line: with the checkpoint it began with, the whole run
checkpoints/    as `vla-opt eval` reads them
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import draccus
import yaml

from vla_opt.config import to_tree, to_yaml
from vla_opt.errors import ConfigError
from vla_opt.io import append_jsonl, atomic_write_json, atomic_write_text, read_jsonl
from vla_opt.provenance import run_metadata
from vla_opt.zeroth_order import StepRecord
from vla_opt.zo_training.config import ZOTrainConfig

CONFIG, METADATA, STEPS, CHECKPOINTS = "config.yaml", "metadata.json", "steps.jsonl", "checkpoints"

# A run may go on although these differ: they do not change what is computed.
_FREE = {
    *("output_dir", "budget", "workers", "save_every", "keep_last", "eval_every", "eval"),
    *("checkpoint", "data"),
}


def write_description(config: ZOTrainConfig, **facts: Any) -> None:
    """Write what identifies a new run."""
    atomic_write_text(config.output_dir / CONFIG, to_yaml(config))
    atomic_write_json(config.output_dir / METADATA, {**run_metadata(), **facts})


def read_config(run: Path) -> ZOTrainConfig:
    """Return the configuration of a run.

    Raises:
        ConfigError: there is none, or it is not one this version can read.
    """
    file = run / CONFIG
    if not file.is_file():
        raise ConfigError(f"{run} holds no zeroth-order run: no {CONFIG}.")
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        config: ZOTrainConfig = draccus.decode(ZOTrainConfig, tree)
    except Exception as error:  # draccus' errors are many
        raise ConfigError(f"{file} is no configuration of a zeroth-order run: {error}") from error
    return config


def read_metadata(run: Path) -> dict[str, Any]:
    """Return the metadata of a run."""
    metadata: dict[str, Any] = json.loads((run / METADATA).read_text(encoding="utf-8"))
    return metadata


def read_records(run: Path) -> list[StepRecord]:
    """Return the records of a run, none if it has not begun."""
    return [StepRecord.from_dict(row) for row in read_jsonl(run / STEPS)]


def append_record(run: Path, record: StepRecord, **facts: Any) -> None:
    """Store the record of a step."""
    append_jsonl(run / STEPS, {**record.to_dict(), **facts})


def check_same_run(config: ZOTrainConfig) -> bool:
    """Whether `output_dir` holds this run already.

    Raises:
        ConfigError: it holds another one; lists the differences.
    """
    if not (config.output_dir / CONFIG).exists():
        return False
    now, then = (_flat(to_tree(c)) for c in (config, read_config(config.output_dir)))
    changed = [
        f"{key}: {then.get(key)!r} then, {now.get(key)!r} now"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key)
    ]
    if changed:
        raise ConfigError(
            f"{config.output_dir} holds another run ({'; '.join(changed)}). Give its configuration "
            "to go on with it, or another --output_dir."
        )
    return True


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if key in _FREE:
            continue
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": v for inner, v in value.items()})
        else:
            flat[key] = value
    return flat
