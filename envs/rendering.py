"""Renderer settings. "exact" is stock LIBERO; "fast" trades fidelity for speed and says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco

from envs._decimate import Decimation, decimate_visual_meshes
from envs.errors import UnknownNameError, nearest


@dataclass(frozen=True, kw_only=True)
class RenderProfile:
    """What differs from stock rendering; physics is the same in every profile.

    Attributes:
        name: as written into every record made with it.
        decimation: simplification of visual meshes, None for the original meshes.
        reflections: whether planar reflections are drawn (each draws the scene again).
        samples: multisampling of the off-screen buffer, None for the model's own (4).
    """

    name: str
    decimation: Decimation | None = None
    reflections: bool = True
    samples: int | None = None


RENDER_PROFILES = {
    "exact": RenderProfile(name="exact"),
    "fast": RenderProfile(name="fast", decimation=Decimation(), reflections=False, samples=0),
}


def get_profile(name: str) -> RenderProfile:
    """The profile of that name.

    Raises:
        UnknownNameError: no such profile.
    """
    if name not in RENDER_PROFILES:
        raise UnknownNameError(f"unknown render profile {name!r}. {nearest(name, RENDER_PROFILES)}")
    return RENDER_PROFILES[name]


def apply_profile(sim: Any, profile: RenderProfile) -> None:
    """Applies a profile to a robosuite simulation and rebuilds its render context.

    Call after construction; a hard reset would rebuild the model and lose it.
    """
    if profile == RENDER_PROFILES["exact"]:
        return
    model = sim.model._model
    if profile.decimation is not None:
        decimate_visual_meshes(model, profile.decimation)
    if profile.samples is not None:
        model.vis.quality.offsamples = profile.samples
    context = sim._render_context_offscreen
    context.gl_ctx.make_current()
    context.con.free()
    del context.con
    context._set_mujoco_context_and_buffers()
    context.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = profile.reflections
