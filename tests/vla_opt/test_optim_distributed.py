"""Two ranks give the bits of one process: copies that share the work, and sharded matrices."""

from __future__ import annotations

import copy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from vla_opt.optim import (
    ALGORITHMS,
    MixedOptimizer,
    NonFiniteGradientError,
    Rule,
    build_optimizer,
)

# Rows that two ranks share unevenly, a matrix with fewer rows than ranks, and one without gradient.
SHAPES = {"a": (6, 4), "b": (5, 8), "c": (1, 3), "d": (6, 4), "e": (7, 5), "unused": (3, 3)}
RULES = [
    Rule("bias", "adamw"),
    Rule("^[ac]", "muon"),
    Rule("^d", "pion", options={"num_heads": 2, "head_axis": 1}),
    Rule("", "pion"),
]
STEPS = 4


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    module = nn.Module()
    for name, shape in SHAPES.items():
        value = torch.randn(shape, generator=generator).to(dtype)
        module.register_parameter(name, nn.Parameter(value))
    module.bias = nn.Parameter(torch.randn(3, generator=generator).to(dtype))
    return module


def gradients(module: nn.Module, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        name: torch.randn(p.shape, generator=generator).to(p.dtype)
        for name, p in module.named_parameters()
        if name != "unused"
    }


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for name, grad in gradients(module, step).items():
            p = module.get_parameter(name)
            if isinstance(p, DTensor):
                grad = distribute_tensor(grad, p.device_mesh, p.placements)
            p.grad = grad
        optimizer.step()


def build(module: nn.Module, algorithm: str | None = None) -> MixedOptimizer:
    rules = RULES if algorithm is None else [Rule("bias", "adamw"), Rule("", algorithm)]
    return build_optimizer(module, rules, lr=0.03)


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value.detach()


def reference(steps: int = STEPS, dtype: torch.dtype = torch.float32, algorithm: str | None = None):
    module = model(dtype)
    optimizer = build(module, algorithm)
    train(module, optimizer, range(steps))
    return module, optimizer


def assert_same_model(module: nn.Module, other: nn.Module) -> None:
    for name, p in other.named_parameters():
        assert torch.equal(whole(module.get_parameter(name)), p), name


