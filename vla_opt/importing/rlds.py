"""RLDS episodes in TFRecords: LIBERO's as openvla publishes them, DROID's release, and others.

One `tf.train.Example` per episode, as TensorFlow Datasets writes them: every field of a step is one
list over the whole episode, vectors one behind the other, pictures encoded. Which fields there are
is the data set's own affair:

- LIBERO (openvla's `rlds_dataset_builder`; `libero_*_no_noops`): `steps/observation/image`,
  `wrist_image` (upright), `state` (8), `steps/action` (7, gripper -1 open, 1 closed: openvla's data
  loader turns it round, the files do not).
- DROID (Khazatsky et al., arXiv 2403.12945; as openpi reads it): `steps/observation/
  exterior_image_1_left`, `exterior_image_2_left`, `wrist_image_left`, `joint_position` (7),
  `gripper_position`, `steps/action_dict/joint_velocity` (7), `gripper_position`.
- Others: every picture under `steps/observation`, and the fields that the configuration names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_opt._episode import Episode
from vla_opt.errors import DataError, nearest
from vla_opt.importing._pictures import Frames, decoded, squares
from vla_opt.importing._tally import Read, Tally, select
from vla_opt.importing.config import ImportConfig, files_of
from vla_opt.importing.libero import rows_of
from vla_opt.importing.tfrecord import Example, read_examples

_SEEN, _SOURCE = "steps/observation/", "episode_metadata/file_path"
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG")  # how JPEG and PNG files begin


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which fields of an episode are read.

    Attributes:
        name: "rlds" for LIBERO's, "rlds_droid", or "rlds_other".
        cameras: Names and their fields.
        state: Fields of the state, one behind the other.
        action: Fields of the action.
        sizes: Numbers that a vector of some fields must have.
        tasks: Where the instruction may stand; the first that is not empty is taken.
    """

    name: str
    cameras: Mapping[str, str]
    state: tuple[str, ...]
    action: tuple[str, ...]
    sizes: Mapping[str, int]
    tasks: tuple[str, ...] = ("steps/language_instruction",)


LIBERO = Layout(
    name="rlds",
    cameras={"image": f"{_SEEN}image", "image2": f"{_SEEN}wrist_image"},
    state=(f"{_SEEN}state",),
    action=("steps/action",),
    sizes={f"{_SEEN}state": 8, "steps/action": 7},
)
DROID = Layout(
    name="rlds_droid",
    cameras={
        view: _SEEN + view.replace("ior_", "ior_image_").replace("wrist_", "wrist_image_")
        for view in ("exterior_1_left", "exterior_2_left", "wrist_left")
    },
    state=(f"{_SEEN}joint_position", f"{_SEEN}gripper_position"),
    action=("steps/action_dict/joint_velocity", "steps/action_dict/gripper_position"),
    sizes={f"{_SEEN}joint_position": 7, "steps/action_dict/joint_velocity": 7},
    tasks=tuple(f"steps/language_instruction{n}" for n in ("", "_2", "_3")),
)


def layout_of(config: ImportConfig) -> Layout:
    """What the first episode looks like.

    Raises:
        DataError: It is neither LIBERO's nor DROID's, and the configuration does not say enough.
    """
    path = files_of(config.source, "*.tfrecord*")[0]
    example: Example = next(iter(read_examples(path, verify=config.verify)), {})
    if not config.rate:
        for known in (LIBERO, DROID):
            if {*known.cameras.values(), *known.state, *known.action} <= example.keys():
                return known
        raise DataError(
            f"{path} is neither LIBERO's nor DROID's. For another robot say --rate=HZ and, where "
            f"they are not observation/state and action, the fields: --state_fields=... and "
            f"--action_fields=.... Found: {', '.join(sorted(example)) or 'nothing'}."
        )
    return Layout(
        name="rlds_other",
        cameras={
            key.removeprefix(_SEEN): key
            for key, value in sorted(example.items())
            if key.startswith(_SEEN) and _are_pictures(value)
        },
        state=tuple(f"steps/{name}" for name in config.state_fields),
        action=tuple(f"steps/{name}" for name in config.action_fields),
        sizes={},
        tasks=("steps/language_instruction", f"{_SEEN}natural_language_instruction"),
    )


