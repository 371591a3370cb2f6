"""Optimizer state: saved and loaded bit by bit, copied, and fit for every container."""

import copy
import io
import json
import pickle
from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from vla_opt.optim import MixedOptimizer, Muon, Pion, build_optimizer, preset_rules

Make = Callable[[nn.Module], torch.optim.Optimizer]


class Model(nn.Module):
    """Matrices of several kinds, and vectors."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Parameter(torch.randn(4, 8, dtype=dtype))
        self.tall = nn.Parameter(torch.randn(8, 4, dtype=dtype))
        self.conv = nn.Parameter(
            torch.randn(4, 2, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        )
        self.unused = nn.Parameter(torch.randn(3, 3, dtype=dtype))
        self.bias = nn.Parameter(torch.randn(8, dtype=dtype))


def matrices(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.ndim > 1]


OPTIMIZERS: dict[str, Make] = {
    "pion": lambda model: Pion(matrices(model), 0.01),
    "muon": lambda model: Muon(matrices(model), 0.01),
    "mixed": lambda model: build_optimizer(model, preset_rules("default", "pion"), lr=0.01),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
each = pytest.mark.parametrize("name", sorted(OPTIMIZERS))
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def train(model: Model, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for name, parameter in model.named_parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if name == "unused" else gradient.to(parameter.dtype)
        optimizer.step()


def through_torch_save(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def through_safetensors_and_json(state: dict) -> dict:
    """As a checkpoint keeps it: tensors in safetensors, everything else in JSON."""
    tensors = {f"{i}/{k}": v for i, entry in state["state"].items() for k, v in entry.items()}
    read = safetensors.torch.load(safetensors.torch.save(tensors))
    loaded: dict[int, dict[str, Tensor]] = {}
    for key, value in read.items():
        index, name = key.split("/")
        loaded.setdefault(int(index), {})[name] = value
    return {"state": loaded, "param_groups": json.loads(json.dumps(state["param_groups"]))}


CONTAINERS = {
    "memory": copy.deepcopy,
    "torch.save": through_torch_save,
    "safetensors": through_safetensors_and_json,
}


@each
@each_dtype
@pytest.mark.parametrize("container", sorted(CONTAINERS))
def test_resumed_run_ends_with_the_same_bits(name: str, dtype: torch.dtype, container: str) -> None:
    whole = Model(dtype)
    optimizer = OPTIMIZERS[name](whole)
    train(whole, optimizer, range(3))
    weights = copy.deepcopy(whole.state_dict())
    state = CONTAINERS[container](optimizer.state_dict())
    train(whole, optimizer, range(3, 6))

    resumed = Model(dtype)
    resumed.load_state_dict(weights)
    other = OPTIMIZERS[name](resumed)
    other.load_state_dict(state)
    train(resumed, other, range(3, 6))
    for (key, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), key
    one, two = optimizer.state_dict()["state"], other.state_dict()["state"]
    assert one.keys() == two.keys()
    for index, entry in one.items():
        assert entry.keys() == two[index].keys()
        for key, value in entry.items():
            assert value.dtype == two[index][key].dtype
            assert torch.equal(value, two[index][key])


@each
@each_dtype
def test_state_is_tensors_that_are_contiguous_and_alone_in_memory(
    name: str, dtype: torch.dtype
) -> None:
    model = Model(dtype)
    optimizer = OPTIMIZERS[name](model)
    train(model, optimizer, range(2))
    seen: set[int] = {p.data_ptr() for p in model.parameters()}
    for entry in optimizer.state_dict()["state"].values():
        for key, value in entry.items():
            assert isinstance(value, Tensor)
            assert value.is_contiguous()
            assert not value.requires_grad
            assert value.untyped_storage().nbytes() == value.nbytes
            assert value.data_ptr() not in seen
            assert value.dtype == (torch.float64 if dtype == torch.float64 and key != "step"
                                   else torch.float32)  # fmt: skip
            seen.add(value.data_ptr())


def test_pion_state_is_momentum_and_step_alone() -> None:
    model = Model(torch.float32)
    optimizer = Pion(matrices(model), 0.01)
    train(model, optimizer, range(4))
    entries = list(optimizer.state_dict()["state"].values())
    assert len(entries) == 3  # one for each parameter that got a gradient
    for entry in entries:
        assert set(entry) == {"momentum", "step"}
        assert entry["step"].item() == 4.0


@each
def test_groups_are_plain_values_with_names(name: str) -> None:
    groups = OPTIMIZERS[name](Model(torch.float32)).state_dict()["param_groups"]
    assert json.loads(json.dumps(groups))[0]["param_names"]
    names = sorted(n for group in groups for n in group["param_names"])
    assert names[-4:] == ["conv", "tall", "unused", "wide"]


@each
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_complete_and_independent(name: str, clone: Callable) -> None:
    model = Model(torch.float32)
    optimizer = OPTIMIZERS[name](model)
    train(model, optimizer, range(2))
    twin, other = clone((model, optimizer))
    assert all(
        a.data_ptr() != b.data_ptr()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )
    before = [p.detach().clone() for p in model.parameters()]
    train(twin, other, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    train(model, optimizer, range(2, 4))
    assert all(
        torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True)
    )


def test_loaded_state_is_a_copy() -> None:
    model = Model(torch.float32)
    optimizer = Pion(matrices(model), 0.01)
    train(model, optimizer, range(1))
    state = optimizer.state_dict()
    momentum = state["state"][0]["momentum"]
    other = Pion(matrices(Model(torch.float32)), 0.01)
    other.load_state_dict(state)
    momentum.zero_()
    assert other.state_dict()["state"][0]["momentum"].any()


def test_state_of_another_model_is_refused() -> None:
    wide, tall = (nn.Parameter(torch.ones(s)) for s in ((2, 3), (3, 2)))
    wide.grad = torch.ones(2, 3)
    optimizer = Pion([wide], 0.1)
    optimizer.step()
    with pytest.raises(ValueError, match=r"'momentum' has shape \(2, 3\), its parameter \(3, 2\)"):
        Pion([tall], 0.1).load_state_dict(optimizer.state_dict())


def test_hooks_on_loading_are_respected() -> None:
    model = Model(torch.float32)
    optimizer = Pion(matrices(model), 0.01)
    train(model, optimizer, range(1))

    def double(_: torch.optim.Optimizer, state: dict) -> dict:
        doubled = copy.deepcopy(state)
        doubled["state"][0]["momentum"] *= 2
        return doubled

    other = Pion(matrices(Model(torch.float32)), 0.01)
    other.register_load_state_dict_pre_hook(double)
    other.load_state_dict(optimizer.state_dict())
    expected = 2 * optimizer.state_dict()["state"][0]["momentum"]
    assert torch.equal(other.state_dict()["state"][0]["momentum"], expected)


def test_state_of_torch_adamw_can_be_continued() -> None:
    ours, theirs = (nn.Parameter(torch.ones(5)) for _ in range(2))
    torch_optimizer = torch.optim.AdamW([theirs], 0.1, fused=True)
    mixed = MixedOptimizer([{"params": [ours], "algorithm": "adamw"}], 0.1)

    def step(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, seed: int) -> None:
        parameter.grad = torch.randn(5, generator=torch.Generator().manual_seed(seed))
        optimizer.step()

    step(torch_optimizer, theirs, 0)
    with torch.no_grad():
        ours.copy_(theirs)
    state = {"state": torch_optimizer.state_dict()["state"],
             "param_groups": mixed.state_dict()["param_groups"]}  # fmt: skip
    mixed.load_state_dict(state)
    for seed in (1, 2):
        step(torch_optimizer, theirs, seed)
        step(mixed, ours, seed)
    assert torch.equal(ours, theirs)
