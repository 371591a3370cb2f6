"""What resuming needs beside the policy, exact to the last bit: optimizer, weights in training."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vla_opt._sharding import gathered, gathered_state
from vla_opt.checkpoint import CheckpointError
from vla_opt.optim._distributed import as_held

_TENSORS = "optimizer.safetensors"
_ITERATE = "weights.safetensors"
_REST = "optimizer.json"
_SEPARATOR = "/"


def optimizer_state(optimizer: torch.optim.Optimizer, *, keep: bool) -> dict[str, Any]:
    """`optimizer.state_dict()`, whole where it is cut; `keep` as in `_sharding.gathered`."""
    state = optimizer.state_dict()
    return {**state, "state": gathered_state(state["state"], keep=keep)}


def save_optimizer(
    optimizer: torch.optim.Optimizer, folder: Path, state: Mapping[str, Any] | None = None
) -> None:
    """Write the state into `folder`: tensors as safetensors, the rest as JSON.

    Args:
        optimizer: Whose state it is.
        folder: Exists.
        state: Of `optimizer_state`, if the optimizer's own is cut among processes.

    Raises:
        TypeError: The state holds something that is neither a tensor nor JSON; says where.
    """
    state = optimizer.state_dict() if state is None else state
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for key, value in _flatten(state["state"]):
        if isinstance(value, Tensor):
            tensors[key] = value.detach().contiguous()
        else:
            values[key] = value
    save_file(_without_shared_memory(tensors), folder / _TENSORS)
    try:
        text = json.dumps({"param_groups": state["param_groups"], "values": values}, indent=1)
    except TypeError as error:
        raise TypeError(
            f"{type(optimizer).__name__}: a parameter group or state value cannot be stored "
            f"({error}). Keep only tensors, numbers, strings, booleans, None and lists of them."
        ) from error
    (folder / _REST).write_text(text, encoding="utf-8")


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Read into `optimizer` what `save_optimizer` wrote.

    Raises:
        CheckpointError: The parameter groups do not fit, for example because the configuration of
            the optimizer was changed; says how.
    """
    rest = json.loads((folder / _REST).read_text(encoding="utf-8"))
    current = optimizer.state_dict()["param_groups"]
    _check_groups(type(optimizer).__name__, rest["param_groups"], current)
    state: dict[Any, Any] = {}
    for key, value in [*load_file(folder / _TENSORS).items(), *rest["values"].items()]:
        _insert(state, key, value)
    groups = [_like(mine, saved) for mine, saved in zip(current, rest["param_groups"], strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def iterate_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, keep: bool
) -> dict[str, Tensor]:
    """The weights at which gradients are taken, if those to be saved are their average.

    That is so with schedule-free algorithms; with others there are none. `keep` is as in
    `_sharding.gathered`.
    """
    if not any(group.get("train_mode") for group in optimizer.param_groups):
        return {}
    return gathered(_trained(model), keep=keep)


def save_iterate(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write what `iterate_of` found; nothing if that was nothing."""
    if weights:
        whole = {name: weight.contiguous() for name, weight in weights.items()}
        save_file(_without_shared_memory(whole), folder / _ITERATE)


def load_iterate(model: nn.Module, folder: Path) -> None:
    """Put the weights that `save_iterate` wrote into `model`; nothing if it wrote none."""
    if (folder / _ITERATE).is_file():
        saved = load_file(folder / _ITERATE)
        with torch.no_grad():
            for name, parameter in _trained(model):
                parameter.copy_(as_held(parameter, saved[name].to(parameter.device)))


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _check_groups(name: str, saved: list[Any], current: list[Any]) -> None:
    def shape(groups: list[Any]) -> list[int]:
        return [len(group["params"]) for group in groups]

    if shape(saved) != shape(current):
        raise CheckpointError(
            f"The checkpoint's optimizer has {len(saved)} groups of {shape(saved)} parameters, the "
            f"{name} built now {len(current)} of {shape(current)}. Resume with the configuration "
            "of the run, or start a new run in another output_dir."
        )


def _flatten(value: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, entry in value.items():
        name = f"{prefix}{key}"
        if isinstance(entry, Mapping):
            yield from _flatten(entry, name + _SEPARATOR)
        else:
            yield name, entry


def _insert(state: dict[Any, Any], key: str, value: Any) -> None:
    """Undo `_flatten`; the first part is the index of a parameter."""
    first, *middle, last = key.split(_SEPARATOR)
    node = state.setdefault(int(first), {})
    for part in middle:
        node = node.setdefault(part, {})
    node[last] = value


def _without_shared_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Safetensors refuses tensors that share memory: store a copy of each but the first."""
    seen: set[int] = set()
    result = {}
    for key, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        result[key] = tensor.clone() if pointer in seen and tensor.numel() else tensor
        seen.add(pointer)
    return result


def _like(template: Any, value: Any) -> Any:
    """Give back to lists from JSON the tuples that the optimizer had."""
    if isinstance(template, dict) and isinstance(value, dict):
        return {key: _like(template.get(key), entry) for key, entry in value.items()}
    if isinstance(template, (list, tuple)) and isinstance(value, list):
        templates = [*template, *[None] * (len(value) - len(template))]
        items = [_like(mine, entry) for mine, entry in zip(templates, value, strict=False)]
        return tuple(items) if isinstance(template, tuple) else items
    return value
