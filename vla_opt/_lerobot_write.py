"""Writes a LeRobotDataset v3, whole or not at all.

lerobot's own recorder is made for live robots: it drops frames when the encoder falls behind,
copies the growing video at every episode, and stores wrong quantiles. Here its metadata class keeps
the format, and tables, videos and statistics are written directly.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_opt._directories import atomic_directory, exclusive
from vla_opt._episode import Episode, EpisodeShape, check_episode
from vla_opt._lerobot_read import ACTION, CAMERA_PREFIX, EPISODE_NOTES, STATE
from vla_opt._stats import PixelHistogram, Stats, exact_stats, stats_to_json
from vla_opt._video import VideoWriter, default_encoder
from vla_opt.errors import DataError
from vla_opt.io import append_jsonl, atomic_write_json, explain_os_errors

if TYPE_CHECKING:
    from lerobot.configs import RGBEncoderConfig

FRAMES_PER_FILE = 10_000
"""A new file begins with the episode that would pass this. Stock readers compare times in float32
with a tolerance of 0.1 ms; beyond 1,024 s (20,480 frames at 20 Hz) float32 itself is coarser."""

_FILES_PER_CHUNK = 1_000


def write_dataset(
    episodes: Iterable[Episode],
    root: str | Path,
    *,
    fps: int = 20,
    image_size: int | tuple[int, int] | None = None,
    state_names: Sequence[str] | None = None,
    action_names: Sequence[str] | None = None,
    robot_type: str | None = None,
    encoder: "RGBEncoderConfig | None" = None,
    meta_files: Mapping[str, Any] | None = None,
    on_episode: Callable[[int], None] | None = None,
) -> Path:
    """Write episodes as a LeRobotDataset v3 that stock lerobot opens.

    Episodes are taken one at a time, so an iterator need not hold them all. Pictures become H.264
    video (see `default_encoder`); ``meta/stats.json`` holds exact statistics.

    Args:
        episodes: At least one.
        root: Folder to create. It appears when everything is written, never before.
        fps: Control steps per second.
        image_size: Expected size of the pictures, one number for squares or (height, width); None
            takes that of the first episode.
        state_names: One name per dimension of the state; None numbers them.
        action_names: One name per dimension of the action; None numbers them.
        robot_type: Kept in ``meta/info.json``.
        encoder: lerobot's video settings; None is `default_encoder()`.
        meta_files: File name -> value that JSON can hold, to add under ``meta/``.
        on_episode: Called with the number of episodes written so far.

    Returns:
        `root`.

    Raises:
        DataError: There are no episodes, or one is malformed; names it.
        FileExistsError: `root` exists and is not empty.
        OSError: The disk is full or not writable; nothing is left behind.
    """
    root = Path(root)
    with exclusive(root):
        if root.exists() and any(root.iterdir()):
            raise FileExistsError(
                f"'{root}' exists and is not empty: give another folder, or remove it first."
            )
        with atomic_directory(root) as folder:
            layout = _Layout(
                fps=fps,
                image_size=image_size,
                state_names=state_names,
                action_names=action_names,
                robot_type=robot_type,
            )
            writer = _Writer(folder, layout, encoder or default_encoder())
            try:
                for number, episode in enumerate(episodes):
                    with explain_os_errors("write", root):
                        writer.add(episode)
                    if on_episode is not None:
                        on_episode(number + 1)
                with explain_os_errors("write", root):
                    writer.finish()
                for name, value in (meta_files or {}).items():
                    atomic_write_json(folder / "meta" / name, value)
            finally:
                writer.abort()
    return root


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What the caller says about all episodes."""

    fps: int
    image_size: int | tuple[int, int] | None
    state_names: Sequence[str] | None
    action_names: Sequence[str] | None
    robot_type: str | None


