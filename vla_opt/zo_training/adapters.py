"""LoRA in weight space: the layer reads W + alpha B A wherever it reads its weight.

Policies here multiply with several layers' weights at once, past the layers' own `forward`, where
adapters that wrap it would be passed by.
"""

import copy
import math
import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vla_opt.errors import ConfigError
from vla_opt.seeding import derive_seed


class LowRankUpdate(nn.Module):
    """W to W + alpha B A.

    Args:
        weight: W (m, n), for shape, dtype and device.
        rank: r.
        alpha: factor, independent of r.
        generator: of the initial A (r, n), uniform in +- 1 / sqrt(n); B (m, r) starts at zero.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        uniform = torch.rand(rank, columns, generator=generator) * 2 - 1
        self.lora_A = nn.Parameter((uniform / math.sqrt(columns)).to(weight))
        self.lora_B = nn.Parameter(torch.zeros(rows, rank).to(weight))
        self.alpha = alpha

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight."""
        return weight + self.alpha * (self.lora_B @ self.lora_A)


def add_adapters(
    model: nn.Module, modules: Sequence[str], *, rank: int, alpha: float, seed: int
) -> list[str]:
    """Adapt linear layers, in place; the model's own parameters no longer require gradients.

    Args:
        model: with `nn.Linear` layers.
        modules: regular expressions, searched in the layers' names.
        rank: see `LowRankUpdate`.
        alpha: see there.
        seed: of the initial A.

    Returns:
        Names of the adapted layers.

    Raises:
        ConfigError: no trainable linear layer has such a name.
    """
    chosen = {name: layer for name, layer in _layers(model) if _found(name, modules)}
    if not chosen:
        names = ", ".join(name for name, _ in list(_layers(model))[:5]) or "none"
        raise ConfigError(
            f"adapter.modules={list(modules)}: no trainable linear layer has such a name. Layers: "
            f"{names} ..."
        )
    model.requires_grad_(False)
    for name, layer in chosen.items():
        source = torch.Generator().manual_seed(derive_seed(seed, "adapter", name))
        update = LowRankUpdate(layer.weight, rank, alpha, source)
        parametrize.register_parametrization(layer, "weight", update)
    return list(chosen)


def merged[M: nn.Module](model: M) -> M:
    """Return a copy of the model with its adapters added to the weights; itself if it has none."""
    if not any(parametrize.is_parametrized(layer) for layer in model.modules()):
        return model
    plain = copy.deepcopy(model)
    for layer in list(plain.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return plain


def freeze_others(model: nn.Module, trainable: Sequence[str]) -> None:
    """Leave only those trainable parameters trainable whose names one expression finds.

    Raises:
        ConfigError: none is left.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and _found(name, trainable))
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"trainable={list(trainable)} finds no trainable parameter's name.")


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad:
            yield name, layer


def _found(name: str, expressions: Sequence[str]) -> bool:
    return any(re.search(expression, name) for expression in expressions)
