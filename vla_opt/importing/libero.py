"""LIBERO's published demonstrations: `<task>_demo.hdf5`, one file per task.

Layout (read in LIBERO's `scripts/create_dataset.py`): group `data` with the attribute
`problem_info` (JSON with `language_instruction`), and per demonstration `demo_<n>` with `actions`
(T, 7) and `obs`: `agentview_rgb`, `eye_in_hand_rgb` (T, H, W, 3), `ee_states` (T, 6),
`gripper_states` (T, 2). Pictures stand on their head. The files are made by stepping a simulator
and storing what `env.step(action)` returns, so the stored observation t is the one after action t.
What a policy must learn is what to do when it sees something: by default each observation is paired
with the action that came after it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.spec import EnvSpec, ImageSpec
from vla_opt._episode import Episode
from vla_opt.errors import DataError
from vla_opt.importing._hdf5 import opened, read_array, read_numbers
from vla_opt.importing._pictures import squares, upright
from vla_opt.importing._tally import Read, Tally, select
from vla_opt.importing.config import ImportConfig, files_of
from vla_opt.importing.noops import kept_rows

FPS = 20
CAMERAS = {"image": "agentview_rgb", "image2": "eye_in_hand_rgb"}


def readers(config: ImportConfig, tally: Tally) -> Iterator[Read]:
    """One reader per demonstration, in the order of files and numbers.

    Raises:
        DataError: A file is no hdf5 of this layout.
    """
    for path in files_of(config.source, "*.hdf5"):
        names, task = _contents(path)
        for name in names:
            yield partial(_read, path, name, config.task or task, config, tally)


def spec_of(height: int, width: int) -> EnvSpec:
    """What the demonstrations show and hold; they were rendered with the stock renderer."""
    image = ImageSpec(height=height, width=width)
    return EnvSpec(images=dict.fromkeys(CAMERAS, image), control_hz=FPS, render_profile="exact")


def rows_of(actions: NDArray[Any], config: ImportConfig) -> NDArray[np.int64]:
    """The steps that are imported."""
    if not config.drop_noops:
        return np.arange(len(actions))
    return kept_rows(actions, threshold=config.noop_threshold)


def _contents(path: Path) -> tuple[list[str], str]:
    with opened(path) as file:
        if "data" not in file:
            raise DataError(f"{path} has no group `data`: it is no demonstration file of LIBERO.")
        data = file["data"]
        names = sorted((n for n in data if re.fullmatch(r"demo_\d+", n)), key=_number)
        return names, _instruction(data.attrs, path)


def _number(name: str) -> int:
    return int(name.removeprefix("demo_"))


def _instruction(attributes: Any, path: Path) -> str:
    """The instruction in the file, else the one in its name."""
    try:
        words = json.loads(attributes["problem_info"])["language_instruction"]
        text = words if isinstance(words, str) else "".join(words)
    except (KeyError, ValueError, TypeError):
        name = path.stem.removesuffix("_demo")
        text = re.sub(r"^[A-Z_]+_?SCENE\d+_", "", name).replace("_", " ")
    return text.strip().strip('"')


def _read(path: Path, name: str, task: str, config: ImportConfig, tally: Tally) -> Episode:
    where = f"{path}: {name}"
    with opened(path) as file:
        demo = file["data"][name]
        actions = read_numbers(demo, "actions", where)
        observations = demo.get("obs", {})
        state = np.concatenate(
            [_pose(observations, where), read_numbers(observations, "gripper_states", where)],
            axis=1,
        )
        frames = {
            camera: upright(read_array(observations, key, where)) for camera, key in CAMERAS.items()
        }
    lengths = {len(actions), len(state), *(len(f) for f in frames.values())}
    if len(lengths) != 1:
        raise DataError(f"{where}: actions and observations differ in length: {sorted(lengths)}")
    if config.pairing == "before":
        state, frames = state[:-1], {camera: f[:-1] for camera, f in frames.items()}
        actions = actions[1:]
    episode = Episode(
        frames={camera: squares(f, config.image_size) for camera, f in frames.items()},
        state=state,
        action=actions,
        task=task,
        meta={"source": path.name, "demo": name},
    )
    return select(episode, rows_of(actions, config), tally, where)


def _pose(observations: Any, where: str) -> NDArray[np.float32]:
    """Position (m) and axis-angle (rad): (T, 6)."""
    if "ee_states" in observations:
        return read_numbers(observations, "ee_states", where)
    parts = [read_numbers(observations, key, where) for key in ("ee_pos", "ee_ori")]
    return np.concatenate(parts, axis=1)
