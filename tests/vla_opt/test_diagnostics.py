"""The meter's figures against values known by construction."""

import json
import logging
import math

import pytest
import torch
from torch import Tensor, nn

from vla_opt._singular_values import LayerReading
from vla_opt.diagnostics import Reading, SpectralMeter, spectrum
from vla_opt.optim import Muon, OptimizerConfig, Pion, build_optimizer, preset_rules
from vla_opt.spectral import NEWTON_SCHULZ, high_pass, spectral_map


def flat(count: int, size: int) -> Tensor:
    """A rotated matrix with `count` equal singular values and the others zero."""
    Q = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))[0]
    return Q[:, :count] @ Q[:, -count:].T


def measured(optimizer: torch.optim.Optimizer, gradients: dict[nn.Parameter, Tensor]) -> Reading:
    meter = SpectralMeter(optimizer, every=1)
    for parameter, gradient in gradients.items():
        parameter.grad = gradient.clone()
    meter.before_step(1)
    optimizer.step()
    reading = meter.after_step()
    assert reading is not None
    return reading


@pytest.mark.parametrize("count", [1, 3, 8])
def test_spectrum_of_equal_singular_values(count: int) -> None:
    found = spectrum(1e-20 * flat(count, 12))  # scale does not matter
    assert found.stable_rank == pytest.approx(count, rel=1e-4)
    assert found.effective_rank == pytest.approx(count, rel=1e-3)
    assert found.top_energy == pytest.approx(1 / count, rel=1e-4)
    assert found.directions_passed is None


def test_spectrum_agrees_with_its_definitions() -> None:
    X = torch.randn(10, 25)
    sigma = torch.linalg.svdvals(X.double())
    share = sigma / sigma.sum()
    for found in (spectrum(X, NEWTON_SCHULZ), spectrum(X.T, NEWTON_SCHULZ)):
        assert found.stable_rank == pytest.approx((sigma.norm() / sigma[0]).item() ** 2)
        assert found.effective_rank == pytest.approx(math.exp(-(share * share.log()).sum()))
        assert found.directions_passed == pytest.approx(
            spectral_map(X.double(), NEWTON_SCHULZ).square().sum().item(), rel=1e-6
        )


@pytest.mark.parametrize("X", [torch.zeros(3, 4), torch.full((3, 4), float("nan"))])
def test_matrix_without_a_spectrum(X: Tensor) -> None:
    assert spectrum(X) is None


def test_directions_passed_counts_them() -> None:
    for count in (1, 2, 3):
        assert spectrum(flat(count, 12), high_pass()).directions_passed == pytest.approx(
            count, rel=0.02
        )
    assert spectrum(flat(8, 12), high_pass()).directions_passed < 1e-3


@pytest.mark.parametrize("nesterov", [True, False])
def test_meter_sees_what_the_map_sees_and_what_was_applied(nesterov: bool) -> None:
    parameter = nn.Parameter(torch.randn(12, 12))
    optimizer = Pion([("head", parameter)], 0.01, nesterov=nesterov, weight_decay=0.5)
    measured(optimizer, {parameter: flat(1, 12)})
    before = parameter.detach().clone()
    momentum = optimizer.state[parameter]["momentum"].clone()
    gradient = torch.randn(12, 12)
    reading = measured(optimizer, {parameter: gradient})
    momentum = 0.95 * momentum + 0.05 * gradient
    seen = 0.95 * momentum + 0.05 * gradient if nesterov else momentum
    group = reading.groups["group 0"]
    expected = spectrum(seen, high_pass())
    assert group.stable_rank == pytest.approx(expected.stable_rank, rel=1e-4)
    assert group.directions_passed == pytest.approx(expected.directions_passed, rel=1e-4)
    update = parameter.detach() - (1 - 0.01 * 0.5) * before
    assert group.update_rms == pytest.approx(update.square().mean().sqrt().item(), rel=1e-4)
    assert group.weight_rms == pytest.approx(before.square().mean().sqrt().item(), rel=0.01)
    assert group.update_to_weight == pytest.approx(group.update_rms / group.weight_rms)
    assert (group.algorithm, group.matrices, group.tensors) == ("pion", 1, 1)


