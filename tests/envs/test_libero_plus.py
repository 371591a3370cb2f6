"""LIBERO-Plus: every task addressed as the benchmark defines it, and its traps closed."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial.transform import Rotation

from envs import _plus_noise
from envs._libero_setup import assets_root
from envs._plus_camera import PIVOT, moved_camera
from envs._plus_names import CameraView, parse_name
from envs._plus_package import find_plus
from envs._plus_source import added_object, corruption_table, robot_joints
from envs.errors import UnknownNameError
from envs.libero import LiberoEnv
from envs.libero_plus import (
    DIMENSIONS,
    LiberoPlusError,
    Variant,
    get_variant,
    list_variants,
)
from envs.suites import VariantOptions, expand_suites, resolve
from envs.tasks import list_tasks

COUNTS = {  # of the benchmark, and of those that need no assets of its own
    "camera": (1599, 1599),
    "robot": (1550, 1550),
    "language": (1537, 1537),
    "light": (1142, 0),
    "background": (1076, 62),
    "noise": (1601, 1601),
    "layout": (1525, 696),
}
SUITE = "libero_object"


def first(dimension: str, suite: str = SUITE, **conditions: Any) -> Variant:
    """The first variant of a dimension whose attributes have these values."""
    return next(
        variant
        for variant in list_variants(suite, dimension=dimension)
        if all(getattr(variant, name) == value for name, value in conditions.items())
    )


# -- addressing -----------------------------------------------------------------------------------


def test_every_task_of_the_benchmark_is_listed_in_its_dimension() -> None:
    variants = list_variants()
    assert Counter(v.dimension for v in variants) == {k: n for k, (n, _) in COUNTS.items()}
    suites = Counter(v.suite for v in variants)
    assert suites == {
        "libero_spatial": 2402,
        "libero_object": 2518,
        "libero_goal": 2591,
        "libero_10": 2519,
    }
    assert len({(v.suite, v.name) for v in variants}) == len(variants) == 10030


def test_what_runs_without_the_benchmarks_assets_is_known() -> None:
    runnable = Counter(v.dimension for v in list_variants() if v.runnable)
    assert runnable == {k: n for k, (_, n) in COUNTS.items() if n}
    assert runnable.total() == 7045


def test_every_task_has_its_definition_and_every_layout_its_initial_state() -> None:
    assert all(variant.definition.is_file() for variant in list_variants())
    layouts = [v for v in list_variants(dimension="layout") if v.runnable]
    assert all(variant.task().init_states_file.is_file() for variant in layouts)


def test_a_task_is_found_by_index_and_by_name() -> None:
    by_index = get_variant("libero_plus/libero_goal", 1000)
    assert get_variant("libero_goal", by_index.name) == by_index
    assert by_index.task_id == 1000
    assert by_index.name.startswith(by_index.base.name)


def test_dimension_goes_by_key_and_by_the_benchmarks_name() -> None:
    assert list_variants(dimension="noise") == list_variants(dimension="Sensor Noise")


@pytest.mark.parametrize(
    ("call", "nearest"),
    [
        (lambda: list_variants("libero_objekt"), "libero_object"),
        (lambda: list_variants(dimension="nois"), "noise"),
        (lambda: get_variant(SUITE, first("light").name + "7777"), first("light").base.name),
        (lambda: resolve("libero_plus/libero_gaol", 0), "libero_goal"),
        (lambda: expand_suites(("libero_pluss",)), "libero_plus"),
        (lambda: get_variant(SUITE, 2518), "tasks 0 to 2517"),
    ],
)
def test_unknown_name_is_answered_with_the_nearest(call: Any, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=nearest):
        call()


@pytest.mark.parametrize(
    ("name", "dimension", "magnitude"),
    [
        ("open_it_view_75_15_100_0_0_initstate_0", "camera", 5),
        ("open_it_view_345_0_100_0_0_initstate_0", "camera", 1),
        ("open_it_view_0_0_160_0_0_initstate_0", "camera", 3),
        ("open_it_view_0_0_100_350_10_initstate_0", "camera", 5),
        ("open_it_view_0_0_100_0_0_initstate_101", "robot", 2),
        ("open_it_view_0_0_100_0_0_initstate_0_noise_40", "noise", 5),
        ("open_it_language_7_view_0_0_100_0_0_initstate_0", "language", None),
        ("open_it_light_3", "light", None),
        ("open_it_tb_3", "background", None),
        ("open_it_table_3", "background", None),
        ("open_it_add_3", "layout", None),
        ("open_it_moved_level4_sample2", "layout", 4),
    ],
)
def test_a_name_says_what_is_perturbed(name: str, dimension: str, magnitude: int | None) -> None:
    parsed = parse_name(name)
    assert (parsed.dimension, parsed.magnitude) == (dimension, magnitude)


def test_a_name_of_no_pattern_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="_level"):
        parse_name("open_the_drawer")


def test_instruction_comes_from_the_definition_and_not_from_the_file_name() -> None:
    for variant in list_variants():
        assert "initstate" not in variant.language
        if variant.dimension != "language":
            assert variant.language == variant.base.language
    rewritten = list_variants(SUITE, dimension="language")
    assert all(v.language.lower() != v.base.language for v in rewritten)


def test_published_instruction_carries_the_suffix() -> None:
    variant = first("robot")
    published = variant.task(published_compat=True).language
    assert published == variant.name.replace("_", " ")
    rewritten = first("language")
    assert rewritten.task(published_compat=True).language == rewritten.language


def test_difficulty_is_the_benchmarks_label_or_unknown(tmp_path: Path) -> None:
    variants = list_variants(SUITE)
    assert {variant.difficulty for variant in variants} == {None}
    with pytest.raises(LiberoPlusError, match="LIBERO_PLUS_LABELS"):
        list_variants(SUITE, difficulty=3)
    rows = [{"name": v.name, "difficulty_level": 1 + v.task_id % 5} for v in variants]
    (tmp_path / "task_classification.json").write_text(json.dumps({SUITE: rows}))
    labelled = find_plus(labels=tmp_path)
    found = list_variants(SUITE, dimension="camera", difficulty=3, files=labelled)
    assert found
    assert all(v.task_id % 5 == 2 and v.dimension == "camera" for v in found)


def test_a_damaged_label_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "task_classification.json"
    path.write_text("[1, 2]")
    with pytest.raises(LiberoPlusError, match="task_classification"):
        _ = list_variants(SUITE, files=find_plus(labels=path))[0].difficulty


def test_a_task_without_its_assets_is_refused_and_says_what_it_lacks() -> None:
    for dimension in ("light", "background", "layout"):
        variant = first(dimension, runnable=False)
        with pytest.raises(LiberoPlusError, match="LIBERO_PLUS_ASSETS") as refusal:
            LiberoEnv(variant.env_suite, variant.task_id)
        assert variant.missing[0] in str(refusal.value)


def test_assets_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LiberoPlusError, match="scenes"):
        find_plus(assets=tmp_path)


def test_listing_imports_neither_the_benchmark_nor_a_simulator_and_prints_nothing() -> None:
    code = (
        "import sys; from envs.libero_plus import list_variants; list_variants();"
        "heavy = {'liberoplus', 'robosuite', 'mujoco', 'torch', 'libero'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -- camera ---------------------------------------------------------------------------------------

POSE = np.array([0.66, 0.0, 1.61]), np.array([0.638, 0.305, 0.305, 0.638])


@pytest.mark.parametrize(
    "view",
    [
        CameraView(),
        CameraView(orbit_deg=310, elevation_deg=15),
        CameraView(distance=1.37),
        CameraView(yaw_deg=4, pitch_deg=352),
    ],
)
def test_camera_moves_as_rotations_say(view: CameraView) -> None:
    position, turn = POSE[0], Rotation.from_quat(np.roll(POSE[1], -1))
    lift = Rotation.from_euler("y", -view.elevation_deg, degrees=True)
    around = Rotation.from_euler("z", view.orbit_deg, degrees=True)
    position = around.apply(lift.apply(position - PIVOT) + PIVOT)
    position = PIVOT + (position - PIVOT) * view.distance
    aim = Rotation.from_euler("y", -view.pitch_deg, degrees=True)
    aim *= Rotation.from_euler("z", view.yaw_deg, degrees=True)
    turn = aim * around * lift * turn
    moved = moved_camera(POSE, view)
    assert moved[0] == pytest.approx(position, abs=4e-4)
    assert abs(np.roll(moved[1], -1) @ turn.as_quat()) == pytest.approx(1.0, abs=1e-6)


# -- image corruptions ----------------------------------------------------------------------------


def picture(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    noise = np.random.default_rng(3).uniform(0, 255, (size, size, 3))
    smooth = gaussian_filter(noise, (3, 3, 0))
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def published(function: str) -> Any:
    """A corruption out of the installed package, with the one name that numpy 2 dropped."""
    text = (find_plus().definitions / "envs" / "env_wrapper.py").read_text()
    tree = ast.parse(text.replace("np.float_,", "np.float64,").replace("np.float_)", "np.float64)"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    names: dict[str, Any] = {
        "np": np,
        "scizoom": zoom,
        "gaussian": lambda x, sigma, channel_axis: gaussian_filter(
            x, (sigma, sigma, 0), mode="nearest"
        ),
    }
    exec(compile(ast.Module(functions, []), "published", "exec"), names)
    return names[function]


@pytest.mark.parametrize("name", ["gaussian_blur", "zoom_blur", "fog"])
@pytest.mark.parametrize("severity", [1, 10])
def test_corruption_is_the_published_one_to_the_bit(name: str, severity: int) -> None:
    image = picture(256 if name == "fog" else 64)
    parameters = corruption_table(find_plus().definitions, name)[severity - 1]
    ours = getattr(_plus_noise, name)(image, parameters, np.random.RandomState(5))
    np.random.seed(5)  # noqa: NPY002 - what the published function draws from
    theirs = published(name)(image, severity=severity).astype(np.uint8)
    assert np.array_equal(ours, theirs)


def test_glass_blur_scatters_pixel_by_pixel_in_the_published_order() -> None:
    image, (sigma, distance, rounds) = picture(32), (0.9, 2, 3)
    ours = _plus_noise.glass_blur(image, (sigma, distance, rounds), np.random.RandomState(7))
    x = (gaussian_filter(image / 255, (sigma, sigma, 0), mode="nearest") * 255).astype(np.uint8)
    rng = np.random.RandomState(7)
    for _ in range(rounds):
        for row in range(32 - distance, distance, -1):
            for column in range(32 - distance, distance, -1):
                right, down = rng.randint(-distance, distance, size=2)
                x[row, column] = x[row + down, column + right]
    expected = gaussian_filter(x / 255, (sigma, sigma, 0), mode="nearest") * 255
    assert np.array_equal(ours, np.clip(expected, 0, 255).astype(np.uint8))


def test_motion_blur_smears_a_dot_to_one_side_with_falling_weight() -> None:
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20] = 255
    rng = SimpleNamespace(uniform=lambda low, high: 0.0)
    blurred = _plus_noise.motion_blur(image, (5, 2), rng)  # type: ignore[arg-type]
    weights = np.exp(-(np.arange(11.0) ** 2) / 8)
    expected = np.floor(255 * weights / weights.sum() + 0.5)
    assert blurred[20, 20:9:-1, 0].tolist() == expected.tolist()
    assert not blurred[20, 21:].any()
    assert not np.delete(blurred, 20, axis=0).any()


def test_fog_of_every_severity_works_at_any_size() -> None:
    for size in (48, 300):
        for parameters in corruption_table(find_plus().definitions, "fog"):
            fogged = _plus_noise.fog(picture(size), parameters, np.random.RandomState(0))
            assert fogged.shape == (size, size, 3)
            assert fogged.std() < picture(size).std()


def test_severities_are_ten_for_each_corruption() -> None:
    definitions = find_plus().definitions
    for name, _ in _plus_noise.CORRUPTIONS:
        assert len(corruption_table(definitions, name)) == _plus_noise.SEVERITIES


# -- other tables ---------------------------------------------------------------------------------


def test_robot_postures_lie_as_far_off_as_their_number_says() -> None:
    definitions = find_plus().definitions
    nominal = np.array([0, -0.161037389, 0.0, -2.44459747, 0.0, 2.22675220, math.pi / 4])
    for mount in ("mounted_panda", "on_the_ground_panda"):
        for number in (1, 150, 250, 350, 500):
            joints = np.array(robot_joints(definitions, mount, number))
            size = math.ceil(number / 100) / 10
            assert np.linalg.norm(joints - nominal) == pytest.approx(size, abs=1e-6)
    with pytest.raises(LiberoPlusError, match="501"):
        robot_joints(definitions, "mounted_panda", 501)


def test_thirteen_object_classes_are_added_in_all() -> None:
    added = {
        Path(name).parts[1]
        for variant in list_variants(dimension="layout")
        for name in variant.missing
    }
    assert len(added) == 13


# -- in the simulator -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    """One scene for all variants that share it."""
    env = LiberoEnv(SUITE, 0, image_size=64)
    yield env
    env.close()


def seen(env: LiberoEnv, suite: str, task_id: int, seed: int = 1) -> dict[str, Any]:
    assert env.become(suite, task_id)
    observation, _ = env.reset(seed=seed, options={"init_state": 0})
    return {**observation["pixels"], "state": env.sim_state()}


def of_first_task(dimension: str) -> Variant:
    return first(dimension, base=list_tasks(SUITE)[0])


@pytest.mark.sim
def test_a_variant_of_the_same_scene_needs_no_new_one_and_leaves_no_trace(env: LiberoEnv) -> None:
    plain = seen(env, SUITE, 0)
    camera, language = of_first_task("camera"), of_first_task("language")
    turned = seen(env, camera.env_suite, camera.task_id)
    assert not np.array_equal(turned["image"], plain["image"])
    assert np.array_equal(turned["image2"], plain["image2"])
    assert np.array_equal(turned["state"], plain["state"])
    fresh = LiberoEnv(camera.env_suite, camera.task_id, image_size=64)
    observation, _ = fresh.reset(seed=1, options={"init_state": 0})
    fresh.close()
    assert np.array_equal(observation["pixels"]["image"], turned["image"])
    seen(env, language.env_suite, language.task_id)
    assert env.task_description == language.language != camera.language
    again = seen(env, SUITE, 0)
    assert all(np.array_equal(again[key], plain[key]) for key in plain)
    layout = first("layout", runnable=True)
    assert not env.become(layout.env_suite, layout.task_id)


@pytest.mark.sim
def test_noise_is_drawn_from_the_episodes_seed_and_spares_the_wrist(env: LiberoEnv) -> None:
    noisy = [v for v in list_variants(SUITE, dimension="noise") if v.base.task_id == 0]
    fog = next(v for v in noisy if 31 <= v.parsed.noise <= 40)
    one, same = (seen(env, fog.env_suite, fog.task_id, seed=4) for _ in range(2))
    other = seen(env, fog.env_suite, fog.task_id, seed=5)
    assert np.array_equal(one["image"], same["image"])
    assert not np.array_equal(one["image"], other["image"])
    assert np.array_equal(env.observe()["pixels"]["image"], other["image"])
    step = np.zeros(7)
    assert not np.array_equal(env.step(step)[0]["pixels"]["image"], other["image"])
    clear = of_first_task("language")
    before = seen(env, clear.env_suite, clear.task_id)
    assert before["image"].std() > one["image"].std()


@pytest.mark.sim
@pytest.mark.parametrize("compat", [False, True])
def test_robot_posture_survives_the_initial_state_except_as_published(compat: bool) -> None:
    far = next(v for v in list_variants(SUITE, dimension="robot") if v.parsed.robot > 400)
    options = VariantOptions(published_compat=compat)
    env = LiberoEnv(far.env_suite, far.task_id, render=False, variants=options)
    env.reset(seed=1, options={"init_state": 0})
    joints = env.inner.robots[0]._joint_positions.copy()
    nominal = env._init_states[0][1:8]
    env.close()
    wanted = np.array(robot_joints(far.files.definitions, "on_the_ground_panda", far.parsed.robot))
    if compat:  # the controller draws the arm part of the way back
        assert np.linalg.norm(joints - wanted) > 0.1
    else:
        assert np.linalg.norm(joints - wanted) < 0.01
        assert np.linalg.norm(joints - nominal) > 0.35


@pytest.mark.sim
def test_layout_starts_from_its_own_initial_state() -> None:
    moved = first("layout", runnable=True)
    env = LiberoEnv(moved.env_suite, moved.task_id, render=False)
    assert env.num_init_states == 1
    env.reset(seed=0, options={"init_state": 0})
    settled = env.sim_state()
    assert len(settled) == len(env._init_states[0])
    assert np.abs(settled[8:] - env._init_states[0][8:])[: env.sim.model.nq - 7].max() < 0.05
    with pytest.raises(ValueError, match="0 to 0"):
        env.reset(seed=0, options={"init_state": 1})
    env.close()


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    """LIBERO's assets laid out as those of LIBERO-Plus, with one light and all its new objects."""
    own, folder = assets_root(), tmp_path / "assets"
    (folder / "scenes" / "lights").mkdir(parents=True)
    for entry in [*own.iterdir(), *(own / "scenes").iterdir()]:
        place = folder / entry.relative_to(own)
        if not place.exists():
            place.symlink_to(entry)
    return folder


