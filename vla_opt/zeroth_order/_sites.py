"""Where directions live: each parameter with what identifies its noise."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from vla_opt.zeroth_order._seeds import NOISE, generator, slab_shapes, wide


@dataclass(frozen=True, kw_only=True)
class Site:
    """One parameter.

    Attributes:
        index: position among all parameters of the optimizer; part of its noise's seed.
        offset: number of entries before it.
        parameter: the parameter.
        weight: its values, without gradient.
        group: options of its parameter group.
        group_index: position of that group.
        seed: of the run.
        noise_device: where noise is drawn; "cpu" gives the same directions on every device.
    """

    index: int
    offset: int
    parameter: Tensor
    weight: Tensor
    group: Mapping[str, Any]
    group_index: int
    seed: int
    noise_device: str

    def shadow(self) -> Self:
        """The same site with zeros in place of the weight's values."""
        return replace(self, weight=torch.zeros_like(self.weight))

    def gaussian(self, seed: int, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """Yield the slabs of a standard normal tensor that only depends on `seed` and the site."""
        source = generator(seed, NOISE, self.index, device=self.noise_device)
        dtype, device = wide(self.weight.dtype), self.weight.device
        for part in slab_shapes(shape):
            noise = torch.randn(part, generator=source, dtype=dtype, device=self.noise_device)
            yield noise.to(device)


def build_sites(
    groups: Sequence[Mapping[str, Any]], seed: int, noise_device: str
) -> Iterator[Site]:
    """Yield the sites of all parameters of the groups."""
    index = offset = 0
    for group_index, group in enumerate(groups):
        for parameter in group["params"]:
            yield Site(
                index=index,
                offset=offset,
                parameter=parameter,
                weight=parameter.detach(),
                group=group,
                group_index=group_index,
                seed=seed,
                noise_device=noise_device,
            )
            index, offset = index + 1, offset + parameter.numel()


def as_matrix(weight: Tensor) -> Tensor:
    """View a weight as the matrix it acts as: (out, everything else); others as they are.

    Dimensions of size one do not count: (1, 8, 128) is an 8 x 128 matrix, (64, 3, 3, 3) a
    64 x 27 one, (1, 128) a vector. What has no such view in memory stays as it is.
    """
    squeezed = weight.squeeze()
    return squeezed.flatten(1) if squeezed.ndim > 2 and squeezed.is_contiguous() else squeezed
