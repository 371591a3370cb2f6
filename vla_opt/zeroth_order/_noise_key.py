"""One and the same randomness for every query of a step."""

import contextlib
import random
from collections.abc import Iterable, Iterator

import torch


@contextlib.contextmanager
def fixed_noise(key: int, devices: Iterable[torch.device]) -> Iterator[None]:
    """Seed torch's and Python's global generators inside; put back outside what was there.

    A loss that draws dropout masks, diffusion times or noise from them then draws the same in
    every query, and whoever else draws from them notices nothing.

    Args:
        key: the seed.
        devices: where weights live; the CPU's generator is always handled.
    """
    cuda = [device for device in set(devices) if device.type == "cuda"]
    before = random.getstate()
    with torch.random.fork_rng(devices=cuda):
        # Not torch.manual_seed, which formats a stack trace where CUDA is not in use.
        torch.default_generator.manual_seed(key)
        for device in cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(key)
        random.seed(key)
        try:
            yield
        finally:
            random.setstate(before)