def assert_same_state(optimizer: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    state, expected = optimizer.state_dict()["state"], other.state_dict()["state"]
    assert state.keys() == expected.keys()
    for index, entry in expected.items():
        assert state[index].keys() == entry.keys()
        for key, value in entry.items():
            assert torch.equal(whole(state[index][key]), value), (index, key)


# Running on two ranks -------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _entry(rank: int, world: int, port: int, work: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    try:
        work(*arguments)
    finally:
        dist.destroy_process_group()


def on_ranks(work: Callable[..., None], *arguments: Any, world: int = 2) -> None:
    mp.start_processes(
        _entry, args=(world, free_port(), work, *arguments), nprocs=world, start_method="fork"
    )


# Copies ---------------------------------------------------------------------------------------


def _copies() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        module = model(dtype)
        optimizer = build(module).share_work()
        train(module, optimizer, range(STEPS))
        other_module, other = reference(dtype=dtype)
        assert_same_model(module, other_module)
        assert_same_state(optimizer, other)
    calls = _counted_maps(module, optimizer)
    everything = sum(p.ndim > 1 for name, p in module.named_parameters() if name != "unused")
    counts = torch.tensor([calls])
    dist.all_reduce(counts)
    assert 0 < calls < everything
    assert counts.item() == everything


def _counted_maps(module: nn.Module, optimizer: MixedOptimizer) -> int:
    """How many matrices this rank updates itself in one step."""
    seen: list[int] = []
    rules = {g["algorithm"]: optimizer._rule(g) for g in optimizer.param_groups}

    class Counting:
        def __init__(self, rule: Any) -> None:
            self.rule = rule
            self.elementwise = getattr(rule, "elementwise", False)

        def update(self, group: dict[str, Any], slots: Any) -> None:
            seen.append(0 if self.elementwise else len(slots))
            self.rule.update(group, slots)

    optimizer._rule = lambda group: Counting(rules[group["algorithm"]])
    train(module, optimizer, range(9, 10))
    return sum(seen)


def test_copies_that_share_the_work_end_with_the_bits_of_one_process() -> None:
    on_ranks(_copies)


def _copies_resumed(folder: str) -> None:
    module = model()
    optimizer = build(module).share_work()
    train(module, optimizer, range(2))
    if dist.get_rank() == 0:  # nobody else needs to take part: the state is complete
        torch.save([module.state_dict(), optimizer.state_dict()], f"{folder}/state.pt")
    dist.barrier()
    weights, state = torch.load(f"{folder}/state.pt", weights_only=True)
    module = model()
    module.load_state_dict(weights)
    optimizer = build(module).share_work()
    optimizer.load_state_dict(state)
    train(module, optimizer, range(2, STEPS))
    assert_same_model(module, reference()[0])


def test_state_of_rank_zero_alone_is_a_whole_checkpoint(tmp_path: Path) -> None:
    on_ranks(_copies_resumed, str(tmp_path))
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    module = model()
    module.load_state_dict(weights)
    optimizer = build(module)
    optimizer.load_state_dict(state)
    train(module, optimizer, range(2, STEPS))
    assert_same_model(module, reference()[0])


def _under_ddp() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    alone = copy.deepcopy(net)
    wrapped = nn.parallel.DistributedDataParallel(net)
    optimizers = [build_optimizer(m, RULES, lr=0.03) for m in (net, alone)]
    optimizers[0].share_work()
    data = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    rank = dist.get_rank()
    for _ in range(3):
        wrapped(data[4 * rank : 4 * rank + 4]).square().mean().backward()
        # The same sum of the same two halves, so that the comparison can be exact.
        halves = [torch.autograd.grad(alone(part).square().mean(), list(alone.parameters()))
                  for part in data.split(4)]  # fmt: skip
        for p, a, b in zip(alone.parameters(), *halves, strict=True):
            p.grad = (a / 2) + (b / 2)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert_same_model(net, alone)


def test_under_ddp_the_shared_step_is_that_of_one_process_with_both_halves_of_the_batch() -> None:
    on_ranks(_under_ddp)


def test_sharing_without_process_group_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        build(model()).share_work()


# Shards ---------------------------------------------------------------------------------------


def sharded(dtype: torch.dtype = torch.float32, world: int | None = None) -> nn.Module:
    mesh = init_device_mesh("cpu", (world or dist.get_world_size(),))
    module = model(dtype)
    fully_shard(module, mesh=mesh)
    return module


def _shards() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        module = sharded(dtype)
        optimizer = build(module)
        train(module, optimizer, range(STEPS))
        other_module, other = reference(dtype=dtype)
        assert_same_model(module, other_module)
        assert_same_state(optimizer, other)
        for p, entry in optimizer.state.items():
            for key, value in entry.items():
                assert key == "step" or value.to_local().shape[0] <= (p.shape[0] + 1) // 2


def test_sharded_matrices_end_with_the_bits_of_one_process() -> None:
    on_ranks(_shards)


def _every_algorithm() -> None:
    for algorithm in ALGORITHMS:
        if algorithm == "schedule_free_adamw":
            try:
                import schedulefree  # noqa: F401
            except ImportError:
                continue
        alone, expected = reference(3, algorithm=algorithm)
        for module in (sharded(), model()):
            optimizer = build(module, algorithm)
            if not isinstance(module.a, DTensor):
                optimizer.share_work()
            train(module, optimizer, range(3))
            where = f"{algorithm}, {type(module.a).__name__}"
            with optimizer.averaged(), expected.averaged():
                for name, p in alone.named_parameters():
                    torch.testing.assert_close(whole(module.get_parameter(name)), p.detach())
            if getattr(ALGORITHMS[algorithm], "elementwise", False):
                # torch's kernels round the last few entries of a tensor in another way.
                for name, p in alone.named_parameters():
                    torch.testing.assert_close(whole(module.get_parameter(name)), p.detach())
                continue
            try:
                assert_same_model(module, alone)
                assert_same_state(optimizer, expected)
            except AssertionError as error:
                raise AssertionError(f"{where}: {error}") from error


def test_every_algorithm_is_the_same_on_two_ranks() -> None:
    on_ranks(_every_algorithm)


def _stochastic() -> None:
    """Copies round alike, shards each for itself, and both in the mean like a float32 run."""
    module, alone = model(torch.bfloat16), model(torch.bfloat16)
    optimizer = build(module).configure(low_precision="stochastic").share_work()
    other = build(alone).configure(low_precision="stochastic")
    train(module, optimizer, range(STEPS))
    train(alone, other, range(STEPS))
    assert_same_model(module, alone)
    cut = sharded(torch.bfloat16)
    train(cut, build(cut).configure(low_precision="stochastic"), range(STEPS))
    for name, p in alone.named_parameters():
        part = whole(cut.get_parameter(name))
        assert part.dtype == torch.bfloat16
        # Both are at most a step of the grid (2^-8 of the value) off the same path, each time.
        torch.testing.assert_close(part, p.detach(), rtol=STEPS * 2.0**-7, atol=0.02)


def test_stochastic_rounding_of_copies_is_that_of_one_process() -> None:
    on_ranks(_stochastic)


def _other_cuts() -> None:
    """Two dimensions of the mesh: copies of shards (HSDP), and shards of shards."""
    alone, expected = reference()
    for shape, placed in (((1, 2), "hybrid"), ((2, 1), "twice")):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("x", "y"))
        module = model()
        if placed == "hybrid":
            fully_shard(module, mesh=mesh)
        else:
            for name, p in list(module.named_parameters()):
                cuts = [Shard(0), Shard(p.ndim - 1)]
                part = distribute_tensor(p.detach(), mesh, cuts)
                module.register_parameter(name, nn.Parameter(part))
        optimizer = build(module)
        train(module, optimizer, range(STEPS))
        assert_same_model(module, alone)
        assert_same_state(optimizer, expected)


