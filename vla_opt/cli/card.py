"""``vla-opt card CHECKPOINT``: write its README.md from the records of its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HELP = "write a checkpoint's model card: rates with intervals, protocol, data, recipe, versions"


@dataclass(frozen=True, kw_only=True)
class CardConfig:
    """Write README.md into a checkpoint's folder, as `vla-opt card CHECKPOINT` too.

    Attributes:
        checkpoint: A run folder, a checkpoint of one, or a folder written by lerobot.
        run: Run folder with the records; found from the checkpoint's place if not given.
        name: Of the model; that of the run's folder if not given.
        licence: For example apache-2.0; left out if not given.
        show: Print the card instead of writing it.
    """

    checkpoint: Path
    run: Path | None = None
    name: str = ""
    licence: str = ""
    show: bool = False


def main(argv: Sequence[str]) -> int:
    """Write or print the card; the checkpoint may be given without its key, as the first word."""
    from vla_opt.cli._config import parse
    from vla_opt.evaluation.contract import open_checkpoint
    from vla_opt.sharing import model_card, write_card

    words = list(argv)
    if words and not words[0].startswith("-"):
        words[0] = f"--checkpoint={words[0]}"
    config = parse(CardConfig, words)
    checkpoint = open_checkpoint(config.checkpoint)
    if config.show:
        print(
            model_card(checkpoint, run=config.run, name=config.name, licence=config.licence),
            end="",
        )
        return 0
    path = write_card(checkpoint, run=config.run, name=config.name, licence=config.licence)
    print(f"card: {path}\nnext: vla-opt push {checkpoint.folder} --repo=USER/NAME (or --to=DIR)")
    return 0
