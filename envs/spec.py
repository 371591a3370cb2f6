"""What an environment shows and takes, as data: compared with a policy before the first episode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """One camera image.

    Attributes:
        height: pixels.
        width: pixels.
        rotation_deg: rotation that has been applied to the simulator's raw (upside-down) image.
    """

    height: int
    width: int
    rotation_deg: int = 180


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """Observation and action contract.

    Attributes:
        images: camera key -> image; "image" is the third-person view, "image2" the wrist view.
        state_names: end-effector position (m), axis-angle (rad), two finger positions (m).
        action_names: translation and rotation deltas as fractions of 0.05 m and 0.5 rad in the
            world frame, and the gripper: -1 open, +1 closed.
        action_low: lower bound of every action dimension.
        action_high: upper bound of every action dimension.
        control_hz: control steps per second.
        render_profile: renderer settings that made the images, see `envs.rendering`.
    """

    images: Mapping[str, ImageSpec] = field(default_factory=dict)
    state_names: tuple[str, ...] = (
        *("eef_x", "eef_y", "eef_z"),
        *("eef_rx", "eef_ry", "eef_rz"),
        *("gripper_0", "gripper_1"),
    )
    action_names: tuple[str, ...] = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
    action_low: float = -1.0
    action_high: float = 1.0
    control_hz: int = 20
    render_profile: str = "exact"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy, the inverse of `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EnvSpec:
        """Rebuilds a spec written by `to_dict`."""
        fields = dict(data)
        fields["images"] = {key: ImageSpec(**image) for key, image in data["images"].items()}
        for name in ("state_names", "action_names"):
            fields[name] = tuple(data[name])
        return cls(**fields)

    def difference(self, other: EnvSpec) -> list[str]:
        """Human-readable differences, self first; an empty list means that the two agree."""
        mine, theirs = _flat(self.to_dict()), _flat(other.to_dict())
        return [
            f"{key}: {mine.get(key, 'absent')} against {theirs.get(key, 'absent')}"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
