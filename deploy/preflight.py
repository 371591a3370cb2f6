"""Looks at policy server and robot before anything moves far; says how to mend what is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy._blending import delay_fits
from deploy._schedule import Clock, MonotonicClock, Schedule
from deploy.client import PolicyClient
from deploy.droid import DroidRobot
from deploy.errors import DeployError
from deploy.interfaces import SUCCESS_RATE
from deploy.metadata import ServerMetadata
from vla_opt.doctor import Check
from vla_opt.provenance import package_versions

_GOOD_RATE, _FAIR_RATE = 0.98, 0.9
_POLARITY_MARGIN = 0.2  # of the gripper's way
_PACKAGES = ("vla-opt", "franka-rs", "pylibfranka", "aiofranka", "franky-control", "numpy")


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long a server takes.

    Attributes:
        p50: Seconds.
        p95: Seconds.
        server_p50: Of it in the policy, as the server says; NaN if it does not.
    """

    p50: float
    p95: float
    server_p50: float

    def delay(self, control_hz: float) -> int:
        """Steps that pass while an answer is on its way, in the slow cases."""
        return int(np.ceil(self.p95 * control_hz))


def check_versions(arm: Any) -> Check:
    """What is installed, and the protocol that robot and driver agreed on where the driver tells.

    A robot of another protocol is refused when connecting, with the update that mends it.

    Args:
        arm: A `deploy.drivers.ArmDriver`.
    """
    found = [f"{n} {v}" for n, v in package_versions(_PACKAGES).items() if v is not None]
    if protocol := getattr(arm, "protocol", ""):
        found.append(f"protocol {protocol}")
    return Check(name="versions", status="ok", found=", ".join(found))


def measure_latency(
    client: PolicyClient, observation: dict[str, Any], *, requests: int = 20
) -> Latency:
    """Ask the same again and again; the first answer, which may include compilation, is left out.

    Raises:
        DeployError: The server does not answer.
    """
    client.infer(observation, timeout_s=60.0)
    seconds, inside = [], []
    for _ in range(requests):
        began = time.perf_counter()
        answer = client.infer(observation, timeout_s=10.0)
        seconds.append(time.perf_counter() - began)
        timing = answer.get("server_timing")
        inside.append(timing.get("infer_ms", np.nan) if isinstance(timing, dict) else np.nan)
    return Latency(
        p50=float(np.percentile(seconds, 50)),
        p95=float(np.percentile(seconds, 95)),
        server_p50=float(np.median(inside)) / 1e3,
    )


def check_latency(latency: Latency, policy: ServerMetadata, control_hz: float) -> Check:
    """Whether chunks can be fetched ahead."""
    delay, horizon = latency.delay(control_hz), policy.action_horizon
    found = (
        f"p50 {1e3 * latency.p50:.0f} ms, p95 {1e3 * latency.p95:.0f} ms "
        f"(policy {1e3 * latency.server_p50:.0f} ms): {delay} steps at {control_hz:g} Hz"
    )
    if horizon is None:
        return Check(
            name="latency",
            status="warning",
            found=f"{found}, chunk length unknown",
            remedy="state it: --policy.action_horizon",
        )
    if delay_fits(delay, horizon):
        return Check(name="latency", status="ok", found=f"{found}, chunk {horizon}")
    return Check(
        name="latency",
        status="warning",
        found=f"{found}, chunk {horizon}: the arm will stand while the policy is asked",
        remedy="a faster or nearer server, or a policy with longer chunks",
    )


def check_cycles(robot: DroidRobot, *, seconds: float = 10.0, clock: Clock | None = None) -> Check:
    """Stand for a while under control, and count the cycles that came in time."""
    clock = clock or MonotonicClock()
    schedule = Schedule(1 / 15, clock)
    rates = []
    start = schedule.wait()
    while schedule.wait() - start < seconds:
        rate = robot.stand().get(SUCCESS_RATE)
        if rate is not None and clock.now() - start > 0.5:  # the first 100 cycles are not full
            rates.append(float(rate))
    robot.stop()
    if not rates:
        return Check(name="control cycles", status="warning", found="the robot does not tell")
    mean, least = float(np.mean(rates)), min(rates)
    found = f"{100 * mean:.1f} % in time, least {100 * least:.0f} % of 100, in {seconds:g} s"
    if mean >= _GOOD_RATE and least >= _FAIR_RATE:
        return Check(name="control cycles", status="ok", found=found)
    return Check(
        name="control cycles",
        status="failure" if mean < _FAIR_RATE else "warning",
        found=found,
        remedy="real-time kernel, performance governor, a direct cable, no other work on this "
        "computer",
    )


def check_cameras(robot: DroidRobot, *, max_age_s: float) -> Iterator[Check]:
    """Whether every view has a fresh picture that shows something."""
    pictures = robot.pictures()
    for key, value in pictures.views.items():
        spread = float(value.std())
        good = spread > 1.0
        yield Check(
            name=key.removeprefix("observation/"),
            status="ok" if good else "failure",
            found=f"{value.shape[1]} x {value.shape[0]}, brightness {value.mean():.0f} "
            f"+- {spread:.0f}",
            remedy="" if good else "the picture is of one colour: is the lens covered?",
        )
    fresh = pictures.age_s <= max_age_s
    yield Check(
        name="camera age",
        status="ok" if fresh else "failure",
        found=f"oldest picture {1e3 * pictures.age_s:.0f} ms",
        remedy="" if fresh else f"more than {1e3 * max_age_s:.0f} ms: a camera stands still",
    )


def check_gripper(
    move_to: Callable[[float], None], position: Callable[[], float], wait: Callable[[], None]
) -> Check:
    """Open and close it, and see that 0 is open and 1 is closed.

    Args:
        move_to: Commands a position.
        position: Measures one.
        wait: Until the gripper has arrived.
    """
    measured = []
    for wanted in (0.0, 1.0, 0.0):
        move_to(wanted)
        wait()
        measured.append(position())
    found = "measured " + ", ".join(f"{m:.2f}" for m in measured) + " for open, closed, open"
    opened, closed = max(measured[0], measured[2]), measured[1]
    if closed > opened + _POLARITY_MARGIN:
        return Check(name="gripper", status="ok", found=found)
    reversed_ = closed < opened - _POLARITY_MARGIN
    return Check(
        name="gripper",
        status="failure",
        found=found,
        remedy="its polarity is reversed" if reversed_ else "it does not move: is it homed, empty?",
    )


def failed(name: str, error: DeployError) -> Check:
    """A look that could not even be taken."""
    return Check(name=name, status="failure", found=f"{type(error).__name__}: {error}")
