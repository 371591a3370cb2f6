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


def simplify_model(model: Any, profile: RenderProfile) -> None:
    """Applies what a profile changes in the model; call before its first render context is made.

    Args:
        model: a `mujoco.MjModel`.
        profile: see `RenderProfile`.
    """
    if profile.decimation is not None:
        decimate_visual_meshes(model, profile.decimation)
    if profile.samples is not None:
        model.vis.quality.offsamples = profile.samples


def set_flags(context: Any, profile: RenderProfile) -> None:
    """Applies what a profile changes in a robosuite render context."""
    if not profile.reflections:
        context.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
