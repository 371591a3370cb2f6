"""The README.md of a checkpoint, made of the records of its run and of nothing else.

A rate stands in it as k/n with its 95 % Wilson interval and the protocol it was measured under, and
only if the episodes were run with this very checkpoint. What no record says is "not recorded".
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vla_opt.evaluation.card import UNKNOWN, card_grid
from vla_opt.evaluation.contract import Checkpoint
from vla_opt.evaluation.exports import Grid, markdown, success_grid
from vla_opt.evaluation.run_folder import RunFolder, read_run_folder
from vla_opt.evaluation.statistics import format_rate
from vla_opt.evaluation.tables import SuccessTable, success_table
from vla_opt.io import atomic_write_text

CARD = "README.md"


def write_card(
    checkpoint: Checkpoint, *, run: Path | None = None, name: str = "", licence: str = ""
) -> Path:
    """Write `README.md` into a checkpoint's folder.

    Args:
        checkpoint: See `vla_opt.evaluation.contract.open_checkpoint`.
        run: Run folder with the records; found from the checkpoint's place if not given.
        name: Of the model; that of the run's folder if empty.
        licence: Identifier as hubs know it, for example "apache-2.0"; left out if empty.

    Raises:
        ConfigError: `run` is no run folder.
    """
    path = checkpoint.folder / CARD
    atomic_write_text(path, model_card(checkpoint, run=run, name=name, licence=licence))
    return path


def model_card(
    checkpoint: Checkpoint, *, run: Path | None = None, name: str = "", licence: str = ""
) -> str:
    """The text of the card; see `write_card`."""
    root = run or run_of(checkpoint.folder)
    record = read_run_folder(root) if root is not None else None
    if record is not None:
        record = _of_this_checkpoint(record, checkpoint)
    title = name or (root.name if root is not None else checkpoint.folder.name)
    table = success_table(record.records) if record and record.records else None
    parts = [
        _front_matter(checkpoint, record, table, title, licence),
        f"# {title}\n",
        _summary(checkpoint, table),
        _success(table, record),
        markdown([_contract_grid(checkpoint)]),
        *([markdown([_data_grid(record)]), markdown([_recipe_grid(record)])] if record else []),
        _usage(checkpoint, table),
    ]
    return "\n".join(parts)


def run_of(folder: Path) -> Path | None:
    """The run folder that a checkpoint lies in, None if it lies elsewhere."""
    for parent in folder.absolute().parents:
        if parent.name == "checkpoints":
            run = parent.parent
            return run.parent if run.name == "train" else run
    return None


def _of_this_checkpoint(run: RunFolder, checkpoint: Checkpoint) -> RunFolder:
    """The run with those episodes alone that this checkpoint played."""
    own = [r for r in run.records if r.checkpoint_hash == checkpoint.sha256]
    notes = list(run.notes)
    if others := len(run.records) - len(own):
        notes.append(f"{others} episodes of the run were played by another checkpoint: left out.")
    return dataclasses.replace(run, records=own, notes=notes)


def _front_matter(
    checkpoint: Checkpoint,
    run: RunFolder | None,
    table: SuccessTable | None,
    title: str,
    licence: str,
) -> str:
    """What hubs read: https://huggingface.co/docs/hub/model-cards."""
    said: dict[str, Any] = {
        "library_name": "lerobot",
        "pipeline_tag": "robotics",
        "tags": ["robotics", "lerobot", "vla-opt", str(checkpoint.config.get("type", "policy"))],
    }
    if licence:
        said["license"] = licence
    if table is not None:
        said["model-index"] = [{"name": title, "results": _results(table)}]
    return f"---\n{yaml.safe_dump(said, sort_keys=False, allow_unicode=True)}---\n"


def _results(table: SuccessTable) -> list[dict[str, Any]]:
    return [
        {
            "task": {"type": "robotics", "name": "robotic manipulation"},
            "dataset": {"name": row.suite, "type": row.suite.partition("/")[0]},
            "metrics": [
                {
                    "type": "success_rate",
                    "name": f"success, {format_rate(row.successes, row.scored)}",
                    "value": round(row.rate, 4),
                }
            ],
        }
        for row in table.suites
        if row.rate is not None
    ]


def _summary(checkpoint: Checkpoint, table: SuccessTable | None) -> str:
    kind = checkpoint.config.get("type", "unknown")
    line = f"A `{kind}` policy, checkpoint `{checkpoint.sha256}`, in lerobot's format."
    if table is None:
        return f"{line} No evaluation of this checkpoint is recorded.\n"
    return f"{line} Success: {format_rate(table.total.successes, table.total.scored)}.\n"


def _success(table: SuccessTable | None, run: RunFolder | None) -> str:
    if table is None or run is None:
        return "## Success\n\nNot measured.\n"
    notes = "".join(f"- {note}\n" for note in run.notes)
    grids = markdown([success_grid(table, "Per task"), card_grid(run, "How it was measured")])
    return f"## Success\n\n{grids}" + (f"\nTo be known:\n{notes}" if notes else "")


