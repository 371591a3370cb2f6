"""What a command line of lerobot-train means but does not say."""

import logging
import sys
from collections.abc import Sequence

logger = logging.getLogger(__name__)

_SWITCH = "--use_policy_training_preset"


def ignored_options(argv: Sequence[str]) -> list[str]:
    """Options of optimizer and scheduler that lerobot-train will not look at.

    As long as the policy's own presets are on, which is the default, lerobot replaces optimizer
    and scheduler by them and says nothing.

    >>> ignored_options(["--optimizer.type=pion", "--steps=5"])
    ['--optimizer.type=pion']
    >>> ignored_options(["--optimizer.type=pion", "--use_policy_training_preset=false"])
    []
    """
    words = list(argv)
    for i, word in enumerate(words):
        value = word.partition("=")[2] if "=" in word else "".join(words[i + 1 : i + 2])
        if word.partition("=")[0] == _SWITCH and value.lower() in ("false", "no", "0", "off"):
            return []
    if any(word.partition("=")[0] == "--resume" for word in words):
        return []  # a resumed run keeps what it was started with
    return [
        word
        for word in words
        if word.startswith(("--optimizer.", "--scheduler."))
        and not word.partition("=")[0].endswith("discover_packages_path")
    ]


def warn_of_ignored_options() -> None:
    """Log a warning if this process is a lerobot-train that will ignore its optimizer."""
    program = sys.argv[0].replace("_", "-")
    ignored = ignored_options(sys.argv[1:])
    if "lerobot-train" in program and ignored:
        logger.warning(
            "lerobot-train ignores %s and trains with the policy's own preset: "
            "add %s=false (it then wants a scheduler too, for example --scheduler.type=vla_opt "
            "--scheduler.name=constant)",
            " ".join(ignored), _SWITCH,
        )  # fmt: skip
