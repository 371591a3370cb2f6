"""Tiny training runs for tests, and what must be equal between two of them."""

import json
from pathlib import Path
from typing import Any

from tiny_policy import TinyConfig

from vla_opt._run_log import comparable
from vla_opt.config import DataConfig, TrainConfig
from vla_opt.io import Row, read_jsonl

STEPS = 24


def tiny_run(root: Path, output_dir: Path, **changes: Any) -> TrainConfig:
    """A run of 24 steps over the data set at `root`, with a checkpoint at every fifth."""
    policy = changes.pop("policy", {})
    data = changes.pop("data", {})
    defaults: dict[str, Any] = {
        "steps": STEPS,
        "batch_size": 6,
        "save_every": 5,
        "log_every": 3,
        "spectra_every": 4,
        "keep_last": 0,
        "num_threads": 1,
        "tensorboard": False,
    }
    return TrainConfig(
        policy=TinyConfig(device="cpu", **policy),
        data=DataConfig(root=root, **data),
        output_dir=output_dir,
        **{**defaults, **changes},
    )


def result(output_dir: Path, step: int = STEPS) -> dict[str, Any]:
    """Everything of a run that must repeat bit for bit, by name."""
    checkpoint = output_dir / "checkpoints" / f"{step:06d}"
    files = [p for p in sorted(checkpoint.rglob("*")) if p.is_file()]
    found: dict[str, Any] = {
        str(path.relative_to(checkpoint)): path.read_bytes()
        for path in files
        if path.name not in ("cursor.json", "manifest.json")
        and path.parent.name + path.name != "training_stateconfig.json"
    }
    cursor = json.loads((checkpoint / "training_state/cursor.json").read_text())
    cursor.pop("wall_s")
    return {**found, "cursor": cursor, "log": comparable(rows(output_dir))}


def rows(output_dir: Path, kind: str = "") -> list[Row]:
    """Rows of the log, of one kind or all."""
    return [r for r in read_jsonl(output_dir / "log.jsonl") if kind in ("", r["kind"])]
