"""Renders one red sphere off-screen and exits with 0 only if it can be seen.

Run as a program, because an OpenGL library can be chosen once per process and a broken one may take
the process with it: ``MUJOCO_GL=egl python -m vla_opt._render_probe``.
"""

from __future__ import annotations

import sys

_SCENE = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <geom type="sphere" size="0.5" rgba="1 0 0 1"/>
    <camera name="front" pos="0 -2 0" xyaxes="1 0 0 0 0 1"/>
  </worldbody>
</mujoco>
"""
_SIZE = 64  # pixels


def main() -> int:
    """Render the scene and look at its middle and its corner."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(_SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = mujoco.Renderer(model, _SIZE, _SIZE)
    try:
        renderer.update_scene(data, "front")
        image = renderer.render()
    finally:
        renderer.close()
    red, green, blue = (int(v) for v in image[_SIZE // 2, _SIZE // 2])
    corner = int(image[0, 0].max())
    if red > 60 and max(green, blue) < red // 2 and corner < 30:
        return 0
    sys.stderr.write(
        f"Error: middle {red} {green} {blue} is not red, or corner {corner} not dark\n"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
