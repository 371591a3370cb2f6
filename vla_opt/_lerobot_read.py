"""Reads a LeRobotDataset v3 from disk without importing lerobot: tables, videos, fingerprint."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_opt._video import VideoReader, decode_image
from vla_opt.errors import DataError, nearest
from vla_opt.io import read_jsonl

CAMERA_PREFIX = "observation.images."
STATE, ACTION = "observation.state", "action"
EPISODE_NOTES = "meta/vla_opt_episodes.jsonl"
"""Where `write_dataset` keeps what an episode's maker noted about it (seed, noise level, ...)."""

_HASHED = ("data/**/*", "videos/**/*", "meta/episodes/**/*", "meta/tasks.parquet", "meta/info.json")


@dataclass(frozen=True, kw_only=True)
class EpisodeRow:
    """Where one episode lies: rows of the table, and files and times of its videos.

    Attributes:
        index: Number of the episode.
        start: First row of the whole data set that belongs to it.
        length: Number of frames.
        videos: Camera key -> (chunk, file, second at which the episode begins in that file).
    """

    index: int
    start: int
    length: int
    videos: dict[str, tuple[int, int, float]]


class DatasetFiles:
    """The files of one LeRobotDataset v3.

    Raises:
        DataError: `root` holds no such data set, or one of another format version.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.info: dict[str, Any] = _read_info(self.root)
        self.fps: int = self.info["fps"]
        self.features: dict[str, Any] = self.info["features"]

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """Features that hold pictures, in the order of ``info.json``."""
        pictures = ("video", "image")
        return tuple(k for k, f in self.features.items() if f["dtype"] in pictures)

    def image_size(self, camera: str) -> tuple[int, int]:
        """(height, width) of a camera's pictures."""
        shape, names = self.features[camera]["shape"], self.features[camera].get("names")
        channels_first = bool(names) and names[0] in ("channel", "channels")
        height, width = shape[1:] if channels_first else shape[:2]
        return int(height), int(width)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Instructions, by task index."""
        table = self._parquet(self.root / "meta/tasks.parquet").to_pydict()
        names = next(column for key, column in table.items() if key != "task_index")
        by_index = dict(zip(table["task_index"], names, strict=True))
        return tuple(by_index[i] for i in range(len(by_index)))

    @cached_property
    def episodes(self) -> tuple[EpisodeRow, ...]:
        """All episodes in order."""
        videos = [k for k in self.camera_keys if self.features[k]["dtype"] == "video"]
        places = [f"videos/{k}/{p}" for k in videos for p in _PLACE]
        names = ["episode_index", "dataset_from_index", "length", *places]
        table = self._tables("meta/episodes", names)
        rows = [
            EpisodeRow(
                index=int(table["episode_index"][i]),
                start=int(table["dataset_from_index"][i]),
                length=int(table["length"][i]),
                videos={k: _place(table, k, i) for k in videos},
            )
            for i in range(len(table["episode_index"]))
        ]
        return tuple(sorted(rows, key=lambda row: row.index))

    @cached_property
    def notes(self) -> tuple[dict[str, Any], ...]:
        """What the maker noted about each episode; empty dicts where there is nothing."""
        rows = read_jsonl(self.root / EPISODE_NOTES)
        return tuple(rows) if len(rows) == len(self.episodes) else tuple({} for _ in self.episodes)

    def columns(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Columns of the frame table in the order of its ``index``, each (N,) or (N, D).

        Raises:
            DataError: A column is missing, or the table has not as many rows as promised.
        """
        for name in names:
            if name not in self.features:
                raise DataError(
                    f"{self.root} has no column '{name}'.{nearest(name, self.features)}"
                )
        table = self._tables("data", ["index", *names])
        order = np.argsort(table["index"], kind="stable")
        if len(order) != self.info["total_frames"]:
            raise DataError(
                f"{self.root}/data holds {len(order)} rows where meta/info.json promises "
                f"{self.info['total_frames']}: the data set is incomplete, copy or write it again."
            )
        return {name: table[name][order] for name in names}

    def pictures(
        self, camera: str, size: tuple[int, int] | None = None
    ) -> Iterator[NDArray[np.uint8]]:
        """Decode a camera's frames, one episode after the other: (T, H, W, 3) uint8 RGB each.

        Args:
            camera: Key of the feature.
            size: (height, width) to scale to; None keeps the size.
        """
        if self.features[camera]["dtype"] == "image":
            yield from self._stored_images(camera, size)
            return
        reader: VideoReader | None = None
        for episode in self.episodes:
            chunk, file, start_s = episode.videos[camera]
            path = self.root / self.info["video_path"].format(
                video_key=camera, chunk_index=chunk, file_index=file
            )
            if not path.is_file():
                raise DataError(f"{path} is missing: the data set is incomplete, copy it again.")
            if reader is None or reader.path != path:
                reader = VideoReader(path, fps=self.fps, size=size)
            yield reader.read(start_s, episode.length)

    def fingerprint(self) -> str:
        """SHA-256 over the names and bytes of everything but ``meta/stats.json`` and notes."""
        digest = hashlib.sha256()
        files = {p for pattern in _HASHED for p in self.root.glob(pattern) if p.is_file()}
        for path in sorted(files):
            digest.update(f"{path.relative_to(self.root)}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def _stored_images(
        self, camera: str, size: tuple[int, int] | None
    ) -> Iterator[NDArray[np.uint8]]:
        for path in sorted((self.root / "data").glob("*/*.parquet")):
            table = self._parquet(path, ["episode_index", camera])
            episode = table["episode_index"].to_numpy()
            starts = np.flatnonzero(np.diff(episode, prepend=-1))
            for start, stop in zip(starts, [*starts[1:], len(episode)], strict=True):
                cells = table[camera].slice(start, stop - start).to_pylist()
                yield np.stack([decode_image(cell["bytes"], size) for cell in cells])

    def _tables(self, folder: str, names: list[str]) -> dict[str, NDArray[Any]]:
        paths = sorted((self.root / folder).glob("*/*.parquet"))
        if not paths:
            raise DataError(f"{self.root / folder} holds no parquet file: the data set is damaged.")
        parts = [self._parquet(path, names) for path in paths]
        return {name: np.concatenate([_to_numpy(p[name]) for p in parts]) for name in names}

    def _parquet(self, path: Path, names: list[str] | None = None) -> Any:
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(path).read(columns=names)
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise DataError(
                f"{path} cannot be read ({error}): it is missing, damaged or was never finished."
            ) from error


