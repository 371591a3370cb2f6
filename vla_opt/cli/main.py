"""``vla-opt VERB [--key=value ...]``: finds the verb and turns its errors into exit codes."""

from __future__ import annotations

import ast
import errno
import importlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

from vla_opt import __version__
from vla_opt.errors import ConfigError, UnknownNameError, nearest

# The order in which a person meets the verbs; one that is not named here comes last.
_ORDER = (
    *("doctor", "quickstart", "demos", "train", "eval", "compare", "report", "spectra", "data"),
    *("check", "card", "merge", "push", "serve", "deploy", "zo", "rl", "rlvr"),
)
_OURS = {"vla_opt", "envs", "policies", "deploy"}

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def verbs() -> dict[str, str]:
    """Every verb with its one-line help, read from the source so that nothing heavy is imported."""
    files = [p for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_")]
    names = [p.stem for p in files if p.stem != "main"]
    rank = {name: i for i, name in enumerate(_ORDER)}
    names.sort(key=lambda name: (rank.get(name, len(rank)), name))
    return {name: _help_of(Path(__file__).with_name(f"{name}.py")) for name in names}


def _help_of(path: Path) -> str:
    """The literal assigned to ``HELP`` in a verb's file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        value = getattr(node, "value", None)
        named = any(isinstance(t, ast.Name) and t.id == "HELP" for t in targets)
        if named and isinstance(value, ast.Constant):
            return str(value.value)
    return ""


def usage() -> str:
    """What ``vla-opt --help`` prints."""
    table = verbs()
    width = max(map(len, table))
    lines = [
        f"  {name:<{width}}  {text.splitlines()[0] if text else ''}" for name, text in table.items()
    ]
    return "\n".join(
        [
            "usage: vla-opt VERB [--config_path=FILE.yaml] [--key=value ...]",
            "",
            "Fine-tune a vision-language-action policy and prove in simulation that it works.",
            "",
            *lines,
            "",
            "vla-opt VERB --help lists its keys. Dots reach into nested keys: --optimizer.lr=1e-3",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: The words after ``vla-opt``; the process's own when None.

    Returns:
        0 done, 1 the verb failed, 2 the command or its configuration is wrong, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help", "help"}:
        print(usage())
        return EXIT_OK if words else EXIT_USAGE
    if words[0] in {"-V", "--version"}:
        print(f"vla-opt {__version__}")
        return EXIT_OK
    verb, rest = words[0], words[1:]
    try:
        return _run(verb, rest)
    except KeyboardInterrupt:
        print(f"\nvla-opt {verb}: interrupted; run it again to continue.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `vla-opt data ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:
        return _explain(verb, error)


def _run(verb: str, argv: Sequence[str]) -> int:
    known = verbs()
    if verb not in known:
        raise UnknownNameError(f"unknown verb '{verb}'.{nearest(verb, known)}")
    _set_up_logging()
    _stop_like_ctrl_c()
    module = importlib.import_module(f"vla_opt.cli.{verb}")
    return int(module.main(argv))


def _stop_like_ctrl_c() -> None:
    """Let ``kill PID`` end a verb as Ctrl-C does: workers are ended, times are written down."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _set_up_logging() -> None:
    """Our own modules speak from INFO up, libraries from WARNING up; VLA_OPT_LOG changes ours."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    level = os.environ.get("VLA_OPT_LOG", "INFO").upper()
    for package in _OURS:
        logging.getLogger(package).setLevel(level)


def _explain(verb: str, error: Exception) -> int:
    """Show a project error as its message, any other with its traceback."""
    ours = type(error).__module__.partition(".")[0] in _OURS
    ours |= isinstance(error, OSError) and error.errno == errno.ENOSPC
    if not ours or os.environ.get("VLA_OPT_TRACEBACK"):
        traceback.print_exception(error)
    print(f"vla-opt {verb}: error: {error}", file=sys.stderr)
    usage_error = isinstance(error, (ConfigError, UnknownNameError))
    # envs has its own class of the same name: it may not import vla_opt.
    return EXIT_USAGE if usage_error or type(error).__name__ == "UnknownNameError" else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
