"""``vla-opt deploy check``: is everything fit to run?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vla_opt.cli._deploy_config import DeployConfig, Opened, open_robot

if TYPE_CHECKING:
    from deploy.client import PolicyClient
    from vla_opt.doctor import Check


@dataclass(frozen=True, kw_only=True)
class CheckConfig(DeployConfig):
    """What to look at.

    Attributes:
        seconds: How long the arm stands under control while its cycles are counted.
        requests: Requests whose latency is measured.
        jog: Open and close the gripper, to see which way it goes. It moves.
        skip_robot: Look at the policy server alone.
    """

    seconds: float = 10.0
    requests: int = 20
    jog: bool = False
    skip_robot: bool = False


def check(argv: Sequence[str]) -> int:
    """Print one line per look; 1 if something failed."""
    from vla_opt.cli._config import parse
    from vla_opt.doctor import healthy

    config = parse(CheckConfig, argv)
    found = []
    for look in _looks(config):
        found.append(look)
        print(f"{look.status:8} {look.name:24} {look.found}", flush=True)
        if look.remedy:
            print(f"{'':8} {'':24} -> {look.remedy}")
    return 0 if healthy(found) else 1


def _looks(config: CheckConfig) -> Iterator[Check]:
    from deploy.client import PolicyClient
    from deploy.errors import DeployError
    from deploy.preflight import failed

    client = PolicyClient(config.client())
    try:
        yield from _server_looks(client)
    except DeployError as error:
        yield failed("policy server", error)
    if not config.skip_robot:
        try:
            with open_robot(config) as opened:
                yield from _robot_looks(config, opened, client)
        except DeployError as error:
            yield failed("robot", error)
    client.close()


def _server_looks(client: PolicyClient) -> Iterator[Check]:
    from vla_opt.doctor import Check

    said = client.connect().to_wire()
    said.pop("inputs", None)
    words = ", ".join(f"{key} {value}" for key, value in said.items() if value is not False)
    yield Check(name="policy server", status="ok", found=words or "says nothing about itself")


def _robot_looks(config: CheckConfig, opened: Opened, client: PolicyClient) -> Iterator[Check]:
    from deploy import preflight
    from deploy.errors import DeployError
    from vla_opt.doctor import Check

    mode = opened.env.get_observation().get("robot_mode", "unknown")
    profile = opened.says.controller_profile
    yield Check(name="robot", status="ok", found=f"mode {mode}, controller profile {profile}")
    yield preflight.check_versions(opened.env.robot.arm)
    try:
        yield from preflight.check_cameras(opened.robot, max_age_s=config.executor.max_camera_age_s)
    except DeployError as error:
        yield preflight.failed("cameras", error)
    yield preflight.check_cycles(opened.robot, seconds=config.seconds)
    if config.jog:
        hand = opened.env.robot.gripper
        try:
            yield preflight.check_gripper(hand.move_to, hand.position, hand.wait)
        except DeployError as error:
            yield preflight.failed("gripper", error)
    try:
        yield from _together(config, opened, client)
    except DeployError as error:
        yield preflight.failed("contract", error)


def _together(config: CheckConfig, opened: Opened, client: PolicyClient) -> Iterator[Check]:
    from deploy import preflight
    from deploy.session import agree
    from vla_opt.doctor import Check

    agreement = agree(
        client.connect(),
        opened.says,
        stated=config.policy.metadata(),
        execute_steps=config.executor.execute_steps,
        override=config.override_contract,
    )
    warnings = "; ".join(agreement.warnings)
    yield Check(
        name="contract",
        status="warning" if warnings else "ok",
        found=warnings or "policy and robot agree",
    )
    opened.robot.fit_pictures(agreement.policy)
    views = opened.robot.pictures().views
    words = {**opened.robot.observe().observation, "prompt": config.prompt or "stand still"}
    latency = preflight.measure_latency(client, {**words, **views}, requests=config.requests)
    yield preflight.check_latency(latency, agreement.policy, config.executor.control_hz)
