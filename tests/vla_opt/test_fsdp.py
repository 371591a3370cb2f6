"""Policies cut among two processes: the gradient of one process, the weights of one checkpoint."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule

from policies._flow_head import FlowHead
from policies.flow import interpolate, sample_time
from policies.heads import L1ActionHead
from policies.language_models import LanguageModelSize, build_language_model
from vla_opt._sharding import gathered, gathered_state, is_sharded, shard, whole
from vla_opt.optim.config import OptimizerConfig

WIDTH, LAYERS, TOKENS, CHUNK, ACTIONS = 16, 2, 6, 4, 3


class Policy(nn.Module):
    """The parts of our policies that name the layers they are made of, without the encoders."""

    _no_split_modules = ("TransformerLayer", "BridgeBlock", "FlowBlock")

    def __init__(self, kind: str) -> None:
        super().__init__()
        size = LanguageModelSize(width=WIDTH, num_layers=LAYERS, num_heads=2, hidden=WIDTH)
        self.projector = nn.Linear(5, WIDTH)
        self.language_model = build_language_model("transformer", size)
        self.flow = kind == "flow"
        self.action_head: nn.Module
        if self.flow:
            self.action_head = FlowHead(
                width=WIDTH, depth=LAYERS + 1, num_heads=2, mlp_ratio=2, context_width=WIDTH,
                action_dim=ACTIONS, max_chunk=CHUNK, normalize_context=True,
            )  # fmt: skip
        else:
            self.action_head = L1ActionHead(
                width=WIDTH, num_heads=2, hidden=WIDTH, num_layers=LAYERS, chunk_size=CHUNK,
                action_dim=ACTIONS, task_to_adapter=2.0,
            )  # fmt: skip

    def forward(self, seen: Tensor, actions: Tensor) -> Tensor:
        tokens = self.projector(seen)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
        states = self.language_model(tokens, mask)
        if not self.flow:
            return (self.action_head(states, mask, 4, tokens[:, :1]) - actions).abs().mean()
        context = self.action_head.context([tokens, *states], mask)
        noise, time = torch.randn_like(actions), sample_time(len(actions), "uniform")
        found = self.action_head(interpolate(actions, noise, time), time, context)
        return (found - (noise - actions)).square().mean()


def build(kind: str) -> Policy:
    torch.manual_seed(0)
    policy = Policy(kind)
    for name, parameter in policy.named_parameters():
        if "modulation" in name or "final_layer" in name:  # zero at the start: nothing would flow
            nn.init.normal_(parameter, std=0.1)
    return policy


def loss_of(policy: nn.Module, rank: int) -> Tensor:
    """On the samples and the noise of a rank."""
    torch.manual_seed(rank)
    loss: Tensor = policy(torch.randn(2, TOKENS, 5), torch.rand(2, CHUNK, ACTIONS))
    return loss


def _work(rank: int, world: int, port: int, kind: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    try:
        _compare(kind, rank, world)
    finally:
        distributed.destroy_process_group()


def _compare(kind: str, rank: int, world: int) -> None:
    alone, cut = build(kind), build(kind)
    shard(cut, torch.device("cpu"))
    assert is_sharded(cut)
    assert sum(isinstance(m, FSDPModule) for m in cut.modules()) >= 1 + 2 * LAYERS
    config = OptimizerConfig(name="pion", preset="default")
    optimizers = [config.build(policy) for policy in (alone, cut)]
    for _ in range(2):  # the second forward pass gathers again what the first has let go
        (sum(loss_of(alone, r) for r in range(world)) / world).backward()
        loss_of(cut, rank).backward()
        for name, parameter in alone.named_parameters():
            found = cut.get_parameter(name)
            assert found.to_local().numel() < parameter.numel() or parameter.shape[0] == 1, name
            torch.testing.assert_close(whole(found.grad), parameter.grad, rtol=1e-4, atol=1e-6)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    stored = gathered(cut.state_dict(keep_vars=True).items(), keep=rank == 0)
    state = gathered_state(optimizers[1].state_dict()["state"], keep=rank == 0)
    if rank:
        assert stored == state == {}
        return
    assert stored.keys() == alone.state_dict().keys()
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(stored[name], value, rtol=1e-4, atol=1e-4)
    for index, entry in optimizers[0].state_dict()["state"].items():
        for key, value in entry.items():
            torch.testing.assert_close(state[index][key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["l1", "flow"])
def test_two_processes_with_parts_of_a_policy_are_one_with_all_of_it(kind: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    mp.start_processes(_work, args=(2, port, kind), nprocs=2, start_method="fork")


def test_tensor_under_two_names_is_gathered_once() -> None:
    weight = torch.randn(3, 2)
    found = gathered([("a", weight), ("b", torch.zeros(1)), ("c", weight)], keep=True)
    assert found["a"] is found["c"]
    assert torch.equal(found["a"], weight)
