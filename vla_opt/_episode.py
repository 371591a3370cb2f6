"""One recorded episode, and what must hold before it may enter a data set."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_opt.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One recorded episode of T control steps.

    Attributes:
        frames: Camera -> (T, H, W, 3) uint8 RGB, what it saw before each action. A short name such
            as ``"image"`` is stored as ``observation.images.image``.
        state: (T, S) float32 proprioception before each action.
        action: (T, A) float32 action taken (the label to learn).
        task: Instruction in words.
        meta: Notes about its making (seed, noise level ...) that JSON can hold.
    """

    frames: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    task: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.action)


@dataclass(frozen=True, kw_only=True)
class EpisodeShape:
    """What all episodes of a data set have in common."""

    cameras: tuple[str, ...]
    height: int
    width: int
    state: int
    action: int

    @classmethod
    def of(cls, episode: Episode) -> "EpisodeShape":
        """The shape of one episode.

        Raises:
            DataError: It has no camera, or its cameras differ in size.
        """
        sizes = {frames.shape[1:3] for frames in episode.frames.values()}
        if len(sizes) != 1:
            shapes = {name: frames.shape for name, frames in episode.frames.items()}
            raise DataError(f"expected one picture size over all cameras, got {shapes}")
        ((height, width),) = sizes
        return cls(
            cameras=tuple(episode.frames),
            height=height,
            width=width,
            state=episode.state.shape[-1],
            action=episode.action.shape[-1],
        )


def check_episode(episode: Episode, number: int) -> None:
    """Refuse an episode that would poison a data set.

    Raises:
        DataError: It is empty, its parts differ in length, a dtype is wrong, a number is not
            finite, or it has no instruction. Names the episode and the part.
    """
    where = f"episode {number}"
    length = len(episode)
    if length == 0:
        raise DataError(f"{where} has no frames")
    if not episode.task.strip():
        raise DataError(f"{where} has no instruction: `task` is empty")
    for name, values in (("state", episode.state), ("action", episode.action)):
        if values.ndim != 2 or len(values) != length:
            raise DataError(f"{where}: expected {name} ({length}, D), got {values.shape}")
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise DataError(f"{where}: {name} is not finite at frame {row}: {values[row]}")
    for name, frames in episode.frames.items():
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise DataError(
                f"{where}: expected camera '{name}' (T, H, W, 3) uint8, "
                f"got {frames.shape} {frames.dtype}"
            )
        if len(frames) != length:
            raise DataError(
                f"{where}: camera '{name}' has {len(frames)} frames for {length} actions"
            )