class _Writer:
    """The open files of a data set in the making."""

    def __init__(self, folder: Path, layout: _Layout, encoder: "RGBEncoderConfig") -> None:
        self.folder = folder
        self.layout = layout
        self.encoder = encoder
        self.shape: EpisodeShape | None = None
        self.meta: Any = None  # LeRobotDatasetMetadata, once the first episode is known
        self.table: Any = None  # pyarrow.parquet.ParquetWriter
        self.file = self.file_frames = 0
        self.videos: dict[str, VideoWriter] = {}
        self.columns: dict[str, list[NDArray[Any]]] = {}
        self.pixels: dict[str, PixelHistogram] = {}
        self.pool = ThreadPoolExecutor()

    def add(self, episode: Episode) -> None:
        number = self.meta.total_episodes if self.meta else 0
        check_episode(episode, number)
        if self.shape is None:
            self._begin(episode)
        if (found := EpisodeShape.of(episode)) != self.shape:
            raise DataError(f"episode {number} is {found}, the first one is {self.shape}")
        if self.file_frames and self.file_frames + len(episode) > FRAMES_PER_FILE:
            self._close_files()
            self.file, self.file_frames = self.file + 1, 0
        self.meta.save_episode_tasks([episode.task])
        columns = self._columns(episode, number)
        stats: Stats = {name: exact_stats(values) for name, values in columns.items()}
        stats |= self._write_videos(episode)
        self._write_table(columns)
        for name, values in columns.items():
            self.columns.setdefault(name, []).append(values)
        self.meta.save_episode(number, len(episode), [episode.task], stats, self._place(episode))
        append_jsonl(self.folder / EPISODE_NOTES, dict(episode.meta))
        self.file_frames += len(episode)

    def _begin(self, episode: Episode) -> None:
        from lerobot.datasets import LeRobotDatasetMetadata

        self.shape = _shape_of(episode, self.layout.image_size)
        self.pixels = {_camera_key(camera): PixelHistogram() for camera in self.shape.cameras}
        self.folder.rmdir()  # lerobot insists on making it
        self.meta = LeRobotDatasetMetadata.create(
            repo_id="local/dataset",
            fps=self.layout.fps,
            features=_features(self.shape, self.layout),
            robot_type=self.layout.robot_type,
            root=self.folder,
            chunks_size=_FILES_PER_CHUNK,
        )

    def finish(self) -> None:
        import av.logging
        from lerobot.datasets.io_utils import write_info

        if self.meta is None:
            raise DataError("there are no episodes to write")
        self._close_files()
        self.meta.finalize()
        for key in self.pixels:
            self.meta.update_video_info(key, video_encoder=self.encoder)
        av.logging.set_level(None)  # lerobot has just made every later encoder print its figures
        write_info(self.meta.info, self.folder)
        stats: Stats = {k: exact_stats(np.concatenate(v)) for k, v in self.columns.items()}
        stats |= {key: histogram.stats() for key, histogram in self.pixels.items()}
        atomic_write_json(self.folder / "meta/stats.json", stats_to_json(stats))

    def abort(self) -> None:
        """Let go of whatever is still open; harmless after `finish`."""
        self.pool.shutdown()
        for video in self.videos.values():
            video.abort()
        with contextlib.suppress(OSError):  # the error that led here is the one to report
            if self.table is not None:
                self.table.close()
            if self.meta is not None:
                self.meta.finalize()

    def _columns(self, episode: Episode, number: int) -> dict[str, NDArray[Any]]:
        length, first = len(episode), self.meta.total_frames
        frame = np.arange(length)
        return {
            STATE: episode.state.astype(np.float32),
            ACTION: episode.action.astype(np.float32),
            "timestamp": (frame / self.meta.fps).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(length, number),
            "index": first + frame,
            "task_index": np.full(length, self.meta.get_task_index(episode.task)),
        }

    def _write_videos(self, episode: Episode) -> Stats:
        """Encode and count the pictures of all cameras, one thread each."""
        return dict(self.pool.map(self._write_video, episode.frames.items()))

    def _write_video(self, item: tuple[str, NDArray[np.uint8]]) -> tuple[str, dict[str, Any]]:
        key, frames = _camera_key(item[0]), item[1]
        if key not in self.videos:
            path = self.meta.video_path.format(video_key=key, **self._indices())
            self.videos[key] = VideoWriter(
                self.folder / path, fps=self.meta.fps, encoder=self.encoder
            )
        self.videos[key].write(frames)
        histogram = PixelHistogram()
        histogram.add(frames)
        self.pixels[key].merge(histogram)
        return key, histogram.stats()

    def _write_table(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """One row group per episode, so that readers can take an episode alone."""
        import pyarrow.parquet
        from lerobot.datasets.feature_utils import get_hf_features_from_features

        schema = get_hf_features_from_features(self.meta.features).arrow_schema
        rows = {name: list(values) for name, values in columns.items()}
        if self.table is None:
            path = self.folder / self.meta.data_path.format(**self._indices())
            path.parent.mkdir(parents=True, exist_ok=True)
            self.table = pyarrow.parquet.ParquetWriter(path, schema, compression="snappy")
        self.table.write_table(pyarrow.Table.from_pydict(rows, schema=schema))

    def _place(self, episode: Episode) -> dict[str, Any]:
        """Where the episode lies, in the words of ``meta/episodes``."""
        begin, end = self.file_frames, self.file_frames + len(episode)
        first = self.meta.total_frames
        places = {"data": self._indices()}
        for key in self.pixels:
            times = {"from_timestamp": begin / self.meta.fps, "to_timestamp": end / self.meta.fps}
            places[f"videos/{key}"] = {**self._indices(), **times}
        flat = {f"{group}/{k}": v for group, place in places.items() for k, v in place.items()}
        return {
            **flat,
            "dataset_from_index": first,
            "dataset_to_index": first + len(episode),
        }

    def _indices(self) -> dict[str, Any]:
        chunk, file = divmod(self.file, _FILES_PER_CHUNK)
        return {"chunk_index": chunk, "file_index": file}

    def _close_files(self) -> None:
        for video in self.videos.values():
            video.close()
        self.videos.clear()
        if self.table is not None:
            self.table.close()
            self.table = None


def _camera_key(name: str) -> str:
    return name if name.startswith(CAMERA_PREFIX) else CAMERA_PREFIX + name


def _shape_of(episode: Episode, image_size: int | tuple[int, int] | None) -> EpisodeShape:
    shape = EpisodeShape.of(episode)
    wanted = (image_size, image_size) if isinstance(image_size, int) else image_size
    if wanted is not None and wanted != (shape.height, shape.width):
        raise DataError(
            f"expected pictures of {wanted[0]}x{wanted[1]}, "
            f"the first episode has {shape.height}x{shape.width}"
        )
    return shape


def _features(shape: EpisodeShape, layout: _Layout) -> dict[str, Any]:
    picture = {
        "dtype": "video",
        "shape": (shape.height, shape.width, 3),
        "names": ["height", "width", "channels"],
    }
    return {
        **{_camera_key(camera): dict(picture) for camera in shape.cameras},
        STATE: _vector("state", shape.state, layout.state_names),
        ACTION: _vector("action", shape.action, layout.action_names),
    }


def _vector(what: str, size: int, names: Sequence[str] | None) -> dict[str, Any]:
    chosen = list(names) if names is not None else [f"{what}_{i}" for i in range(size)]
    if len(chosen) != size:
        raise DataError(f"expected {size} names for the {what}'s dimensions, got {chosen}")
    return {"dtype": "float32", "shape": (size,), "names": chosen}
