"""What a success rate was measured under, spelled out: the paragraph that papers leave out.

The same checkpoint has been reported at rates 8 points apart for its protocol alone. Everything
here is read from the run's own records; what they do not say is "not recorded".
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from envs._suite_names import SETTLE_STEPS, STEP_LIMITS
from vla_opt.evaluation.exports import Grid
from vla_opt.evaluation.records import EpisodeRecord
from vla_opt.evaluation.run_folder import RunFolder

UNKNOWN = "not recorded"

PROTOCOL = (
    "episodes",
    "starts",
    "step limit",
    "actions",
    "success",
    "images",
    "proprioception",
    "episode seeds",
    "simulator",
)
"""Lines of a card that must agree where rates are compared."""

_SIMULATOR = ("mujoco", "robosuite", "hf-libero")
_LEARNING = ("torch", "lerobot", "transformers")


def card(run: RunFolder) -> dict[str, str]:
    """Return the lines of a run's card, name -> text."""
    return {
        "policy": _policy(run),
        "training": _training(run),
        "checkpoint": _checkpoint(run),
        "episodes": _episodes(run.records),
        "starts": _starts(run.records),
        "step limit": _step_limit(run.records),
        "actions": _actions(run),
        "success": "the task's goal predicate, checked after every control step; the first time "
        "it holds ends the episode",
        "images": _images(run),
        "proprioception": ", ".join(run.env_spec.get("state_names") or [UNKNOWN]),
        "episode seeds": _seeds(run.records),
        "rates": "successes of scored episodes with 95 % Wilson intervals, for this one trained "
        "policy; errors of the machinery count neither way",
        "simulator": _versions(run, _SIMULATOR),
        "libraries": _versions(run, _LEARNING),
        "code": _code(run),
        "machine": _machine(run),
        "command": str(run.metadata.get("eval", {}).get("command") or UNKNOWN),
    }


def card_grid(run: RunFolder, title: str = "Protocol") -> Grid:
    """Return the card as a table of two columns."""
    return Grid(title=title, head=("what", "value"), rows=tuple(card(run).items()))


def protocol_differences(cards: Sequence[dict[str, str]]) -> list[str]:
    """Name the lines of the protocol in which runs differ."""
    return [name for name in PROTOCOL if len({one[name] for one in cards}) > 1]


def _policy(run: RunFolder) -> str:
    policy = run.train_config.get("policy")
    kind = policy.get("type") if isinstance(policy, dict) else None
    kind = kind or run.metadata.get("eval", {}).get("policy") or UNKNOWN
    sizes = run.metadata.get("train", {})
    if not sizes.get("parameters"):
        return str(kind)
    return (
        f"{kind}, {sizes['parameters']:,} parameters, of them "
        f"{sizes.get('trainable_parameters', 0):,} trained"
    )


def _training(run: RunFolder) -> str:
    config, made = run.train_config, run.metadata.get("train", {})
    optimizer = config.get("optimizer")
    if not config or not isinstance(optimizer, dict):
        return UNKNOWN
    batch = config.get("batch_size", 0) * config.get("gradient_accumulation", 1)
    parts = [
        f"{optimizer.get('name')} at learning rate {optimizer.get('lr')}",
        f"{config.get('steps')} steps of {batch * made.get('processes', 1)} samples",
        f"seed {config.get('seed')}",
    ]
    if made.get("episodes"):
        parts.append(f"{made['episodes']} demonstrations, {made.get('frames')} frames")
    return ", ".join(parts)


def _checkpoint(run: RunFolder) -> str:
    hashes = sorted({record.checkpoint_hash for record in run.records if record.checkpoint_hash})
    return f"sha256 {', '.join(hashes)}" if hashes else UNKNOWN


