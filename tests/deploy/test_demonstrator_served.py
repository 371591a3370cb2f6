"""The demonstrator behind a policy server's interface, played by the executor, latency included."""

from __future__ import annotations

import pytest
from scenes import KinematicArm
from simulated import FakeClock, ScriptedSource

from deploy.executor import EpisodeReport, Executor, ExecutorConfig
from deploy.sim.expert_policy import ExpertPolicy
from deploy.sim.tasks import TASKS, settled


def served(name: str, seed: int, *, realised: float, latency_s: float, mode: str) -> EpisodeReport:
    task, clock = TASKS[name], FakeClock()
    arm = KinematicArm(clock, task, seed, realised)
    policy = ExpertPolicy(arm)  # type: ignore[arg-type]
    source = ScriptedSource(clock, latency_s)
    chunks = []

    def plan(number: int) -> object:
        if number == len(chunks):  # asked for twice: when it is sent and when it has come
            chunks.append(policy.infer({"prompt": task.instruction})["actions"])
        return chunks[number]

    source.script = plan  # type: ignore[assignment]
    config = ExecutorConfig(max_steps=200, mode=mode)  # type: ignore[arg-type]
    executor = Executor(arm, config, clock=clock, displacements=True)
    executor.connect()
    executor.reset()
    report = executor.run(task.instruction, source, until=settled(task, arm.state))
    print(name, seed, report.reason, arm.closed_off)
    return report


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("realised", [0.35, 0.45])
@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_solved_with_a_sixth_of_a_second_of_latency(
    name: str, realised: float, mode: str
) -> None:
    for seed in (0, 1, 2):
        report = served(name, seed, realised=realised, latency_s=0.15, mode=mode)
        assert report.ending == "success", f"scene {seed}: {report.reason}"
