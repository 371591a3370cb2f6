"""Published Prismatic and VLA-Adapter checkpoints: their files, and their names for the weights.

Two layouts exist. A Prismatic training checkpoint is one pickled file with the parts
``vision_backbone``, ``projector`` and ``llm_backbone``; a VLA-Adapter checkpoint has safetensors
in transformers' layout, beside them the pickled action head and proprioception projector.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policies._pretrained import PretrainedFileError, locate, read_safetensors

PATTERNS = ("*.safetensors", "*.json", "*checkpoint.pt", "checkpoints/latest-checkpoint.pt")

# Published name -> ours; all that match are applied, in this order.
_RENAMED = (
    (r"^module\.", ""),
    (r"^vision_backbone\.dino_featurizer\.", "vision_backbone.featurizer."),
    (r"^vision_backbone\.siglip_featurizer\.", "vision_backbone.fused_featurizer."),
    (r"^projector\.projector\.0\.", "projector.fc1."),
    (r"^projector\.projector\.2\.", "projector.fc2."),
    (r"^projector\.projector\.4\.", "projector.fc3."),
    (r"^projector\.0\.", "projector.fc1."),
    (r"^projector\.2\.", "projector.fc2."),
    (r"^projector\.4\.", "projector.fc3."),
    (r"^llm_backbone\.llm\.", "language_model."),
    (r"^language_model\.model\.", "language_model."),
    (r"\.scale_factor$", ".gamma"),  # transformers refuses "gamma" in a name
    (r"^action_head\.model\.", "action_head."),
    (r"^proprio_projector\.fc1\.", "proprio_projector.0."),
    (r"^proprio_projector\.fc2\.", "proprio_projector.2."),
)
# Read by nobody: the output layer is tied, and only the second-to-last vision block is looked at.
_UNUSED = re.compile(
    r"^language_model\.lm_head\.|rotary_emb\.inv_freq$|\.rope\.inv_freq$"
    r"|^vision_backbone\.\w*featurizer\.(norm|attn_pool|fc_norm|head)\."
)


def own_names(published: Mapping[str, Tensor], depths: tuple[int, int]) -> dict[str, Tensor]:
    """Weights under the names of `VLAAdapterFullModel`.

    Args:
        published: under either layout's names, parts joined with a dot.
        depths: blocks of the two published vision transformers; the last one of each is unused.
    """
    last = tuple(
        f"vision_backbone.{part}.blocks.{depth - 1}."
        for part, depth in zip(("featurizer", "fused_featurizer"), depths, strict=True)
    )
    named = {}
    for key, value in published.items():
        for pattern, replacement in _RENAMED:
            key = re.sub(pattern, replacement, key)
        if not _UNUSED.search(key) and not key.startswith(last):
            named[key] = value
    return named


def read_vlm(source: str) -> dict[str, Tensor]:
    """Weights of a vision-language model, under published names.

    Args:
        source: folder or hub name of a Prismatic backbone or of a VLA-Adapter checkpoint.

    Raises:
        PretrainedFileError: no weights there.
    """
    folder = locate(source, PATTERNS)
    if any(folder.glob("*.safetensors")):
        return read_safetensors(str(folder))
    for file in (folder / "checkpoints" / "latest-checkpoint.pt", folder / "latest-checkpoint.pt"):
        if file.is_file():
            parts = _unpickle(file)["model"]
            return {f"{part}.{k}": v for part, state in parts.items() for k, v in state.items()}
    if (folder / "lora_adapter").is_dir():
        raise PretrainedFileError(f"{folder} holds a LoRA adapter alone: merge it into its base.")
    raise PretrainedFileError(
        f"{folder} holds neither *.safetensors nor checkpoints/latest-checkpoint.pt"
    )


def read_head(source: str) -> dict[str, Tensor]:
    """Weights of action head and proprioception projector, under published names.

    Raises:
        PretrainedFileError: one of them is not there, or there are several.
    """
    folder = locate(source, PATTERNS)
    found = {}
    for part in ("action_head", "proprio_projector"):
        files = sorted(folder.glob(f"{part}--*checkpoint.pt"))
        if len(files) != 1:
            names = [file.name for file in files]
            raise PretrainedFileError(f"{folder}: expected one {part}--*checkpoint.pt, got {names}")
        state = _unpickle(files[0])
        found.update({f"{part}.{k.removeprefix('module.')}": v for k, v in state.items()})
    return found


def published_stats(source: str, key: str = "") -> dict[str, dict[str, Any]]:
    """Statistics of a VLA-Adapter checkpoint as lerobot's quantile normalisation takes them.

    The published gripper is 0 (closed) to 1 (open) and not normalised; LIBERO's action is -1 for
    open and +1 for closed. Bounds of 3 and -1 make lerobot's formula the line between them.

    Args:
        source: folder or hub name.
        key: of the data set, such as "libero_object_no_noops"; "" if there is only one.

    Raises:
        PretrainedFileError: no statistics, or the key is not there.
    """
    file = locate(source, PATTERNS) / "dataset_statistics.json"
    if not file.is_file():
        raise PretrainedFileError(f"{file} is missing: predicted actions have no units without it")
    table = json.loads(file.read_text(encoding="utf-8"))
    if not key and len(table) == 1:
        key = next(iter(table))
    if key not in table:
        raise PretrainedFileError(f"{file} has no statistics '{key}'; it has {sorted(table)}")
    action, state = table[key]["action"], table[key]["proprio"]
    low, high = torch.tensor(action["q01"]), torch.tensor(action["q99"])
    gripper = ~torch.tensor(action.get("mask", [True] * (len(low) - 1) + [False]))
    low[gripper], high[gripper] = 3.0, -1.0
    return {
        "action": {"q01": low, "q99": high},
        "observation.state": {
            "q01": torch.tensor(state["q01"]),
            "q99": torch.tensor(state["q99"]),
        },
    }


def _unpickle(file: Path) -> Any:
    """Read tensors from a pickle without executing anything in it."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's and pickle's errors are many
        raise PretrainedFileError(f"{file} cannot be read as a file of tensors: {error}") from error