_PLACE = ("chunk_index", "file_index", "from_timestamp")


def _place(table: dict[str, NDArray[Any]], camera: str, row: int) -> tuple[int, int, float]:
    chunk, file, start_s = (table[f"videos/{camera}/{name}"][row] for name in _PLACE)
    return int(chunk), int(file), float(start_s)


def _to_numpy(column: Any) -> NDArray[Any]:
    """A column of numbers as (N,), one of lists of equal length as (N, D)."""
    import pyarrow

    kind = column.type
    if not (pyarrow.types.is_list(kind) or pyarrow.types.is_fixed_size_list(kind)):
        return np.asarray(column.to_numpy())
    flat = pyarrow.concat_arrays([chunk.flatten() for chunk in column.chunks])
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def _read_info(root: Path) -> dict[str, Any]:
    path = root / "meta/info.json"
    if not path.is_file():
        raise DataError(f"'{root}' is not a LeRobotDataset: {path} is missing.")
    try:
        info: dict[str, Any] = json.loads(path.read_bytes())
        version = str(info["codebase_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error!r}): copy or write the data set again."
        ) from error
    if not version.startswith("v3."):
        raise DataError(
            f"'{root}' is a LeRobotDataset {version}, expected v3: convert it with "
            "`python -m lerobot.scripts.convert_dataset_v21_to_v30`."
        )
    return info
