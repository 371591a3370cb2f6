"""``vla-opt push CHECKPOINT --repo=USER/NAME | --to=DIR``: publish a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HELP = "publish a checkpoint with its card on the Hugging Face hub, or into a folder"


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Publish a checkpoint, as `vla-opt push CHECKPOINT --repo=USER/NAME` too.

    Attributes:
        checkpoint: A run folder, a checkpoint of one, or a folder written by lerobot.
        repo: Repository of the hub; needs a network and `hf auth login`.
        to: Folder to create instead.
        public: Make a new repository public.
        revision: Branch; the main one if not given.
    """

    checkpoint: Path
    repo: str | None = None
    to: Path | None = None
    public: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        """Check that there is one place to publish to."""
        if (self.repo is None) == (self.to is None):
            raise ValueError("give either --repo=USER/NAME or --to=DIR")


def main(argv: Sequence[str]) -> int:
    """Publish; the checkpoint may be given without its key, as the first word."""
    from vla_opt.cli._config import parse
    from vla_opt.evaluation.contract import open_checkpoint
    from vla_opt.sharing import export, push_to_hub

    words = list(argv)
    if words and not words[0].startswith("-"):
        words[0] = f"--checkpoint={words[0]}"
    config = parse(PushConfig, words)
    checkpoint = open_checkpoint(config.checkpoint)
    if config.to is not None:
        print(f"exported: {export(checkpoint, config.to)}")
    elif config.repo is not None:
        said = push_to_hub(
            checkpoint, config.repo, private=not config.public, revision=config.revision
        )
        print(f"published: {said}")
    return 0
