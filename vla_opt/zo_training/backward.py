"""AdamW with backward passes on the batches of a zeroth-order run: what derivatives would reach."""

import time
from collections.abc import Sequence

import torch

from vla_opt._numerics import fixed_numerics
from vla_opt.checkpoint import PRETRAINED, write_checkpoint
from vla_opt.zeroth_order._noise_key import fixed_noise
from vla_opt.zeroth_order._seeds import NOISE, mix
from vla_opt.zo_training.adapters import freeze_others
from vla_opt.zo_training.config import ZOTrainConfig
from vla_opt.zo_training.live_policy import LivePolicy
from vla_opt.zo_training.objectives import Supervised
from vla_opt.zo_training.run_log import CHECKPOINTS

CALLS_PER_STEP = 3
"""A forward pass, and a backward pass that costs about two."""


def train_backward(config: ZOTrainConfig, lr: float, steps: Sequence[int]) -> float:
    """Train by AdamW from the checkpoint of a run, on the same batches and the same parameters.

    Args:
        config: the run; its method, objective and adapter have no part in it.
        lr: learning rate, constant; no weight decay.
        steps: after which a checkpoint is written below `output_dir`, ascending.

    Returns:
        Seconds spent on the steps.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
        DataError: the data set is missing, damaged or too small.
    """
    with fixed_numerics(config.num_threads, deterministic=True):
        live = LivePolicy(config.checkpoint, device=config.device, num_threads=config.num_threads)
        freeze_others(live.module, config.trainable)
        live.module.train(config.train_mode)
        objective = Supervised(config, live, lambda what, done, total: None)
        trained = [p for p in live.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr, weight_decay=0.0)
        begin = time.perf_counter()
        for step in range(steps[-1]):
            loss = objective.closure(step)
            with fixed_noise(mix(config.seed, NOISE, step), {p.device for p in trained}):
                torch.autograd.backward(torch.as_tensor(loss()))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step + 1 in steps:
                folder = config.output_dir / CHECKPOINTS
                write_checkpoint(folder, step + 1, lambda folder: live.save(folder / PRETRAINED))
        return time.perf_counter() - begin
