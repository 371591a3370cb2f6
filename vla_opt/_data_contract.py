"""A data set's terms: against what it declares of itself, and against a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.spec_file import read_spec
from envs.spec import EnvSpec
from vla_opt._checkpoint_stats import read_statistics
from vla_opt._lerobot_read import ACTION, CAMERA_PREFIX, STATE, DatasetFiles
from vla_opt.config import TrainConfig
from vla_opt.contracts import Finding, compare, compare_chunk, compare_features, lines
from vla_opt.conventions import (
    axis_angle_findings,
    gripper_opening,
    gripper_polarity,
    quaternion_findings,
    range_findings,
    rotation_of,
)
from vla_opt.errors import DataError
from vla_opt.evaluation.contract import (
    ENV_SPEC,
    Checkpoint,
    ContractError,
    open_checkpoint,
    statistics_findings,
    terms_of,
)

_LOW_OPEN = "low open"  # LIBERO's -1 open, 1 closed, and DROID's 0 open, 1 closed


def declared_spec(root: Path) -> EnvSpec | None:
    """The environment that a data set says it comes from, None if it says nothing.

    Raises:
        DataError: The file is damaged.
    """
    file = root / "meta" / ENV_SPEC
    if not file.is_file():
        return None
    try:
        return EnvSpec.from_dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file} cannot be read ({error}): write the data set again.") from error


def names_of(files: DatasetFiles, feature: str) -> list[str]:
    """Names of a feature's dimensions; their numbers where it has none."""
    described = files.features[feature]
    names = described.get("names")
    if isinstance(names, dict):  # some data sets group them: {"motors": [...]}
        names = [name for group in names.values() for name in group]
    return [str(n) for n in names] if names else [str(i) for i in range(described["shape"][0])]


def shapes_of(files: DatasetFiles) -> dict[str, list[int]]:
    """Feature -> shape as a policy takes it: pictures channels first."""
    pictures = {key: [3, *files.image_size(key)] for key in files.camera_keys}
    numbers = {k: list(files.features[k]["shape"]) for k in (STATE, ACTION) if k in files.features}
    return {**pictures, **numbers}


def dataset_terms(files: DatasetFiles) -> dict[str, Any]:
    """What a data set says of itself without a look at its numbers."""
    spec = declared_spec(files.root)
    robot = read_spec(files.root / "meta")
    state = names_of(files, STATE) if STATE in files.features else []
    terms: dict[str, Any] = {
        "control_hz": float(files.fps),
        "state_names": _telling(state),
        "action_names": _telling(names_of(files, ACTION)),
        "rotation": rotation_of(state),
    }
    if spec is not None:
        terms = {**terms_of(spec), **terms}
    if robot is not None:
        terms |= {"action_space": robot.action_space, "controller": robot.controller_profile}
    return terms


def own_findings(files: DatasetFiles) -> list[Finding]:
    """A data set against what it declares, and its gripper and quaternions against its numbers.

    Raises:
        DataError: It is damaged.
    """
    spec, robot = declared_spec(files.root), read_spec(files.root / "meta")
    found = []
    if spec is not None:
        said = {f"{CAMERA_PREFIX}{k}": [3, i.height, i.width] for k, i in spec.images.items()}
        said |= {STATE: [len(spec.state_names)], ACTION: [len(spec.action_names)]}
        found += compare_features(said, shapes_of(files))
        found += compare({"control_hz": float(spec.control_hz)}, {"control_hz": float(files.fps)})
    if robot is not None:
        found += compare({"control_hz": robot.control_hz}, {"control_hz": float(files.fps)})
    table = numbers_of(files)
    found += _rotation_findings(files, table)
    if spec is not None or robot is not None:
        found += _polarity_findings(_LOW_OPEN, measured_polarity(files, table))
    return found


