"""Features of a frozen vision encoder, computed once per frame and kept as fp16 on disk."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_opt._cache import FrameCache
from vla_opt._chunks import images_to_float, observed_rows
from vla_opt._directories import exclusive, npy_header, publish, require_free_space
from vla_opt.errors import DataError
from vla_opt.io import atomic_write_json, explain_os_errors

logger = logging.getLogger(__name__)

__all__ = ["Encode", "FeatureCache", "build_feature_cache"]

Encode = Callable[[Tensor], Tensor]
"""(n, V, 3, H, W) float32 in [0, 1] -> (n, V, T, C)"""

_FORMAT = 1
_MANIFEST = "features.json"
_VALUES = "features.npy"
_PROGRESS = "progress.json"
_SYNC_EVERY = 16  # batches between two points from which an interrupted run can go on


class FeatureCache:
    """Features of the observed frames of a frame cache.

    Attributes:
        values: (M, V, T, C) float16, mapped from disk, read-only.
        rows: (M,) int64 rows of the frame cache that they belong to.
        fingerprint: Names the encoder that made them.
        cache_fingerprint: `FrameCache.fingerprint` of the frames they were made from.
        frame_stride: Every so many frames of an episode have features.
    """

    def __init__(self, path: str | Path) -> None:
        """Open what `build_feature_cache` made.

        Raises:
            DataError: There is none, or it is damaged.
        """
        self.path = Path(path)
        manifest = _read_manifest(self.path)
        size = (self.path / _VALUES).stat().st_size if (self.path / _VALUES).is_file() else None
        if size != manifest["bytes"]:
            raise DataError(
                f"{self.path / _VALUES} is damaged: {size} bytes, expected {manifest['bytes']}"
            )
        self.values: NDArray[np.float16] = np.load(self.path / _VALUES, mmap_mode="r")
        self.rows: NDArray[np.int64] = np.array(manifest["rows"], dtype=np.int64)
        self.fingerprint: str = manifest["encoder"]
        self.cache_fingerprint: str = manifest["cache"]
        self.frame_stride: int = manifest["frame_stride"]
        self._sha256: str = manifest["sha256"]

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple[type["FeatureCache"], tuple[Path]]:
        """Another process maps the file itself; a memory map would be copied to it."""
        return FeatureCache, (self.path,)

    def places(self, cache: FrameCache, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in `values` the features of given rows of the frame cache stand.

        Raises:
            DataError: The features were made from other frames, or lack one of these.
        """
        if cache.fingerprint != self.cache_fingerprint:
            raise DataError(
                f"the features in '{self.path}' were computed from other frames than those in "
                f"'{cache.path}': build them again."
            )
        places = np.searchsorted(self.rows, rows)
        found = self.rows[np.minimum(places, len(self.rows) - 1)]
        if not np.array_equal(found, rows):
            raise DataError(
                f"the features in '{self.path}' cover every {self.frame_stride}. frame and lack "
                f"{(found != rows).sum()} of {len(rows)} frames: use a multiple of this stride."
            )
        return places

    def verify(self) -> None:
        """Check every byte.

        Raises:
            DataError: The content is not what was written.
        """
        if _sha256(self.path / _VALUES) != self._sha256:
            raise DataError(
                f"{self.path / _VALUES} is damaged: remove '{self.path}', build it again"
            )


def build_feature_cache(
    cache: FrameCache,
    encode: Encode,
    fingerprint: str,
    out_dir: str | Path,
    frame_stride: int = 1,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    on_frames: Callable[[int, int], None] | None = None,
) -> FeatureCache:
    """Open the features of a frame cache, computing what is missing.

    An interrupted computation goes on where it was, to the same bytes. Features of other frames,
    another encoder or another stride are replaced.

    Args:
        cache: The frames.
        encode: (n, V, 3, H, W) float32 in [0, 1] -> (n, V, T, C); called without gradients.
        fingerprint: Names the encoder and its weights; features of another are not used.
        out_dir: Where the features are or will be.
        frame_stride: Encode every so many frames of an episode, counted from its first.
        batch_size: Frames per call of `encode`.
        device: Where `encode` wants its input.
        on_frames: Called with (frames done, frames in all).

    Raises:
        ValueError: `encode` gives another shape than it should, or values that fp16 cannot hold.
        OSError: The disk is full or not writable; what was computed is kept for the next run.
    """
    out_dir = Path(out_dir)
    job = {
        "format": _FORMAT,
        "cache": cache.fingerprint,
        "encoder": fingerprint,
        "frame_stride": frame_stride,
        "batch_size": batch_size,
    }
    if isinstance(found := _usable(out_dir, job), FeatureCache):
        return found
    with exclusive(out_dir):
        if isinstance(found := _usable(out_dir, job), FeatureCache):
            return found
        if found:
            logger.warning("computing the features in '%s' again: %s", out_dir, found)
        builder = _Builder(cache, encode, out_dir, job, torch.device(device))
        builder.run(on_frames)
    return FeatureCache(out_dir)


