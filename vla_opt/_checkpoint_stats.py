"""The normalisation statistics that travel inside a checkpoint, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_opt.checkpoint import CheckpointError
from vla_opt.contracts import Finding

_PATTERNS = {
    "before": "policy_preprocessor_step_*_normalizer_processor.safetensors",
    "after": "policy_postprocessor_step_*_unnormalizer_processor.safetensors",
}

Statistics = dict[str, dict[str, NDArray[Any]]]


def read_statistics(folder: Path, side: str = "before") -> Statistics:
    """The statistics of a checkpoint's processors: feature -> statistic -> values.

    Args:
        folder: Where config.json is.
        side: "before" the policy (states and actions) or "after" it (actions).

    Returns:
        Nothing where the checkpoint has no such file.

    Raises:
        CheckpointError: A file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    found: Statistics = {}
    for file in sorted(folder.glob(_PATTERNS[side])):
        try:
            stored = load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
        for key, value in stored.items():
            feature, _, name = key.rpartition(".")
            found.setdefault(feature, {})[name] = value
    return found


def both_sides_agree(before: Statistics, after: Statistics) -> list[Finding]:
    """Whether actions are scaled back by what they were scaled with."""
    shared = before.get("action", {}).keys() & after.get("action", {}).keys()
    if not shared:
        return []
    different = sorted(
        name for name in shared if not np.array_equal(before["action"][name], after["action"][name])
    )
    return [
        Finding(
            item="action statistics, in and out",
            ours=f"{', '.join(different)} differ" if different else "equal",
            theirs="",
            verdict="differs" if different else "match",
            remedy="pre- and post-processor are of two data sets" if different else "",
        )
    ]
