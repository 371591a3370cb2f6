"""Update rules on parameters that several ranks hold: shards (DTensor) or copies.

A spectral map of a shard is not the shard of the map. So every parameter whose rule needs it whole
has an owner for the step: the owner gathers weight, gradient and state, runs the rule, and hands
the parts back. Between steps state lies sharded like its parameter, or complete on every rank where
parameters are copies; checkpoints need nothing special.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vla_opt.optim._gradients import Group
from vla_opt.optim._ranks import (
    Item,
    Ranks,
    balanced_owners,
    from_owners,
    shared_objects,
    to_all,
    to_owners,
)
from vla_opt.optim._slot import Slot

__all__ = ["Ranks", "as_held", "run_rule"]

# Elements on the way at once, over all ranks: bounds the memory of a step beside the model's.
_MAX_ROUND_ELEMENTS = 1 << 27

type _Made = dict[str, tuple[tuple[int, ...], torch.dtype]]


def run_rule(rule: Any, group: Group, slots: Sequence[Slot], ranks: Ranks | None) -> None:
    """One update of `slots`, wherever their tensors lie; the result is a single process' one.

    Args:
        rule: an `UpdateRule`.
        group: options of the parameters.
        slots: the same on all ranks, in the same order.
        ranks: those that hold copies and divide the work; None if each does all of it.
    """
    elementwise = getattr(rule, "elementwise", False)
    plain = [slot for slot in slots if not _is_sharded(slot.weight)]
    if plain and (elementwise or ranks is None or ranks.world == 1):
        rule.update(group, plain)
    elif plain and ranks is not None:
        for part in _rounds(plain):
            _on_copies(rule, group, part, ranks)
    sharded = [slot for slot in slots if _is_sharded(slot.weight)]
    if elementwise and sharded:
        _on_shards(rule, group, sharded)
    elif sharded:
        for (mesh, mesh_dim), members in _by_mesh(sharded).items():
            if mesh_dim is None:
                _everywhere(rule, group, members)
                continue
            ranks_of_mesh = Ranks.of(mesh.get_group(mesh_dim))
            for part in _rounds(members):
                _on_owners(rule, group, part, ranks_of_mesh, mesh_dim)


def as_held(parameter: Tensor, value: Tensor) -> Tensor:
    """A state tensor as this rank holds the parameter: sharded with it, or whole."""
    if _is_sharded(value) and not _is_sharded(parameter):
        whole: Tensor = value.full_tensor()  # type: ignore[attr-defined]
        return whole
    if not _is_sharded(parameter) or _is_sharded(value) or value.ndim == 0:
        return value
    found = _cut_of(parameter)
    if found is None:
        return _distributed_whole(parameter, value)
    mesh_dim, dim = found
    dim = dim if value.shape == parameter.shape else 0
    ranks = Ranks.of(parameter.device_mesh.get_group(mesh_dim))  # type: ignore[attr-defined]
    item = Item(owner=0, shape=tuple(value.shape), dim=dim, dtype=value.dtype, tensor=value)
    part = item.cut(ranks.world, ranks.rank).view(item.part_shape(ranks.world, ranks.rank))
    return _wrapped(parameter, part.clone(), item.shape, mesh_dim, dim)


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor, without importing its module


def _cut_of(tensor: Any) -> tuple[int, int] | None:
    """(dimension of the mesh, of the tensor) along which it is cut; None unless it is just one."""
    from torch.distributed.tensor import Replicate, Shard

    cuts = [(i, p.dim) for i, p in enumerate(tensor.placements) if type(p) is Shard]
    whole = sum(isinstance(p, Replicate) for p in tensor.placements)
    return cuts[0] if len(cuts) == 1 and whole + 1 == len(tensor.placements) else None


def _by_mesh(slots: Sequence[Slot]) -> dict[tuple[Any, int | None], list[Slot]]:
    found: dict[tuple[Any, int | None], list[Slot]] = {}
    for slot in slots:
        cut = _cut_of(slot.weight)
        key = (slot.weight.device_mesh, cut[0] if cut else None)  # type: ignore[attr-defined]
        found.setdefault(key, []).append(slot)
    return found


def _rounds(slots: Sequence[Slot]) -> Iterator[list[Slot]]:
    part: list[Slot] = []
    for slot in slots:
        if part and sum(s.weight.numel() for s in [*part, slot]) > _MAX_ROUND_ELEMENTS:
            yield part
            part = []
        part.append(slot)
    yield part


def _owners(slots: Sequence[Slot], world: int) -> list[int]:
    """Owners by the cost of a spectral map, about n m^2 for an (m, n) matrix with m <= n."""
    costs = []
    for slot in slots:
        shape = slot.weight.shape
        rows = shape[0] if len(shape) > 1 else 1
        costs.append(float(slot.weight.numel() * min(rows, max(1, slot.weight.numel() // rows))))
    return balanced_owners(costs, world)


def _local(tensor: Any) -> Tensor:
    local: Tensor = tensor.to_local() if _is_sharded(tensor) else tensor
    return local


def _grad_part(slot: Slot) -> Tensor:
    grad: Any = slot.grad
    wanted = slot.weight.placements  # type: ignore[attr-defined]
    return _local(grad if grad.placements == wanted else grad.redistribute(placements=wanted))


def _wrapped(like: Any, part: Tensor, shape: Sequence[int], mesh_dim: int, dim: int) -> Tensor:
    """This rank's part as a DTensor on the mesh of `like`."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    placements: list[Any] = [Replicate()] * len(like.placements)
    placements[mesh_dim] = Shard(dim)
    stride = torch.empty(tuple(shape), device="meta").stride()
    return DTensor.from_local(
        part.contiguous(), like.device_mesh, placements,
        run_check=False, shape=torch.Size(shape), stride=stride,
    )  # fmt: skip