def floor_light() -> Variant:
    return first("light", base=list_tasks(SUITE)[0])


@pytest.mark.sim
def test_with_its_assets_a_light_variant_builds_the_arena_it_names(assets: Path) -> None:
    variant = floor_light()
    (scene,) = variant.missing
    text = (assets_root() / "scenes" / "libero_floor_base_style.xml").read_text()
    text = text.replace('diffuse=".8 .8 .8"', 'diffuse=".1 .2 .3"').replace("../", "../../")
    text = text.replace('file="living_room/', 'file="../living_room/')
    (assets / scene).write_text(text)
    options = VariantOptions(assets=assets)
    env = LiberoEnv(variant.env_suite, variant.task_id, render=False, variants=options)
    assert env.sim.model._model.light_diffuse[0] == pytest.approx([0.1, 0.2, 0.3])
    env.reset(seed=0, options={"init_state": 0})
    env.close()


@pytest.mark.sim
def test_with_its_assets_an_added_object_stands_in_the_scene(assets: Path) -> None:
    variant = first("layout", runnable=False)
    categories = [
        added.category
        for added in variant._added_objects
        if added_object(variant.files.definitions, added.category)
    ]
    assert categories
    own = assets_root() / "stable_hope_objects" / "butter"
    body = (own / "butter.xml").read_text()
    for name in variant.missing:
        place = assets / name
        place.parent.mkdir(parents=True, exist_ok=True)
        for file in own.iterdir():
            target = place.parent / file.name
            if not target.exists():
                target.symlink_to(file)
        place.write_text(body)
    options = VariantOptions(assets=assets)
    env = LiberoEnv(variant.env_suite, variant.task_id, render=False, variants=options)
    env.reset(seed=0, options={"init_state": 0})
    names = {name.rsplit("_", 1)[0] for name in env.inner.objects_dict}
    assert set(categories) <= names
    assert len(env.sim_state()) == len(env._init_states[0])
    env.close()


def test_dimensions_are_the_seven_of_the_benchmark() -> None:
    assert list(DIMENSIONS) == list(COUNTS)
