"""``vla-opt deploy {check,dry-run,run,replay,record}``: a policy on an arm, simulated or real."""

from __future__ import annotations

from collections.abc import Sequence

HELP = "a served policy on an FR3, simulated or real: check, dry-run, run, replay, record"

_USAGE = """usage: vla-opt deploy {check,dry-run,run,replay,record} [--key=value ...]

  check    look at the policy server and the robot, and say how to mend what is wrong
  dry-run  ask the policy with live pictures; the arm does not move; what would the filter do?
  run      run episodes, and report rate, latency, interventions and success
  replay   play the actions of a recorded episode again
  record   run episodes and keep them as a LeRobotDataset

vla-opt deploy run --help lists the keys of a word."""


def main(argv: Sequence[str]) -> int:
    """Hand over to the word behind ``deploy``."""
    from vla_opt.errors import UnknownNameError, nearest

    words = list(argv)
    if not words or words[0] in {"-h", "--help", "help"}:
        print(_USAGE)
        return 0 if words else 2
    word, rest = words[0], words[1:]
    from deploy._signals import end_like_ctrl_c
    from vla_opt.cli._deploy_check import check
    from vla_opt.cli._deploy_run import dry_run, record, replay, run

    known = {"check": check, "dry-run": dry_run, "run": run, "replay": replay, "record": record}
    if word not in known:
        raise UnknownNameError(f"unknown word 'deploy {word}'.{nearest(word, known)}")
    end_like_ctrl_c()
    return known[word](rest)
