"""Parameters of 16 bits: float32 masters, stochastic rounding, or plain rounding.

Most updates are smaller than half a step of the bfloat16 grid: added to the parameter itself they
round to nothing. A master copy keeps what rounding drops; stochastic rounding drops it without bias
and needs no copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vla_opt.optim._names import unknown_name

LowPrecision = Literal["master", "stochastic", "nearest"]
NonFinite = Literal["raise", "skip", "ignore"]

HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """How an optimizer makes its steps, whatever the algorithm.

    Attributes:
        nonfinite: what to do about a gradient with NaN or infinity: "raise"
            `NonFiniteGradientError`, "skip" the whole step and count it in `skipped_steps`, or
            "ignore" it, which saves the check (one read of all gradients, and on a GPU one wait).
        low_precision: what happens to parameters of 16 bits. "master" keeps a float32 copy in the
            state (4 bytes for each element). "stochastic" rounds up or down by chance, so that
            the mean is exact (bfloat16 alone). "nearest" rounds, and loses small updates. Momenta
            are float32 under each.
        seed: of stochastic rounding.

    Raises:
        ValueError: an unknown choice; the message names the nearest.
    """

    nonfinite: NonFinite = "raise"
    low_precision: LowPrecision = "master"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown choices."""
        for kind, choices in (("nonfinite", NonFinite), ("low_precision", LowPrecision)):
            if getattr(self, kind) not in get_args(choices):
                raise unknown_name(kind, getattr(self, kind), get_args(choices))


def master_of(parameter: Tensor, master: Tensor | None) -> Tensor:
    """The float32 copy; entries that somebody else changed in the parameter follow it."""
    current = parameter.detach().to(torch.float32, memory_format=torch.contiguous_format)
    if master is None:
        return current
    return torch.where(master.to(parameter.dtype) == parameter, master, current).contiguous()


def write_back(parameter: Tensor, weight: Tensor, options: StepOptions, key: Sequence[int]) -> None:
    """Round the float32 `weight` into its parameter.

    Args:
        parameter: bfloat16 or float16.
        weight: of the same shape.
        options: how to round.
        key: what the random numbers depend on beside the seed, such as parameter and step: a
            resumed run then rounds as the uninterrupted one does.
    """
    if options.low_precision == "stochastic":
        source, target = _local(weight), _local(parameter)
        seed = hash((options.seed, *key, *_place(parameter))) & (2**63 - 1)
        generator = torch.Generator(source.device).manual_seed(seed)
        target.copy_(round_stochastically(source, generator))
    else:
        parameter.copy_(weight)


def _place(parameter: Any) -> tuple[int, ...]:
    """Where a shard lies among the shards: copies of it must round alike, other shards not."""
    if not hasattr(parameter, "device_mesh"):
        return ()
    coordinates = parameter.device_mesh.get_coordinate()
    pairs = zip(coordinates, parameter.placements, strict=True)
    return tuple(where for where, placement in pairs if placement.is_shard())


def round_stochastically(X: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 to one of the two bfloat16 neighbours, the nearer one more often: the mean is X.

    bfloat16 is the upper half of float32's bits, so that a uniform number added to the lower half
    carries into the upper with the right probability.

    Raises:
        ValueError: X is not float32.
    """
    if X.dtype != torch.float32:
        raise ValueError(f"stochastic rounding is from float32 to bfloat16, got {X.dtype}")
    noise = torch.randint(
        0, 1 << 16, X.shape, dtype=torch.int32, device=X.device, generator=generator
    )
    bits = (X.contiguous().view(torch.int32) + noise) & -(1 << 16)
    return torch.where(X.isfinite(), bits.view(torch.float32), X).to(torch.bfloat16)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
