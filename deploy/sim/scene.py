"""The simulated table-top as MuJoCo XML, without a single mesh: arm, hand, objects, cameras.

Kinematics, masses and inertias are those of the manufacturer's URDF of the FR3; the shapes are
capsules and boxes of about the real size. The hand is a Franka Hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

ARM_JOINTS = tuple(f"fr3_joint{i}" for i in range(1, 8))
FINGER_JOINTS = ("fr3_finger_joint1", "fr3_finger_joint2")
FLANGE = "fr3_link8"
CAMERAS = ("exterior_left", "exterior_right", "wrist")
FREE_OBJECTS = ("cube", "cucumber")
"""Objects that can be moved; the bowl and the plate stand where they are put."""
TARGETS = ("bowl", "plate")
CUBE_HALF = 0.0225
CUCUMBER_RADIUS, CUCUMBER_HALF = 0.018, 0.045
BOWL_RADIUS, BOWL_HEIGHT = 0.075, 0.04
PLATE_RADIUS, PLATE_HEIGHT = 0.09, 0.012

CAPTURE_SIZE = (180, 320)
"""Height and width of the pictures: 16:9, as DROID's cameras."""

# Coulomb friction and damping of the joints: guesses of the real arm's order, not measurements.
_FRICTION = (0.4, 0.4, 0.4, 0.4, 0.15, 0.15, 0.1)
_DAMPING = (1.0, 1.0, 1.0, 1.0, 0.4, 0.4, 0.3)
_ARMATURE = (0.2, 0.2, 0.2, 0.2, 0.1, 0.1, 0.1)


class _Link(NamedTuple):
    """A link of the URDF: where its joint is, its inertia, and the capsules that stand for it."""

    rpy: str
    xyz: str
    mass: float
    center: str
    inertia: str  # ixx iyy izz ixy ixz iyz
    range: str
    solid: tuple[str, float]  # from-to and radius; collides, and is watched for self-collision
    looks: tuple[tuple[str, float], ...] = ()


_PI2 = "1.5707963267948966"
_LINKS = (
    _Link(
        rpy="0 0 0",
        xyz="0 0 0.333",
        mass=2.9274653454,
        center="0.0000004128 -0.0181251324 -0.0386035970",
        inertia="0.0239273165 0.0224821613 0.0063500983 1.33179e-05 -1.14049e-04 -1.995032e-03",
        range="-2.7501 2.7501",
        solid=("0 0 -0.19 0 0 -0.06", 0.06),
        looks=(("0 0 -0.06 0 0 0", 0.06),),
    ),
    _Link(
        rpy=f"-{_PI2} 0 0",
        xyz="0 0 0",
        mass=2.9355370338,
        center="0.0031828864 -0.0743221644 0.0088146084",
        inertia="0.0419389463 0.0251451489 0.0617021447 2.02573e-04 4.077784e-03 -4.225201e-03",
        range="-1.7918 1.7918",
        solid=("0 0 -0.06 0 0 0.06", 0.06),
        looks=(("0 0 0 0 -0.19 0", 0.055),),
    ),
    _Link(
        rpy=f"{_PI2} 0 0",
        xyz="0 -0.316 0",
        mass=2.2449013699,
        center="0.0407015686 -0.0048200565 -0.0289730823",
        inertia="0.0241014255 0.0197405327 0.0190444945 2.404695e-03 -2.856269e-03 -2.104213e-03",
        range="-2.9065 2.9065",
        solid=("0 0 -0.13 0 0 -0.05", 0.055),
        looks=(("0 0 -0.03 0.0825 0 0", 0.055),),
    ),
    _Link(
        rpy=f"{_PI2} 0 0",
        xyz="0.0825 0 0",
        mass=2.6155955791,
        center="-0.0459100965 0.0630492960 -0.0085187868",
        inertia="0.0345299832 0.0288816219 0.0412547117 1.322552e-02 1.015142e-02 -9.76283e-04",
        range="-3.0481 -0.1458",
        solid=("0 0 -0.06 0 0 0.06", 0.055),
        looks=(("0 0 0 -0.0825 0.1 0", 0.055),),
    ),
    _Link(
        rpy=f"-{_PI2} 0 0",
        xyz="-0.0825 0.384 0",
        mass=2.3271207594,
        center="-0.0016039605 0.0292536262 -0.0972965990",
        inertia="0.0516102785 0.0478772971 0.0164236256 -5.715173e-03 -3.567317e-03 1.0673986e-02",
        range="-2.8101 2.8101",
        solid=("0 0 -0.26 0 0 -0.15", 0.055),
        looks=(("0 0.03 -0.15 0 0.05 -0.02", 0.045), ("0 0 0 0 0 0.01", 0.05)),
    ),
    _Link(
        rpy=f"{_PI2} 0 0",
        xyz="0 0 0",
        mass=1.8170376524,
        center="0.0597131221 -0.0410294666 -0.0101692726",
        inertia="0.0054123336 0.0140585295 0.0160808179 6.193456e-03 1.421929e-03 -1.314075e-03",
        range="0.54092 4.5205",
        solid=("0 0 -0.03 0 0 0.02", 0.05),
        looks=(("0 0 0 0.088 0 0", 0.045),),
    ),
    _Link(
        rpy=f"{_PI2} 0 0",
        xyz="0.088 0 0",
        mass=0.6271432862,
        center="0.0045225817 0.0086261921 -0.0161633251",
        inertia="2.10924e-04 1.771857e-04 5.9931906e-05 -2.4333e-07 4.56448e-07 1.30131e-07",
        range="-3.0196 3.0196",
        solid=("0 0 0 0 0 0.06", 0.045),
        looks=(("0 0 0.06 0 0 0.1", 0.035),),
    ),
)