def checkpoint_findings(
    checkpoint: Checkpoint, files: DatasetFiles, *, execute_steps: int | None = None
) -> list[Finding]:
    """A checkpoint against a data set it shall learn from or is held against.

    Raises:
        DataError: The data set is damaged.
        CheckpointError: The checkpoint's statistics cannot be read.
    """
    shapes, table = shapes_of(files), numbers_of(files)
    inputs = checkpoint.config.get("input_features") or {}
    outputs = checkpoint.config.get("output_features") or {}
    wanted = {name: f["shape"] for name, f in {**inputs, **outputs}.items()}
    found = compare_features(wanted, shapes)
    ours: dict[str, Any] = {}
    if checkpoint.spec is not None:
        ours = {**terms_of(checkpoint.spec), "control_hz": float(checkpoint.spec.control_hz)}
    if robot := read_spec(checkpoint.folder):
        ours |= {"action_space": robot.action_space, "controller": robot.controller_profile}
        ours["control_hz"] = robot.control_hz
    found += compare(ours, dataset_terms(files), tolerated=["render_profile"])
    found += compare_chunk(checkpoint.config.get("chunk_size"), execute_steps)
    found += statistics_findings(checkpoint)
    found += _rotation_findings(files, table)
    stats = read_statistics(checkpoint.folder)
    for name, values in table.items():
        low, high = np.quantile(np.asarray(values, np.float64), [0.01, 0.99], axis=0)
        label = f"range of {name}"
        found += range_findings(label, stats.get(name, {}), low, high, names=names_of(files, name))
    if checkpoint.spec is not None or robot is not None:
        found += _polarity_findings(_LOW_OPEN, measured_polarity(files, table))
    return found


def check_training(config: TrainConfig) -> list[str]:
    """See that data, policy and periodic evaluation fit, before anything is decoded or built.

    Args:
        config: A training run. Where it starts from a checkpoint on this machine, differences
            between that and the data are warnings: to learn another task is what it is for.

    Returns:
        Warnings.

    Raises:
        ContractError: They do not fit; lists every difference.
        DataError: The data set is missing or damaged.
    """
    files = DatasetFiles(config.data.root)
    found = own_findings(files)
    if config.eval_every > 0:
        chunk = getattr(config.policy, "chunk_size", None)
        found += compare_chunk(chunk, config.eval.execute_steps)
    if problems := lines(found, "differs"):
        raise ContractError(
            f"{files.root} is not what it declares, or does not fit the run (declared against "
            "found):\n  " + "\n  ".join(problems) + "\n`vla-opt data validate` shows all of it."
        )
    warnings = lines(found, "warning")
    start = config.policy.pretrained_path
    if start is not None and (Path(start) / "config.json").is_file():
        against = checkpoint_findings(open_checkpoint(Path(start)), files)
        warnings += [f"{start} against the data: {line}" for line in lines(against, "differs")]
    return warnings


def numbers_of(files: DatasetFiles) -> dict[str, NDArray[Any]]:
    """State and action, as far as the data set has them: feature -> (N, D)."""
    names = [name for name in (STATE, ACTION) if name in files.features]
    return {k: v.reshape(len(v), -1) for k, v in files.columns(names).items()}


def measured_polarity(files: DatasetFiles, table: Mapping[str, NDArray[Any]]) -> str | None:
    """Which way the gripper's commands count, see `conventions.gripper_polarity`."""
    if STATE not in table or "gripper" not in names_of(files, ACTION)[-1]:
        return None
    opening = gripper_opening(table[STATE], names_of(files, STATE))
    if opening is None:
        return None
    episode = files.columns(["episode_index"])["episode_index"]
    return gripper_polarity(table[ACTION][:, -1], opening, episode, fps=float(files.fps))


def _rotation_findings(files: DatasetFiles, table: Mapping[str, NDArray[Any]]) -> list[Finding]:
    """Sign and norm of the rotations in the state."""
    if STATE not in table:
        return []
    names = names_of(files, STATE)
    episode = files.columns(["episode_index"])["episode_index"]
    return [
        *quaternion_findings(table[STATE], names),
        *axis_angle_findings(table[STATE], names, episode),
    ]


def _telling(names: list[str]) -> list[str] | None:
    """Names that say what a dimension is; None if they only number them."""
    return None if all(re.fullmatch(r"\D*\d+", name) for name in names) else names


def _polarity_findings(declared: str, measured: str | None) -> list[Finding]:
    finding = Finding(
        item="gripper polarity",
        ours=declared,
        theirs=measured or "cannot be measured",
        verdict="unknown" if measured is None else "match",
    )
    if measured in (None, declared):
        return [finding]
    remedy = "import the data again with its polarity named: --gripper"
    return [dataclasses.replace(finding, verdict="differs", remedy=remedy)]
