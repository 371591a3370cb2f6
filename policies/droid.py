"""What DROID's robots measure and obey, as features of a policy.

Source: Khazatsky et al., "DROID", arXiv 2403.12945; openpi's DROID configurations.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from lerobot.configs import FeatureType, PolicyFeature

CONTROL_HZ = 15
CHUNKS = (15, 16)
"""Actions per chunk: 15 in openpi's pi05_droid, 16 in the Pion paper's runs."""
STATE_NAMES = (*(f"joint_position_{i}" for i in range(1, 8)), "gripper_position")
"""Joint positions in rad, gripper from 0 (open) to 1 (closed)."""
VIEWS = ("observation.images.exterior_1_left", "observation.images.wrist_left")
GRIPPER = "gripper_position"


@dataclass(frozen=True, kw_only=True)
class DroidActionSpace:
    """Eight numbers per action.

    Args:
        names: of the dimensions.
        relative: whether the joints are learned as differences from the present ones, and turned
            back into absolute positions behind the policy; the gripper never is.
    """

    names: tuple[str, ...]
    relative: bool


ACTION_SPACES = MappingProxyType(
    {
        "joint_velocity": DroidActionSpace(  # normalised, in [-1, 1]
            names=(*(f"joint_velocity_{i}" for i in range(1, 8)), GRIPPER), relative=False
        ),
        "joint_position": DroidActionSpace(names=STATE_NAMES, relative=True),
    }
)


def droid_features(
    height: int = 180, width: int = 320
) -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
    """Inputs and outputs of a policy on DROID data, for images of this size."""
    image = PolicyFeature(type=FeatureType.VISUAL, shape=(3, height, width))
    state = PolicyFeature(type=FeatureType.STATE, shape=(len(STATE_NAMES),))
    action = PolicyFeature(type=FeatureType.ACTION, shape=(len(STATE_NAMES),))
    return {**dict.fromkeys(VIEWS, image), "observation.state": state}, {"action": action}
