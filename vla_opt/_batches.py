"""Batches as a policy takes them: images or cached features, with a history if it wants one."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from numpy.typing import NDArray
from torch import Tensor

from vla_opt.config import DataConfig
from vla_opt.data import Batch, ChunkDataset, ChunkLoader, FrameCache, build_cache, images_to_float
from vla_opt.errors import DataError
from vla_opt.features import FeatureCache, build_feature_cache

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is, of how much


class FeaturePolicy(Protocol):
    """A policy whose vision encoder is frozen, so that its features can be computed once.

    Attributes:
        features_fingerprint: Identifies what `encode_images` computes; None if it is trained.
    """

    features_fingerprint: str | None

    def encode_images(self, images: Tensor) -> Tensor:
        """Map (B, V, 3, H, W) in [0, 1], views in the policy's order, to (B, V, T, C)."""
        ...


def open_cache(config: DataConfig, progress: Progress) -> FrameCache:
    """Open the decoded frames of the data set, decoding them if need be."""
    return build_cache(
        config.root,
        config.cache / "frames",
        on_frames=lambda done, total: progress("decoding frames", done, total),
    )


def policy_features(cache: FrameCache) -> dict[str, PolicyFeature]:
    """Return the shapes of what a data set holds, as lerobot's policies declare them."""
    height, width = cache.image_size
    views = {
        key: PolicyFeature(type=FeatureType.VISUAL, shape=(3, height, width))
        for key in cache.camera_keys
    }
    state = PolicyFeature(type=FeatureType.STATE, shape=(cache.state.shape[1],))
    action = PolicyFeature(type=FeatureType.ACTION, shape=(cache.action.shape[1],))
    return {**views, "observation.state": state, "action": action}


def open_features(
    config: DataConfig,
    cache: FrameCache,
    policy: PreTrainedPolicy,
    device: torch.device,
    progress: Progress,
) -> FeatureCache | None:
    """Return what the policy's frozen encoder sees in every frame, computing it if need be.

    None if the policy trains its encoder, has none that says so, or `cache_features` is off.
    """
    fingerprint = getattr(policy, "features_fingerprint", None)
    if fingerprint is None or not config.cache_features:
        return None
    order = [cache.camera_keys.index(key) for key in _views(policy.config, cache)]
    encode: Callable[[Tensor], Tensor] = policy.encode_images
    name = "".join(c if c.isalnum() else "_" for c in fingerprint)[-80:]
    return build_feature_cache(
        cache,
        lambda images: encode(images[:, order]),
        f"{fingerprint} {order}",
        config.cache / f"features_{name}_stride{config.frame_stride}",
        config.frame_stride,
        device=device,
        on_frames=lambda done, total: progress("encoding frames", done, total),
    )


def held_out_episodes(total: int, every: int) -> list[int]:
    """Return every `every`-th of `total` episodes, beginning with the `every`-th; 0 holds out none.

    >>> held_out_episodes(10, 4)
    [3, 7]
    """
    return list(range(every - 1, total, every)) if every else []


def _chosen_episodes(total: int, every: int, held_out: bool) -> list[int] | None:
    """The episodes to take, None for all."""
    if not every:
        return None
    apart = held_out_episodes(total, every)
    if not apart:
        raise DataError(f"data.hold_out={every}: there are but {total} episodes, so none is held.")
    return apart if held_out else [i for i in range(total) if i not in set(apart)]


