"""What the estimators estimate, and the claims of their papers, checked on known gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_opt.spectral import NEWTON_SCHULZ, scalar_map
from vla_opt.zeroth_order import (
    Adam,
    AveragedBaseline,
    BayesianSubspace,
    Coordinates,
    Estimator,
    ForwardGradient,
    Full,
    HighPass,
    LeftQR,
    LoraAtoms,
    Momentum,
    NewtonSchulz,
    OneSided,
    Reading,
    Sgd,
    Subspace,
    SubspaceNewton,
    TwoPoint,
    ZerothOrder,
    subspace_newton,
)
from vla_opt.zeroth_order._blocks import assemble
from vla_opt.zeroth_order._seeds import SLAB
from vla_opt.zeroth_order._sites import Site, build_sites
from vla_opt.zeroth_order.maps import promotion_that_passes


def sites(*tensors: Tensor, seed: int = 0, **options: object) -> list[Site]:
    return list(build_sites([{"params": tensors, **options}], seed, "cpu"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Problem:
    """A smooth loss of a 4 x 5 matrix in float64, with its gradient."""

    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.randn(4, 5, generator=generator(), dtype=torch.float64))
        self.inputs = torch.randn(20, 5, generator=generator(1), dtype=torch.float64)
        self.targets = torch.randn(20, 4, generator=generator(2), dtype=torch.float64)

    def __call__(self) -> Tensor:
        return (torch.tanh(self.inputs @ self.weight.mT) - self.targets).square().mean()

    def gradient(self) -> Tensor:
        (gradient,) = torch.autograd.grad(self(), [self.weight])
        return gradient

    def estimate(
        self, estimator: Estimator, subspace: Subspace | None = None, *, seed: int = 0
    ) -> Tensor:
        """What one step of plain descent with learning rate one moves against."""
        start = self.weight.detach().clone()
        ZerothOrder(
            [self.weight], 1.0, estimator=estimator, subspace=subspace, epsilon=1e-4, seed=seed
        ).step(self)
        moved = start - self.weight.detach()
        self.weight.data.copy_(start)
        return moved


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.flatten(), b.flatten(), dim=0))


class TestGradient:
    @pytest.mark.parametrize(
        "estimator",
        [
            lambda n: TwoPoint(directions=n),
            lambda n: OneSided(directions=n),
            lambda n: AveragedBaseline(directions=n),
            lambda n: ForwardGradient(directions=n),
        ],
        ids=["two-point", "one-sided", "averaged", "forward"],
    )
    def test_cosine_to_the_gradient_grows_to_one(
        self, estimator: Callable[[int], Estimator]
    ) -> None:
        problem = Problem()
        gradient, size = problem.gradient(), 20
        found = []
        for n in (2, 12, 80, 700):
            estimate = problem.estimate(estimator(n))
            found.append(cosine(estimate, gradient))
            # The mean of n estimates has the squared norm (1 + (d + 1) / n) of the gradient's.
            assert found[-1] == pytest.approx(math.sqrt(n / (n + size + 1)), abs=0.35 / n**0.25)
        assert found == sorted(found)
        assert found[-1] > 0.98
        assert float(estimate.norm() / gradient.norm()) == pytest.approx(1, abs=0.1)

    def test_all_coordinates_are_the_gradient(self) -> None:
        problem = Problem()
        estimate = problem.estimate(OneSided(directions=20), Coordinates())
        torch.testing.assert_close(estimate, problem.gradient(), atol=1e-4, rtol=0)

    def test_left_subspace_projects_the_gradient(self) -> None:
        problem, subspace = Problem(), LeftQR(2)
        estimate = problem.estimate(ForwardGradient(directions=300), subspace)
        basis = subspace.basis(sites(problem.weight)[0], 0)
        projected = basis @ basis.mT @ problem.gradient()
        assert cosine(estimate, projected) > 0.97
        torch.testing.assert_close(basis @ basis.mT @ estimate, estimate)
        assert 0.2 < cosine(estimate, problem.gradient()) < 0.9

    def test_seed_decides_the_direction(self) -> None:
        problem = Problem()
        one, two = (problem.estimate(TwoPoint(), seed=s) for s in (0, 1))
        torch.testing.assert_close(one, problem.estimate(TwoPoint(), seed=0))
        assert abs(cosine(one, two)) < 0.5


class TestForwardMode:
    """Attention has no forward-mode derivative but in its plain form."""

    def attention(self) -> tuple[nn.Parameter, Callable[[Tensor], Tensor]]:
        weight = nn.Parameter(torch.randn(12, 4, generator=generator()))
        tokens = torch.randn(1, 2, 5, 4, generator=generator(1))

        def loss(w: Tensor) -> Tensor:
            q, k, v = (tokens @ w.mT).chunk(3, dim=-1)
            return F.scaled_dot_product_attention(q, k, v).square().sum()

        return weight, loss

    def test_functional_jvp_needs_the_math_backend(self) -> None:
        weight, loss = self.attention()
        arguments = (weight.detach(),), (torch.ones_like(weight),)
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(NotImplementedError):
            torch.func.jvp(loss, *arguments)
        with sdpa_kernel(SDPBackend.MATH):
            _, slope = torch.func.jvp(loss, *arguments)
        expected = float(torch.autograd.grad(loss(weight), weight)[0].sum())
        assert float(slope) == pytest.approx(expected, rel=1e-5)  # float32, other backends

    def test_step_follows_the_derivative_through_attention(self) -> None:
        weight, loss = self.attention()
        (gradient,) = torch.autograd.grad(loss(weight), weight)
        optimizer = ZerothOrder([weight], 0.0, estimator=ForwardGradient(directions=3))
        optimizer.step(lambda: loss(weight))
        record = optimizer.last_record
        assert record is not None
        for seed, coefficient in record.coefficients:
            ((_, direction),) = Full().block(sites(weight)[0], 0).moves(seed)
            expected = float((gradient * direction).sum()) / 3
            assert coefficient == pytest.approx(expected, rel=1e-4)


def estimates(estimator: Estimator, steps: int, epsilon: float = 1e-3) -> Tensor:
    """(steps, d) estimates at one point of a quadratic, with directions that all know."""
    size = 60
    curvature = torch.linspace(0.1, 2, size, dtype=torch.float64)
    point = torch.ones(size, dtype=torch.float64)

    def loss(x: Tensor) -> float:
        return float((curvature * x * x).sum() / 2)

    found = []
    for step in range(steps):
        seeds = list(range(step * 100, step * 100 + estimator.directions))
        noise = {s: torch.randn(size, generator=generator(s), dtype=torch.float64) for s in seeds}
        readings = [
            Reading(loss=loss(point + sum(epsilon * side * noise[s] for s, side in query.terms)))
            for query in estimator.queries(seeds)
        ]
        estimate = estimator.conclude(
            seeds, readings, epsilon=epsilon, scale=1 / len(seeds), memory={}
        )
        found.append(sum(value * noise[s] for s, value in estimate.coefficients))
    return torch.stack(found)


class TestZoAR:
    def test_variance_is_below_two_point_at_equal_queries(self) -> None:
        """With q queries: gradients of q / 2 directions against those of q - 1."""
        two_point = estimates(TwoPoint(directions=4), 300)
        averaged = estimates(AveragedBaseline(directions=8), 300)
        ratio = float(averaged.var(dim=0).sum() / two_point.var(dim=0).sum())
        assert ratio == pytest.approx(4 / 7, abs=0.08)
        torch.testing.assert_close(averaged.mean(0), two_point.mean(0), atol=0.5, rtol=0)

    def test_reuse_lowers_variance_while_losses_stand_still(self) -> None:
        averaged = AveragedBaseline(directions=3, reuse=2)
        memory: dict[str, object] = {}
        for step in range(4):
            seeds = [3 * step, 3 * step + 1, 3 * step + 2]
            readings = [Reading(loss=float(s)) for s in seeds]
            estimate = averaged.conclude(seeds, readings, epsilon=0.5, scale=1 / 3, memory=memory)
            memory = estimate.memory
        assert [seed for seed, _ in estimate.coefficients] == list(range(3, 12))
        assert [seed for seed, _ in memory["history"]] == list(range(6, 12))  # type: ignore[attr-defined]
        # By hand: mean of 3..11 is 7, divided by epsilon (M - 1) = 4.
        expected = [(s - 7) / 4 for s in range(3, 12)]
        assert [value for _, value in estimate.coefficients] == pytest.approx(expected)

    def test_queries_along_an_old_basis_are_forgotten(self) -> None:
        weight = nn.Parameter(torch.randn(6, 8, generator=generator()))
        optimizer = ZerothOrder(
            [weight], 1e-3, estimator=AveragedBaseline(directions=2, reuse=5), subspace=LeftQR(2, 3)
        )
        counts = []
        for _ in range(5):
            optimizer.step(lambda: weight.square().sum())
            assert optimizer.last_record is not None
            counts.append(len(optimizer.last_record.coefficients))
        assert counts == [2, 4, 6, 2, 4]


def atom_signal(rank: int, multiplier: float) -> float:
    """Mean |f(+) - f(-)| of one atom of a linear layer's LoRA at its start, B = 0."""
    size, samples, total = 128, 100, 0.0
    target = torch.randn(size, size, generator=generator(1)) / math.sqrt(size)
    inputs = torch.randn(64, size, generator=generator(2))
    desired = inputs @ target.mT
    for seed in range(samples):
        a = torch.randn(rank, size, generator=generator(seed)) / math.sqrt(size)
        b = torch.zeros(size, rank)
        groups = [{"params": [a], "atom_axis": 0}, {"params": [b], "atom_axis": 1}]
        optimizer = ZerothOrder(groups, 0.0, subspace=LoraAtoms(), seed=seed, epsilon=1e-3)

        def loss(a: Tensor = a, b: Tensor = b) -> Tensor:
            return (multiplier * (inputs @ a.mT) @ b.mT - desired).double().square().mean()

        plus, minus = optimizer.measure(optimizer.plan(), loss)
        total += abs(plus.loss - minus.loss)
    return total / samples


