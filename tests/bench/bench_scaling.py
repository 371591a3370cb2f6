"""What an evaluation would take on more cores: arithmetic on figures that stand in docs/records.

    python tests/bench/bench_scaling.py

Nothing is run. An episode costs what the 500 of docs/records/libero_object-2026-11-23 did, a chunk
of actions what docs/policies.md says; lengths of episodes are those of the scripted expert (if
all succeed) and the step limits (if none does). docs/scaling.md shows and explains the table.
"""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from envs._suite_names import STEP_LIMITS

RECORD = Path(__file__).resolve().parents[2] / "docs/records/libero_object-2026-11-23"

CHUNK_S = 0.045  # CPU s of the embedded policy for a chunk, docs/policies.md
EXECUTE_STEPS = 4
START_S = 60.0  # Ray, imports, the policy: once
SCENE_S = 4.5  # CPU s to build a scene with the fast renderer: docs/scaling.md
VARIANT_SCENE_S = 4.5  # layout, background, light: docs/libero_plus.md, middle of 3 to 6

EXPERT_STEPS = {"libero_spatial": 85, "libero_object": 103, "libero_goal": 70, "libero_10": 197}
PLUS_TASKS = {"libero_spatial": 2402, "libero_object": 2518, "libero_goal": 2591, "libero_10": 2519}
PLUS_SCENES = 1525 + 1076 + 1142  # variants that build a scene of their own


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What the record says."""

    episodes: int
    steps: int
    step_s: float
    core_s: float

    @property
    def efficiency(self) -> float:
        """Share of the two cores that went into episodes, another job on them included."""
        looks = self.steps / EXECUTE_STEPS
        return (self.steps * self.step_s + looks * CHUNK_S) / self.core_s


def recorded() -> Recorded:
    """Read the record; two workers on two cores made it."""
    with gzip.open(RECORD / "episodes.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    steps = sum(row["steps"] for row in rows)
    times = sorted(datetime.fromisoformat(row["timestamp"]) for row in rows)
    seconds = (times[-1] - times[0]).total_seconds()
    return Recorded(
        episodes=len(rows),
        steps=steps,
        step_s=sum(row["cpu_s"] for row in rows) / steps,
        core_s=2 * seconds,
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Episodes to run."""

    name: str
    steps: int
    scenes_s: float
    longest: int


def plans() -> list[Plan]:
    """LIBERO's 2,000 and LIBERO-Plus's 10,030 episodes, if all succeed and if none does."""
    found = []
    for name, tasks, scenes_s in (
        ("LIBERO, 2,000", dict.fromkeys(EXPERT_STEPS, 500), 40 * SCENE_S),
        ("LIBERO-Plus, 10,030", PLUS_TASKS, 40 * SCENE_S + PLUS_SCENES * VARIANT_SCENE_S),
    ):
        for kind, lengths in (("all succeed", EXPERT_STEPS), ("all fail", STEP_LIMITS)):
            steps = sum(count * lengths[suite] for suite, count in tasks.items())
            longest = max(lengths[suite] for suite in tasks)
            found.append(
                Plan(name=f"{name}, {kind}", steps=steps, scenes_s=scenes_s, longest=longest)
            )
    return found


def minutes(plan: Plan, cores: int, step_s: float, chunk_s: float, efficiency: float) -> float:
    """Wall minutes: work over cores, a scene per worker at least, and the last long episode."""
    look_s = EXECUTE_STEPS * step_s
    workers = max(1, math.floor(cores * look_s / (look_s + chunk_s)))
    work = plan.steps * (step_s + chunk_s / EXECUTE_STEPS)
    scenes = max(plan.scenes_s / workers, SCENE_S)
    tail = plan.longest * (step_s + chunk_s / EXECUTE_STEPS) / 2
    return (START_S + scenes + work / cores / efficiency + tail) / 60


def main() -> None:
    record = recorded()
    look_s = EXECUTE_STEPS * record.step_s
    print(
        f"record: {record.episodes} episodes, {record.steps} control steps; "
        f"{1000 * record.step_s:.1f} CPU ms per step, efficiency {record.efficiency:.2f}"
    )
    print(f"workers per policy process on a CPU: {look_s / CHUNK_S:.1f} to keep it busy\n")
    print(f"{'minutes on':34}{'2 cores':>10}{'64 cores':>18}{'512 cores':>18}")
    for plan in plans():
        cells = []
        for cores in (2, 64, 512):
            slow, fast = (
                minutes(plan, cores, record.step_s, CHUNK_S, e) for e in (record.efficiency, 1.0)
            )
            cells.append(f"{fast:.0f} to {slow:.0f}" if cores > 2 else f"{slow:.0f}")
        print(f"{plan.name:34}{cells[0]:>10}{cells[1]:>18}{cells[2]:>18}")


if __name__ == "__main__":
    main()
