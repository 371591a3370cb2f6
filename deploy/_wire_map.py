"""Which keys of a request are which inputs of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ProtocolError
from deploy.images import Picture, as_picture, resize_with_pad, without_bars

IMAGE_PREFIX = "observation.images."
STATE = "observation.state"
PROMPT = "prompt"
DROID_STATE = ("observation/joint_position", "observation/gripper_position")
_DROID_SIZES = {"observation/joint_position": 7, "observation/gripper_position": 1}
# Names that cameras have in data sets and checkpoints -> openpi's keys for them.
_KNOWN_IMAGES = {
    "image": "observation/image",  # LIBERO
    "image2": "observation/wrist_image",
    "exterior_image_1_left": "observation/exterior_image_1_left",  # DROID
    "exterior_image_2_left": "observation/exterior_image_2_left",
    "wrist_image_left": "observation/wrist_image_left",
    "exterior_1_left": "observation/exterior_image_1_left",  # `policies.droid`, `data import`
    "exterior_2_left": "observation/exterior_image_2_left",
    "wrist_left": "observation/wrist_image_left",
    "exterior_left": "observation/exterior_image_1_left",  # ours
    "exterior_right": "observation/exterior_image_2_left",
    "wrist": "observation/wrist_image_left",
    "base_0_rgb": "observation/exterior_image_1_left",  # pi0 and pi0.5 as lerobot converts them
    "left_wrist_0_rgb": "observation/wrist_image_left",
}
_ABSENT = ("right_wrist_0_rgb",)  # slots of pi0.5 that DROID masks off
_EMPTY = "empty_camera_"


@dataclass(frozen=True, kw_only=True)
class WireMap:
    """How requests become observations.

    Attributes:
        images: Policy's name of a view -> key of the request.
        sizes: Policy's name of a view -> (height, width) it takes.
        state: Keys whose numbers, one after the other, are the state.
        state_dim: Numbers in the state; None if the policy takes any.
    """

    images: Mapping[str, str]
    sizes: Mapping[str, tuple[int, int]]
    state: tuple[str, ...]
    state_dim: int | None

    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Keys and shapes of a request, for the server's metadata."""
        shapes: dict[str, tuple[int, ...]] = {
            key: (*self.sizes[name], 3) for name, key in self.images.items()
        }
        for key in self.state:
            size = self.state_dim if len(self.state) == 1 else _DROID_SIZES.get(key)
            shapes[key] = (size or 1,)
        return {**shapes, PROMPT: ()}

    def read(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the observation in a request, as `envs.rollout.Observation` has it.

        Raises:
            ProtocolError: Something is missing or has a wrong shape; names the key.
        """
        return {
            "pixels": {name: self._picture(request, name) for name in self.images},
            "agent_pos": self._state(request),
            "task": _text(_required(request, PROMPT)),
        }

    def _picture(self, request: Mapping[str, Any], name: str) -> Picture:
        key = self.images[name]
        picture = as_picture(_required(request, key), key)
        return resize_with_pad(without_bars(picture, *self.sizes[name]), *self.sizes[name])

    def _state(self, request: Mapping[str, Any]) -> NDArray[np.float32]:
        parts = [_numbers(_required(request, key), key) for key in self.state]
        state = np.concatenate(parts)
        if self.state_dim is not None and len(state) != self.state_dim:
            raise ProtocolError(
                f"{' and '.join(self.state)} hold {len(state)} numbers, the policy takes "
                f"{self.state_dim}."
            )
        return state


def wire_map_for(
    features: Mapping[str, Sequence[int]],
    *,
    images: Mapping[str, str] | None = None,
    state: Sequence[str] | None = None,
) -> WireMap:
    """Find the keys that openpi's clients use for a policy's inputs.

    Args:
        features: The policy's input features -> shape: (3, H, W) of a view, (D,) of the state.
        images: View -> key, where another one than usual is wanted; "" leaves the view out.
        state: Likewise for the state.

    Raises:
        ProtocolError: `images` names a view that the policy has not.
    """
    sizes = {
        name.removeprefix(IMAGE_PREFIX): (int(shape[1]), int(shape[2]))
        for name, shape in features.items()
        if name.startswith(IMAGE_PREFIX)
    }
    if unknown := sorted(set(images or {}) - set(sizes)):
        raise ProtocolError(f"The policy has no view {unknown[0]!r}, only {sorted(sizes)}.")
    keys = {name: (images or {}).get(name, _usual_key(name)) for name in sizes}
    keys = {name: key for name, key in keys.items() if key}
    state_dim = int(features[STATE][0]) if STATE in features else None
    droid = any(key.endswith("_left") for key in keys.values())
    usual = DROID_STATE if droid else ("observation/state",)
    return WireMap(
        images=keys,
        sizes={name: sizes[name] for name in keys},
        state=tuple(usual if state is None else state),
        state_dim=state_dim,
    )


def _usual_key(name: str) -> str:
    if name in _ABSENT or name.startswith(_EMPTY):
        return ""
    return _KNOWN_IMAGES.get(name, f"observation/{name}")


def _required(request: Mapping[str, Any], key: str) -> Any:
    if key not in request:
        have = ", ".join(sorted(map(str, request))) or "nothing"
        raise ProtocolError(f"The request has no `{key}`, only {have}.")
    return request[key]


def _numbers(value: Any, key: str) -> NDArray[np.float32]:
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "fiu" or numbers.ndim > 1:
        raise ProtocolError(f"`{key}` must be a vector of numbers, got {numbers.dtype}.")
    numbers = np.atleast_1d(numbers).astype(np.float32)
    if not np.isfinite(numbers).all():
        raise ProtocolError(f"`{key}` holds numbers that are not finite.")
    return numbers


def _text(value: Any) -> str:
    """A prompt; openpi takes bytes, too."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, str):
        raise ProtocolError(f"`{PROMPT}` must be text, got {type(value).__name__}.")
    return value