class TestLoraAtoms:
    def test_signal_falls_with_the_rank_unless_the_multiplier_is_constant(self) -> None:
        usual = {rank: atom_signal(rank, 1 / rank) for rank in (1, 4, 16, 64)}
        constant = {rank: atom_signal(rank, 1.0) for rank in (1, 4, 16, 64)}
        print({r: (usual[r] / usual[1], constant[r] / constant[1]) for r in usual})
        for rank in (4, 16, 64):
            assert usual[rank] / usual[1] == pytest.approx(1 / rank, rel=0.25)
            assert constant[rank] / constant[1] == pytest.approx(1, abs=0.25)

    @pytest.mark.parametrize("order", ["cyclic", "shuffled"])
    def test_a_sweep_moves_each_atom_once(self, order: str) -> None:
        a, b = torch.randn(4, 6, generator=generator()), torch.zeros(5, 4)
        groups = [{"params": [a], "atom_axis": 0}, {"params": [b], "atom_axis": 1}]
        optimizer = ZerothOrder(groups, 1.0, subspace=LoraAtoms(order))  # type: ignore[arg-type]
        for _ in range(2):
            moved = []
            for _ in range(4):
                old_a, old_b = a.clone(), b.clone()
                optimizer.step(lambda: (b @ a).sum() + a.sum())
                rows = (a != old_a).any(dim=1).nonzero().flatten().tolist()
                columns = (b != old_b).any(dim=0).nonzero().flatten().tolist()
                assert rows == columns
                assert len(rows) == 1
                moved += rows
            assert sorted(moved) == [0, 1, 2, 3]

    def test_buffers_belong_to_atoms(self) -> None:
        """Momentum of one atom is not spent on another."""
        a, b = torch.ones(2, 3), torch.zeros(3, 2)
        groups = [{"params": [a], "atom_axis": 0}, {"params": [b], "atom_axis": 1}]
        optimizer = ZerothOrder(groups, 0.1, subspace=LoraAtoms(), rule=Momentum(beta=0.5))
        optimizer.step(lambda: a.sum())
        kept = optimizer.state[a]["momentum"].clone()
        assert kept[0].any()
        assert not kept[1].any()
        optimizer.step(lambda: a.sum())
        torch.testing.assert_close(optimizer.state[a]["momentum"][0], kept[0])
        assert optimizer.state[a]["momentum"][1].any()