def _contract_grid(checkpoint: Checkpoint) -> Grid:
    """What it takes and answers."""
    config, spec = checkpoint.config, checkpoint.spec
    features = {**(config.get("input_features") or {}), **(config.get("output_features") or {})}
    rows = [(key, "x".join(map(str, feature["shape"]))) for key, feature in features.items()]
    rows.append(("chunk", f"{config.get('chunk_size', UNKNOWN)} actions"))
    for kind, mode in (config.get("normalization_mapping") or {}).items():
        rows.append((f"normalisation, {str(kind).lower()}", str(mode)))
    if spec is not None:
        views = (
            f"{k} {i.width}x{i.height}, turned {i.rotation_deg}" for k, i in spec.images.items()
        )
        rows += [
            ("state", ", ".join(spec.state_names)),
            ("action", f"{', '.join(spec.action_names)}; gripper -1 open, 1 closed"),
            ("control rate", f"{spec.control_hz} Hz"),
            ("images", f"{'; '.join(views)} degrees; renderer {spec.render_profile}"),
        ]
    rows += [(f"actions of the robot, {key}", str(value)) for key, value in _robot(checkpoint)]
    return Grid(title="What it takes and answers", head=("what", "value"), rows=tuple(rows))


def _robot(checkpoint: Checkpoint) -> list[tuple[str, Any]]:
    from deploy.spec_file import read_spec, spec_of

    said = read_spec(checkpoint.folder)
    return sorted(spec_of(said).items()) if said is not None else []


def _data_grid(run: RunFolder) -> Grid:
    made, info = run.metadata.get("train", {}), run.demos or _info_of(run.train_config)
    options = run.demos_record.get("options", {})
    rows = [
        ("episodes", str(made.get("episodes") or info.get("total_episodes") or UNKNOWN)),
        ("frames", str(made.get("frames") or info.get("total_frames") or UNKNOWN)),
        ("rate", f"{info['fps']} Hz" if info.get("fps") else UNKNOWN),
        *((f"demonstrations, {key}", str(value)) for key, value in sorted(options.items())),
    ]
    if tasks := run.demos_record.get("tasks"):
        won, tried = (sum(int(t[key]) for t in tasks) for key in ("successes", "attempts"))
        rows.append(("scripted expert", f"{won} of {tried} attempts succeeded; these were kept"))
    return Grid(title="Learned from", head=("what", "value"), rows=tuple(rows))


def _info_of(train_config: Mapping[str, Any]) -> dict[str, Any]:
    """`meta/info.json` of the data set, where it still lies where it was."""
    root = (train_config.get("data") or {}).get("root")
    file = Path(str(root)) / "meta" / "info.json"
    if root is None or not file.is_file():
        return {}
    try:
        info = json.loads(file.read_bytes())
    except ValueError:
        return {}
    return info if isinstance(info, dict) else {}


def _recipe_grid(run: RunFolder) -> Grid:
    config, made = run.train_config, run.metadata.get("train", {})
    rows: list[tuple[str, str]] = []
    for part in ("optimizer", "scheduler"):
        values = config.get(part)
        if isinstance(values, Mapping):
            rows += [(f"{part}, {key}", _value(value)) for key, value in values.items()]
    names = ("steps", "batch_size", "gradient_accumulation", "grad_clip", "seed", "mixed_precision")
    rows += [(name, _value(config[name])) for name in names if name in config]
    rows += [(f"version of {n}", v) for n, v in (made.get("versions") or {}).items() if v]
    rows += [(k, str(made[k])) for k in ("git_commit", "config_hash", "command") if made.get(k)]
    rows = rows or [("recipe", UNKNOWN)]
    return Grid(title="Recipe", head=("what", "value"), rows=tuple(rows))


def _value(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def _usage(checkpoint: Checkpoint, table: SuccessTable | None) -> str:
    """Commands that run it: in the simulator it was evaluated in, or on a robot."""
    commands = ["vla-opt serve --checkpoint=FOLDER"]
    if _robot(checkpoint):
        commands.insert(0, "vla-opt check FOLDER --robot=droid")
    else:
        suite, size = _suite(table), checkpoint.image_size or 128
        commands = [
            f"vla-opt check FOLDER --env={suite}",
            f"vla-opt eval --checkpoint=FOLDER --suites={suite}",
            *commands,
            "lerobot-eval --policy.path=FOLDER --env.discover_packages_path=policies \\",
            f"    --env.type=libero --env.task={suite} \\",
            f"    --env.observation_height={size} --env.observation_width={size}",
        ]
    body = "\n".join(commands)
    return f"""## Use

```
{body}
```

`FOLDER` is where this file is. Success in another simulator, with another renderer or another
number of executed actions per chunk is another number: see above how this one was measured.
"""


def _suite(table: SuccessTable | None) -> str:
    """The suite it was evaluated on, a variant's base among them."""
    names = [row.suite.rpartition("/")[2] for row in table.suites] if table is not None else []
    return names[0] if names else "libero_object"
