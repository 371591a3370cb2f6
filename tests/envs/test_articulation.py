"""Joints and handles, on a small model."""

import mujoco
import numpy as np
import pytest

from envs._articulation import Joint, handle

MODEL = """
<mujoco>
  <worldbody>
    <body name="drawer" pos="1 0 0.5" euler="0 0 180">
      <joint name="slide" type="slide" axis="0 1 0" range="-0.16 0.01"/>
      <geom type="box" size="0.1 0.08 0.03"/>
      <geom type="box" size="0.04 0.008 0.006" pos="0 -0.11 0"/>
    </body>
    <body name="knob" pos="0 2 0">
      <joint name="hinge" type="hinge" axis="0 0 1" range="0 2"/>
      <geom type="box" size="0.05 0.01 0.02"/>
    </body>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def simulation():
    model = mujoco.MjModel.from_xml_string(MODEL)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def test_a_slide_moves_points_along_its_axis(simulation):
    joint = Joint(*simulation, "slide")
    assert joint.slides
    assert joint.limits == pytest.approx((-0.16, 0.01))
    np.testing.assert_allclose(joint.axis, [0, -1, 0], atol=1e-9)
    np.testing.assert_allclose(joint.moved(np.ones(3), -0.1), [1, 1.1, 1], atol=1e-9)


def test_a_hinge_moves_points_as_the_simulator_does(simulation):
    model, data = simulation
    joint, corner = Joint(model, data, "hinge"), np.array([0.05, 2.01, 0.02])
    expected = joint.moved(corner, 0.7)
    data.qpos[1] = 0.7
    mujoco.mj_kinematics(model, data)
    body = data.body("knob")
    local = corner - np.array([0, 2, 0])
    np.testing.assert_allclose(body.xmat.reshape(3, 3) @ local + body.xpos, expected, atol=1e-9)
    assert joint.value == pytest.approx(0.7)
    assert not joint.slides
    data.qpos[1] = 0.0
    mujoco.mj_forward(model, data)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_handle_is_what_sticks_out(simulation, sign):
    points = Joint(*simulation, "slide").points() - np.array([1, 0, 0.5])
    middle, half = handle(points * [1, sign, 1], np.array([0, sign, 0]))
    np.testing.assert_allclose(middle, [0, sign * 0.11, 0], atol=0.002)
    np.testing.assert_allclose(half, [0.008, 0.04, 0.006], atol=0.002)