def _distributed_whole(like: Any, value: Tensor) -> Tensor:
    """A tensor that every rank has whole, placed as `like` is (or on all ranks if unlike it)."""
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = [Replicate()] * len(like.placements)
    placed = DTensor.from_local(value, like.device_mesh, everywhere, run_check=False)
    if value.shape == like.shape:
        placed = placed.redistribute(placements=like.placements)
    # redistribute may hand out a view of the whole, which would keep all of it in memory.
    clone: Tensor = DTensor.from_local(
        placed.to_local().clone(), like.device_mesh, placed.placements,
        run_check=False, shape=placed.shape, stride=placed.stride(),
    )  # fmt: skip
    return clone


def _on_shards(rule: Any, group: Group, slots: Sequence[Slot]) -> None:
    """An elementwise rule, each rank on its part."""
    parts = [
        Slot(
            weight=_local(slot.weight),
            grad=_grad_part(slot),
            state={key: _local(value) for key, value in slot.state.items()},
        )
        for slot in slots
    ]
    rule.update(group, parts)
    from torch.distributed.tensor import DTensor

    for slot, part in zip(slots, parts, strict=True):
        like: Any = slot.weight
        for key in part.state.keys() - slot.state.keys():
            value = part.state[key]
            if key != "step":
                value = DTensor.from_local(
                    value, like.device_mesh, like.placements,
                    run_check=False, shape=like.shape, stride=like.stride(),
                )  # fmt: skip
            slot.state[key] = value


def _everywhere(rule: Any, group: Group, slots: Sequence[Slot]) -> None:
    """Parameters cut in an unusual way: every rank gathers and computes all of them."""
    wholes = []
    for slot in slots:
        weight, grad = _gathered(slot.weight), _gathered(slot.grad)
        state = {key: _gathered(value) for key, value in slot.state.items() if key != "master"}
        wholes.append(Slot(weight=weight, grad=grad, state=state))
    rule.update(group, wholes)
    for slot, whole in zip(slots, wholes, strict=True):
        _local(slot.weight).copy_(_local(_distributed_whole(slot.weight, whole.weight)))
        for key, value in whole.state.items():
            kept = value if value.ndim == 0 else _distributed_whole(slot.weight, value)
            slot.state[key] = kept


def _gathered(tensor: Any) -> Tensor:
    # Of a tensor that is whole already full_tensor returns the tensor itself, not a copy.
    whole: Tensor = tensor.full_tensor().clone() if _is_sharded(tensor) else tensor
    return whole


def _on_copies(rule: Any, group: Group, slots: Sequence[Slot], ranks: Ranks) -> None:
    """Parameters that every rank holds whole: each is updated by its owner, then by all."""
    owners = _owners(slots, ranks.world)
    fresh = [not slot.state.keys() - {"master"} for slot in slots]
    if mine := [slot for slot, owner in zip(slots, owners, strict=True) if owner == ranks.rank]:
        rule.update(group, mine)
    made = _made(slots, fresh, owners, ranks)
    items, targets = [], []
    for i, (slot, owner) in enumerate(zip(slots, owners, strict=True)):
        for key, (shape, dtype) in made.get(i, {}).items():
            if key not in slot.state:
                slot.state[key] = torch.empty(shape, dtype=dtype, device=slot.weight.device)
        for tensor in (slot.weight, *(slot.state[key] for key in _rule_keys(slot.state))):
            items.append(_item(owner, tensor, None, ranks))
            targets.append(tensor)
    arrived = to_all(items, ranks, slots[0].weight.device)
    for target, item, value in zip(targets, items, arrived, strict=True):
        if item.owner != ranks.rank:
            target.copy_(value)


