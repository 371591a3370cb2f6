"""One parameter as an update rule sees it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vla_opt.spectral import SpectralMeasures


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One parameter with a gradient, as an update rule sees it."""

    weight: Tensor  # what the rule changes in place: the parameter, or its float32 copy
    grad: Tensor  # never written; may have a lower precision than weight
    state: dict[str, Tensor]
    measures: list[SpectralMeasures] | None = None  # a list collects those of its matrices

    def buffer(self, key: str) -> Tensor:
        """The state tensor `key`, zeros of the weight's shape and dtype at first, contiguous."""
        if key not in self.state:
            self.state[key] = torch.zeros_like(
                self.weight, memory_format=torch.contiguous_format, requires_grad=False
            )
        return self.state[key]

    def step(self) -> Tensor:
        """The number of updates made so far: a float32 scalar on the weight's device."""
        if "step" not in self.state:
            self.state["step"] = torch.zeros((), dtype=torch.float32, device=self.weight.device)
        return self.state["step"]
