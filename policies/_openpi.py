"""openpi's PyTorch checkpoints: names of the weights, statistics."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policies._pretrained import PretrainedFileError

_EMBED = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
_OUTPUT = "model.paligemma_with_expert.paligemma.lm_head.weight"
_STATISTICS = ("mean", "std", "q01", "q99")
# Layouts of transformers before 4.52, where the towers were not inside `model`.
_RENAMED = (
    (r"\.paligemma\.language_model\.model\.", ".paligemma.model.language_model."),
    (r"\.paligemma\.language_model\.lm_head\.", ".paligemma.lm_head."),
    (r"\.paligemma\.(vision_tower|multi_modal_projector)\.", r".paligemma.model.\1."),
)


def own_names(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of lerobot's pi_0.5.

    The token table and the output layer are one matrix, of which a file holds one or both.

    Raises:
        PretrainedFileError: the weights are those of pi_0, which has other parts.
    """
    foreign = [k for k in published if re.match(r"(model\.)?(state_proj|action_time_mlp_in)\.", k)]
    if foreign:
        raise PretrainedFileError(
            f"these are weights of pi_0, not pi_0.5: they have {sorted(foreign)[0]}. lerobot would "
            "rename some and drop others; use a pi_0.5 checkpoint, or --policy.type=pi0"
        )
    named = {}
    for key, value in published.items():
        key = f"model.{key.removeprefix('model.')}"
        for pattern, replacement in _RENAMED:
            key = re.sub(pattern, replacement, key)
        named[key] = value
    if _EMBED in named or _OUTPUT in named:
        named.setdefault(_EMBED, named.get(_OUTPUT, torch.empty(0)))
        named.setdefault(_OUTPUT, named[_EMBED])
    return named


def openpi_stats(file: str | Path) -> dict[str, dict[str, Any]]:
    """Statistics in openpi's norm_stats.json as lerobot's normalisation takes them.

    Args:
        file: norm_stats.json, or a folder that holds exactly one somewhere below.

    Raises:
        PretrainedFileError: there is none, or it lacks something.
    """
    path = Path(file)
    if path.is_dir():
        found = sorted(path.rglob("norm_stats.json"))
        if len(found) != 1:
            raise PretrainedFileError(f"{path}: expected one norm_stats.json below, got {found}")
        path = found[0]
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        table = table.get("norm_stats", table)
        return {
            ours: {
                kind: torch.tensor(table[theirs][kind]) for kind in ("mean", "std", "q01", "q99")
            }
            for ours, theirs in (("observation.state", "state"), ("action", "actions"))
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PretrainedFileError(f"{path} is no norm_stats.json of openpi: {error!r}") from error
