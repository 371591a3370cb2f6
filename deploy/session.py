"""Ties a policy server and a robot together: contract checked, executor ready."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from deploy._chunk_check import ChunkRules
from deploy._schedule import Clock
from deploy.client import ClientConfig, PolicyClient
from deploy.droid import VELOCITY_SPACES, DroidRobot, check_inputs
from deploy.errors import ContractMismatchError
from deploy.executor import Executor, ExecutorConfig
from deploy.fetcher import ChunkFetcher
from deploy.interfaces import Watcher
from deploy.metadata import ServerMetadata, check_fits
from vla_opt.contracts import compare_chunk, lines


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What the operator states of a policy whose server does not say it.

    Attributes:
        action_space: joint_velocity, joint_position, cartesian_velocity or cartesian_position.
        action_horizon: Actions in a chunk.
        control_hz: Actions per second of its data.
        controller_profile: Low-level controller of its data.
    """

    action_space: str | None = None
    action_horizon: int | None = None
    control_hz: float | None = None
    controller_profile: str | None = None

    def metadata(self) -> ServerMetadata:
        """The same as metadata."""
        return ServerMetadata(**dataclasses.asdict(self))


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A policy that fits a robot.

    Attributes:
        server: What the server said.
        policy: The same with what the operator stated.
        warnings: What could not be compared, or differs and was allowed to.
    """

    server: ServerMetadata
    policy: ServerMetadata
    warnings: tuple[str, ...] = field(default=())


def agree(
    server: ServerMetadata,
    robot: ServerMetadata,
    *,
    stated: ServerMetadata,
    execute_steps: int,
    control_hz: float | None = None,
    override: bool = False,
) -> Agreement:
    """Check that policy and robot mean the same.

    Args:
        server: What the server says.
        robot: What the robot does, see `deploy.droid.robot_metadata`.
        stated: By the operator.
        execute_steps: Actions of a chunk that will be executed.
        control_hz: Actions per second that will be executed.
        override: See `check_fits`.

    Raises:
        ContractMismatchError: They do not.
    """
    policy = server.completed_by(stated)
    warnings = check_fits(policy, robot, override=override)
    check_inputs(policy, robot)
    if lines(compare_chunk(policy.action_horizon, execute_steps), "differs"):
        raise ContractMismatchError(
            f"The policy's chunks have {policy.action_horizon} actions, but "
            f"--executor.execute_steps={execute_steps}: give at most the former."
        )
    if control_hz is not None and policy.control_hz not in (None, control_hz):
        warnings.append(
            f"control_hz: {policy.control_hz:g} of the policy against the executor's {control_hz:g}"
        )
    return Agreement(server=server, policy=policy, warnings=tuple(warnings))


def rules_of(policy: ServerMetadata, robot: ServerMetadata, execute_steps: int) -> ChunkRules:
    """Return what a chunk of this policy must be before this robot may see it."""
    assert policy.action_space is not None  # `agree` has seen to it
    dim = policy.action_dim or robot.action_dim
    assert dim is not None
    return ChunkRules.for_space(
        policy.action_space,
        action_dim=dim,
        least_steps=execute_steps,
        horizon=policy.action_horizon,
    )


@dataclass(frozen=True, kw_only=True)
class Session:
    """Ready to run episodes.

    Attributes:
        executor: In state IDLE.
        fetcher: Asks the server.
        agreement: What they agreed on.
    """

    executor: Executor
    fetcher: ChunkFetcher
    agreement: Agreement


@contextlib.contextmanager
def open_session(
    robot: DroidRobot,
    robot_says: ServerMetadata,
    *,
    client: ClientConfig,
    executor: ExecutorConfig,
    stated: ServerMetadata | None = None,
    override: bool = False,
    watchers: Sequence[Watcher] = (),
    clock: Clock | None = None,
) -> Iterator[Session]:
    """Connect to the policy server and to the robot, and see that they fit.

    Args:
        robot: Open; not closed here.
        robot_says: See `deploy.droid.robot_metadata`.
        client: The server's address and deadlines.
        executor: How chunks are played.
        stated: See `agree`.
        override: See `agree`.
        watchers: See `Executor`.
        clock: See `Executor`.

    Raises:
        DeployError: One of them cannot be reached, or they do not fit.
    """
    asking = PolicyClient(client)
    try:
        server = asking.connect()
        agreement = agree(
            server,
            robot_says,
            stated=stated or ServerMetadata(),
            execute_steps=executor.execute_steps,
            control_hz=executor.control_hz,
            override=override,
        )
    except BaseException:
        asking.close()
        raise
    robot.fit_pictures(agreement.policy)
    fetcher = ChunkFetcher(
        asking,
        rules_of(agreement.policy, robot_says, executor.execute_steps),
        expected=server,
        first_timeout_s=executor.first_chunk_s,
    )
    try:
        ready = Executor(
            robot,
            executor,
            clock=clock,
            watchers=watchers,
            displacements=agreement.policy.action_space in VELOCITY_SPACES,
        )
        ready.connect()
        yield Session(executor=ready, fetcher=fetcher, agreement=agreement)
    finally:
        fetcher.close()
