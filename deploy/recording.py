"""Keeps episodes of a robot: each safe on disk as it ends, all together as a LeRobotDataset v3.

Recording has two halves. During the session every finished episode goes into a file of its own, at
once and whole or not at all; afterwards `export` makes the data set. A full disk, a crash or a
power cut in between costs at most the episode that was running.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.cameras import Image
from deploy.limits import JOINTS, Array
from deploy.metadata import ServerMetadata
from deploy.robot_env import RobotEnv
from deploy.spec_file import SPEC_FILE, spec_of
from vla_opt._episode import Episode
from vla_opt._lerobot_write import write_dataset
from vla_opt.errors import DataError
from vla_opt.io import atomic_write_bytes, explain_os_errors

STATE_NAMES = (*(f"joint_{i}.pos" for i in range(1, JOINTS + 1)), "gripper.pos")
"""rad, and 0 open .. 1 closed."""
_LIMIT = 9000  # frames; a forgotten recording ends after ten minutes instead of filling the memory


def action_names(space: str) -> tuple[str, ...]:
    """Names of an action's eight numbers in one of the joint spaces."""
    suffix = "vel" if space == "joint_velocity" else "pos"
    return (*(f"joint_{i}.{suffix}" for i in range(1, JOINTS + 1)), "gripper.pos")


@dataclass(frozen=True, kw_only=True)
class RecordedFrame:
    """One control step.

    Attributes:
        images: Camera -> (H, W, 3) uint8 RGB, what was seen before the action.
        state: (8,) joint positions in rad and the gripper, 0 open, 1 closed.
        action: (8,) what was executed.
        time_s: Since the episode began, as measured.
    """

    images: Mapping[str, Image]
    state: Array
    action: Array
    time_s: float


def frame_of(observation: Mapping[str, Any], action: Array, time_s: float) -> RecordedFrame:
    """A frame from an observation of `RobotEnv` and the action that followed."""
    words = observation["robot_state"]
    images = {
        name.removesuffix("_left"): np.ascontiguousarray(image[..., 2::-1])  # from BGRA
        for name, image in observation["image"].items()
    }
    state = np.append(words["joint_positions"], words["gripper_position"])
    return RecordedFrame(images=images, state=state, action=np.asarray(action), time_s=time_s)


class EpisodeRecorder:
    """Collects one episode after the other in a folder.

    Args:
        folder: Made if missing; episodes that are there already stay, and are exported, too.
        spec: What the actions mean; recorded beside the data.
    """

    def __init__(self, folder: str | Path, spec: ServerMetadata) -> None:
        self.folder, self.spec = Path(folder), spec
        self._frames: list[RecordedFrame] = []
        self._task = ""

    @property
    def episodes(self) -> list[Path]:
        """The finished episodes' files, in order."""
        return sorted(self.folder.glob("episode_*.npz"))

    def begin(self, task: str) -> None:
        """Start an episode; what an unfinished one held is dropped."""
        self._frames, self._task = [], task

    def add(self, frame: RecordedFrame) -> None:
        """Keep one frame, in memory.

        Raises:
            DataError: The episode is longer than anybody wants.
        """
        if len(self._frames) >= _LIMIT:
            raise DataError(f"an episode of more than {_LIMIT} frames: end it with finish or drop")
        self._frames.append(frame)

    def finish(self, **notes: Any) -> Path:
        """Put the episode on disk.

        Args:
            **notes: Anything JSON can hold: success, who, what went wrong.

        Returns:
            Its file.

        Raises:
            DataError: It has no frames.
            OSError: The disk is full or not writable. The episode is kept: free space and call
                again, or `begin` anew to drop it.
        """
        if not self._frames:
            raise DataError("the episode has no frames")
        number = self._next_number()
        path = self.folder / f"episode_{number:06d}.npz"
        with explain_os_errors("write", path):
            atomic_write_bytes(path, self._packed(notes))
        self._frames = []
        return path

    def export(self, root: str | Path, *, robot_type: str = "fr3") -> Path:
        """Write all finished episodes as a LeRobotDataset v3.

        Raises:
            DataError: There are none, or they do not fit together.
            FileExistsError: `root` exists and is not empty.
            OSError: The disk is full; nothing is left behind, the episodes stay.
        """
        return write_dataset(
            map(read_episode, self.episodes),
            root,
            fps=round(self.spec.control_hz or 15),
            state_names=STATE_NAMES,
            action_names=action_names(self.spec.action_space or "joint_velocity"),
            robot_type=robot_type,
            meta_files={SPEC_FILE: spec_of(self.spec)},
        )

    def _next_number(self) -> int:
        last = self.episodes[-1:]
        return int(last[0].stem.removeprefix("episode_")) + 1 if last else 0

    def _packed(self, notes: Mapping[str, Any]) -> bytes:
        frames = self._frames
        times = [frame.time_s for frame in frames]
        arrays: dict[str, NDArray[Any]] = {
            f"image.{name}": np.stack([frame.images[name] for frame in frames])
            for name in frames[0].images
        }
        arrays["state"] = np.stack([frame.state for frame in frames]).astype(np.float32)
        arrays["action"] = np.stack([frame.action for frame in frames]).astype(np.float32)
        about = {**notes, "task": self._task, "times_s": times, "spec": spec_of(self.spec)}
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stubs miss the arrays
        return buffer.getvalue()


