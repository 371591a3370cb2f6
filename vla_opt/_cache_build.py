"""Builds the frame cache of a data set, once, whole or not at all."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_opt._cache import FORMAT, IMAGES, MANIFEST, FrameCache, seal
from vla_opt._directories import atomic_directory, exclusive, npy_header, require_free_space
from vla_opt._lerobot_read import ACTION, STATE, DatasetFiles
from vla_opt._stats import PixelHistogram, Stats, exact_stats, stats_to_json
from vla_opt.errors import DataError, nearest
from vla_opt.io import atomic_write_json, explain_os_errors

logger = logging.getLogger(__name__)

_COLUMNS = {
    "state": STATE,
    "action": ACTION,
    "episode_index": "episode_index",
    "frame_index": "frame_index",
    "task_index": "task_index",
}


def build_cache(
    root: str | Path,
    cache_dir: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    cameras: Sequence[str] | None = None,
    on_frames: Callable[[int, int], None] | None = None,
) -> FrameCache:
    """Open the cache of a data set, decoding the data set first if need be.

    A cache is used as it is if it was made from the same bytes with the same options and is whole;
    otherwise it is built again. Processes that ask for the same cache at once build it once.

    Args:
        root: A LeRobotDataset v3 with state, action and pictures.
        cache_dir: Where the cache is or will be; H * W * 3 bytes per frame and camera.
        image_size: Scale pictures to this size, one number for squares or (height, width); None
            keeps theirs, which must then be the same for all cameras.
        cameras: Feature names of the cameras, in the wanted order; None takes all.
        on_frames: Called with (frames done, frames in all) while decoding.

    Raises:
        DataError: The data set is unfit or damaged; names the file.
        OSError: The disk is full or not writable; nothing is left behind.
    """
    files = DatasetFiles(Path(root))
    plan = _Plan(files, cameras, image_size)
    cache_dir = Path(cache_dir)
    if isinstance(found := _usable(cache_dir, plan.source), FrameCache):
        return found  # without the lock, so that a cache on a read-only disk can be used
    with exclusive(cache_dir):
        if isinstance(found := _usable(cache_dir, plan.source), FrameCache):
            return found
        if found:
            logger.warning("building the frame cache '%s' again: %s", cache_dir, found)
        require_free_space(cache_dir.parent, plan.image_bytes, f"the frame cache of '{root}'")
        with atomic_directory(cache_dir) as folder:
            _write_cache(plan, folder, cache_dir, on_frames)
    return FrameCache(cache_dir)


class _Plan:
    """What a cache of a data set will hold."""

    def __init__(
        self,
        files: DatasetFiles,
        cameras: Sequence[str] | None,
        image_size: int | tuple[int, int] | None,
    ) -> None:
        self.files = files
        self.cameras = tuple(cameras) if cameras is not None else files.camera_keys
        for key in self.cameras:
            if key not in files.camera_keys:
                raise DataError(f"no camera '{key}'.{nearest(key, files.camera_keys)}")
        sizes = {key: files.image_size(key) for key in self.cameras}
        if image_size is None and len(set(sizes.values())) != 1:
            raise DataError(
                f"expected cameras of one size in '{files.root}', got {sizes}: give `image_size`, "
                "or choose some of them with `cameras`."
            )
        square = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.size = square or next(iter(sizes.values()))
        self.frames = int(files.info["total_frames"])
        self.shape = (self.frames, len(self.cameras), *self.size, 3)
        self.image_bytes = int(np.prod(self.shape))

    @cached_property
    def source(self) -> str:
        """Hash of the data set and of what was asked of it."""
        wish = json.dumps([FORMAT, self.files.fingerprint(), self.cameras, self.size])
        return hashlib.sha256(wish.encode()).hexdigest()


def _usable(path: Path, source: str) -> FrameCache | str:
    """The cache, or why it cannot be used: "" if there is none."""
    if not path.exists():
        return ""
    try:
        cache = FrameCache(path)
    except (DataError, OSError) as error:  # OSError: another process is replacing it
        return str(error)
    return cache if cache.source == source else "the data set or the options have changed"


def _write_cache(
    plan: _Plan, folder: Path, target: Path, on_frames: Callable[[int, int], None] | None
) -> None:
    table = plan.files.columns(list(_COLUMNS.values()))
    _check_order(plan.files, table["episode_index"])
    columns = {name: table[feature] for name, feature in _COLUMNS.items()}
    columns["state"] = columns["state"].astype(np.float32)
    columns["action"] = columns["action"].astype(np.float32)
    stats: Stats = {feature: exact_stats(table[feature]) for feature in (STATE, ACTION)}
    stats |= _write_images(plan, folder / IMAGES, target, on_frames)
    with explain_os_errors("write", target):
        for name, values in columns.items():
            np.save(folder / f"{name}.npy", values)
        atomic_write_json(folder / MANIFEST, _manifest(plan, folder, stats))


def _check_order(files: DatasetFiles, episode_index: NDArray[Any]) -> None:
    """The rows of the table must be those of the episodes, one after the other."""
    numbers = [episode.index for episode in files.episodes]
    expected = np.repeat(numbers, [episode.length for episode in files.episodes])
    if not np.array_equal(expected, episode_index):
        raise DataError(
            f"the frames of '{files.root}' are not in the order of its episodes: meta/episodes and "
            "data do not belong together. Copy or write the data set again."
        )


def _write_images(
    plan: _Plan, path: Path, target: Path, on_frames: Callable[[int, int], None] | None
) -> Stats:
    """Decode all cameras side by side into one file; return their statistics."""
    histograms = [PixelHistogram() for _ in plan.cameras]
    streams = [plan.files.pictures(key, plan.size) for key in plan.cameras]
    done = 0
    with ThreadPoolExecutor(max_workers=len(streams)) as pool, path.open("wb") as file:
        file.write(npy_header("|u1", plan.shape))
        for episode in plan.files.episodes:
            views = list(pool.map(next, streams))  # V x (T, H, W, 3)
            if {len(view) for view in views} != {episode.length}:
                raise DataError(
                    f"episode {episode.index} of '{plan.files.root}' has {episode.length} rows but "
                    f"{[len(view) for view in views]} pictures"
                )
            list(pool.map(PixelHistogram.add, histograms, views))
            with explain_os_errors("write", target):
                file.write(np.stack(views, axis=1).tobytes())
            done += episode.length
            if on_frames is not None:
                on_frames(done, plan.frames)
    return {key: h.stats() for key, h in zip(plan.cameras, histograms, strict=True)}


def _manifest(plan: _Plan, folder: Path, stats: Stats) -> dict[str, Any]:
    features = plan.files.features
    content = {
        "fps": plan.files.fps,
        "camera_keys": plan.cameras,
        "tasks": plan.files.tasks,
        "state_names": _names(features[STATE]),
        "action_names": _names(features[ACTION]),
        "files": {path.name: seal(path) for path in sorted(folder.glob("*.npy"))},
    }
    return {
        "format": FORMAT,
        "source": plan.source,
        "fingerprint": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        **content,
        "stats": stats_to_json(stats),
        "episode_meta": plan.files.notes,
    }


def _names(feature: dict[str, Any]) -> list[str]:
    names = feature.get("names")
    if isinstance(names, dict):  # some data sets group them: {"motors": [...]}
        names = [name for group in names.values() for name in group]
    return list(names) if names else [str(i) for i in range(feature["shape"][0])]
