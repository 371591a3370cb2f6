"""What varies between demonstrations, and that evaluations never contain it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from envs._diversity import PERTURBATIONS, Diversity
from envs._lapse import Kind, Lapse
from envs._perturbation import UNPERTURBED
from envs._skill import Phase
from envs._training_variant import draw_camera, draw_offset, training_variant
from envs.demonstrations import DemoKey, DemoOptions, DemoWorker, read_recording
from envs.errors import UnknownNameError
from envs.libero_style import list_style_variants
from envs.rollout import EpisodeKey
from envs.tasks import get_task

KEYS = [DemoKey(suite="libero_object", task_id=t, index=k) for t in range(3) for k in range(120)]


def generators(count=400):
    return [np.random.RandomState(key.seed) for key in KEYS[:count]]


def test_nothing_varies_unless_asked_for():
    options = DemoOptions()
    for key in KEYS[:12]:
        manner = options.manner_of(key)
        assert (str(manner), manner.speed, manner.taste.weight) == ("", 1.0, 0.0)
        assert manner.lapse() is None
        variant = training_variant(manner.perturbation, manner.level, key.seed, get_task(*key.task))
        assert variant.perturbation is UNPERTURBED
        assert variant.task == get_task(*key.task)


def test_every_combination_of_noise_speed_and_perturbation_occurs_equally_often():
    diversity = Diversity(speeds=(0.7, 1.0), perturbations=("none", "robot", "camera"))
    options = DemoOptions(noise_levels=(0.0, 0.2), diversity=diversity)
    manners = [(options.noise_of(k), options.manner_of(k)) for k in KEYS[:120]]
    counts = Counter((noise, m.speed, m.perturbation) for noise, m in manners)
    assert set(counts.values()) == {10}
    assert len(counts) == 12


def test_shares_and_levels_are_those_that_were_asked_for():
    diversity = Diversity(recoveries=0.3, perturbations=("robot",), perturbation_levels=(1, 3))
    manners = [diversity.manner(k, key.seed) for k, key in enumerate(KEYS)]
    lapses = sum(m.has_lapse for m in manners)
    assert 0.22 * len(KEYS) < lapses < 0.38 * len(KEYS)
    assert {m.level for m in manners} == {1, 3}
    assert {m.lapse().kind for m in manners if m.has_lapse} == set(Kind)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"speeds": (0.0,)}, ValueError),
        ({"recoveries": 1.5}, ValueError),
        ({"perturbation_levels": (6,)}, ValueError),
        ({"perturbations": ("robots",)}, UnknownNameError),
    ],
)
def test_what_cannot_be_is_refused(bad, error):
    with pytest.raises(error, match=next(iter(bad)).rstrip("s")):
        Diversity(**bad)


def test_seeds_of_demonstrations_are_no_variants_and_no_episodes():
    taken = {variant.seed for variant in list_style_variants()}
    taken |= {EpisodeKey(suite="libero_object", task_id=0, init_state=k).seed for k in range(50)}
    assert max(taken) < 2**31 <= min(key.seed for key in KEYS)


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_cameras_are_none_of_the_benchmarks_and_of_their_level(level):
    libero_plus = pytest.importorskip("envs.libero_plus")
    try:
        variants = libero_plus.list_variants(dimension="camera")
    except libero_plus.LiberoPlusError:
        pytest.skip("LIBERO-Plus's definitions are not installed")
    evaluated = {variant.parsed.view for variant in variants}
    drawn = [draw_camera(level, rng) for rng in generators()]
    assert not set(drawn) & evaluated
    assert len(set(drawn)) > 10 * level  # orbits, distances and turns, at half degrees
    for view in drawn:
        turn = np.hypot(view.yaw_deg, view.pitch_deg)
        size = max(abs(view.orbit_deg) / 75, view.distance - 1, turn / 14)
        assert (level - 1) / 5 - 0.1 < size <= level / 5 + 0.1


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_postures_lie_between_the_benchmarks_distances(level):
    lengths = [np.linalg.norm(draw_offset(level, rng)) for rng in generators()]
    steps = np.array(lengths) / 0.1  # the benchmark's postures are whole steps away
    assert (steps > level - 1 + 0.09).all()
    assert (steps < level - 0.09).all()


def test_lapses_come_once_and_leave_the_delicate_phases_alone():
    kinds = set()
    for seed in range(30):
        lapse = Lapse(np.random.default_rng(seed))
        kinds.add(lapse.kind)
        action = np.array([0.1, 0.2, -0.3, 0.0, 0.0, 0.0, 1.0])
        phases = [Phase.APPROACH] * 50 + [Phase.GRASP] * 5 + [Phase.CARRY] * 60
        executed = [lapse(action, phase) for phase in phases]
        changed = [k for k, a in enumerate(executed) if not np.array_equal(a, action)]
        assert changed == list(range(changed[0], changed[0] + len(changed)))
        assert len(changed) == (5 if lapse.kind is Kind.SHOVE else 12)
        assert min(executed[k][2] for k in changed) >= 0  # never down
        grips = {executed[k][6] for k in changed}
        assert grips == ({1.0} if lapse.kind is Kind.SHOVE else {-1.0})
        if lapse.kind is Kind.DROP:
            assert changed[0] > 55  # while it carries
    assert kinds == set(Kind)


@pytest.mark.sim
def test_perturbed_attempts_leave_no_trace_and_come_out_alike():
    kinds = ("none", "robot", "camera", "light")
    diversity = Diversity(speeds=(1.2,), grasp_variety=2.0, recoveries=1.0, perturbations=kinds)
    options = DemoOptions(
        image_size=32, render_profile="fast", noise_levels=(0.0,), diversity=diversity
    )
    keys = [DemoKey(suite="libero_object", task_id=0, index=k) for k in (0, 1, 2, 3, 0, 1)]
    worker = DemoWorker(options)
    demos = [worker.run(key) for key in keys]
    worker.close()
    assert [demo.reason for demo in demos] == [""] * 6
    for kind, demo in zip(kinds, demos[:4], strict=True):
        assert demo.manner.startswith("speed 1.2, grasp ")
        assert (kind in demo.manner) == (kind != "none")
        assert demo.manner.endswith(("shove", "drop"))
    recordings = [read_recording(demo.recording) for demo in demos]
    for first, again in ((0, 4), (1, 5)):
        for name, values in recordings[first].items():
            np.testing.assert_array_equal(recordings[again][name], values, err_msg=name)
    slips = [r["executed"] != r["action"] for r in recordings[:4]]
    assert all(slip.any() for slip in slips)


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["background", "objects"])
def test_scenes_of_their_own_can_be_demonstrated_in(kind):
    assert kind in PERTURBATIONS
    options = DemoOptions(
        image_size=32, noise_levels=(0.0,), diversity=Diversity(perturbations=("none", kind))
    )
    worker = DemoWorker(options)
    plain, changed = (
        worker.run(DemoKey(suite="libero_object", task_id=1, index=k)) for k in (0, 1)
    )
    worker.close()
    assert (plain.reason, changed.reason) == ("", "")
    assert kind in changed.manner
