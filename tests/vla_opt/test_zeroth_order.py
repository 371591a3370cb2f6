"""The zeroth-order step: weights that come back, noise that repeats, logs that rebuild."""

from __future__ import annotations

import ast
import copy
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vla_opt import zeroth_order
from vla_opt._training_state import load_optimizer, save_optimizer
from vla_opt.zeroth_order import (
    AveragedBaseline,
    Coordinates,
    NonFiniteLossError,
    StepRecord,
    ZerothOrder,
    ar1_zo,
    bayesian_subspace,
    coordinate_wise,
    forward_gradient,
    mezo,
    subspace_mezo,
    subspace_newton,
    zo_high_pass,
    zo_muon,
    zoar,
)
from vla_opt.zeroth_order._exact import displace_, restore_
from vla_opt.zeroth_order._rounding import stochastic_round, subtract_

Preset = Callable[[nn.Module], ZerothOrder]

# With the queries of a step, counted by hand from the papers' formulas.
PRESETS: dict[str, tuple[Preset, int]] = {
    "mezo": (lambda net: mezo(net.parameters(), 1e-3, directions=2, weight_decay=0.1), 4),
    "mezo_adam": (lambda net: mezo(net.parameters(), 1e-3, rule="adam"), 2),
    "subspace_mezo": (lambda net: subspace_mezo(net.parameters(), 1e-3, rank=4, every=2), 2),
    "zo_muon": (lambda net: zo_muon(net.parameters(), 1e-2, rank=4, every=2), 5),
    "zo_muon_shorter": (lambda net: zo_muon(net.parameters(), 1e-2, rank=4, side="shorter"), 5),
    "zo_high_pass": (lambda net: zo_high_pass(net.parameters(), 1e-2, rank=4, every=2), 5),
    "zoar": (lambda net: zoar(net.parameters(), 1e-3, reuse=2, rule="r-adazo"), 4),
    "forward_gradient": (lambda net: forward_gradient(net.parameters(), 1e-3), 1),
    "ar1_zo": (lambda net: ar1_zo(net.named_parameters(), 1e-2, rule="momentum"), 2),
    "coordinate_wise": (lambda net: coordinate_wise(net.parameters(), 1e-1, directions=7), 8),
    "subspace_newton": (lambda net: subspace_newton(net.parameters()), 1 + 6 + 3),
    "bayesian_subspace": (lambda net: bayesian_subspace(net.parameters(), 1e-3), 5),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
pytestmark = pytest.mark.filterwarnings("ignore:epsilon")


class Net(nn.Module):
    """Attention, LoRA factors, a convolution, vectors, a scalar and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.queries = nn.Parameter(torch.randn(1, 5, 12))
        self.norm = nn.LayerNorm(12)
        self.proj = nn.Linear(12, 36)
        self.lora_A = nn.Parameter(torch.randn(3, 12) / 4)
        self.lora_B = nn.Parameter(torch.zeros(36, 3))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.drop = nn.Dropout(0.3)

    def forward(self) -> Tensor:
        weight = self.proj.weight + self.lora_B @ self.lora_A
        seen = F.linear(self.norm(self.queries), weight, self.proj.bias)
        q, k, v = seen.view(1, 5, 3, 2, 6).permute(2, 0, 3, 1, 4)
        attended = self.drop(F.scaled_dot_product_attention(q, k, v))
        picture = self.conv(torch.linspace(-1, 1, 25).view(1, 1, 5, 5))
        return (attended.mean() + picture.square().mean() - self.scale) ** 2 + attended.var()


@pytest.fixture
def net() -> Iterator[Net]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield Net()


def squares(net: nn.Module) -> Tensor:
    """A loss for weights of any precision."""
    return torch.stack([p.double().square().mean() for p in net.parameters()]).sum()


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same_bits(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    def raw(tensor: Tensor) -> Tensor:
        return tensor.detach().contiguous().view(-1).view(torch.uint8)

    return all(torch.equal(raw(x), raw(y)) for x, y in zip(a, b, strict=True))


def train(optimizer: ZerothOrder, net: nn.Module, steps: int) -> list[str]:
    """Make steps; return the log as the lines of a file."""
    log = []
    for _ in range(steps):
        optimizer.step(net)
        assert optimizer.last_record is not None
        log.append(json.dumps(optimizer.last_record.to_dict()))
    return log


class TestRestore:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("name", PRESETS)
    def test_queries_leave_weights_and_generators_as_they_were(
        self, net: Net, name: str, dtype: torch.dtype
    ) -> None:
        optimizer = PRESETS[name][0](net.to(dtype))
        before, torch_state, python_state = weights(net), torch.get_rng_state(), random.getstate()
        seen: list[list[Tensor]] = []

        def closure() -> Tensor:
            seen.append(weights(net))
            torch.rand(()), random.random()
            return squares(net)

        optimizer.measure(optimizer.plan(), closure)
        assert same_bits(before, weights(net))
        assert torch.equal(torch_state, torch.get_rng_state())
        assert random.getstate() == python_state
        moved = [not same_bits(before, during) for during in seen]
        centre = name.startswith(("zo_", "coord", "subspace_newton", "bayes"))
        derivative = name == "forward_gradient"
        if name == "coordinate_wise" and dtype.itemsize < 4:
            return  # a single entry may be too coarse to move
        assert moved == [not (derivative or (centre and i == 0)) for i in range(len(seen))]

    def test_closure_that_raises_leaves_weights_as_they_were(self, net: Net) -> None:
        optimizer, before = mezo(net.parameters(), 1e-3), weights(net)

        def closure() -> float:
            raise KeyError("batch")

        with pytest.raises(KeyError):
            optimizer.step(closure)
        assert same_bits(before, weights(net))

    def test_loss_that_is_not_finite_changes_nothing(self, net: Net) -> None:
        optimizer, before = zoar(net.parameters(), 1e-3, reuse=1), weights(net)
        with pytest.raises(NonFiniteLossError, match=r"query 0 of step 0 .* Nothing was updated"):
            optimizer.step(lambda: float("nan"))
        assert same_bits(before, weights(net))
        assert optimizer.queries == optimizer.steps == 0

    @settings(max_examples=150, deadline=None)
    @given(data=st.data(), dtype=st.sampled_from(DTYPES))
    def test_any_displacement_is_undone_to_the_last_bit(
        self, data: st.DataObject, dtype: torch.dtype
    ) -> None:
        width = 64 if dtype == torch.float64 else 32
        number = st.floats(allow_nan=False, width=width)
        size = data.draw(st.integers(1, 40))
        values = data.draw(st.lists(number, min_size=size, max_size=size))
        moves = data.draw(st.lists(number, min_size=size, max_size=size))
        weight = torch.tensor(values, dtype=torch.float64).to(dtype)
        delta = torch.tensor(moves, dtype=torch.promote_types(dtype, torch.float32))
        before = weight.clone()
        residue = displace_(weight, delta)
        restore_(weight, delta, residue)
        finite = before.isfinite()  # an infinite weight stays infinite
        assert same_bits([before[finite]], [weight[finite]])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_residue_is_small_where_moves_are_small(self, dtype: torch.dtype) -> None:
        source = torch.Generator().manual_seed(0)
        wide = torch.promote_types(dtype, torch.float32)
        weight = (0.05 * torch.randn(1 << 16, generator=source, dtype=wide)).to(dtype)
        delta = 1e-3 * torch.randn(1 << 16, generator=source, dtype=wide)
        assert displace_(weight, delta).nbytes < 0.05 * weight.nbytes


class TestStep:
    @pytest.mark.parametrize("name", PRESETS)
    def test_forward_calls_are_counted(self, net: Net, name: str) -> None:
        calls = 0

        def closure() -> Tensor:
            nonlocal calls
            calls += 1
            return net()

        optimizer, per_step = PRESETS[name][0](net), PRESETS[name][1]
        for _ in range(2):
            optimizer.step(closure)
        assert calls == optimizer.queries == 2 * per_step
        assert optimizer.steps == 2

    @pytest.mark.parametrize("name", ["mezo", "zo_muon", "forward_gradient"])
    def test_noise_is_the_same_in_a_step_and_new_in_the_next(self, net: Net, name: str) -> None:
        optimizer = PRESETS[name][0](net)
        drawn: list[tuple[float, float]] = []

        def closure() -> Tensor:
            drawn.append((float(torch.rand(())), random.random()))
            return net()

        optimizer.step(closure)
        first = set(drawn)
        optimizer.step(closure)
        assert len(first) == 1
        assert len(set(drawn)) == 2

    def test_dropout_does_not_enter_the_difference(self, net: Net) -> None:
        """A loss of noise alone has no gradient."""
        optimizer, before = mezo(net.parameters(), 1.0), weights(net)
        optimizer.step(lambda: torch.rand(()))
        assert same_bits(before, weights(net))

    def test_schedule_reaches_the_log(self, net: Net) -> None:
        optimizer = mezo(net.parameters(), 1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        lrs = []
        for _ in range(3):
            optimizer.step(net)
            schedule.step()
            assert optimizer.last_record is not None
            lrs.append(optimizer.last_record.lrs)
        assert lrs == [(1e-3,), (5e-4,), (1e-3 / 3,)]

    def test_weight_decay_is_for_matrices(self, net: Net) -> None:
        optimizer, before = mezo(net.parameters(), 0.1, weight_decay=0.5), weights(net)
        optimizer.step(lambda: 1.0)
        for old, new in zip(before, weights(net), strict=True):
            matrix = sum(size > 1 for size in old.shape) > 1
            torch.testing.assert_close(new, old * (0.95 if matrix else 1.0))

    def test_requests_that_make_no_sense_are_refused(self, net: Net) -> None:
        for options in ({"lr": -1.0}, {"lr": 1.0, "epsilon": 0.0}, {"lr": float("nan")}):
            with pytest.raises(ValueError, match="must be a finite number"):
                mezo(net.parameters(), **options)
        with pytest.raises(ValueError, match="closure"):
            mezo(net.parameters(), 1.0).step()
        with pytest.raises(ValueError, match="floating point"):
            mezo([torch.zeros(3, dtype=torch.int64)], 1.0)
        with pytest.raises(ValueError, match="Gaussian"):
            ZerothOrder(net.parameters(), 1.0, estimator=AveragedBaseline(), subspace=Coordinates())
        with pytest.raises(ValueError, match="lora_A"):
            ar1_zo(net.norm.named_parameters(), 1.0)
        with pytest.raises(ValueError, match="same r"):
            ar1_zo([(torch.zeros(2, 5), torch.zeros(4, 3))], 1.0)
        with pytest.raises(TypeError, match="another estimator"):
            forward_gradient(net.parameters(), 1.0).step(lambda: 1.0)


class TestReplay:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("name", PRESETS)
    def test_log_rebuilds_the_weights_bit_by_bit(
        self, net: Net, name: str, dtype: torch.dtype
    ) -> None:
        start = copy.deepcopy(net).to(dtype)
        replayed, build = copy.deepcopy(start), PRESETS[name][0]

        def loss() -> Tensor:  # of the weights in float32, where every operation exists
            values = {n: p.float() for n, p in start.named_parameters()}
            return torch.func.functional_call(net, values)

        trained, rebuilt = build(start), build(replayed)
        for _ in range(4):
            trained.step(loss)
            assert trained.last_record is not None
            row = json.loads(json.dumps(trained.last_record.to_dict()))
            rebuilt.apply(StepRecord.from_dict(row))
        assert same_bits(weights(start), weights(replayed))
        assert not same_bits(weights(start), weights(net.to(dtype)))
        assert rebuilt.queries == trained.queries
        assert rebuilt.state_dict()["param_groups"] == trained.state_dict()["param_groups"]

    @pytest.mark.parametrize("name", PRESETS)
    def test_queries_measured_by_several_replicas_give_the_same_record(
        self, net: Net, name: str
    ) -> None:
        alone = PRESETS[name][0](net)
        others = [copy.deepcopy(net) for _ in range(3)]
        workers = [PRESETS[name][0](other) for other in others]
        for _ in range(3):
            queries = alone.plan()
            readings = alone.measure(queries, net)
            spread = {
                i: workers[i % 3].measure([query], others[i % 3])[0]
                for i, query in reversed(list(enumerate(queries)))
            }
            record = alone.conclude(readings)
            assert record == workers[0].conclude([spread[i] for i in range(len(queries))])
            for optimizer in (alone, *workers):
                optimizer.apply(record)
        assert all(same_bits(weights(net), weights(other)) for other in others)

    @pytest.mark.parametrize("name", PRESETS)
    def test_saved_optimizer_goes_on_bit_by_bit(self, net: Net, name: str, tmp_path: Path) -> None:
        build, optimizer = PRESETS[name][0], PRESETS[name][0](net)
        train(optimizer, net, 3)
        save_optimizer(optimizer, tmp_path)
        twin = copy.deepcopy(net)
        log = train(optimizer, net, 3)
        resumed = build(twin)
        load_optimizer(resumed, tmp_path)
        assert train(resumed, twin, 3) == log
        assert same_bits(weights(net), weights(twin))

    def test_buffers_of_low_precision_weights_stay_wide(self, net: Net) -> None:
        net.bfloat16()
        optimizer = mezo(net.parameters(), 1e-3, rule="adam")
        optimizer.step(lambda: squares(net))
        loaded = mezo(net.parameters(), 1e-3, rule="adam")
        loaded.load_state_dict(optimizer.state_dict())
        before, after = optimizer.state[net.lora_A], loaded.state[net.lora_A]
        assert after["square"].dtype == torch.float32
        assert same_bits([before["square"]], [after["square"]])

    def test_state_dict_is_a_snapshot(self, net: Net) -> None:
        optimizer = zoar(net.parameters(), 1e-3, reuse=1)
        train(optimizer, net, 2)
        saved = optimizer.state_dict()["param_groups"][0]["progress"]
        before = copy.deepcopy(saved)
        train(optimizer, net, 1)
        assert saved == before

    def test_copy_steps_like_the_original(self, net: Net) -> None:
        optimizer = zo_high_pass(net.parameters(), 1e-2, rank=4)
        train(optimizer, net, 1)
        copied, twin = copy.deepcopy((optimizer, net))
        assert train(copied, twin, 2) == train(optimizer, net, 2)

    def test_records_out_of_order_are_refused(self, net: Net) -> None:
        optimizer = mezo(net.parameters(), 1e-3)
        log = [StepRecord.from_dict(json.loads(line)) for line in train(optimizer, net, 2)]
        with pytest.raises(ValueError, match="expected the record of step 2"):
            optimizer.apply(log[0])
        with pytest.raises(ValueError, match="missing"):
            StepRecord.from_dict({"step": 1})


class TestLowPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_rounding_hits_the_neighbours_and_the_mean(self, dtype: torch.dtype) -> None:
        exact = torch.tensor([1.001, -0.3337, 3e-8, 0.0, 2.0, -1e-3])
        dice = (torch.arange(20_000) + 0.5)[:, None] / 20_000
        rounded = stochastic_round(
            exact.expand(20_000, -1).contiguous(), dtype, dice.expand(-1, 6)
        ).float()
        below = rounded.min(dim=0).values
        above = rounded.max(dim=0).values
        assert torch.all((below <= exact) & (exact <= above))
        spacing = torch.nextafter(above.to(dtype).double(), torch.tensor(2.0**1000).double())
        assert torch.isfinite(spacing).all()
        assert all(len(column.unique()) <= 2 for column in rounded.mT)
        torch.testing.assert_close(rounded.mean(dim=0), exact, rtol=1e-4, atol=1e-11)

    def test_steps_below_the_resolution_are_not_lost(self) -> None:
        weight = torch.full((4096,), 1.0, dtype=torch.bfloat16)
        step = torch.full((4096,), 2.0**-14)
        for i in range(64):
            subtract_(weight, step, torch.Generator().manual_seed(i))
        assert weight.float().mean().item() == pytest.approx(1 - 64 * 2.0**-14, abs=3e-4)

    @pytest.mark.filterwarnings("error")
    def test_epsilon_below_the_resolution_is_reported(self, net: Net) -> None:
        net.bfloat16()
        with pytest.warns(UserWarning, match="epsilon=0.001 is below the resolution"):
            mezo(net.parameters(), 1e-3)
        mezo(net.parameters(), 1e-3, epsilon=0.1)
        mezo(net.float().parameters(), 1e-3)


def test_package_needs_torch_and_the_spectral_engine_alone() -> None:
    """So that other projects can take it as it is."""
    files = list(Path(zeroth_order.__file__).parent.glob("*.py"))
    assert len(files) > 10
    known = {*sys.stdlib_module_names, "torch"}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            for name in names:
                ours = name.startswith(("vla_opt.spectral", "vla_opt.zeroth_order"))
                assert ours or name.partition(".")[0] in known, f"{file.name} imports {name}"