def test_other_ways_to_cut_give_the_same_bits() -> None:
    on_ranks(_other_cuts)


def _save(folder: str) -> None:
    module = sharded()
    optimizer = build(module)
    train(module, optimizer, range(2))
    state = {"model": module.state_dict(), "optim": get_optimizer_state_dict(module, optimizer)}
    dcp.save(state, checkpoint_id=folder)


def _load_and_go_on(folder: str) -> None:
    module = sharded()
    optimizer = build(module)
    state = {"model": module.state_dict(), "optim": get_optimizer_state_dict(module, optimizer)}
    # torch makes state for "unused" too before it loads; the checkpoint has none.
    planner = dcp.DefaultLoadPlanner(allow_partial_load=True)
    dcp.load(state, checkpoint_id=folder, planner=planner)
    module.load_state_dict(state["model"])
    set_optimizer_state_dict(module, optimizer, state["optim"])
    train(module, optimizer, range(2, STEPS))
    other_module, other = reference()
    assert_same_model(module, other_module)
    for name, p in other_module.named_parameters():
        for key, value in other.state[p].items():
            assert torch.equal(whole(optimizer.state[module.get_parameter(name)][key]), value)


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2)])
def test_run_goes_on_after_a_change_of_world_size(tmp_path: Path, before: int, after: int) -> None:
    on_ranks(_save, str(tmp_path), world=before)
    on_ranks(_load_and_go_on, str(tmp_path), world=after)


def _plain_states_between_shards_and_wholes() -> None:
    other_module, other = reference(2)
    module = sharded()
    with torch.no_grad():
        for name, p in other_module.named_parameters():
            q = module.get_parameter(name)
            q.copy_(distribute_tensor(p.detach(), q.device_mesh, q.placements))
    optimizer = build(module)
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    train(module, optimizer, range(2, STEPS))
    train(other_module, other, range(2, STEPS))
    assert_same_model(module, other_module)
    back = build(other_module)
    back.load_state_dict(optimizer.state_dict())
    assert_same_state(back, other)


def test_plain_state_dicts_move_between_shards_and_wholes() -> None:
    on_ranks(_plain_states_between_shards_and_wholes)


def _poisoned() -> None:
    module = sharded()
    optimizer = build(module)
    train(module, optimizer, range(1))
    before = {name: whole(p).clone() for name, p in module.named_parameters()}
    if dist.get_rank() == 1:
        module.b.grad.to_local().fill_(float("nan"))
    with pytest.raises(NonFiniteGradientError, match="Gradient of b is not finite"):
        optimizer.step()
    optimizer.configure(nonfinite="skip").step()
    assert optimizer.skipped_steps == 1
    assert all(torch.equal(whole(p), before[name]) for name, p in module.named_parameters())


def test_all_ranks_refuse_a_gradient_that_is_not_finite_on_one() -> None:
    on_ranks(_poisoned)
