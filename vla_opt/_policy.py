"""Building a lerobot policy and its processors for a data set."""

import copy
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors import safe_open
from torch import Tensor

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"


class PolicyError(RuntimeError):
    """A policy cannot be built, loaded or trained as configured."""


def build_policy(
    config: PreTrainedConfig, features: Mapping[str, PolicyFeature]
) -> PreTrainedPolicy:
    """Build the policy of `config` for data with these features, in training mode.

    Like lerobot's `make_policy`, without the need for a data set's metadata. With
    `config.pretrained_path` the weights are loaded and every one of them is checked: some of
    lerobot's policies return random weights when loading fails (lerobot #4577).

    Args:
        config: Not changed; the policy gets a copy with its features filled in.
        features: Shapes of what the data set holds, by key.

    Raises:
        PolicyError: A weight was not loaded.
    """
    config = copy.deepcopy(config)
    config.output_features = {k: f for k, f in features.items() if f.type is FeatureType.ACTION}
    if not config.input_features:
        config.input_features = {
            k: f for k, f in features.items() if f.type is not FeatureType.ACTION
        }
    policy_class = get_policy_class(config.type)
    if config.pretrained_path is None:
        policy = policy_class(config)
    else:
        policy = policy_class.from_pretrained(
            config.pretrained_path, config=config, revision=config.pretrained_revision
        )
        check_loaded(policy, _weights_file(str(config.pretrained_path)))
    policy.train()
    return policy


def build_processors(
    config: PreTrainedConfig, stats: Mapping[str, Mapping[str, Any]]
) -> tuple[Any, Any]:
    """Return the policy's own pre- and post-processor with the statistics of the data set.

    Args:
        config: The configuration of the built policy.
        stats: For each key its `mean`, `std`, `min`, `max`, quantiles.
    """
    tensors = {
        key: {name: torch.as_tensor(value) for name, value in entry.items()}
        for key, entry in stats.items()
    }
    pre, post = make_pre_post_processors(config, dataset_stats=tensors)
    return pre, post


def load_weights(policy: torch.nn.Module, folder: Path) -> None:
    """Load what `save_pretrained` wrote into an already built policy, every weight of it.

    Raises:
        PolicyError: A weight is missing in the file, or has another shape.
    """
    from safetensors.torch import load_model

    try:
        _, unexpected = load_model(policy, folder / WEIGHTS, strict=False)
    except RuntimeError as error:
        raise PolicyError(f"{folder}: the weights do not fit this policy: {error}") from error
    if unexpected:
        raise PolicyError(
            f"{folder}: holds weights this policy has not, {_some(unexpected)}. "
            "Use the policy configuration of the checkpoint."
        )
    check_loaded(policy, folder / WEIGHTS)


def check_loaded(policy: torch.nn.Module, file: Path | None) -> None:
    """Compare a policy with the file it was loaded from.

    Args:
        policy: Anything with parameters.
        file: safetensors; None (not to be found on this machine) skips the check.

    Raises:
        PolicyError: A parameter's value is not the one in the file; names some.
    """
    if file is None:
        return
    state = policy.state_dict()
    good = set()
    with safe_open(str(file), framework="pt") as stored:
        for key in stored.keys():  # noqa: SIM118 - not a mapping
            name = next((n for n in _aliases(key) if n in state), None)
            if name is not None and _same(state[name], stored.get_tensor(key)):
                good.add(state[name].untyped_storage().data_ptr())  # tied weights are stored once
    bad = [n for n, t in state.items() if t.numel() and t.untyped_storage().data_ptr() not in good]
    if bad:
        raise PolicyError(
            f"{file}: {len(bad)} of {len(state)} weights of the policy were not loaded from it, "
            f"{_some(bad)}. Choose the policy type and configuration the file was made with."
        )


def trainable_parameters(policy: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters that get gradients.

    Raises:
        PolicyError: There is none.
    """
    found = [p for p in policy.parameters() if p.requires_grad]
    if not found:
        raise PolicyError(
            f"{type(policy).__name__} has no trainable parameter: its configuration freezes all."
        )
    return found


def _weights_file(path: str) -> Path | None:
    if Path(path).is_dir():
        return Path(path) / WEIGHTS
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, WEIGHTS)
    return Path(found) if isinstance(found, str) else None


def _aliases(key: str) -> tuple[str, ...]:
    """Names a weight may have in the policy: some checkpoints lack or add one prefix."""
    return key, f"model.{key}", key.removeprefix("model.")


def _same(mine: Tensor, stored: Tensor) -> bool:
    if mine.shape != stored.shape:
        return False
    return torch.equal(mine.detach().cpu(), stored.to(mine.dtype))


def _some(names: Iterable[str], count: int = 3) -> str:
    names = sorted(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
