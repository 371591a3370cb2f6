"""Raw episodes of DROID: a folder with `trajectory.h5`, `metadata_*.json` and `recordings/MP4`.

Layout (Khazatsky et al., arXiv 2403.12945; read in openpi's converter): `action/joint_velocity`
(T, 7) in [-1, 1], `action/gripper_position` (T,) from 0 open to 1 closed,
`observation/robot_state/joint_positions` (T, 7) rad and `gripper_position` (T,),
`observation/camera_type/<serial>` (0 = wrist), `observation/controller_info/movement_enabled`, and
one video per camera, `<serial>.mp4`, frame t for step t, the left eye. Recorded at 15 Hz under
DROID's controller, which decides how far a velocity moves the arm: it is noted with the data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.metadata import GRIPPER_POLARITY, ServerMetadata
from vla_opt._episode import Episode
from vla_opt.errors import DataError
from vla_opt.importing._hdf5 import opened, read_array
from vla_opt.importing._pictures import Frames, resized
from vla_opt.importing._tally import Read, Tally, select
from vla_opt.importing.config import ImportConfig, files_of

FPS = 15
HEIGHT, WIDTH = 180, 320  # of DROID's RLDS release, and of openpi's training
STATE_NAMES = (*(f"joint_position_{i}" for i in range(1, 8)), "gripper_position")
ACTION_NAMES = (*(f"joint_velocity_{i}" for i in range(1, 8)), "gripper_position")
METADATA = ServerMetadata(
    action_space="joint_velocity",
    action_dim=8,
    control_hz=float(FPS),
    gripper=GRIPPER_POLARITY,
    controller_profile="droid",
)
_WRIST = 0
_VIEWS = ("exterior_1_left", "exterior_2_left")


def readers(config: ImportConfig, tally: Tally) -> Iterator[Read]:
    """One reader per episode, in the order of the folders.

    Raises:
        DataError: The file of instructions cannot be read.
    """
    told = _annotations(config)
    for path in files_of(config.source, "trajectory.h5"):
        yield partial(_read, path, told, config, tally)


def _annotations(config: ImportConfig) -> Mapping[str, Any]:
    if config.annotations is None:
        return {}
    try:
        told = json.loads(config.annotations.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{config.annotations} cannot be read: {error}") from error
    if not isinstance(told, dict):
        raise DataError(f"{config.annotations} is no map from episodes to instructions.")
    return told


def _read(path: Path, told: Mapping[str, Any], config: ImportConfig, tally: Tally) -> Episode:
    where = str(path.parent)
    with opened(path) as file:
        velocity = read_array(file, "action/joint_velocity", where)
        command = read_array(file, "action/gripper_position", where)
        joints = read_array(file, "observation/robot_state/joint_positions", where)
        gripper = read_array(file, "observation/robot_state/gripper_position", where)
        moving = _moving(file, len(velocity))
        kinds = _camera_kinds(file, where)
    episode_id, said = _metadata(path.parent)
    episode = Episode(
        frames=_views(path.parent, kinds, said, len(velocity), config),
        state=np.column_stack([joints, gripper]).astype(np.float32),
        action=np.column_stack([velocity, command]).astype(np.float32),
        task=config.task or _instruction(episode_id, told, said, where),
        meta={"source": path.parent.name, "episode": episode_id},
    )
    rows = np.flatnonzero(moving) if config.drop_noops else np.arange(len(velocity))
    return select(episode, rows, tally, where)


def _moving(file: Any, length: int) -> NDArray[np.bool_]:
    """Steps at which the operator moved the arm.

    As in `load_trajectory(remove_skipped_steps=True)` of DROID's own code.
    """
    key = "observation/controller_info/movement_enabled"
    if key not in file:
        return np.ones(length, dtype=np.bool_)
    return np.asarray(file[key][()], dtype=np.bool_).reshape(-1)


def _camera_kinds(file: Any, where: str) -> dict[str, int]:
    """Serial number -> kind: 0 is the wrist's."""
    key = "observation/camera_type"
    if key not in file:
        raise DataError(f"{where} has no `{key}`: which camera is the wrist's is not known.")
    return {serial: int(np.ravel(kinds[()])[0]) for serial, kinds in file[key].items()}


def _metadata(folder: Path) -> tuple[str, dict[str, Any]]:
    """Name of the episode, and what its makers noted."""
    for path in sorted(folder.glob("metadata_*.json")):
        try:
            said = json.loads(path.read_bytes())
        except ValueError as error:
            raise DataError(f"{path} is no JSON: {error}") from error
        return path.stem.removeprefix("metadata_"), said if isinstance(said, dict) else {}
    return folder.name, {}


def _instruction(episode: str, told: Mapping[str, Any], said: Mapping[str, Any], where: str) -> str:
    """Of the annotations, by the episode's name or its last part; else what was noted then."""
    for key in (episode, episode.rpartition("_")[2]):
        entry = told.get(key)
        text = entry.get("language_instruction1") if isinstance(entry, dict) else None
        if text:
            return str(text)
    if said.get("current_task"):
        return str(said["current_task"])
    raise DataError(
        f"{where}: no instruction. Give DROID's --annotations=FILE, or --task='...' for all."
    )


def _views(
    folder: Path,
    kinds: Mapping[str, int],
    said: Mapping[str, Any],
    length: int,
    config: ImportConfig,
) -> dict[str, Frames]:
    """Exterior cameras in the order that the metadata name them, and the wrist's."""
    videos = folder / "recordings" / "MP4"
    wanted = [str(said.get(f"ext{i}_cam_serial", "")) for i in (1, 2)]
    exterior = sorted(
        (serial for serial, kind in kinds.items() if kind != _WRIST),
        key=lambda serial: (wanted.index(serial) if serial in wanted else 2, serial),
    )
    wrist = [serial for serial, kind in kinds.items() if kind == _WRIST]
    named = [*zip(_VIEWS, exterior, strict=False), *(("wrist_left", s) for s in wrist[:1])]
    if not exterior or not wrist:
        raise DataError(f"{folder}: expected an exterior and a wrist camera, got {dict(kinds)}")
    size = (config.image_size or HEIGHT, config.image_size or WIDTH)
    return {view: _video(videos / f"{serial}.mp4", length, *size) for view, serial in named}


def _video(path: Path, length: int, height: int, width: int) -> Frames:
    """The first `length` frames, scaled: (T, H, W, 3) RGB."""
    import av

    if not path.is_file():
        raise DataError(f"{path} is missing: copy the episode again, or --skip_broken=true.")
    frames: list[Frames] = []
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(container.streams.video[0]):
                pixels: Any = frame.to_ndarray(format="rgb24")
                frames.append(resized(pixels[None], height, width)[0])
                if len(frames) == length:
                    break
    except av.error.FFmpegError as error:
        raise DataError(f"{path} is no readable video: {error}") from error
    if len(frames) < length:
        raise DataError(f"{path} has {len(frames)} frames for {length} steps.")
    return np.stack(frames)
