"""Training samples from a frame cache: an observation and the chunk of actions that follows it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_opt._cache import FrameCache
from vla_opt._lerobot_read import ACTION, STATE
from vla_opt.errors import DataError

if TYPE_CHECKING:
    from vla_opt.features import FeatureCache

Batch = dict[str, Any]

_INT64 = NDArray[np.int64]


class ChunkDataset:
    """Pairs each chosen frame with the actions from there on.

    Pictures stay uint8 with channels last until the model wants them (`to_policy_batch`): a
    quarter of the bytes to gather, to pass between processes and to send to a GPU.

    Args:
        cache: Where the frames are.
        chunk_size: Actions per sample, K.
        frame_stride: Observe every so many frames of an episode, counted from its first; actions
            keep the full rate.
        features: Vision features to give instead of pictures.
        episodes: Restrict to these episode numbers; None takes all.

    Raises:
        ValueError: `chunk_size` or `frame_stride` is less than 1.
        DataError: The features belong to another cache or miss a frame; an episode does not exist.
    """

    def __init__(
        self,
        cache: FrameCache,
        chunk_size: int,
        frame_stride: int = 1,
        features: "FeatureCache | None" = None,
        episodes: Sequence[int] | None = None,
    ) -> None:
        if chunk_size < 1:
            raise ValueError(f"expected chunk_size >= 1, got {chunk_size}")
        self.cache = cache
        self.chunk_size = chunk_size
        self.features = features
        self.rows = observed_rows(cache, frame_stride, episodes)
        """(M,) rows of the cache that are observed."""
        lengths = np.diff(cache.episode_starts)
        self._last = np.repeat(
            cache.episode_starts[1:] - 1, lengths
        )  # (N,) last row of the episode
        self._offsets = np.arange(chunk_size)
        self._places = None if features is None else features.places(cache, self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        """One sample; as `collate` without the batch dimension."""
        batch = self.collate(np.array([range(len(self))[index]]))
        return {key: value[0] for key, value in batch.items()}

    def collate(self, indices: Sequence[int] | _INT64) -> Batch:
        """Gather samples at once.

        Args:
            indices: (B,) numbers in [0, len(self)).

        Returns:
            ``state`` (B, S) float32, ``action`` (B, K, A) float32, ``action_is_pad`` (B, K) bool
            (true behind the end of the episode, where the last action is repeated), ``task`` list
            of B strings, ``index`` (B,) int64 rows of the cache, and either ``images``
            (B, V, H, W, 3) uint8 or ``features`` (B, V, T, C) float16.
        """
        chosen = np.asarray(indices)
        rows = self.rows[chosen]
        ahead = rows[:, None] + self._offsets  # (B, K)
        last = self._last[rows][:, None]
        batch: Batch = {
            "state": torch.from_numpy(self.cache.state[rows]),
            "action": torch.from_numpy(self.cache.action[np.minimum(ahead, last)]),
            "action_is_pad": torch.from_numpy(ahead > last),
            "task": [self.cache.tasks[task] for task in self.cache.task_index[rows]],
            "index": torch.from_numpy(rows),
        }
        if self.features is None or self._places is None:
            batch["images"] = torch.from_numpy(self.cache.images[rows])
        else:
            batch["features"] = torch.from_numpy(self.features.values[self._places[chosen]])
        return batch

    def to_policy_batch(self, batch: Batch, device: torch.device | str = "cpu") -> Batch:
        """`to_policy_batch` with the camera names of the cache."""
        return to_policy_batch(batch, device, self.cache.camera_keys)


def observed_rows(
    cache: FrameCache, frame_stride: int = 1, episodes: Sequence[int] | None = None
) -> _INT64:
    """Rows of every `frame_stride`-th frame of each episode, counted from its first: (M,)."""
    if frame_stride < 1:
        raise ValueError(f"expected frame_stride >= 1, got {frame_stride}")
    wanted = cache.frame_index % frame_stride == 0
    if episodes is not None:
        total = len(cache.episode_starts) - 1
        if unknown := sorted(set(episodes) - set(range(total))):
            raise DataError(f"no episodes {unknown} in '{cache.path}', which has 0..{total - 1}")
        wanted &= np.isin(cache.episode_index, list(episodes))
    return np.flatnonzero(wanted)


def to_policy_batch(
    batch: Batch, device: torch.device | str, camera_keys: Sequence[str] = ()
) -> Batch:
    """Turn a batch of `ChunkDataset` into the one that policies take.

    Pictures travel to the device as bytes and become float there.

    Args:
        batch: From `ChunkDataset.collate`.
        device: Where the tensors shall be.
        camera_keys: Names of the V views; needed when the batch holds images.

    Returns:
        For each camera key (B, 3, H, W) float32 in [0, 1], or ``observation.features``
        (B, V, T, C); ``observation.state``, ``action``, ``action_is_pad``, ``task``, ``index``.

    Raises:
        ValueError: There are not as many names as views.
    """

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    policy_batch: Batch = {
        STATE: move(batch["state"]),
        ACTION: move(batch["action"]),
        "action_is_pad": move(batch["action_is_pad"]),
        "task": batch["task"],
        "index": batch["index"],
    }
    if "features" in batch:
        policy_batch["observation.features"] = move(batch["features"])
        return policy_batch
    views = images_to_float(move(batch["images"])).unbind(dim=1)
    if len(views) != len(camera_keys):
        raise ValueError(f"{len(camera_keys)} names {list(camera_keys)} for {len(views)} views")
    return {**policy_batch, **dict(zip(camera_keys, views, strict=True))}


def images_to_float(images: Tensor) -> Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32 in [0, 1]."""
    planes = images.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format)
    return planes.div_(255.0)