def _episodes(records: Sequence[EpisodeRecord]) -> str:
    parts = []
    for suite, own in _by_suite(records):
        tasks = {record.task_id for record in own}
        states = {(record.task_id, record.init_state) for record in own}
        trials = {record.trial for record in own}
        per_task = len(states) / len(tasks)
        parts.append(
            f"{suite}: {len(tasks)} tasks x {per_task:g} initial states x {len(trials)} "
            f"trial{'s' if len(trials) > 1 else ''}, {sum(r.scored for r in own)} scored"
        )
    return "; ".join(parts) or "none"


def _starts(records: Sequence[EpisodeRecord]) -> str:
    states = sorted({record.init_state for record in records})
    if not states:
        return UNKNOWN
    span = f"{states[0]} to {states[-1]}" if len(states) > 1 else str(states[0])
    return (
        f"the benchmark's fixed initial states {span}, then {SETTLE_STEPS} settling steps with "
        "the gripper open"
    )


def _step_limit(records: Sequence[EpisodeRecord]) -> str:
    limits = [
        f"{suite} {STEP_LIMITS[suite.rpartition('/')[2]]}"
        for suite, _ in _by_suite(records)
        if suite.rpartition("/")[2] in STEP_LIMITS
    ]
    return f"{', '.join(limits)} control steps after settling" if limits else UNKNOWN


def _actions(run: RunFolder) -> str:
    executed = run.metadata.get("eval", {}).get("identity", {}).get("execute_steps")
    policy = run.train_config.get("policy")
    predicted = policy.get("chunk_size") if isinstance(policy, dict) else None
    rate = run.env_spec.get("control_hz")
    if executed is None:
        return UNKNOWN
    of = f" of {predicted} predicted" if predicted else ""
    return (
        f"{executed}{of} executed before the policy looks again"
        + (f", at {rate} Hz" if rate else "")
        + ", as relative end-effector poses and a gripper command"
    )


def _images(run: RunFolder) -> str:
    profiles = sorted({record.render_profile for record in run.records})
    shown = run.env_spec.get("images") or {}
    views = [
        f"{name} {image['width']}x{image['height']} px rotated {image['rotation_deg']} degrees"
        for name, image in shown.items()
    ]
    drawn = ", ".join(profiles) or UNKNOWN
    simplified = ", a simplified renderer" if set(profiles) - {"exact"} else ""
    return f"{', '.join(views) or UNKNOWN}; rendering {drawn}{simplified}"


def _seeds(records: Sequence[EpisodeRecord]) -> str:
    if not records:
        return UNKNOWN
    return (
        f"{len({record.seed for record in records})} distinct, each 31 bits of the sha256 of "
        "suite/task/initial state/trial: the same on any machine and number of workers"
    )


def _versions(run: RunFolder, names: Iterable[str]) -> str:
    versions: dict[str, Any] = run.metadata.get("eval", {}).get("versions") or {}
    return ", ".join(f"{n} {versions[n]}" for n in names if versions.get(n)) or UNKNOWN


def _code(run: RunFolder) -> str:
    commits = sorted({str(m["git_commit"]) for m in run.metadata.values() if m.get("git_commit")})
    dirty = any(m.get("git_dirty") for m in run.metadata.values())
    return f"{', '.join(commits) or UNKNOWN}{' with uncommitted changes' if dirty else ''}"


def _machine(run: RunFolder) -> str:
    made = run.metadata.get("eval", {})
    identity = made.get("identity", {})
    if not made:
        return UNKNOWN
    parts = [f"{made.get('cpu') or UNKNOWN}, {made.get('cpu_count') or '?'} cores"]
    parts += [f"policy on {identity['device']}"] if identity.get("device") else []
    parts += [f"policy batch {identity['policy_batch']}"] if identity.get("policy_batch") else []
    if merged := made.get("merged_from"):
        parts.append(f"merged from {len(merged)} parts")
    return ", ".join(parts)


def _by_suite(records: Sequence[EpisodeRecord]) -> Iterator[tuple[str, list[EpisodeRecord]]]:
    present = {record.suite for record in records}
    order = [s for s in STEP_LIMITS if s in present]
    for suite in [*order, *sorted(present - set(order))]:
        yield suite, [record for record in records if record.suite == suite]