_HEADER = """
<mujoco model="fr3_table">
  <compiler angle="radian" autolimits="true" eulerseq="XYZ" balanceinertia="true"/>
  <option timestep="0.001" integrator="implicitfast" cone="elliptic" impratio="10">
    <flag eulerdamp="disable"/>
  </option>
  <visual>
    <global offwidth="640" offheight="480"/>
    <quality shadowsize="0" offsamples="2"/>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.45 0.45 0.45" specular="0.1 0.1 0.1"/>
  </visual>
  <asset>
    <texture name="wood" type="2d" builtin="checker" rgb1="0.62 0.5 0.38" rgb2="0.58 0.46 0.35"
      width="64" height="64"/>
    <material name="wood" texture="wood" texrepeat="12 12" reflectance="0"/>
    <material name="white" rgba="0.92 0.92 0.92 1"/>
    <material name="dark" rgba="0.2 0.2 0.22 1"/>
  </asset>
  <default>
    <default class="looks"><geom contype="0" conaffinity="0" group="1" mass="0"/></default>
    <default class="link"><geom contype="2" conaffinity="0" group="1" material="white"/></default>
    <default class="hand"><geom contype="1" conaffinity="1" group="1" material="dark"/></default>
    <default class="thing"><geom contype="1" conaffinity="3" group="1" friction="1.0 0.01 0.001"
      solref="0.004 1" solimp="0.95 0.99 0.001"/></default>
  </default>
  <worldbody>
    <light pos="0.4 0.4 2.0" dir="0 -0.2 -1" castshadow="false"/>
    <geom name="floor" class="looks" type="plane" size="3 3 0.1" pos="0 0 -0.75"
      rgba="0.4 0.42 0.45 1"/>
    <geom name="table" class="thing" type="box" size="0.45 0.6 0.02" pos="0.55 0 -0.02"
      material="wood"/>
    <camera name="exterior_left" pos="1.15 0.8 0.75" fovy="45"
      xyaxes="-0.7526 0.6585 0.0000 -0.3112 -0.3556 0.8813"/>
    <camera name="exterior_right" pos="1.15 -0.8 0.75" fovy="45"
      xyaxes="0.7526 0.6585 -0.0000 -0.3112 0.3556 0.8813"/>
"""


def scene_xml() -> str:
    """The whole scene. z = 0 is the table top and the plane of the arm's base."""
    return "".join((_HEADER, _arm(), *_objects(), "</worldbody>", _FOOTER, "</mujoco>"))


def _capsule(name: str, group: str, shape: tuple[str, float], extra: str = "") -> str:
    points, radius = shape
    named = f'name="{name}" ' if name else ""
    return (
        f'<geom {named}class="{group}" type="capsule" fromto="{points}" size="{radius}" {extra}/>'
    )


def _arm() -> str:
    base = '<body name="fr3_link0" gravcomp="1">' + _capsule(
        "fr3_link0_collision", "link", ("-0.06 0 0.07 0 0 0.07", 0.08), 'mass="2.4"'
    )
    opened = "".join(_link(index, link) for index, link in enumerate(_LINKS, start=1))
    return base + opened + _hand() + "</body>" * (len(_LINKS) + 1)


def _link(index: int, link: _Link) -> str:
    """The opening part of a link; the links after it stand inside."""
    i = index - 1
    capsules = [_capsule(f"fr3_link{index}_collision", "link", link.solid, 'mass="0"')]
    capsules += [_capsule("", "looks", shape, 'material="white"') for shape in link.looks]
    return f"""
    <body name="fr3_link{index}" pos="{link.xyz}" euler="{link.rpy}" gravcomp="1">
      <inertial pos="{link.center}" mass="{link.mass}" fullinertia="{link.inertia}"/>
      <joint name="fr3_joint{index}" axis="0 0 1" range="{link.range}" damping="{_DAMPING[i]}"
        frictionloss="{_FRICTION[i]}" armature="{_ARMATURE[i]}"/>
      {"".join(capsules)}"""


