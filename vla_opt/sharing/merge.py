"""Low-rank adapters added to the weights they adapt: W + (alpha / r) B A (Hu et al., 2106.09685).

Two kinds are met. Policies of this project that were trained with `lora_rank` keep adapters among
their own weights; these are merged in the file, without building the policy. A checkpoint of
`lerobot-train --peft` holds the adapter alone and names its base; PEFT itself merges those.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_opt._directories import atomic_directory
from vla_opt._policy import WEIGHTS
from vla_opt.io import atomic_write_json

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER = "adapter_config.json"
_BASE, _A, _B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"
_NOT_COPIED = {"config.json", WEIGHTS, ADAPTER, "adapter_model.safetensors", "README.md"}


class MergeError(ValueError):
    """There is no adapter to merge, or it does not fit its base."""


def merge_checkpoint(folder: Path, out: Path, *, base: Path | None = None) -> Path:
    """Write a checkpoint without adapters that answers the same.

    Args:
        folder: With config.json; processors and contracts are copied from it.
        out: Folder to create.
        base: The base policy of a PEFT adapter; the one it names if not given.

    Raises:
        MergeError: No adapter, or one that does not fit.
        FileExistsError: `out` exists and is not empty.
        PolicyError: A weight of the base was not loaded.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"'{out}' exists and is not empty: give another folder.")
    if not (folder / "config.json").is_file():
        raise MergeError(f"{folder} has no config.json: give the folder of a checkpoint.")
    config = json.loads((folder / "config.json").read_bytes())
    with atomic_directory(out) as made:
        if (folder / ADAPTER).is_file():
            _merge_peft(folder, made, base)
        else:
            _merge_injected(folder, made, config)
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.name not in _NOT_COPIED:
                shutil.copy2(file, made / file.name)
    return out


def merged_tensors(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Weights with the adapters among them added, under the names they have without adapters.

    Args:
        tensors: With `X.base_layer.weight` (m, n), `X.lora_A.default.weight` (r, n) and
            `X.lora_B.default.weight` (m, r) for every adapted layer X.
        scale: alpha / r.

    Raises:
        MergeError: A part of an adapter is missing, or of another shape.
    """
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, value in tensors.items():
        if _BASE in name:
            layer, part = name.rsplit(_BASE, 1)
            found[f"{layer}.{part}"] = value
            if part == "weight":
                found[f"{layer}.weight"] = _adapted(layer, value, tensors, scale)
                used |= {layer + _A, layer + _B}
        elif ".lora_" not in name:
            found[name] = value
    if left := sorted(name for name in tensors if ".lora_" in name and name not in used):
        raise MergeError(f"adapters without a base layer, or of another kind than LoRA: {left[:3]}")
    return found


def _adapted(layer: str, weight: Tensor, tensors: Mapping[str, Tensor], scale: float) -> Tensor:
    if missing := [part for part in (layer + _A, layer + _B) if part not in tensors]:
        raise MergeError(f"{layer} has a base layer, but {missing} is missing: a damaged file?")
    a, b = tensors[layer + _A].float(), tensors[layer + _B].float()
    if (b.shape[0], a.shape[1]) != tuple(weight.shape) or a.shape[0] != b.shape[1]:
        raise MergeError(
            f"{layer}: B {tuple(b.shape)} times A {tuple(a.shape)} does not fit the weight "
            f"{tuple(weight.shape)}"
        )
    return (weight.float() + scale * (b @ a)).to(weight.dtype)


def _merge_injected(folder: Path, out: Path, config: Mapping[str, Any]) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    rank = int(config.get("lora_rank") or 0)
    if not rank:
        raise MergeError(
            f"{folder} has no adapter: neither {ADAPTER} nor `lora_rank` in config.json. "
            "It can be used as it is."
        )
    with safe_open(str(folder / WEIGHTS), framework="pt") as file:
        metadata = file.metadata()
    tensors = merged_tensors(load_file(folder / WEIGHTS), float(config["lora_alpha"]) / rank)
    save_file(tensors, out / WEIGHTS, metadata=metadata)
    atomic_write_json(out / "config.json", {**config, "lora_rank": 0})


def _merge_peft(folder: Path, out: Path, base: Path | None) -> None:
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class
    from peft import PeftConfig, PeftModel

    from vla_opt._policy import check_loaded
    from vla_opt.evaluation.inference import register_policies

    register_policies()
    named = base or PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not named or not (Path(named) / WEIGHTS).is_file():
        raise MergeError(
            f"{folder}: its base policy {named or '(none named)'} is not on this machine. Give its "
            "folder: --base=DIR."
        )
    config = PreTrainedConfig.from_pretrained(folder)
    config.use_peft, config.device = False, "cpu"
    policy = get_policy_class(config.type).from_pretrained(named, config=config)
    check_loaded(policy, Path(named) / WEIGHTS)
    merged = PeftModel.from_pretrained(policy, str(folder)).merge_and_unload()
    merged.save_pretrained(out)