class TestLeftQR:
    def test_basis_is_orthonormal_and_drawn_again_on_time(self) -> None:
        (site,), subspace = sites(torch.zeros(40, 30)), LeftQR(7, every=5)
        bases = [subspace.basis(site, subspace.epoch(step)) for step in range(12)]
        for basis in bases:
            torch.testing.assert_close(basis.mT @ basis, torch.eye(7))
        changes = [i for i in range(1, 12) if not torch.equal(bases[i], bases[i - 1])]
        assert changes == [5, 10]

    def test_basis_is_uniform(self) -> None:
        """The mean of P P^T over draws is (r / m) I, that of P is zero."""
        (site,), subspace = sites(torch.zeros(4, 9)), LeftQR(2)
        bases = torch.stack([subspace._draw(site, epoch) for epoch in range(1000)])
        torch.testing.assert_close(
            (bases @ bases.mT).mean(0), 0.5 * torch.eye(4), atol=0.05, rtol=0
        )
        assert bases.mean(0).abs().max() < 0.08

    def test_shorter_side_is_projected_if_asked_for(self) -> None:
        (site,) = sites(torch.zeros(50, 10))
        assert LeftQR(4).block(site, 0).shape == (4, 10)
        assert LeftQR(4, side="shorter").block(site, 0).shape == (4, 50)
        assert LeftQR(64).block(site, 0).shape == (50, 10)

    def test_momentum_is_projected_onto_the_new_basis(self) -> None:
        (site,), subspace = sites(torch.zeros(12, 5)), LeftQR(6, every=2)
        mean = torch.randn(6, 5, generator=generator())
        assert subspace.carry(site, 1, "momentum", mean) is mean
        old, new = subspace.basis(site, 0).clone(), subspace.basis(site, 1).clone()
        torch.testing.assert_close(subspace.carry(site, 2, "momentum", mean), new.mT @ old @ mean)

    def test_long_weights_are_moved_in_pieces_like_whole_ones(self) -> None:
        weight = torch.zeros(SLAB // 64 + 3, 128)
        (site,), subspace = sites(weight), LeftQR(3)
        block = subspace.block(site, 0)
        pieces = list(block.moves(seed=5))
        assert len(pieces) > 1
        whole = subspace.basis(site, 0) @ assemble(site.gaussian(5, block.shape))
        torch.testing.assert_close(torch.cat([direction for _, direction in pieces]), whole)
        assert pieces[1][0].data_ptr() == weight[len(pieces[0][0])].data_ptr()


class TestMaps:
    def test_newton_schulz_acts_on_singular_values(self) -> None:
        matrix = torch.randn(6, 9, generator=generator())
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        expected = (u * scalar_map(s / s.norm(), NEWTON_SCHULZ)) @ v
        torch.testing.assert_close(NewtonSchulz()(matrix), expected, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("shape", [(4, 64), (32, 128), (96, 384)])
    def test_leading_direction_of_pure_noise_passes(self, shape: tuple[int, int]) -> None:
        """With a fixed number of promotion steps nothing would be left of the large ones."""
        noise = torch.randn(shape, generator=generator())
        values = torch.linalg.svdvals(HighPass()(noise))
        assert values[0] > 0.88
        assert values.min() < 0.5
        if shape == (96, 384):
            assert torch.linalg.svdvals(HighPass(promotion_steps=1)(noise))[0] < 1e-3

    def test_fewest_promotion_steps_are_taken(self) -> None:
        noise = torch.randn(32, 128, generator=generator())
        steps = promotion_that_passes(noise)
        assert torch.linalg.svdvals(HighPass(promotion_steps=steps - 1)(noise))[0] < 0.9
        assert promotion_that_passes(torch.zeros(3, 4)) == 0
        assert not HighPass()(torch.zeros(3, 4)).any()

    def test_signal_in_noise_stands_out_more_than_after_newton_schulz(self) -> None:
        signal = torch.outer(
            torch.randn(16, generator=generator(1)), torch.randn(64, generator=generator(2))
        )
        noisy = signal + 1.0 * torch.randn(16, 64, generator=generator(3))
        assert cosine(HighPass()(noisy), signal) > 2 * cosine(NewtonSchulz()(noisy), signal)

    def test_map_spares_vectors(self) -> None:
        weight, bias = torch.zeros(6, 8), torch.zeros(6)
        optimizer = ZerothOrder(
            [weight, bias], 0.1, matrix_map=NewtonSchulz(), vector_lr_ratio=0.0, epsilon=1e-2
        )
        optimizer.step(lambda: (weight * 3).sum() + bias.sum())
        assert not bias.any()
        values = torch.linalg.svdvals(weight) / 0.1
        assert 0.6 < values.min() <= values.max() < 1.2


class TestRules:
    def test_adam_is_torch_adam(self) -> None:
        gradients = torch.randn(5, 7, generator=generator(), dtype=torch.float64)
        parameter = nn.Parameter(torch.zeros(7, dtype=torch.float64))
        reference = torch.optim.Adam([parameter], lr=1.0)
        mine = torch.zeros(7, dtype=torch.float64)
        buffers = {name: torch.zeros_like(mine) for name in Adam().buffers}
        for visit, gradient in enumerate(gradients, 1):
            parameter.grad = gradient
            reference.step()
            mine -= Adam().update(gradient, buffers, visit)
        torch.testing.assert_close(mine, parameter.detach())

    def test_second_moment_of_the_momentum(self) -> None:
        rule = Adam(betas=(0.5, 0.9), of_momentum=True, eps=0.0)
        buffers = {name: torch.zeros(1) for name in rule.buffers}
        rule.update(torch.tensor([4.0]), buffers, 1)
        assert buffers["momentum"] == 2
        assert buffers["square"].item() == pytest.approx(0.4)

    def test_pieces_of_a_tensor_are_updated_like_the_whole(self) -> None:
        source = torch.zeros(SLAB // 16 + 5, 32)
        twin = source.clone()
        for weight, rule in ((source, Momentum(beta=0.0)), (twin, Sgd())):
            optimizer = ZerothOrder([weight], 1.0, rule=rule)
            optimizer.step(lambda w=weight: w.sum())  # type: ignore[misc]
        torch.testing.assert_close(source, twin)

    def test_nesterov_looks_ahead(self) -> None:
        buffers = {"momentum": torch.tensor([1.0])}
        update = Momentum(beta=0.5, nesterov=True).update(torch.tensor([3.0]), buffers, 1)
        assert buffers["momentum"] == 2
        assert update == 2.5


class TestSubspaceModels:
    def test_newton_step_minimises_a_quadratic_over_its_directions(self) -> None:
        matrix = torch.randn(30, 12, generator=generator(), dtype=torch.float64)
        target = torch.randn(30, generator=generator(1), dtype=torch.float64)
        point = torch.ones(12, dtype=torch.float64)

        def loss() -> Tensor:
            return (matrix @ point - target).square().sum()

        optimizer = subspace_newton([point], 1.0, directions=4, damping=1e-9)
        optimizer.step(loss)
        record, gradient = optimizer.last_record, 2 * matrix.mT @ (matrix @ point - target)
        assert record is not None
        for seed, _ in record.coefficients:
            ((_, direction),) = Full().block(sites(point)[0], 0).moves(seed)
            assert abs(gradient @ direction) < 1e-3 * gradient.norm() * direction.norm()

    def test_newton_step_descends_where_curvature_is_negative(self) -> None:
        point = torch.tensor([0.1, 1.0], dtype=torch.float64)

        def loss() -> Tensor:
            return point[1] ** 2 - point[0] ** 2

        before = loss()
        subspace_newton([point], 0.5, directions=2).step(loss)
        assert loss() < before

    def test_posterior_is_that_of_the_kalman_filter(self) -> None:
        """The filter written out with matrices: measurements along the axes of the subspace."""
        estimator = BayesianSubspace(directions=3, prior_variance=2.0, noise_variance=0.5)
        losses, epsilon = [1.0, 1.3, 0.6, 1.05], 0.1
        estimate = estimator.conclude(
            [7, 8, 9],
            [Reading(loss=value) for value in losses],
            epsilon=epsilon,
            scale=1.0,
            memory={},
        )
        mean, covariance, noise = np.zeros(3), 2.0 * np.eye(3), 0.5
        for axis, value in enumerate(losses[1:]):
            h = np.eye(3)[axis]
            innovation = (value - losses[0]) / epsilon - h @ mean
            noise = 0.9 * noise + 0.1 * innovation**2
            gain = covariance @ h / (h @ covariance @ h + noise)
            mean, covariance = mean + gain * innovation, covariance - np.outer(gain, h @ covariance)
        assert [value for _, value in estimate.coefficients] == pytest.approx(mean.tolist())
        assert estimate.memory == {"noise_variance": pytest.approx(noise)}

    @pytest.mark.parametrize(
        "build",
        [
            lambda: TwoPoint(directions=0),
            lambda: AveragedBaseline(directions=1),
            lambda: AveragedBaseline(reuse=-1),
            lambda: SubspaceNewton(damping=0.0),
            lambda: BayesianSubspace(noise_variance=0.0),
            lambda: LeftQR(0),
            lambda: LoraAtoms("random"),  # type: ignore[arg-type]
            lambda: Momentum(beta=1.0),
            lambda: HighPass(suppression_steps=-1),
        ],
    )
    def test_options_out_of_range_are_refused(self, build: Callable[[], object]) -> None:
        with pytest.raises(ValueError, match=r"must be|choose"):
            build()
