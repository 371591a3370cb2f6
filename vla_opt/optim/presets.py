"""Routing rules of the published training codes, by name of the policy.

"Pion" in the results of arXiv 2605.19282 on policies means Muon on vision, language and connecting
layers, and Pion on the action head alone. "Muon" means Muon on all of these. Under either, AdamW
updates vectors, embeddings and output layers ("excluded" here).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from vla_opt.optim._algorithms import algorithm
from vla_opt.optim._names import unknown_name
from vla_opt.optim.routing import Rule


class _Role(NamedTuple):
    name: str
    pattern: str
    pion: str = "muon"  # its algorithm when Pion is asked for


@dataclass(frozen=True, kw_only=True)
class _Preset:
    mark: str | None  # what the names of such a policy's parameters hold; None: not looked for
    excluded: str  # names AdamW keeps under every optimizer
    roles: tuple[_Role, ...]  # ordered; the last takes the rest
    heads: tuple[str, str] | None = None  # role with per-head rules; its keys and values


_OF_PI = (
    r"embed_tokens|embeddings\.weight|position_embedding|patch_embedding|lm_head|action_out_proj"
)

_PRESETS: Mapping[str, _Preset] = MappingProxyType(  # the first whose mark is found is recognised
    {
        "smolvla": _Preset(
            mark=r"vlm_with_expert\.",
            excluded=_OF_PI,
            roles=(
                _Role(
                    "action",
                    r"lm_expert|action_in_proj|state_proj|action_time_mlp_(in|out)",
                    "pion",
                ),
                _Role("vision", r"vision_model"),
                _Role("language", r"text_model"),
                _Role("other", r""),
            ),
        ),
        "pi05": _Preset(
            mark=r"paligemma_with_expert\.",
            excluded=_OF_PI,
            roles=(
                _Role("language", r"paligemma_with_expert\.paligemma"),  # one tower with vision
                _Role(
                    "action",
                    r"paligemma_with_expert\.gemma_expert|action_in_proj|state_proj"
                    r"|time_mlp_(in|out)",
                    "pion",
                ),
                _Role("other", r"", "adamw"),
            ),
        ),
        "vlanext": _Preset(
            mark=r"action_head\.final_layer\.",
            excluded=r"final_layer|embed",
            roles=(
                _Role("vision", r"visual"),
                _Role("language", r"language_model"),
                _Role("action", r"action_head", "pion"),
                _Role("other", r""),
            ),
        ),
        "vla_adapter": _Preset(
            mark=r"action_head\.",
            excluded=r"cls_token|reg_token|(?<!patch_)embed|lm_head|queries"
            r"|action_head\.(\w+\.)?fc2\.",
            roles=(
                _Role("vision", r"backbone|visual"),
                _Role("language", r"language_model"),
                _Role("action", r"action_head", "pion"),
                _Role("other", r""),
            ),
            heads=("action", "[kv]_(self|adapter|task)"),
        ),
        "qwen3": _Preset(
            mark=None,
            excluded=r"embed|lm_head",
            roles=(_Role("matrix", r"", "pion"),),
            heads=("matrix", "[kv]_proj"),
        ),
        "default": _Preset(
            mark=r"",
            excluded=r"cls_token|reg_token|(?<!patch_)embed|lm_head|queries|action_out_proj",
            roles=(_Role("matrix", r"", "pion"),),
        ),
    }
)

PRESETS = tuple(_PRESETS)
AUTO = "auto"
ROLES = tuple(
    dict.fromkeys([*(role.name for p in _PRESETS.values() for role in p.roles), "excluded"])
)


def recognised_preset(names: Iterable[str]) -> str:
    """The preset for a policy with parameters of these names; "default" if none is known.

    >>> recognised_preset(["model.paligemma_with_expert.gemma_expert.lm_head.weight"])
    'pi05'
    """
    joined = "\n".join(names)
    found = (name for name, preset in _PRESETS.items()
             if preset.mark is not None and re.search(preset.mark, joined))  # fmt: skip
    return next(found)


def preset_rules(
    name: str,
    optimizer: str,
    *,
    adamw_lr_ratio: float = 1.0,
    roles: Mapping[str, str] | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
) -> tuple[Rule, ...]:
    """The rules of one published recipe.

    Args:
        name: "vla_adapter", "vlanext", "pi05" (and lerobot's pi0), "smolvla", "qwen3", or "default"
            for any model (all matrices to the optimizer).
        optimizer: "adamw", "muon", "pion" or another of `vla_opt.optim.ALGORITHMS`. Under "pion"
            roles get what the paper's code gave them; any other goes to all roles alike.
        adamw_lr_ratio: learning rate of excluded parameters relative to the others', under every
            optimizer alike (VLANeXt's code uses 0.1, its AdamW baseline included).
        roles: another algorithm for some roles, such as {"vision": "pion"}.
        num_heads: map each attention head of query and output on its own: in all of "qwen3", in
            the action head of "vla_adapter".
        num_kv_heads: the same for key and value; num_heads if not given.

    Raises:
        ValueError: an unknown name (the nearest is given), or heads for a preset without them.
    """
    if name not in _PRESETS:
        raise unknown_name("preset", name, _PRESETS)
    algorithm(optimizer)  # refuses unknown names
    preset = _PRESETS[name]
    algorithms = _algorithms(preset, optimizer, roles or {})
    vectors = _VECTORS.get(optimizer, "adamw")
    excluded = [
        Rule(r"", vectors, "excluded", max_ndim=1, lr_ratio=adamw_lr_ratio),
        Rule(preset.excluded, vectors, "excluded", lr_ratio=adamw_lr_ratio),
        # Three dimensions are a stack of matrices in mixtures of experts, tables elsewhere.
        Rule(r"^(?!.*expert[s_.])", vectors, "excluded", min_ndim=3, max_ndim=3,
             lr_ratio=adamw_lr_ratio),
    ]  # fmt: skip
    heads = _head_rules(name, preset, algorithms, num_heads, num_kv_heads)
    matrices = [Rule(role.pattern, algorithms[role.name], role.name) for role in preset.roles]
    return (*excluded, *heads, *matrices)


# Schedule-free training has no decay of the rate: what is not a matrix is averaged as well.
_VECTORS = {
    "schedule_free_adamw": "schedule_free_adamw",
    "sf_normuon": "schedule_free_adamw",
}


def _algorithms(preset: _Preset, optimizer: str, given: Mapping[str, str]) -> dict[str, str]:
    chosen = {role.name: role.pion if optimizer == "pion" else optimizer for role in preset.roles}
    for role, other in given.items():
        if role not in chosen:
            raise unknown_name("role", role, chosen)
        algorithm(other)  # refuses unknown names
        chosen[role] = other
    return chosen


def _head_rules(
    name: str,
    preset: _Preset,
    algorithms: Mapping[str, str],
    num_heads: int | None,
    num_kv_heads: int | None,
) -> list[Rule]:
    if num_heads is None and num_kv_heads is None:
        return []
    if not preset.heads or num_heads is None:
        known = " and ".join(repr(key) for key, other in _PRESETS.items() if other.heads)
        raise ValueError(
            f"num_heads={num_heads}, num_kv_heads={num_kv_heads} with preset {name!r}: per-head "
            f"rules exist for {known} and need num_heads; elsewhere write a Rule with options "
            "num_heads and head_axis"
        )
    role, keys_and_values = preset.heads
    chosen = algorithms[role]
    if "num_heads" not in algorithm(chosen).defaults:  # entry by entry, or row by row
        return []
    where = next(one.pattern for one in preset.roles if one.name == role)
    within = rf"{where}\..*" if where else ""
    layout = (("q_proj", num_heads, 0), (keys_and_values, num_kv_heads or num_heads, 0),
              ("o_proj", num_heads, 1))  # fmt: skip
    return [
        Rule(rf"{within}{pattern}\.weight$", chosen, role, _heads(heads, axis), min_ndim=2)
        for pattern, heads, axis in layout
    ]


def _heads(num_heads: int, head_axis: int) -> Mapping[str, Any]:
    return {"num_heads": num_heads, "head_axis": head_axis}
