"""Gradients that are not finite: found before anything is changed, and named."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

type Group = dict[str, Any]


class NonFiniteGradientError(FloatingPointError):
    """A gradient held NaN or infinity; no parameter and no state was changed.

    Attributes:
        names: the parameters concerned.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        # Another process unpickles an exception by calling its class with these.
        super().__init__(self.names)

    def __str__(self) -> str:
        return (
            f"Gradient of {shortened(self.names)} is not finite. Nothing was updated. Look at the "
            "batch and the loss of this step; a lower learning rate or gradient clipping may help. "
            'To leave such steps out and count them: optimizer.configure(nonfinite="skip").'
        )


def shortened(names: Sequence[str], most: int = 5) -> str:
    """The first names and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def parameter_names(group: Group) -> list[str]:
    """Names of a group's parameters; their position and shape where none were given."""
    if "param_names" in group:
        return list(group["param_names"])
    shapes = (tuple(parameter.shape) for parameter in group["params"])
    return [f"parameter {i} with shape {shape}" for i, shape in enumerate(shapes)]


def nonfinite_gradients(groups: Sequence[Group]) -> list[str]:
    """Names of the parameters whose gradient holds NaN or infinity.

    Where parameters are sharded, all ranks that share one get the same answer.

    Raises:
        ValueError: a gradient is sparse.
    """
    gradients = [grad for _, grad in _named_gradients(groups)]
    if any(grad.is_sparse for grad in gradients):
        raise ValueError("sparse gradients are not supported: use sparse=False in nn.Embedding")
    local = [_local(grad) for grad in gradients]
    norm = torch.nn.utils.get_total_norm(local)
    if not _any_rank(~torch.isfinite(norm).reshape(1), gradients):
        return []
    flags = torch.stack([~torch.isfinite(grad).all().to(norm.device) for grad in local])
    _any_rank(flags, gradients)
    # None is flagged where only the norm overflowed.
    return [name for (name, _), bad in zip(_named_gradients(groups), flags, strict=True) if bad]


def _named_gradients(groups: Sequence[Group]) -> Iterator[tuple[str, Tensor]]:
    for position, group in enumerate(groups):
        for name, parameter in zip(parameter_names(group), group["params"], strict=True):
            if parameter.grad is not None:
                known = "param_names" in group
                yield (name if known else f"{name} of group {position}"), parameter.grad


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _any_rank(flags: Tensor, gradients: Sequence[Tensor]) -> bool:
    """Make `flags` those of any rank that holds a part of one of the gradients; whether one is."""
    meshes = {grad.device_mesh for grad in gradients if hasattr(grad, "device_mesh")}
    if meshes:
        counts = flags.to(torch.int32)
        for mesh in sorted(meshes, key=str):
            for dimension in range(mesh.ndim):
                torch.distributed.all_reduce(
                    counts, torch.distributed.ReduceOp.MAX, group=mesh.get_group(dimension)
                )
        flags.copy_(counts > 0)
    return bool(flags.any())
