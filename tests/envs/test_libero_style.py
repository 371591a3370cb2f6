"""Generated perturbations: named apart, drawn from their names, and made of LIBERO's own assets."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from envs._style_objects import choose_distractors, with_distractors
from envs.errors import UnknownNameError
from envs.libero import LiberoEnv
from envs.libero_style import (
    LEVELS,
    SUITES,
    StyleVariant,
    get_style_variant,
    list_style_variants,
)
from envs.suites import known_suites
from envs.tasks import list_tasks

SUITE = "libero_object"


def test_every_level_of_every_dimension_has_the_same_number_of_variants() -> None:
    variants = list_style_variants()
    cells = Counter((v.suite, v.dimension, v.level) for v in variants)
    assert len(cells) == len(SUITES) * 3 * len(LEVELS)
    assert set(cells.values()) == {40}
    assert len({(v.suite, v.name) for v in variants}) == len(variants)
    assert all(get_style_variant(v.suite, v.task_id) == v for v in variants[::97])


def test_no_generated_variant_bears_the_benchmarks_name() -> None:
    assert all(v.env_suite.startswith("libero_style/") for v in list_style_variants())
    assert {v.env_suite for v in list_style_variants()} < set(known_suites())


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [({"suite": "libero_gaol"}, "libero_goal"), ({"dimension": "object"}, "objects")],
)
def test_unknown_name_is_answered_with_the_nearest(asked: dict[str, str], nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=nearest):
        list_style_variants(**asked)


def test_every_table_has_room_for_five_more_objects_apart_from_each_other() -> None:
    for suite in SUITES:
        for task in list_tasks(suite):
            added = choose_distractors(task.bddl_file, 5, np.random.RandomState(0))
            assert len(set(added.categories)) == 5
            text = task.bddl_file.read_text()
            assert not any(f"- {category}" in text for category in added.categories)
            for one, other in itertools.combinations(np.array(added.places), 2):
                assert np.linalg.norm(one - other) >= 0.1


def test_definition_gains_object_region_and_place_and_keeps_the_rest(tmp_path: Path) -> None:
    task = list_tasks("libero_goal")[2]
    added = choose_distractors(task.bddl_file, 2, np.random.RandomState(1))
    text = with_distractors(task.bddl_file, added, "with_two").read_text()
    for k, name in enumerate(added.names):
        assert f"{name} - {added.categories[k]}" in text
        assert f"(On {name} {added.surface}_style_{k})" in text
    original = task.bddl_file.read_text()
    assert text[text.index("(:goal") :] == original[original.index("(:goal") :]
    assert text.count("(") == text.count(")")


@pytest.mark.sim
def test_lights_and_textures_change_with_the_level_and_only_in_the_image() -> None:
    env = LiberoEnv(SUITE, 0, image_size=64)
    plain = env.reset(seed=1, options={"init_state": 0})[0]["pixels"]["image"]
    state = env.sim_state()
    change = {}
    for level in (1, 5):
        light = next(v for v in list_style_variants(SUITE, dimension="light", level=level))
        assert env.become(light.env_suite, light.task_id)
        image = env.reset(seed=1, options={"init_state": 0})[0]["pixels"]["image"]
        assert np.array_equal(env.sim_state(), state)
        change[level] = np.abs(image.astype(float) - plain).mean()
    assert 0 < change[1] < change[5]
    assert env.become(SUITE, 0)
    again = env.reset(seed=1, options={"init_state": 0})[0]["pixels"]["image"]
    assert np.array_equal(again, plain)
    env.close()
    papered = list_style_variants(SUITE, dimension="background", level=3)[0]
    env = LiberoEnv(papered.env_suite, papered.task_id, image_size=64)
    image = env.reset(seed=1, options={"init_state": 0})[0]["pixels"]["image"]
    assert np.array_equal(env.sim_state(), state)
    env.close()
    assert np.abs(image.astype(float) - plain).mean() > 5


def _fits(variant: StyleVariant) -> bool:
    return variant.suite != "libero_10" or variant.base.name.startswith("LIVING_ROOM")


def positions(env: LiberoEnv) -> dict[str, np.ndarray]:
    """Where every object of the scene is (m)."""
    model, qpos = env.sim.model, env.sim.data.qpos
    starts = {
        name: model.get_joint_qpos_addr(thing.joints[-1])[0]
        for name, thing in env.inner.objects_dict.items()
    }
    return {name: qpos[start : start + 3].copy() for name, start in starts.items()}


@pytest.mark.sim
@pytest.mark.parametrize("suite", ["libero_object", "libero_10"])
def test_added_objects_stand_still_and_the_task_starts_where_it_always_does(suite: str) -> None:
    """On living room tables what stands upright is set down inside the table and jumps.

    LIBERO's own objects do so here as they do there; those added must not.
    """
    variants = list_style_variants(suite, dimension="objects", level=5)
    tall = "style_orange_juice_1"
    variant = next(v for v in variants if tall in v.task().bddl_file.read_text() and _fits(v))
    scenes = (suite, variant.base.task_id), (variant.env_suite, variant.task_id)
    seen = []
    for scene in scenes:
        env = LiberoEnv(*scene, render=False)
        _, info = env.reset(seed=2, options={"init_state": 3})
        assert not info["is_success"]
        settled = positions(env)
        for _ in range(2):
            env.step_chunk(np.tile([0, 0, 0, 0, 0, 0, -1.0], (8, 1)))
        seen.append((settled, positions(env)))
        env.close()
    plain, varied = seen
    added = set(varied[0]) - set(plain[0])
    assert len(added) == 5
    assert all(name.startswith("style_") for name in added)
    for name in added:
        np.testing.assert_allclose(varied[1][name], varied[0][name], atol=0.005, err_msg=name)
    for before, after in zip(plain, varied, strict=True):
        for name, place in before.items():
            np.testing.assert_allclose(after[name], place, atol=0.005, err_msg=name)


@pytest.mark.sim
def test_added_objects_stand_still_where_a_scene_is_drawn_at_random() -> None:
    """As demonstrations and reinforcement learning draw it, on a living room table."""
    variants = list_style_variants("libero_10", dimension="objects", level=5)
    tall = "style_orange_juice_1"
    variant = next(v for v in variants if tall in v.task().bddl_file.read_text() and _fits(v))
    env = LiberoEnv(variant.env_suite, variant.task_id, render=False)
    env.reset(seed=2)
    settled = positions(env)
    env.step_chunk(np.tile([0, 0, 0, 0, 0, 0, -1.0], (16, 1)))
    later = positions(env)
    env.close()
    added = [name for name in settled if name.startswith("style_")]
    assert len(added) == 5
    for name in added:
        np.testing.assert_allclose(later[name], settled[name], atol=0.005, err_msg=name)
