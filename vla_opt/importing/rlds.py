"""RLDS episodes of LIBERO in TFRecords, as openvla publishes them (`libero_*_no_noops`).

Layout (openvla's `rlds_dataset_builder` for LIBERO, through TensorFlow Datasets): one
`tf.train.Example` per episode; every field of a step is one list over the whole episode:
`steps/observation/image` and `wrist_image` (JPEG, already upright), `steps/observation/state`
(T * 8), `steps/action` (T * 7, gripper -1 open, 1 closed: openvla's data loader turns it round, the
files do not), `steps/language_instruction`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_opt._episode import Episode
from vla_opt.errors import DataError
from vla_opt.importing._pictures import decoded, squares
from vla_opt.importing._tally import Read, Tally, select
from vla_opt.importing.config import ImportConfig, files_of
from vla_opt.importing.libero import rows_of
from vla_opt.importing.tfrecord import Example, read_examples

CAMERAS = {"image": "steps/observation/image", "image2": "steps/observation/wrist_image"}
_STATE, _ACTION = "steps/observation/state", "steps/action"
_TASK, _SOURCE = "steps/language_instruction", "episode_metadata/file_path"
_SIZES = {_STATE: 8, _ACTION: 7}


def readers(config: ImportConfig, tally: Tally) -> Iterator[Read]:
    """One reader per episode, in the order of the files.

    Raises:
        DataError: A file is damaged.
    """
    for path in files_of(config.source, "*.tfrecord*"):
        for number, example in enumerate(read_examples(path, verify=config.verify)):
            yield partial(_episode, example, f"{path}: episode {number}", path, config, tally)


def _episode(
    example: Example, where: str, path: Path, config: ImportConfig, tally: Tally
) -> Episode:
    action = _numbers(example, _ACTION, where)
    frames = {
        camera: squares(decoded(_texts(example, key, where), where), config.image_size)
        for camera, key in CAMERAS.items()
    }
    source = example.get(_SOURCE)
    episode = Episode(
        frames=frames,
        state=_numbers(example, _STATE, where),
        action=action,
        task=config.task or _texts(example, _TASK, where)[0].decode(),
        meta={"source": path.name} | ({"file_path": _name(source)} if source else {}),
    )
    lengths = {len(action), len(episode.state), *(len(f) for f in frames.values())}
    if len(lengths) != 1:
        raise DataError(f"{where}: its fields differ in length: {sorted(lengths)}")
    return select(episode, rows_of(action, config), tally, where)


def _name(source: object) -> str:
    """The last part of the path that the episode was made from."""
    first = source[0] if isinstance(source, list) else b""
    return first.decode(errors="replace").rpartition("/")[2]


def _numbers(example: Example, key: str, where: str) -> NDArray[np.float32]:
    values, size = _required(example, key, where), _SIZES[key]
    if isinstance(values, list) or len(values) % size:
        raise DataError(f"{where}: `{key}` is no list of vectors of {size} numbers.")
    return values.astype(np.float32).reshape(-1, size)


def _texts(example: Example, key: str, where: str) -> list[bytes]:
    values = _required(example, key, where)
    if not isinstance(values, list) or not values:
        raise DataError(f"{where}: `{key}` is no list of bytes.")
    return values


def _required(example: Example, key: str, where: str) -> list[bytes] | NDArray[np.generic]:
    if key not in example:
        have = ", ".join(sorted(example)) or "nothing"
        raise DataError(f"{where} has no `{key}`: expected LIBERO's layout, found {have}.")
    return example[key]