def read_episode(path: Path) -> Episode:
    """Read a file of `EpisodeRecorder.finish`.

    Raises:
        DataError: It is none, or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(arrays["about"].tobytes())
        return Episode(
            frames={
                name.removeprefix("image."): pictures
                for name, pictures in arrays.items()
                if name.startswith("image.")
            },
            state=arrays["state"],
            action=arrays["action"],
            task=about.pop("task"),
            meta=about,
        )
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} holds no whole episode ({error}): remove it") from error


class RecordingEnv:
    """A `RobotEnv` whose executed actions are recorded; for programs that know a `RobotEnv`.

    Between `recorder.begin` and `recorder.finish` each step becomes a frame: what was observed
    right before it, and what the safety filter made of the action. Standing is not recorded.

    Args:
        env: A `deploy.robot_env.RobotEnv`.
        recorder: Where to; `begin` and `finish` are the caller's.
    """

    def __init__(self, env: RobotEnv, recorder: EpisodeRecorder) -> None:
        self._env, self._recorder = env, recorder
        self.action_space, self.control_hz = env.action_space, env.control_hz
        self._begin: float | None = None

    def step(self, action: Array) -> dict[str, Any]:
        """See `RobotEnv.step`."""
        seen = self._env.get_observation()
        info = self._env.step(action)
        times = seen["timestamp"]["robot_state"]
        now = times["robot_timestamp_seconds"] + times["robot_timestamp_nanos"] * 1e-9
        if self._begin is None:
            self._begin = now
        if info["rejected"] is None:
            self._recorder.add(frame_of(seen, info["executed_action"], now - self._begin))
        return info

    def get_observation(self) -> dict[str, Any]:
        """See `RobotEnv.get_observation`."""
        return self._env.get_observation()

    def get_state(self) -> tuple[dict[str, Any], dict[str, int]]:
        """See `RobotEnv.get_state`."""
        return self._env.get_state()

    def hold(self) -> dict[str, Any]:
        """See `RobotEnv.hold`."""
        return self._env.hold()

    def reset(self) -> None:
        """See `RobotEnv.reset`; the recorded time begins anew."""
        self._begin = None
        self._env.reset()

    def recover(self) -> None:
        """See `RobotEnv.recover`."""
        self._env.recover()

    def stop(self) -> None:
        """See `RobotEnv.stop`."""
        self._env.stop()


def episodes_of(folder: str | Path) -> Iterator[Episode]:
    """Read all episodes of a recorder's folder, one at a time."""
    for path in sorted(Path(folder).glob("episode_*.npz")):
        yield read_episode(path)
