"""One look at a real environment: does a policy know observations like this?

Names and shapes cannot tell q from -q, or metres from centimetres; one observation can.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.rollout import RolloutConfig
from vla_opt._checkpoint_stats import read_statistics
from vla_opt.contracts import Finding, compare
from vla_opt.conventions import range_findings
from vla_opt.evaluation.contract import Checkpoint, terms_of

_STATE = "observation.state"


def probe_findings(checkpoint: Checkpoint, suite: str, rollout: RolloutConfig) -> list[Finding]:
    """Build the first scene of a suite, and hold its first observation against the statistics.

    Args:
        checkpoint: Its statistics say which states it has seen.
        suite: Of LIBERO.
        rollout: Image size and renderer.
    """
    from envs.libero import LiberoEnv

    env = LiberoEnv(suite, 0, image_size=rollout.image_size, render_profile=rollout.render_profile)
    try:
        observation, _ = env.reset(seed=0, options={"init_state": 0})
        spec: Any = env.spec  # gymnasium gives the attribute another type
    finally:
        env.close()
    state = np.asarray(observation["agent_pos"], np.float64)
    found = [
        Finding(item=f"built: {f.item}", ours=f.ours, theirs=f.theirs, verdict=f.verdict)
        for f in compare(terms_of(rollout.env_spec), terms_of(spec), complete=True)
        if f.verdict != "match"
    ]
    stats = read_statistics(checkpoint.folder).get(_STATE, {})
    return found + range_findings(
        "first state",
        stats,
        state,
        state,
        names=spec.state_names,
        remedy="the policy has not seen this",
    )