def test_update_rms_of_bfloat16_weights_is_that_of_their_masters() -> None:
    parameter = nn.Parameter(torch.ones(12, 12, dtype=torch.bfloat16))
    optimizer = Muon([parameter], 1e-5, weight_decay=0.0)
    gradient = torch.randn(12, 12).bfloat16()
    for _ in range(2):
        group = measured(optimizer, {parameter: gradient}).groups["group 0"]
        assert group.update_rms == pytest.approx(0.2e-5, rel=0.3)
        assert group.zero_updates == 0


def test_groups_of_a_mixed_optimizer() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    optimizer = build_optimizer(model, preset_rules("default", "pion"), lr=0.01)
    reading = measured(optimizer, {p: torch.ones_like(p) for p in model.parameters()})
    assert set(reading.groups) == {"matrix/pion", "excluded/adamw"}
    vectors, matrices = reading.groups["excluded/adamw"], reading.groups["matrix/pion"]
    assert (vectors.algorithm, vectors.tensors, vectors.matrices) == ("adamw", 2, 0)
    assert vectors.stable_rank is vectors.directions_passed is None
    assert vectors.update_rms == pytest.approx(0.01, rel=1e-3)
    assert (matrices.algorithm, matrices.tensors, matrices.matrices) == ("pion", 2, 2)
    assert matrices.directions_passed == pytest.approx(1.0, rel=1e-3)
    assert matrices.top_energy == pytest.approx(1.0, rel=1e-3)


def test_row_has_the_keys_that_reports_read_and_is_json() -> None:
    model = nn.Linear(8, 6)
    optimizer = OptimizerConfig(preset="default").build(model)
    reading = measured(optimizer, {p: torch.ones_like(p) for p in model.parameters()})
    row = json.loads(json.dumps(reading.row()))
    assert (row["kind"], row["step"]) == ("spectra", 1)
    assert {
        "algorithm", "stable_rank", "effective_rank", "top_energy", "directions_passed",
        "update_rms", "weight_rms", "update_to_weight", "zero_updates", "matrices",
    } <= set(row["groups"]["matrix/pion"])  # fmt: skip
    assert reading.warning() is None


def test_other_optimizers_can_be_measured() -> None:
    parameter = nn.Parameter(torch.zeros(4, 4))
    for optimizer in (
        torch.optim.SGD([parameter], 0.1, momentum=0.9),
        torch.optim.AdamW([parameter], 0.1),
    ):
        group = measured(optimizer, {parameter: torch.eye(4)}).groups["group 0"]
        assert group.stable_rank == pytest.approx(4.0, rel=1e-6)
        assert group.directions_passed is None
        assert group.update_rms > 0


def test_heads_are_measured_one_at_a_time() -> None:
    parameter = nn.Parameter(torch.zeros(8, 4))
    gradient = torch.cat([torch.eye(4), torch.eye(4)])  # each head flat: rank 4
    optimizer = Pion([parameter], 0.1, num_heads=2, head_axis=0)
    group = measured(optimizer, {parameter: gradient}).groups["group 0"]
    assert group.stable_rank == pytest.approx(4.0, rel=1e-6)
    whole = Pion([nn.Parameter(torch.zeros(8, 4))], 0.1)
    wide = whole.param_groups[0]["params"][0]
    rank_one = measured(whole, {wide: torch.ones(8, 4)}).groups["group 0"]
    assert rank_one.stable_rank == pytest.approx(1.0, rel=1e-6)


