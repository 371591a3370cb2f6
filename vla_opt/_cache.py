"""The frame cache: a data set decoded once into arrays that are mapped into memory."""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_opt._episode import Episode
from vla_opt._lerobot_read import CAMERA_PREFIX
from vla_opt._stats import Stats, stats_from_json
from vla_opt.errors import DataError

FORMAT = 1  # of the cache on disk; a change makes every older cache be built again
MANIFEST = "cache.json"
IMAGES = "images.npy"


class FrameCache:
    """A decoded data set of N frames from V cameras, as arrays.

    Attributes:
        images: (N, V, H, W, 3) uint8 RGB, mapped from disk, read-only.
        state: (N, S) float32.
        action: (N, A) float32.
        episode_index: (N,) int64, ascending; frames of an episode stand together.
        frame_index: (N,) int64, counted within the episode.
        task_index: (N,) int64, into `tasks`.
        tasks: Instructions.
        stats: Exact statistics per feature, in lerobot's layout (`dataset_stats` of its
            processors); the images' are those of the decoded frames.
        fps: Control steps per second.
        camera_keys: Feature names of the V cameras, such as ``observation.images.image``.
        state_names: Names of the S dimensions.
        action_names: Names of the A dimensions.
        episode_meta: What the maker noted about each episode.
        source: Fingerprint of the data set this was made from.
        fingerprint: Hash of all that is in here; equal for equal content, wherever it lies.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a cache that `build_cache` made.

        Sizes of all files and the contents of all but the images are checked; `verify` checks the
        images too.

        Raises:
            DataError: There is no cache, or it is damaged or of another format.
        """
        self.path = Path(path)
        manifest = _read_manifest(self.path)
        _check_files(self.path, manifest["files"], skip_contents=(IMAGES,))
        self._files: dict[str, dict[str, Any]] = manifest["files"]
        self.images: NDArray[np.uint8] = np.load(self.path / IMAGES, mmap_mode="r")
        self.state: NDArray[np.float32] = np.load(self.path / "state.npy")
        self.action: NDArray[np.float32] = np.load(self.path / "action.npy")
        self.episode_index: NDArray[np.int64] = np.load(self.path / "episode_index.npy")
        self.frame_index: NDArray[np.int64] = np.load(self.path / "frame_index.npy")
        self.task_index: NDArray[np.int64] = np.load(self.path / "task_index.npy")
        self.tasks: tuple[str, ...] = tuple(manifest["tasks"])
        self.stats: Stats = stats_from_json(manifest["stats"])
        self.fps: int = manifest["fps"]
        self.camera_keys: tuple[str, ...] = tuple(manifest["camera_keys"])
        self.state_names: tuple[str, ...] = tuple(manifest["state_names"])
        self.action_names: tuple[str, ...] = tuple(manifest["action_names"])
        self.episode_meta: tuple[dict[str, Any], ...] = tuple(manifest["episode_meta"])
        self.source: str = manifest["source"]
        self.fingerprint: str = manifest["fingerprint"]

    def __len__(self) -> int:
        return len(self.action)

    def __reduce__(self) -> tuple[type["FrameCache"], tuple[Path]]:
        """Another process maps the files itself; a memory map would be copied to it."""
        return FrameCache, (self.path,)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the pictures."""
        return self.images.shape[2], self.images.shape[3]

    @cached_property
    def episode_starts(self) -> NDArray[np.int64]:
        """First row of each episode, and the number of rows at the end: (episodes + 1,)."""
        changes = np.flatnonzero(np.diff(self.episode_index)) + 1
        return np.concatenate([[0], changes, [len(self)]])

    def verify(self) -> None:
        """Check every byte, the images included.

        Raises:
            DataError: A file is not what was written.
        """
        _check_files(self.path, self._files)

    def episodes(self) -> Iterator[Episode]:
        """The episodes as they would be given to `write_dataset`."""
        names = [key.removeprefix(CAMERA_PREFIX) for key in self.camera_keys]
        starts = self.episode_starts
        for meta, start, stop in zip(self.episode_meta, starts[:-1], starts[1:], strict=True):
            yield Episode(
                frames={name: self.images[start:stop, v] for v, name in enumerate(names)},
                state=self.state[start:stop],
                action=self.action[start:stop],
                task=self.tasks[self.task_index[start]],
                meta=meta,
            )

    def to_lerobot(self, root: str | Path) -> Path:
        """Write the content as a LeRobotDataset v3; see `write_dataset`."""
        from vla_opt._lerobot_write import write_dataset

        return write_dataset(
            self.episodes(),
            root,
            fps=self.fps,
            state_names=self.state_names,
            action_names=self.action_names,
        )


def seal(path: Path) -> dict[str, Any]:
    """Size and hash of a file, as they stand in the manifest."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"'{path}' holds no frame cache: make it with build_cache.") from error
    except ValueError as error:
        raise DataError(f"{path / MANIFEST} is damaged ({error})") from error
    if manifest.get("format") != FORMAT:
        raise DataError(f"'{path}' has cache format {manifest.get('format')}, expected {FORMAT}")
    return manifest


def _check_files(
    path: Path, files: dict[str, dict[str, Any]], skip_contents: tuple[str, ...] = ()
) -> None:
    for name, expected in files.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != expected["bytes"]:
            raise DataError(f"{file} has {size} bytes, expected {expected['bytes']}: it is damaged")
        if name not in skip_contents and seal(file) != expected:
            raise DataError(f"{file} is damaged: its content is not what was written")