def readers(config: ImportConfig, tally: Tally, layout: Layout) -> Iterator[Read]:
    """One reader per episode, in the order of the files.

    Raises:
        DataError: A file is damaged.
    """
    for path in files_of(config.source, "*.tfrecord*"):
        for number, example in enumerate(read_examples(path, verify=config.verify)):
            where = f"{path}: episode {number}"
            yield partial(_episode, example, where, path, config, tally, layout)


def _episode(
    example: Example, where: str, path: Path, config: ImportConfig, tally: Tally, layout: Layout
) -> Episode:
    frames = {
        camera: _frames(example, key, where, config) for camera, key in layout.cameras.items()
    }
    if not frames:
        raise DataError(f"{where} has no picture under {_SEEN}.")
    length = len(next(iter(frames.values())))
    action = _joined(example, layout.action, length, where, layout)
    source = example.get(_SOURCE)
    episode = Episode(
        frames=frames,
        state=_joined(example, layout.state, length, where, layout),
        action=action,
        task=config.task or _task(example, layout, where),
        meta={"source": path.name} | ({"file_path": _name(source)} if source else {}),
    )
    if any(len(seen) != length for seen in frames.values()):
        lengths = {camera: len(seen) for camera, seen in frames.items()}
        raise DataError(f"{where}: its cameras differ in length: {lengths}")
    rows = rows_of(action, config) if layout is LIBERO else np.arange(length)
    return select(episode, rows, tally, where)


def _frames(example: Example, key: str, where: str, config: ImportConfig) -> Frames:
    return squares(decoded(_texts(example, key, where), where), config.image_size)


def _are_pictures(values: object) -> bool:
    return isinstance(values, list) and bool(values) and values[0].startswith(_PICTURES)


def _name(source: object) -> str:
    """The last part of the path that the episode was made from."""
    first = source[0] if isinstance(source, list) else b""
    return first.decode(errors="replace").rpartition("/")[2]


def _task(example: Example, layout: Layout, where: str) -> str:
    for key in layout.tasks:
        values = example.get(key)
        if isinstance(values, list) and values and values[0].strip():
            return values[0].decode().strip()
    raise DataError(f"{where} has no instruction in {', '.join(layout.tasks)}: give --task='...'.")


def _joined(
    example: Example, keys: tuple[str, ...], length: int, where: str, layout: Layout
) -> NDArray[np.float32]:
    """Vectors of several fields, one behind the other: (T, D)."""
    return np.concatenate(
        [_numbers(example, key, length, where, layout.sizes.get(key)) for key in keys], axis=1
    )


def _numbers(
    example: Example, key: str, length: int, where: str, size: int | None
) -> NDArray[np.float32]:
    values = _required(example, key, where)
    if isinstance(values, list) or not len(values) or len(values) % length:
        raise DataError(f"{where}: `{key}` is no list of {length} vectors of numbers.")
    vectors = values.astype(np.float32).reshape(length, -1)
    if size is not None and vectors.shape[1] != size:
        raise DataError(f"{where}: `{key}` has {vectors.shape[1]} numbers per step, not {size}.")
    return vectors


def _texts(example: Example, key: str, where: str) -> list[bytes]:
    values = _required(example, key, where)
    if not isinstance(values, list) or not values:
        raise DataError(f"{where}: `{key}` is no list of bytes.")
    return values


def _required(example: Example, key: str, where: str) -> list[bytes] | NDArray[np.generic]:
    if key not in example:
        raise DataError(f"{where} has no `{key}`.{nearest(key, example)}")
    return example[key]
