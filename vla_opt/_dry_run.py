"""What a training run would be, found out without weights, data or GPU.

The policy is built on torch's meta device: shapes without memory. So a recipe for eight GPUs can be
looked at on a laptop in seconds.
"""

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import nn

from vla_opt._activations import working_bytes
from vla_opt._policy import PolicyError
from vla_opt.config import TrainConfig
from vla_opt.data import DatasetFiles
from vla_opt.errors import DataError
from vla_opt.optim import Rule, assign_parameters, build_optimizer

# What would make a constructor read pretrained files, and the value that keeps it from it.
_PRETRAINED: Mapping[str, Any] = {
    "pretrained_path": None,
    "vlm_path": "",
    "head_path": "",
    "openpi_path": "",
    "pretrained_backbone_weights": None,
    "load_vlm_weights": False,
}
_STAND_IN = 16  # rows and columns of the matrix on which an algorithm shows how much state it keeps
_EXPAND = 0.6  # a part with more of the parameters than this is shown by its own parts


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a run would be.

    Attributes:
        policy: On the meta device.
        features: What was assumed about the data: "of <root>" or why not.
        parts: Parameters of each part, and how many of them are trained.
        routing: Which algorithm updates which parameter, as text.
        weights: Bytes of the weights, of one process.
        gradients: Bytes of the gradients.
        moments: Bytes of the optimizer's state.
        working: Bytes that a forward and a backward pass hold beside the weights, at their most,
            gradients as they come included; None if the policy cannot run on shapes alone.
        working_unknown: Why not, "" otherwise.
        checkpoint: Bytes of one checkpoint on disk.
        samples: Samples seen in the whole run, by one process.
        frames: Frames of the data set; None if it is not there.
        spectral_flops: Floating-point operations of the spectral maps in one update.
    """

    policy: PreTrainedPolicy
    features: str
    parts: dict[str, tuple[int, int]]
    routing: str
    weights: int
    gradients: int
    moments: int
    working: int | None
    working_unknown: str
    checkpoint: int
    samples: int
    frames: int | None
    spectral_flops: int


def dry_run(config: TrainConfig) -> DryRun:
    """Find out what a run would be.

    Raises:
        PolicyError: The policy cannot be built without its pretrained files.
        ValueError: The policy cannot work with the features, or no rule fits a parameter.
    """
    features, origin, frames = run_features(config)
    policy = meta_policy(config.policy, features)
    config.optimizer.freeze(policy)
    trained = [p for p in policy.parameters() if p.requires_grad]
    moments = _moment_bytes(config, policy)
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    working, unknown = _working(policy, config)
    return DryRun(
        policy=policy,
        features=origin,
        parts=count_parts(policy),
        routing=config.optimizer.table(policy),
        weights=weights,
        gradients=sum(p.numel() * p.element_size() for p in trained),
        moments=moments,
        working=working,
        working_unknown=unknown,
        checkpoint=weights + moments,
        samples=config.steps * config.batch_size * config.gradient_accumulation,
        frames=frames,
        spectral_flops=_spectral_flops(config, policy),
    )


def meta_policy(config: PreTrainedConfig, features: Mapping[str, PolicyFeature]) -> Any:
    """Build a policy without memory for its weights and without reading any file.

    Args:
        config: Not changed.
        features: Used where the configuration declares none.

    Raises:
        PolicyError: Its constructor needs files that are not here.
    """
    config = copy.deepcopy(config)
    for name, value in _PRETRAINED.items():
        if hasattr(config, name):
            setattr(config, name, value)
    if not config.input_features:
        config.input_features = {
            k: f for k, f in features.items() if f.type is not FeatureType.ACTION
        }
    if not config.output_features:
        config.output_features = {k: f for k, f in features.items() if f.type is FeatureType.ACTION}
    config.device = "meta"
    try:
        with torch.device("meta"):
            return get_policy_class(config.type)(config)
    except OSError as error:
        raise PolicyError(
            f"The policy '{config.type}' reads files when it is built, and they are not here: "
            f"{error}"
        ) from error


def run_features(config: TrainConfig) -> tuple[dict[str, PolicyFeature], str, int | None]:
    """Shapes of the data set, where they come from, and its number of frames.

    Without a data set they are those of the robot that the configuration is for: DROID's if the
    policy says so, else LIBERO's.
    """
    root = config.data.root
    try:
        files = DatasetFiles(root)
    except DataError:
        space = getattr(config.policy, "droid_action_space", "")
        robot = "DROID" if space else "LIBERO"
        return _robot_features(robot), f"assumed, {robot}'s: there is no data set {root}", None
    found = {key: _feature(FeatureType.VISUAL, 3, *files.image_size(key))
             for key in files.camera_keys}  # fmt: skip
    for key, kind in (("observation.state", FeatureType.STATE), ("action", FeatureType.ACTION)):
        if key in files.features:
            found[key] = _feature(kind, *files.features[key]["shape"])
    return found, f"of {root}", int(files.info["total_frames"])


def count_parts(policy: nn.Module) -> dict[str, tuple[int, int]]:
    """Parameters of the parts of a policy, and how many of them are trained, by name."""
    counts = {
        name: (p.numel(), p.numel() if p.requires_grad else 0)
        for name, p in policy.named_parameters()
    }
    total = sum(number for number, _ in counts.values())
    return dict(_parts(counts, "", _EXPAND * total))


def _parts(
    counts: Mapping[str, tuple[int, int]], prefix: str, limit: float
) -> list[tuple[str, tuple[int, int]]]:
    children: dict[str, dict[str, tuple[int, int]]] = {}
    for name, count in counts.items():
        child = prefix + name[len(prefix) :].split(".")[0]
        children.setdefault(child, {})[name] = count
    rows: list[tuple[str, tuple[int, int]]] = []
    for child, inner in children.items():
        total = sum(number for number, _ in inner.values())
        leaf = any(name == child for name in inner) or re.search(r"\.\d+$", child)
        layers = any(name[len(child) + 1 :].split(".")[0].isdigit() for name in inner)
        if not leaf and not layers and (total > limit or len(children) == 1):
            rows += _parts(inner, f"{child}.", limit)
        else:
            rows.append((child, (total, sum(trained for _, trained in inner.values()))))
    return rows


def _working(policy: nn.Module, config: TrainConfig) -> tuple[int | None, str]:
    try:
        return working_bytes(policy, config), ""
    except PolicyError as error:
        return None, str(error)


def _moment_bytes(config: TrainConfig, policy: nn.Module) -> int:
    """Bytes of state, after what each algorithm keeps for a small matrix."""
    per_element: dict[str, float] = {}
    total = 0.0
    for route in assign_parameters(policy, config.optimizer.rules(policy)):
        name = route.rule.algorithm
        if name not in per_element:
            per_element[name] = _state_per_element(name)
        total += per_element[name] * route.parameter.numel()
    return round(total)


def _state_per_element(algorithm: str) -> float:
    matrix = nn.Parameter(torch.eye(_STAND_IN))
    matrix.grad = torch.ones_like(matrix)
    optimizer = build_optimizer([("w", matrix)], [Rule("", algorithm)], lr=0.0)
    optimizer.step()
    state = [v for v in optimizer.state[matrix].values() if isinstance(v, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in state if t.ndim) / matrix.numel()


def _spectral_flops(config: TrainConfig, policy: nn.Module) -> int:
    """Products of the odd quintics: X X', its square, and both times X, for every step of a map."""
    pion = config.optimizer.promotion_steps + config.optimizer.suppression_steps
    steps = {"pion": pion, "muon": 5}
    flops = 0
    for route in assign_parameters(policy, config.optimizer.rules(policy)):
        if route.rule.algorithm in steps and route.parameter.ndim >= 2:
            shape = (route.parameter.shape[0], math.prod(route.parameter.shape[1:]))
            m, n = min(shape), max(shape)
            flops += steps[route.rule.algorithm] * (4 * m * m * n + 2 * m**3)
    return flops


def _feature(kind: FeatureType, *shape: int) -> PolicyFeature:
    return PolicyFeature(type=kind, shape=tuple(int(n) for n in shape))


def _robot_features(robot: str) -> dict[str, PolicyFeature]:
    if robot == "DROID":
        from policies import droid_features

        inputs, outputs = droid_features()
        return {**inputs, **outputs}
    image = _feature(FeatureType.VISUAL, 3, 128, 128)
    return {
        "observation.images.image": image,
        "observation.images.image2": image,
        "observation.state": _feature(FeatureType.STATE, 8),
        "action": _feature(FeatureType.ACTION, 7),
    }


def pretrained_sources(config: PreTrainedConfig) -> list[str]:
    """Files and hub names that a real run would read first."""
    names = ("pretrained_path", "vlm_path", "head_path", "openpi_path", "tokenizer")
    found = [(name, getattr(config, name, None)) for name in names]
    return [f"policy.{name}={value}" for name, value in found if value not in (None, "", Path())]
