"""Weights, gradients and optimizer state cut among the processes: PyTorch's FSDP2.

Every process holds its share of each parameter. The policy as a whole is one unit, which is
gathered for a forward and a backward pass; a policy that names classes of its layers in
`_no_split_modules`, as those of transformers do, is gathered a layer at a time.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


def shard(policy: nn.Module, device: torch.device) -> None:
    """Cut the parameters of a policy in place; every process calls it with equal weights.

    Args:
        policy: whole, on `device`, with `requires_grad` as in training.
        device: of this process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    units = set(getattr(policy, "_no_split_modules", None) or ())
    for module in list(policy.modules())[:0:-1]:  # inner ones first, without the policy itself
        if type(module).__name__ in units:
            fully_shard(module, mesh=mesh)
            _gather_for(module)
    fully_shard(policy, mesh=mesh)


def _gather_for(module: nn.Module) -> None:
    """Methods beside `forward` that need a layer's weights, which the layer names itself."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    for name in getattr(module, "forward_methods", ()):
        register_fsdp_forward_method(module, name)


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was called with it."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def no_sync(accelerator: Accelerator, model: nn.Module) -> AbstractContextManager[None]:
    """Within the block, gradients stay with the process that they were computed on."""
    if is_sharded(model):
        return _unreduced(model)
    context: AbstractContextManager[None] = accelerator.no_sync(model)
    return context


@contextmanager
def _unreduced(model: Any) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts; where it is cut, all processes must ask for it."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered


def gathered(tensors: Iterable[tuple[str, Tensor]], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU, one after another; all processes call it in the same order.

    Args:
        tensors: names with tensors; one that has several names is gathered once.
        keep: whether this process wants them; the others only send their parts.
    """
    found: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    for name, tensor in tensors:
        known = first.setdefault(id(tensor), name)
        value = whole(tensor.detach()) if known == name else tensor
        if keep:
            found[name] = value.cpu() if known == name else found[known]
    return found


def gathered_state(state: Mapping[Any, Any], *, keep: bool) -> dict[Any, Any]:
    """The state of an optimizer, as `Optimizer.state_dict` nests it, with whole tensors."""
    found: dict[Any, Any] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            value = gathered_state(value, keep=keep)
        elif isinstance(value, Tensor):
            value = whole(value.detach())
        if keep:
            found[key] = value.cpu() if isinstance(value, Tensor) else value
    return found
