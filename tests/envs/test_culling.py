"""What a camera cannot see: found from geometry alone, and images that do not miss it."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from envs._culling import unseen

SCENE = """
<mujoco>
  <asset><material name="mirror" reflectance="0.5"/><material name="plain"/></asset>
  <worldbody>
    <light pos="0 0 3" castshadow="{shadow}"/>
    <camera name="ahead" pos="0 0 1" xyaxes="0 -1 0 0 0 1" fovy="60"/>
    <geom name="floor" type="plane" size="0 0 1" material="{floor}"/>
    <geom name="seen" type="sphere" size="0.1" pos="2 0 1"/>
    <geom name="edge" type="sphere" size="0.1" pos="2 1.2 1"/>
    <geom name="beside" type="sphere" size="0.1" pos="2 2 1"/>
    <geom name="behind" type="sphere" size="0.1" pos="-1 0 1"/>
    <geom name="above" type="sphere" size="0.1" pos="2 0 2.6"/>
    <geom name="shelf" type="box" size="0.4 0.4 0.02" pos="{shelf}" material="mirror"/>
  </worldbody>
</mujoco>
"""


def hidden(*, shadow="false", floor="plain", shelf="-3 0 0", reflections=True):
    model = mujoco.MjModel.from_xml_string(SCENE.format(shadow=shadow, floor=floor, shelf=shelf))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    mask = unseen(model, data, 0, reflections=reflections)
    return {model.geom(k).name for k in np.flatnonzero(mask)}


def test_what_is_beside_above_and_behind_is_unseen_and_what_touches_the_edge_is_not():
    # half of 60 degrees: at 2 m the picture's edge is 1.155 m away, within the radius of "edge"
    assert hidden() == {"beside", "behind", "above", "shelf"}


def test_what_a_mirror_in_the_picture_may_show_is_drawn():
    shelf = "2 0 1.6"  # its upper side at 1.62 m: the image of "above" is 0.36 m below the axis
    assert "above" not in hidden(shelf=shelf)
    assert "above" in hidden(shelf=shelf, reflections=False)
    assert "above" in hidden(floor="mirror")  # its image is far below the picture
    assert "beside" in hidden(shelf=shelf)


def test_where_lights_cast_shadows_everything_is_drawn():
    assert hidden(shadow="true") == set()


@pytest.mark.sim
@pytest.mark.parametrize("profile", ["exact", "fast"])
def test_images_are_bitwise_those_that_draw_everything(monkeypatch, profile):
    from envs.libero import LiberoEnv

    env = LiberoEnv("libero_spatial", 0, image_size=64, render_profile=profile)
    model, data = env.sim.model._model, env.sim.data._data
    actions = np.random.default_rng(3).uniform(-1, 1, (6, 8, 7))
    culled, counts = [], []
    env.reset(seed=1)
    for chunk in actions:
        culled.append(env.step_chunk(chunk)[0]["pixels"])
        wrist = model.camera("robot0_eye_in_hand").id
        counts.append(unseen(model, data, wrist, reflections=profile == "exact").sum())
    monkeypatch.setattr("envs._culling.unseen", lambda model, *_, **__: np.zeros(model.ngeom, bool))
    env.reset(seed=1)
    for chunk, before in zip(actions, culled, strict=True):
        whole = env.step_chunk(chunk)[0]["pixels"]
        for view, image in whole.items():
            np.testing.assert_array_equal(before[view], image)
    env.close()
    assert min(counts) > 0