class _Builder:
    """Computes features into a folder beside the target, batch by batch."""

    def __init__(
        self,
        cache: FrameCache,
        encode: Encode,
        out_dir: Path,
        job: dict[str, Any],
        device: torch.device,
    ) -> None:
        self.cache, self.encode, self.out_dir, self.job = cache, encode, out_dir, job
        self.device = device
        self.rows = observed_rows(cache, job["frame_stride"])
        self.partial = out_dir.with_name(f".{out_dir.name}.partial")
        self.shape: tuple[int, ...] = ()  # of one frame's features, known after the first batch

    def run(self, on_frames: Callable[[int, int], None] | None) -> None:
        done, total = self._resume(), len(self.rows)
        if done:
            logger.info("%s: going on after %d of %d frames", self.out_dir, done, total)
        size: int = self.job["batch_size"]
        with explain_os_errors("write", self.out_dir), self._values().open("ab") as file:
            for number, start in enumerate(range(done, total, size), 1):
                self._write(file, self._encode(self.rows[start : start + size]))
                done = min(start + size, total)
                if number % _SYNC_EVERY == 0 or done == total:
                    self._record(file, done)
                if on_frames is not None:
                    on_frames(done, total)
        with explain_os_errors("write", self.out_dir):
            self._finish()

    def _encode(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        images = torch.from_numpy(self.cache.images[rows]).to(self.device)
        with torch.inference_mode():
            values = self.encode(images_to_float(images))
        if values.ndim != 4 or values.shape[:2] != images.shape[:2]:
            raise ValueError(
                f"expected the encoder to give (n, V, T, C) with n, V = {tuple(images.shape[:2])}, "
                f"got {tuple(values.shape)}"
            )
        half = values.to("cpu", torch.float16).numpy()
        if not np.isfinite(half).all():
            largest = values.abs().max().item()
            raise ValueError(
                f"features of frames {rows[0]}..{rows[-1]} do not fit fp16 (largest {largest:g}, "
                "limit 65504): normalise the encoder's output."
            )
        return half

    def _write(self, file: BinaryIO, values: NDArray[np.float16]) -> None:
        if not self.shape:
            self.shape = values.shape[1:]
            needed = len(self.rows) * values[0].nbytes
            require_free_space(self.out_dir.parent, needed, f"the feature cache '{self.out_dir}'")
            file.write(npy_header("<f2", (len(self.rows), *self.shape)))
        file.write(values.tobytes())

    def _record(self, file: BinaryIO, done: int) -> None:
        """Remember that the first `done` frames are safe on disk."""
        file.flush()
        os.fsync(file.fileno())
        state = {"job": self.job, "done": done, "bytes": file.tell(), "shape": self.shape}
        atomic_write_json(self.partial / _PROGRESS, state)

    def _resume(self) -> int:
        """Frames that an interrupted run of the same job has left; everything else is removed."""
        try:
            state = json.loads((self.partial / _PROGRESS).read_bytes())
            usable = state["job"] == self.job and self._values().stat().st_size >= state["bytes"]
        except (OSError, ValueError, KeyError):
            usable = False
        with explain_os_errors("write", self.out_dir):
            if not usable:
                shutil.rmtree(self.partial, ignore_errors=True)
                self.partial.mkdir(parents=True)
                return 0
            os.truncate(self._values(), state["bytes"])
        self.shape = tuple(state["shape"])
        return int(state["done"])

    def _finish(self) -> None:
        manifest = {
            **self.job,
            "bytes": self._values().stat().st_size,
            "sha256": _sha256(self._values()),
            "rows": self.rows.tolist(),
        }
        atomic_write_json(self.partial / _MANIFEST, manifest)
        (self.partial / _PROGRESS).unlink()
        publish(self.partial, self.out_dir)

    def _values(self) -> Path:
        return self.partial / _VALUES


def _usable(path: Path, job: dict[str, Any]) -> FeatureCache | str:
    """The features, or why they cannot be used: "" if there are none."""
    if not path.exists():
        return ""
    try:
        features, manifest = FeatureCache(path), _read_manifest(path)
    except (DataError, OSError) as error:  # OSError: another process is replacing them
        return str(error)
    changed = [key for key in job if key != "batch_size" and manifest.get(key) != job[key]]
    return f"changed: {', '.join(changed)}" if changed else features


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / _MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            f"'{path}' holds no features: make them with build_feature_cache."
        ) from error
    except ValueError as error:
        raise DataError(f"{path / _MANIFEST} is damaged ({error})") from error
    if manifest.get("format") != _FORMAT:
        raise DataError(f"'{path}' has feature format {manifest.get('format')}, expected {_FORMAT}")
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
