"""``vla-opt merge CHECKPOINT --out=DIR``: add low-rank adapters to the weights they adapt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HELP = "add a checkpoint's LoRA adapters to its weights, so that it runs without PEFT"


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Write a checkpoint without adapters, as `vla-opt merge CHECKPOINT --out=DIR` too.

    Attributes:
        checkpoint: Trained with `policy.lora_rank`, or a PEFT adapter of lerobot-train.
        out: Folder to create.
        base: Folder of a PEFT adapter's base policy, where it is not where the adapter says.
    """

    checkpoint: Path
    out: Path
    base: Path | None = None


def main(argv: Sequence[str]) -> int:
    """Merge; the checkpoint may be given without its key, as the first word."""
    from vla_opt.cli._config import parse
    from vla_opt.evaluation.contract import open_checkpoint
    from vla_opt.sharing import merge_checkpoint

    words = list(argv)
    if words and not words[0].startswith("-"):
        words[0] = f"--checkpoint={words[0]}"
    config = parse(MergeConfig, words)
    folder = open_checkpoint(config.checkpoint).folder
    out = merge_checkpoint(folder, config.out, base=config.base)
    print(f"merged: {out}\nnext: vla-opt eval --checkpoint={out}")
    return 0
