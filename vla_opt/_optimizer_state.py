"""Optimizer state on disk, by parameter name: our checkpoints' and lerobot's."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from vla_opt.checkpoint import TRAINING_STATE, CheckpointError, list_checkpoints


@dataclass(frozen=True, kw_only=True)
class StoredParameter:
    """What a checkpoint holds of one parameter beside its weight.

    Attributes:
        name: of the parameter.
        group: options of its group, without the parameters.
        state: tensors of its state.
    """

    name: str
    group: Mapping[str, Any]
    state: Mapping[str, Tensor]


def find_checkpoint(path: Path, step: int | None = None) -> Path:
    """The checkpoint that a path means.

    Args:
        path: a checkpoint, a folder of checkpoints, a training folder, or a run with `train` in it.
        step: which one; the newest if None.

    Raises:
        CheckpointError: there is none there, or none of that step; names those there are.
    """
    if (path / TRAINING_STATE).is_dir():
        return path
    for folder in (path, path / "checkpoints", path / "train" / "checkpoints"):
        found = [p for p in list_checkpoints(folder) if (p / TRAINING_STATE).is_dir()]
        chosen = [p for p in found if step is None or int(p.name) == step]
        if chosen:
            return chosen[-1]
        if found:
            steps = ", ".join(p.name for p in found)
            raise CheckpointError(f"{folder} has no checkpoint of step {step}; it has {steps}.")
    raise CheckpointError(
        f"{path} is neither a checkpoint with optimizer state nor a run with checkpoints: expected "
        f"a folder with {TRAINING_STATE}/, or with checkpoints/NUMBER/{TRAINING_STATE}/."
    )


def read_optimizer_state(checkpoint: Path) -> list[StoredParameter]:
    """Every parameter that has state, in the order of the groups.

    Raises:
        CheckpointError: the files are missing or hold no names of parameters.
    """
    folder = checkpoint / TRAINING_STATE
    for rest, tensors, prefix in (
        ("optimizer.json", "optimizer.safetensors", ""),
        ("optimizer_param_groups.json", "optimizer_state.safetensors", "state/"),  # lerobot's
    ):
        if (folder / rest).is_file() and (folder / tensors).is_file():
            stored = json.loads((folder / rest).read_text(encoding="utf-8"))
            groups = stored["param_groups"] if isinstance(stored, dict) else stored
            return _parameters(groups, _read(folder / tensors, prefix), folder)
    raise CheckpointError(f"{folder} holds no optimizer state that this version reads.")


def _read(file: Path, prefix: str) -> dict[int, dict[str, Tensor]]:
    found: dict[int, dict[str, Tensor]] = {}
    with safe_open(file, "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 - not a mapping
            index, _, name = key.removeprefix(prefix).partition("/")
            if index.isdigit():
                found.setdefault(int(index), {})[name] = tensors.get_tensor(key)
    return found


def _parameters(
    groups: list[dict[str, Any]], state: Mapping[int, Mapping[str, Tensor]], folder: Path
) -> list[StoredParameter]:
    found = []
    for group in groups:
        options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        names = group.get("param_names") or [f"parameter {i}" for i in group["params"]]
        for name, index in zip(names, group["params"], strict=True):
            if index in state:
                found.append(StoredParameter(name=name, group=options, state=state[index]))
    if not found:
        raise CheckpointError(f"{folder}: no parameter has state; was a step made?")
    return found