class BatchSource:
    """Gives the batch of any step, and says which frames are in it.

    Args:
        cache: Decoded frames.
        policy_config: Says how many actions and which past observations the policy wants.
        data: Says which frames start a sample.
        features: Given instead of images.
        batch_size: Samples per batch and process.
        accumulation: Batches per step.
        seed: Chooses the order.
        rank: Of this process.
        world_size: Number of processes.
        held_out: Give the episodes that are held out instead of those that are learned from.

    Raises:
        DataError: The policy wants a history of observations and features are given.
    """

    def __init__(
        self,
        cache: FrameCache,
        policy_config: PreTrainedConfig,
        data: DataConfig,
        features: FeatureCache | None,
        *,
        batch_size: int,
        accumulation: int,
        seed: int,
        rank: int,
        world_size: int,
        held_out: bool = False,
    ) -> None:
        actions = list(policy_config.action_delta_indices or [0])
        past = policy_config.observation_delta_indices
        self._cache, self._accumulation = cache, accumulation
        chosen = _chosen_episodes(len(cache.episode_starts) - 1, data.hold_out, held_out)
        self._dataset = ChunkDataset(cache, len(actions), data.frame_stride, features, chosen)
        self._history: _History | None = None
        if past is not None or actions != list(range(len(actions))):
            if features is not None:
                raise DataError("Cached features have no history: set --data.cache_features=false.")
            self._history = _History(cache, past, actions)
        self._loader = ChunkLoader(
            self._dataset, batch_size, seed=seed, rank=rank, world_size=world_size
        )
        self.samples_per_step = batch_size * accumulation * world_size

    def rows(self, step: int, micro: int) -> NDArray[np.int64]:
        """Rows of the frame cache at which the samples of a batch start, (B,)."""
        return self._dataset.rows[self._loader.indices(step * self._accumulation + micro)]

    def batch(self, step: int, micro: int, device: torch.device) -> Batch:
        """Return a batch as the policy's pre-processor takes it."""
        if self._history is not None:
            return self._history.batch(self.rows(step, micro), device)
        batch = self._loader.batch(step * self._accumulation + micro)
        return self._dataset.to_policy_batch(batch, device)

    def in_order(self, size: int, device: torch.device) -> Iterator[Batch]:
        """Every sample once, in the order of the frames, in batches of at most `size`."""
        for start in range(0, len(self._dataset), size):
            chosen = np.arange(start, min(start + size, len(self._dataset)))
            if self._history is not None:
                yield self._history.batch(self._dataset.rows[chosen], device)
            else:
                yield self._dataset.to_policy_batch(self._dataset.collate(chosen), device)

    def identity(self) -> dict[str, Any]:
        """What the order of samples depends on."""
        state = self._loader.state_dict()
        return {key: value for key, value in state.items() if key != "step"}

    def describe(self, rows: Sequence[int]) -> list[str]:
        """Name samples for a person: row, episode and frame."""
        cache = self._cache
        return [
            f"row {row} (episode {cache.episode_index[row]}, frame {cache.frame_index[row]})"
            for row in rows
        ]


class _History:
    """Samples with several past observations, as lerobot's data sets give them.

    Frames before the first and after the last of an episode are replaced by these.
    """

    def __init__(
        self, cache: FrameCache, observations: Sequence[int] | None, actions: Sequence[int]
    ) -> None:
        self._cache = cache
        self._observations = None if observations is None else np.asarray(observations)
        self._actions = np.asarray(actions)
        lengths = np.diff(cache.episode_starts)
        self._first = np.repeat(cache.episode_starts[:-1], lengths)
        self._last = np.repeat(cache.episode_starts[1:] - 1, lengths)

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """Gather (B, T, ...) observations and (B, K, A) actions around `rows`."""
        past = rows if self._observations is None else self._near(rows, self._observations)
        wanted = rows[:, None] + self._actions
        actions = self._near(rows, self._actions)
        cache = self._cache
        views = images_to_float(torch.from_numpy(cache.images[past]).to(device)).unbind(dim=-4)
        return {
            **dict(zip(cache.camera_keys, views, strict=True)),
            "observation.state": torch.from_numpy(cache.state[past]).to(device),
            "action": torch.from_numpy(cache.action[actions]).to(device),
            "action_is_pad": torch.from_numpy(wanted != actions).to(device),
            "task": [cache.tasks[task] for task in cache.task_index[rows]],
            "index": torch.from_numpy(rows),
        }

    def _near(self, rows: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        near: NDArray[np.int64] = np.clip(
            rows[:, None] + offsets, self._first[rows][:, None], self._last[rows][:, None]
        )
        return near


def _views(config: PreTrainedConfig, cache: FrameCache) -> Sequence[str]:
    views: Sequence[str] = getattr(config, "views", cache.camera_keys)
    missing = sorted(set(views) - set(cache.camera_keys))
    if missing:
        raise DataError(f"The policy looks at {missing}, the data set has {cache.camera_keys}.")
    return views


def env_spec_of(root: Path, cache: FrameCache) -> dict[str, Any] | None:
    """Return the contract of the environment the data comes from, None if it is not known.

    A data set of `vla-opt demos` brings it along. Another one with the names of LIBERO's state and
    action dimensions is taken for what LIBERO gives.
    """
    import json

    from envs.spec import EnvSpec, ImageSpec

    file = root / "meta" / "env_spec.json"
    if file.is_file():
        return EnvSpec.from_dict(json.loads(file.read_text(encoding="utf-8"))).to_dict()
    height, width = cache.image_size
    cameras = [key.removeprefix("observation.images.") for key in cache.camera_keys]
    spec = EnvSpec(
        images={camera: ImageSpec(height=height, width=width) for camera in cameras},
        control_hz=cache.fps,
    )
    same = (spec.state_names, spec.action_names) == (cache.state_names, cache.action_names)
    return spec.to_dict() if same else None
