"""Evaluating a checkpoint in simulation while its run goes on."""

import dataclasses
import time
from collections.abc import Callable

from vla_opt._session import Session
from vla_opt.checkpoint import PRETRAINED
from vla_opt.evaluation.runner import evaluate
from vla_opt.io import Row


def evaluate_checkpoint(session: Session, progress: Callable[[str, int, int], None]) -> Row:
    """Evaluate the last checkpoint as `config.eval` says and return the row for the log.

    Episodes already evaluated by an interrupted session are not run again.
    """
    assert session.last_checkpoint is not None
    config = dataclasses.replace(
        session.config.eval,
        checkpoint=session.last_checkpoint / PRETRAINED,
        output_dir=session.config.output_dir / "eval" / session.last_checkpoint.name,
    )
    begin = time.perf_counter()
    summary = evaluate(config, lambda now: progress("evaluating", now.done, now.total))
    return {
        "kind": "eval",
        "step": session.step,
        "successes": summary.successes,
        "episodes": summary.scored,
        "errors": summary.errors,
        "wall_s": time.perf_counter() - begin,
    }