def _on_owners(rule: Any, group: Group, slots: Sequence[Slot], ranks: Ranks, mesh_dim: int) -> None:
    """Parameters cut along one dimension of a mesh: gathered, updated and cut again."""
    owners = _owners(slots, ranks.world)
    fresh = [not slot.state.keys() - {"master"} for slot in slots]
    wholes = _gather(slots, owners, ranks)
    if wholes:
        rule.update(group, list(wholes.values()))
    made = _made([wholes.get(i, slot) for i, slot in enumerate(slots)], fresh, owners, ranks)
    _hand_back(slots, wholes, made, owners, ranks, mesh_dim)


def _gather(slots: Sequence[Slot], owners: Sequence[int], ranks: Ranks) -> dict[int, Slot]:
    """The slots this rank owns, whole; 0-dimensional state is the same everywhere already."""
    items, places = [], []
    for i, (slot, owner) in enumerate(zip(slots, owners, strict=True)):
        tensors = {"weight": slot.weight, "grad": slot.grad}
        tensors |= {f"state/{key}": slot.state[key] for key in _rule_keys(slot.state)
                    if _is_sharded(slot.state[key])}  # fmt: skip
        for key, tensor in tensors.items():
            part = _grad_part(slot) if key == "grad" else _local(tensor)
            cut = _cut_of(slot.weight if key == "grad" else tensor)
            assert cut is not None
            items.append(
                Item(owner=owner, shape=tuple(tensor.shape), dim=cut[1], dtype=part.dtype,
                     tensor=part)
            )  # fmt: skip
            places.append((i, key))
    found: dict[int, dict[str, Tensor]] = {}
    arrived = to_owners(items, ranks, items[0].tensor.device)  # type: ignore[union-attr]
    for (i, key), whole in zip(places, arrived, strict=True):
        if whole is not None:
            found.setdefault(i, {})[key] = whole
    mine = {}
    for i, tensors in found.items():
        state = {key.removeprefix("state/"): v for key, v in tensors.items() if "/" in key}
        state |= {key: v for key, v in slots[i].state.items() if not _is_sharded(v)}
        mine[i] = Slot(weight=tensors["weight"], grad=tensors["grad"], state=state)
    return mine


def _hand_back(
    slots: Sequence[Slot],
    wholes: Mapping[int, Slot],
    made: Mapping[int, _Made],
    owners: Sequence[int],
    ranks: Ranks,
    mesh_dim: int,
) -> None:
    items, places = [], []
    for i, (slot, owner) in enumerate(zip(slots, owners, strict=True)):
        weight_cut = _cut_of(slot.weight)
        assert weight_cut is not None
        known: _Made = {k: (tuple(slot.state[k].shape), slot.state[k].dtype)
                        for k in _rule_keys(slot.state)}  # fmt: skip
        weight = (tuple(slot.weight.shape), slot.weight.dtype)
        for key, (shape, dtype) in {"": weight, **known, **made.get(i, {})}.items():
            dim = weight_cut[1] if shape == weight[0] else 0
            whole = wholes[i] if owner == ranks.rank else None
            tensor = None if whole is None else (whole.state[key] if key else whole.weight)
            items.append(
                Item(owner=owner, shape=shape, dim=dim if shape else None, dtype=dtype,
                     tensor=tensor)
            )  # fmt: skip
            places.append((slot, key))
    arrived = from_owners(items, ranks, _local(slots[0].weight).device)
    for (slot, key), item, part in zip(places, items, arrived, strict=True):
        target = slot.state.get(key) if key else slot.weight
        if target is not None:
            _local(target).copy_(part)
        elif item.dim is None:
            slot.state[key] = part.clone()
        else:
            slot.state[key] = _wrapped(slot.weight, part.clone(), item.shape, mesh_dim, item.dim)


def _made(
    slots: Sequence[Slot], fresh: Sequence[bool], owners: Sequence[int], ranks: Ranks
) -> dict[int, _Made]:
    """Shapes and dtypes of the state that owners made in the first update of a parameter."""
    if not any(fresh):
        return {}
    mine: dict[int, _Made] = {
        i: {key: (tuple(slot.state[key].shape), slot.state[key].dtype)
            for key in _rule_keys(slot.state)}
        for i, slot in enumerate(slots) if fresh[i] and owners[i] == ranks.rank
    }  # fmt: skip
    return {i: made for part in shared_objects(mine, ranks) for i, made in part.items()}


def _rule_keys(state: Mapping[str, Tensor]) -> list[str]:
    return sorted(state.keys() - {"master"})


def _item(owner: int, tensor: Tensor, dim: int | None, ranks: Ranks) -> Item:
    own = tensor if owner == ranks.rank else None
    return Item(owner=owner, shape=tuple(tensor.shape), dim=dim, dtype=tensor.dtype, tensor=own)
