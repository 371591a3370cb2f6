"""Options of the published recipes: momentum, scales and numbers of steps, by preset."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vla_opt.optim._names import unknown_name

_ADAMW = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
_MUON = {"momentum": 0.95, "nesterov": True, "update_scale": 0.2, "weight_decay": 0.01}

# Of AdamW and of Muon, where they differ from the above; Pion has Muon's. The codes of one paper
# multiply updates by 0.2, 2 and 5: at equal lr these are different step sizes.
_RECIPES: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = MappingProxyType(
    {
        "vla_adapter": ({}, {}),
        "vlanext": ({}, {}),
        "pi05": (
            {"betas": (0.9, 0.95), "weight_decay": 1e-10},
            {"nesterov": False, "update_scale": 2.0, "weight_decay": 1e-10},
        ),
        "qwen3": ({}, {"nesterov": False, "update_scale": 5.0}),
    }
)


def published_options(preset: str) -> dict[str, dict[str, Any]]:
    """What the training code behind a preset (arXiv 2605.19282) sets, by algorithm.

    To be given to `build_optimizer` as `options`, beside `preset_rules` of the same preset, or to
    one class: `Pion(matrices, lr=1e-4, **published_options("vla_adapter")["pion"])`.
    All have promotion_steps=0, which lets a matrix stand still unless one direction holds 64 % of
    its momentum's squared norm: a comparison with the paper needs it, a run of your own does not.

    Args:
        preset: "vla_adapter", "vlanext", "pi05" or "qwen3".

    Raises:
        ValueError: nothing was published for it; the message names the nearest.

    >>> published_options("qwen3")["muon"]["update_scale"]
    5.0
    """
    if preset not in _RECIPES:
        raise unknown_name("published recipe", preset, _RECIPES)
    adamw, muon = _RECIPES[preset]
    spectral = {**_MUON, **muon}
    pion = {**spectral, "promotion_steps": 0, "suppression_steps": 5}
    return {"adamw": {**_ADAMW, **adamw}, "muon": spectral, "pion": pion}