def test_number_of_spectra_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from vla_opt import diagnostics

    calls: list[int] = []
    real = diagnostics.singular_values

    def spy(stack: Tensor) -> Tensor | None:
        calls.append(1)
        return real(stack)

    monkeypatch.setattr(diagnostics, "singular_values", spy)
    parameters = [nn.Parameter(torch.zeros(4, 4)) for _ in range(20)]
    optimizer = Pion(parameters, 0.1)
    reading = measured(optimizer, {p: torch.eye(4) for p in parameters})
    assert len(calls) == 3 * 8  # gradient, momentum, update
    assert len(reading.layers) == 8
    assert reading.groups["group 0"].matrices == 20


def test_figures_of_all_matrices_come_from_the_step_itself() -> None:
    parameters = [nn.Parameter(torch.zeros(6, 6)) for _ in range(3)]
    optimizer = Pion(parameters, 0.1)
    meter = SpectralMeter(optimizer, every=1, max_matrices=1)
    for parameter, count in zip(parameters, (1, 2, 3), strict=True):
        parameter.grad = flat(count, 6)
    meter.before_step(1)
    optimizer.step()
    reading = meter.after_step()
    assert reading is not None
    group = reading.groups["group 0"]
    assert group.stable_rank == pytest.approx((1 + 2 + 3) / 3, rel=1e-4)
    assert group.directions_passed == pytest.approx((1 + 2 + 3) / 3, rel=0.02)
    assert group.effective_rank == pytest.approx(1.0, rel=1e-4)  # of the first alone


def test_layers_show_gradient_momentum_and_update() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(5, 8, generator=generator) for _ in range(2))
    parameter = nn.Parameter(torch.randn(5, 8, generator=generator))
    optimizer = Muon([("W", parameter)], 0.1, weight_decay=0.3, nesterov=False)
    measured(optimizer, {parameter: first})
    before = parameter.detach().clone()
    [layer] = measured(optimizer, {parameter: second}).layers
    expected = {
        "gradient": second,
        "momentum": 0.95 * first + second,
        "update": parameter.detach() - (1 - 0.1 * 0.3) * before,
    }
    assert (layer.name, layer.group, layer.shape) == ("W", "group 0", (5, 8))
    assert layer.ranks == (1, 2, 3, 4, 5)
    for kind, X in expected.items():
        sigma = torch.linalg.svdvals(X.double())
        assert layer.values[kind] == pytest.approx((sigma / sigma.norm()).tolist(), abs=2e-4), kind
    assert layer.top_energy("update") == pytest.approx(layer.values["update"][0] ** 2)
    row = json.loads(json.dumps(layer.row()))
    assert LayerReading.of_row(row) == layer


def test_adamw_has_layers_and_a_zero_gradient_has_no_values() -> None:
    parameter = nn.Parameter(torch.ones(4, 4))
    optimizer = torch.optim.AdamW([parameter], 0.1, weight_decay=0.0)
    [layer] = measured(optimizer, {parameter: torch.ones(4, 4)}).layers
    assert set(layer.values) == {"gradient", "momentum", "update"}
    assert layer.values["update"][0] == pytest.approx(1.0)
    [layer] = measured(optimizer, {parameter: torch.zeros(4, 4)}).layers
    assert set(layer.values) == {"momentum", "update"}
    assert layer.top_energy("gradient") is None


# layers that stand still -------------------------------------------------------------------------


def still_and_moving() -> tuple[Pion, dict[nn.Parameter, Tensor]]:
    """promotion_steps=0 lets nothing of four equal directions pass, but a single one."""
    still, moving = nn.Parameter(torch.randn(12, 12)), nn.Parameter(torch.randn(12, 12))
    optimizer = Pion(
        [("still.weight", still), ("moving.weight", moving)],
        1e-3,
        promotion_steps=0,
        suppression_steps=5,
    )
    return optimizer, {still: flat(4, 12), moving: flat(1, 12)}