def _hand() -> str:
    fingers = "".join(
        f"""
        <body name="fr3_finger{number}" pos="0 0 0.0584" gravcomp="1">
          <inertial pos="0 {side * 0.015} 0.02" mass="0.05" diaginertia="2e-5 2e-5 1e-5"/>
          <joint name="{FINGER_JOINTS[number - 1]}" type="slide" axis="0 {side} 0" range="0 0.04"
            damping="10" armature="0.1"/>
          <geom class="hand" type="box" size="0.010 0.006 0.014" pos="0 {side * 0.012} 0.014"/>
          <geom name="fr3_pad{number}" class="hand" type="box" size="0.010 0.007 0.014"
            pos="0 {side * 0.007} 0.0398" friction="2.0 0.05 0.002" condim="4"
            solref="0.004 1" solimp="0.95 0.99 0.001" rgba="0.3 0.3 0.33 1"/>
        </body>"""
        for number, side in ((1, 1), (2, -1))
    )
    return f"""
      <body name="{FLANGE}" pos="0 0 0.107" gravcomp="1">
        <body name="fr3_hand" euler="0 0 -0.7853981633974483" gravcomp="1">
          <inertial pos="-0.01 0 0.03" mass="0.73" diaginertia="0.001 0.0025 0.0017"/>
          <camera name="wrist" pos="0.075 0 -0.02" xyaxes="0 1 0 0.954 0 0.3" fovy="75"/>
          <geom class="hand" type="box" size="0.028 0.1 0.033" pos="0 0 0.033"/>
          {fingers}
        </body>
      </body>"""


def _objects() -> Sequence[str]:
    half, radius = CUBE_HALF, CUCUMBER_RADIUS
    cube = f"""
    <body name="cube" pos="0.5 0.1 {half}">
      <freejoint name="cube"/>
      <geom class="thing" type="box" size="{half} {half} {half}" mass="0.06" condim="4"
        rgba="0.85 0.1 0.1 1"/>
    </body>"""
    cucumber = f"""
    <body name="cucumber" pos="0.5 -0.1 {radius}" euler="{_PI2} 0 0">
      <freejoint name="cucumber"/>
      <geom class="thing" type="capsule" size="{radius} {CUCUMBER_HALF}" mass="0.08" condim="6"
        friction="1.0 0.01 0.005" rgba="0.15 0.5 0.15 1"/>
    </body>"""
    return cube, cucumber, _bowl(), _plate()


def _bowl() -> str:
    """Twelve boards around a disc, leaning outwards."""
    count, lean = 12, 0.35
    boards = "".join(
        f"""
      <body euler="0 0 {turn * 2 * 3.141592653589793 / count:.5f}">
        <geom class="thing" type="box" size="0.003 {BOWL_RADIUS * 0.29:.4f} {BOWL_HEIGHT / 2}"
          pos="{BOWL_RADIUS - 0.008:.4f} 0 {BOWL_HEIGHT / 2}" euler="0 {lean} 0"
          rgba="0.2 0.35 0.75 1"/>
      </body>"""
        for turn in range(count)
    )
    return f"""
    <body name="bowl" mocap="true" pos="0.6 0.25 0">
      <geom class="thing" type="cylinder" size="{BOWL_RADIUS - 0.012:.4f} 0.003" pos="0 0 0.003"
        rgba="0.2 0.35 0.75 1"/>{boards}
    </body>"""


def _plate() -> str:
    """A disc with a low rim, which keeps a cucumber from rolling off."""
    count = 16
    rim = "".join(
        f"""
      <body euler="0 0 {turn * 2 * 3.141592653589793 / count:.5f}">
        <geom class="thing" type="box" size="0.004 {PLATE_RADIUS * 0.22:.4f} {PLATE_HEIGHT / 2}"
          pos="{PLATE_RADIUS} 0 {PLATE_HEIGHT / 2}" rgba="0.9 0.9 0.85 1"/>
      </body>"""
        for turn in range(count)
    )
    return f"""
    <body name="plate" mocap="true" pos="0.6 -0.25 0">
      <geom class="thing" type="cylinder" size="{PLATE_RADIUS} 0.003" pos="0 0 0.003"
        rgba="0.9 0.9 0.85 1"/>{rim}
    </body>"""


_FOOTER = f"""
  <equality>
    <joint joint1="{FINGER_JOINTS[0]}" joint2="{FINGER_JOINTS[1]}" solref="0.002 1"/>
  </equality>
"""
