"""Extra objects on the table: LIBERO's own, written into a task's definition and its states."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from envs._perturbation import Perturbation
from envs._plus_scene import scratch

CATEGORIES = (
    *("alphabet_soup", "bbq_sauce", "butter", "chocolate_pudding", "cookies", "cream_cheese"),
    *("ketchup", "milk", "orange_juice", "popcorn", "salad_dressing", "tomato_sauce"),
)
"""Objects of LIBERO that stand on any table."""

_SURFACES = ("floor", "main_table", "kitchen_table", "living_room_table", "study_table")
_NUMBER = r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)"
_REGION = re.compile(
    r"\((?P<name>\w+)\s+\(:target (?P<target>\w+)\)\s+\(:ranges \(\s*\("
    rf"{_NUMBER}\s+{_NUMBER}\s+{_NUMBER}\s+{_NUMBER}\)"
)
_MARGINS = (0.1, 0.15, 0.2)  # m beyond the outermost region of the task; more on a full table
_SPREAD = 0.005  # m to either side of an object's place
_REACH = (  # m from the edge of a region to the centre of an object beside it; first match
    (re.compile(r"microwave"), 0.32),  # its door stands open
    (re.compile(r"stove|cabinet|caddy"), 0.24),
    (re.compile(r"basket|frypan|plate|rack"), 0.2),
)
_SMALL = 0.1
_DRAWS = 300
_TOUCH, _LIFT, _LIFTS = 0.002, 0.004, 25  # m: contact that is none, one lift; lifts at most
_UPRIGHT = 0.7  # cosine of the angle between a contact's normal and the vertical


@dataclass(frozen=True, kw_only=True)
class Distractors:
    """Which objects are added, and where they may stand.

    Attributes:
        names: of the objects, unique in the scene.
        categories: LIBERO's class of each.
        surface: what they stand on.
        places: x and y (m) of each, in the frame of the surface.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    surface: str
    places: tuple[tuple[float, float], ...]


def choose_distractors(definition: Path, count: int, rng: np.random.RandomState) -> Distractors:
    """Choose objects that the task does not have, and places that it does not use.

    Args:
        definition: the LIBERO task's definition file.
        count: how many.
        rng: draws both.

    Raises:
        RuntimeError: there is no room for so many.
    """
    text = definition.read_text(encoding="utf-8")
    free = [name for name in CATEGORIES if not re.search(rf"\b{name}\b", text)]
    chosen = tuple(free[i] for i in rng.permutation(len(free))[:count])
    surface = next(name for name in _SURFACES if f"(:target {name})" in text)
    return Distractors(
        names=tuple(f"style_{name}_1" for name in chosen),
        categories=chosen,
        surface=surface,
        places=_places(_used(text, surface), count, rng),
    )


def with_distractors(definition: Path, added: Distractors, name: str) -> Path:
    """Write the definition of a task with the objects in it, and return its path."""
    regions, objects, init = [], [], []
    for k, (x, y) in enumerate(added.places):
        box = (x - _SPREAD, y - _SPREAD, x + _SPREAD, y + _SPREAD)
        numbers = " ".join(f"{value:.4f}" for value in box)
        regions.append(f"(style_{k} (:target {added.surface}) (:ranges (({numbers}))))")
        objects.append(f"{added.names[k]} - {added.categories[k]}")
        init.append(f"(On {added.names[k]} {added.surface}_style_{k})")
    text = definition.read_text(encoding="utf-8")
    for section, extra in ((":regions", regions), (":objects", objects), (":init", init)):
        head = f"({section} {' '.join(extra)} "
        text, found = re.subn(rf"\({section}\b", head, text, count=1)
        assert found, f"{definition} has no section {section}"
    path = scratch() / f"{name}.bddl"
    path.write_text(text, encoding="utf-8")
    return path


