"""What a policy server says about itself before the first request, and whether a robot fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from deploy.errors import ContractMismatchError, ProtocolError
from vla_opt.contracts import Finding, compare, lines

ActionSpace = Literal[
    "joint_velocity", "joint_position", "cartesian_velocity", "cartesian_position", "libero"
]
"""DROID's action spaces, and LIBERO's: end-effector deltas in [-1, 1] and a gripper in {-1, 1}."""
ACTION_SPACES: tuple[str, ...] = get_args(ActionSpace)
GRIPPER_POLARITY = "0 open, 1 closed"
"""DROID's; LIBERO's is "-1 open, 1 closed"."""


@dataclass(frozen=True, kw_only=True)
class ServerMetadata:
    """What a policy means by its actions. Nothing else on the wire tells two such spaces apart.

    openpi's own servers send an empty map for DROID: every field may be unknown (None).

    Attributes:
        policy: Name for humans: type of the policy and its checkpoint.
        action_space: See `ActionSpace`.
        action_dim: Numbers in an action, the gripper included.
        action_horizon: Actions in a chunk.
        control_hz: Actions per second it was trained on.
        gripper: Polarity of the last number of an action.
        controller_profile: Low-level controller under which its data were recorded. With velocity
            commands it decides how far the arm really moves.
        statistics_sha256: Of the normalisation statistics inside the checkpoint.
        checkpoint_sha256: Of everything in the checkpoint that decides an action.
        inputs: Keys of a request -> shape; an empty shape is text.
        realtime_chunking: Whether a request may carry the tail of the former chunk, see
            `deploy.realtime`.
    """

    policy: str | None = None
    action_space: str | None = None
    action_dim: int | None = None
    action_horizon: int | None = None
    control_hz: float | None = None
    gripper: str | None = None
    controller_profile: str | None = None
    statistics_sha256: str | None = None
    checkpoint_sha256: str | None = None
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    realtime_chunking: bool = False

    def to_wire(self) -> dict[str, Any]:
        """The map that the server sends, without what is unknown."""
        wire = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        wire["inputs"] = {key: list(shape) for key, shape in self.inputs.items()}
        return wire

    @classmethod
    def from_wire(cls, wire: Any) -> ServerMetadata:
        """Read what a server sent; keys that are not ours are passed over.

        Raises:
            ProtocolError: It is no map, or a value has another type than it must.
        """
        if not isinstance(wire, Mapping):
            raise ProtocolError(f"The server's metadata are a {type(wire).__name__}, not a map.")
        known = {f.name for f in dataclasses.fields(cls)} - {"inputs"}
        values = {k: _checked(k, v) for k, v in wire.items() if k in known and v is not None}
        inputs = wire.get("inputs") or {}
        try:
            shapes = {str(key): tuple(int(n) for n in shape) for key, shape in inputs.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise ProtocolError(f"The server's `inputs` are no map of shapes: {error}") from error
        return cls(**values, inputs=shapes)

    def completed_by(self, stated: ServerMetadata) -> ServerMetadata:
        """Fill what the server does not say with what the operator states.

        Raises:
            ContractMismatchError: The two contradict each other.
        """
        if differences := lines(fit_findings(self, stated), "differs"):
            raise ContractMismatchError(
                "The policy server contradicts what was stated (server against stated):\n  "
                + "\n  ".join(differences)
            )
        ours = {
            f.name: getattr(stated, f.name)
            for f in dataclasses.fields(self)
            if getattr(self, f.name) is None
        }
        return dataclasses.replace(self, **ours)


def check_fits(
    policy: ServerMetadata, robot: ServerMetadata, *, override: bool = False
) -> list[str]:
    """Compare what a policy means by an action with what the robot will do with it.

    Args:
        policy: What the server says, completed by the operator.
        robot: The same for the robot; None where any value will do.
        override: Differences are returned instead of raised. Never those of `action_space` and
            `action_dim`.

    Returns:
        Differences, and what is unknown; worth a warning.

    Raises:
        ContractMismatchError: They do not mean the same, or the action space is unknown.
    """
    if policy.action_space is None:
        raise ContractMismatchError(
            "The policy server does not say what its actions mean. State it: "
            f"--policy.action_space= one of {', '.join(ACTION_SPACES)}."
        )
    found = fit_findings(policy, robot)
    differences = lines(found, "differs")
    fatal = [
        line
        for line in differences
        if not override or line.startswith(("action_space", "action_d"))
    ]
    if fatal:
        raise ContractMismatchError(
            "The policy does not fit this robot (policy against robot):\n  "
            + "\n  ".join(fatal)
            + "\nTrain or choose a policy for this robot, or configure the robot like the policy's"
            " data; --override_contract=true takes the risk for all but the action's meaning."
        )
    unknown = [
        f"{finding.item}: the policy server does not say"
        for finding in found
        if finding.verdict == "unknown" and getattr(policy, finding.item) is None
    ]
    return differences + unknown


def fit_findings(policy: ServerMetadata, robot: ServerMetadata) -> list[Finding]:
    """Every term of a policy beside that of a robot, in the order of `ServerMetadata`."""
    order = [f.name for f in dataclasses.fields(ServerMetadata)]
    found = compare(_terms(policy), _terms(robot))
    return sorted(found, key=lambda finding: order.index(finding.item))


def _terms(metadata: ServerMetadata) -> dict[str, Any]:
    """What can be compared; inputs are by `deploy.droid.check_inputs`."""
    return {
        f.name: getattr(metadata, f.name)
        for f in dataclasses.fields(metadata)
        if f.name not in ("inputs", "realtime_chunking")
    }


def _checked(name: str, value: Any) -> Any:
    kinds: dict[str, tuple[type, ...]] = {
        "action_dim": (int,),
        "action_horizon": (int,),
        "control_hz": (int, float),
        "realtime_chunking": (bool,),
    }
    expected = kinds.get(name, (str,))
    if not isinstance(value, expected) or (expected[0] is int and isinstance(value, bool)):
        raise ProtocolError(
            f"The server's metadata say {name}={value!r}, expected {expected[-1].__name__}."
        )
    return value
