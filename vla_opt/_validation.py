"""The loss of a checkpoint on demonstrations that it was not trained on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy

from vla_opt._batches import (
    BatchSource,
    held_out_episodes,
    open_cache,
    open_features,
    policy_features,
)
from vla_opt._numerics import fixed_numerics, resolve_threads
from vla_opt._policy import build_policy, build_processors, load_weights
from vla_opt.checkpoint import PRETRAINED
from vla_opt.config import DataConfig, TrainConfig
from vla_opt.errors import DataError
from vla_opt.seeding import seed_everything

_SILENT: Callable[[str, int, int], None] = lambda what, done, total: None  # noqa: E731


def validation_loss(config: TrainConfig, checkpoint: Path) -> float:
    """Return the mean loss over the held-out episodes, each sample once.

    What the policy samples (noise of a flow) is drawn from the number of the batch: checkpoints
    are compared under the same draws. The normalisation is that of all demonstrations.

    Args:
        config: The training, with `data.hold_out`.
        checkpoint: One of its checkpoints.

    Raises:
        DataError: Nothing is held out.
        PolicyError: The weights do not fit.
    """
    threads = resolve_threads(config.num_threads)
    device = torch.device(config.policy.device or "cpu")
    with fixed_numerics(threads, deterministic=config.deterministic):
        cache = open_cache(config.data, _SILENT)
        policy = build_policy(config.policy, policy_features(cache)).to(device)
        load_weights(policy, checkpoint / PRETRAINED)
        preprocessor, _ = build_processors(policy.config, cache.stats)
        return held_out_loss(config.data, policy, preprocessor, device, config.batch_size)


def held_out_loss(
    data: DataConfig,
    policy: PreTrainedPolicy,
    preprocessor: Callable[[Any], Any],
    device: torch.device,
    batch_size: int,
) -> float:
    """Return the mean loss of a policy over the held-out episodes, each sample once.

    The policy is in evaluation mode from then on.

    Raises:
        DataError: Nothing is held out.
    """
    cache = open_cache(data, _SILENT)
    if not held_out_episodes(len(cache.episode_starts) - 1, data.hold_out):
        raise DataError("Nothing is held out: set data.hold_out, for example to 10.")
    policy.eval()
    source = BatchSource(
        cache,
        policy.config,
        data,
        open_features(data, cache, policy, device, _SILENT),
        batch_size=1,
        accumulation=1,
        seed=0,
        rank=0,
        world_size=1,
        held_out=True,
    )
    losses, counts = _losses(source, preprocessor, policy, device, batch_size)
    return sum(x * n for x, n in zip(losses, counts, strict=True)) / sum(counts)


def _losses(
    source: BatchSource,
    preprocessor: Callable[[Any], Any],
    policy: torch.nn.Module,
    device: torch.device,
    size: int,
) -> tuple[list[float], Sequence[int]]:
    losses, counts = [], []
    with torch.no_grad():
        for number, batch in enumerate(source.in_order(size, device)):
            seed_everything("validation", number)
            loss, _ = policy(preprocessor(batch))
            losses.append(float(loss))
            counts.append(len(batch["task"]))
    return losses, counts