class AddedDistractors(Perturbation):
    """The task's scenes, fixed ones and those drawn at random, with more objects in them."""

    def __init__(self, added: Distractors) -> None:
        self._added = added

    def on_init_state(self, state: NDArray[np.float64], inner: Any) -> NDArray[np.float64]:
        """Spread a state of the LIBERO task over the larger scene; the objects stay where drawn."""
        model, full = inner.sim.model, inner.sim.get_state().flatten()
        joints = [inner.objects_dict[name].joints[-1] for name in self._added.names]
        qpos = [np.arange(*model.get_joint_qpos_addr(joint)) for joint in joints]
        qvel = [np.arange(*model.get_joint_qvel_addr(joint)) for joint in joints]
        positions = 1 + np.setdiff1d(np.arange(model.nq), np.concatenate(qpos))
        speeds = 1 + model.nq + np.setdiff1d(np.arange(model.nv), np.concatenate(qvel))
        own = np.concatenate([[0], positions, speeds])
        if len(own) != len(state):
            raise RuntimeError(
                f"the task's initial state has {len(state)} numbers, but the scene without the "
                f"added objects has {len(own)}."
            )
        full[own] = state
        return self._out_of_the_table(full, inner)

    def on_draw(self, inner: Any) -> None:
        """Lift the added objects out of what they would begin in."""
        state = inner.sim.get_state().flatten()
        inner.sim.set_state_from_flattened(self._out_of_the_table(state, inner))
        inner.sim.forward()

    def _out_of_the_table(self, state: NDArray[np.float64], inner: Any) -> NDArray[np.float64]:
        joints = [inner.objects_dict[name].joints[-1] for name in self._added.names]
        heights = [1 + int(inner.sim.model.get_joint_qpos_addr(joint)[0]) + 2 for joint in joints]
        roots = [inner.obj_body_id[name] for name in self._added.names]
        lifts = dict(zip(roots, heights, strict=True))
        return _out_of_the_table(state, inner.sim.model._model, lifts)


def _out_of_the_table(
    state: NDArray[np.float64], model: mujoco.MjModel, heights: Mapping[int, int]
) -> NDArray[np.float64]:
    """Lift what begins inside something else until it touches it at most.

    LIBERO sets objects down by the size they have when lying; on its living room tables those that
    stand (milk, juice, ketchup) begin up to 3 cm inside the table and are shot up by it.

    Args:
        state: (1 + nq + nv,).
        model: the compiled scene.
        heights: index of z in the state by the object's body.
    """
    state, data = state.copy(), mujoco.MjData(model)
    for body, height in heights.items():
        for _ in range(_LIFTS):
            data.qpos[:] = state[1 : 1 + model.nq]
            mujoco.mj_fwdPosition(model, data)
            if _depth(model, data, body) <= _TOUCH:
                break
            state[height] += _LIFT
    return state


def _depth(model: mujoco.MjModel, data: mujoco.MjData, body: int) -> float:
    """How deep (m) a free body is inside what is below or above it; what is beside it gives way."""
    roots = model.body_rootid[model.geom_bodyid[data.contact.geom]]  # (contacts, 2)
    own = (roots == model.body_rootid[body]).sum(axis=1) == 1
    upright = np.abs(data.contact.frame[:, 2]) > _UPRIGHT
    return float(-data.contact.dist[own & upright].min(initial=0.0))


def _used(text: str, surface: str) -> NDArray[np.float64]:
    """(x, y, radius) of every place that the task names on a surface."""
    init = text[text.index("(:init") :]
    rows = []
    for match in _REGION.finditer(text):
        if match["target"] == surface:
            x0, y0, x1, y1 = (float(number) for number in match.groups()[2:])
            on_it = re.search(rf"\(On (\w+) {surface}_{match['name']}\)", init)
            reach = _reach(on_it[1]) if on_it else _SMALL
            rows.append([(x0 + x1) / 2, (y0 + y1) / 2, np.hypot(x1 - x0, y1 - y0) / 2 + reach])
    return np.array(rows)


def _reach(name: str) -> float:
    return next((reach for pattern, reach in _REACH if pattern.search(name)), _SMALL)


def _places(
    used: NDArray[np.float64], count: int, rng: np.random.RandomState
) -> tuple[tuple[float, float], ...]:
    """Free places between and around the used ones."""
    low, high = used[:, :2].min(0), used[:, :2].max(0)
    for margin in _MARGINS:
        taken = used
        places: list[tuple[float, float]] = []
        for _ in range(_DRAWS):
            place = rng.uniform(low - margin, high + margin)
            if (np.linalg.norm(taken[:, :2] - place, axis=1) > taken[:, 2]).all():
                places.append((float(place[0]), float(place[1])))
                taken = np.vstack([taken, [*place, _SMALL]])
            if len(places) == count:
                return tuple(places)
    raise RuntimeError(f"no room for {count} more objects: take a lower level of 'objects'.")