def test_layer_that_stands_still_is_counted_and_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    optimizer, gradients = still_and_moving()
    meter = SpectralMeter(optimizer, every=2, patience=3)
    readings = {}
    with caplog.at_level(logging.WARNING, logger="vla_opt.diagnostics"):
        for step in range(1, 13):
            for parameter, gradient in gradients.items():
                parameter.grad = gradient.clone()
            meter.before_step(step)
            optimizer.step()
            readings[step] = meter.after_step()
    assert [step for step, reading in readings.items() if reading] == [2, 4, 6, 8, 10, 12]
    assert all(r.groups["group 0"].zero_updates == 1 for r in readings.values() if r)
    assert [r.dead_layers for r in readings.values() if r] == [
        (), (), ("still.weight",), (), (), (),
    ]  # fmt: skip
    warning = readings[6].warning()
    assert (warning["kind"], warning["step"]) == ("warning", 6)
    assert warning["layers"] == ["still.weight"]
    assert "promotion_steps" in warning["message"]
    assert len([r for r in caplog.records if "still.weight" in r.getMessage()]) == 1


def test_layer_that_moves_again_can_be_named_again() -> None:
    optimizer, gradients = still_and_moving()
    parameter = next(iter(gradients))
    meter = SpectralMeter(optimizer, every=1, patience=2)
    dead = []
    for step in range(1, 10):
        optimizer.state.clear()  # so that the momentum is this gradient alone
        parameter.grad = flat(1 if step == 4 else 4, 12)
        meter.before_step(step)
        optimizer.step()
        dead += [step] * len(meter.after_step().dead_layers)
    assert dead == [2, 6]


def test_count_survives_a_resume() -> None:
    optimizer, gradients = still_and_moving()
    dead = []
    state: dict = {"still": {}}
    for step in range(1, 5):
        meter = SpectralMeter(optimizer, every=1, patience=3)
        meter.load_state_dict(json.loads(json.dumps(state)))
        for parameter, gradient in gradients.items():
            parameter.grad = gradient.clone()
        meter.before_step(step)
        optimizer.step()
        dead.append(meter.after_step().dead_layers)
        state = meter.state_dict()
    assert dead == [(), (), ("still.weight",), ()]


def test_zero_learning_rate_is_no_dead_layer() -> None:
    parameter = nn.Parameter(torch.randn(4, 4))
    optimizer = Pion([parameter], 0.0)
    assert measured(optimizer, {parameter: torch.eye(4)}).groups["group 0"].zero_updates == 0


def test_zero_gradient_is_a_zero_update() -> None:
    parameter = nn.Parameter(torch.randn(4, 4))
    optimizer = Pion([parameter], 0.1, weight_decay=0.1)
    group = measured(optimizer, {parameter: torch.zeros(4, 4)}).groups["group 0"]
    assert group.zero_updates == 1
    assert group.stable_rank is None


def test_vector_without_a_gradient_is_no_dead_layer() -> None:
    """The bias of an attention key has none: softmax does not see it."""
    key = nn.Linear(4, 4)
    optimizer = OptimizerConfig(preset="default").build(key)
    group = measured(optimizer, {key.bias: torch.zeros(4)}).groups["excluded/adamw"]
    assert (group.zero_updates, group.update_rms) == (0, pytest.approx(0.0, abs=1e-8))


def test_meter_does_not_change_training_and_costs_nothing_between_readings() -> None:
    def trained(every: int) -> tuple[Tensor, SpectralMeter]:
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(6, 6))
        optimizer = Pion([parameter], 0.1)
        meter = SpectralMeter(optimizer, every=every)
        for step in range(1, 7):
            parameter.grad = torch.randn(6, 6)
            meter.before_step(step)
            assert (meter._before is not None) == (every != 0 and step % every == 0)
            optimizer.step()
            assert (meter.after_step() is not None) == (every != 0 and step % every == 0)
        return parameter.detach(), meter

    assert torch.equal(trained(0)[0], trained(2)[0])


@pytest.mark.parametrize("options", [{"every": -1}, {"max_matrices": 0}, {"patience": 0}])
def test_bad_numbers_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="SpectralMeter needs"):
        SpectralMeter(Pion([nn.Parameter(torch.zeros(2, 2))], 0.1), **options)
