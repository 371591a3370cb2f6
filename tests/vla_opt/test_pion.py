"""Pion against the mathematics, written here with a singular value decomposition in float64."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vla_opt.optim import NonFiniteGradientError, Pion, _batches

SHAPES = {
    "square": (6, 6),
    "wide": (4, 9),
    "tall": (9, 4),
    "row": (1, 5),
    "stack": (3, 4, 6),
    "convolution": (5, 2, 3, 3),
}


def high_pass_by_svd(X: Tensor, promotion: int, suppression: int, eps: float) -> Tensor:
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    s = S / (S.square().sum().sqrt() + eps)
    for _ in range(promotion):
        s = 15 / 8 * s - 10 / 8 * s**3 + 3 / 8 * s**5
    for _ in range(suppression):
        s = 5 / 2 * s**3 - 3 / 2 * s**5
    return U @ torch.diag(s) @ Vh


class Reference:
    """Pion for one matrix, as the paper and its code define it."""

    def __init__(self, W: Tensor, *, nesterov: bool, promotion: int, suppression: int) -> None:
        self.W, self.M = W.clone(), torch.zeros_like(W)
        self.nesterov, self.steps = nesterov, (promotion, suppression)

    def step(self, G: Tensor, lr: float, decay: float, mu: float, scale: float) -> None:
        self.M = mu * self.M + (1 - mu) * G
        X = mu * self.M + (1 - mu) * G if self.nesterov else self.M
        update = scale * math.sqrt(max(X.shape)) * high_pass_by_svd(X, *self.steps, eps=1e-7)
        self.W = self.W - lr * decay * self.W - lr * update


def low_rank(shape: tuple[int, ...], seed: int) -> Tensor:
    """Gradients in which some directions pass and others do not."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, dtype=torch.float64, generator=generator)
    flat = noise.reshape(noise.shape[0], -1) if noise.ndim == 4 else noise
    u = torch.randn(*flat.shape[:-1], 1, dtype=torch.float64, generator=generator)
    v = torch.randn(*flat.shape[:-2], 1, flat.shape[-1], dtype=torch.float64, generator=generator)
    return (u @ v + 0.3 * flat).reshape(shape)


def matrices_of(X: Tensor) -> list[Tensor]:
    if X.ndim == 4:
        return [X.reshape(X.shape[0], -1)]
    return list(X) if X.ndim == 3 else [X]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("promotion", "suppression"), [(1, 4), (3, 2), (0, 5)])
def test_twenty_steps_agree_with_the_mathematics(
    nesterov: bool, promotion: int, suppression: int
) -> None:
    options = {"nesterov": nesterov, "promotion": promotion, "suppression": suppression}
    parameters = {name: nn.Parameter(low_rank(s, 1)) for name, s in SHAPES.items()}
    references = {n: [Reference(W, **options) for W in matrices_of(p.detach())]
                  for n, p in parameters.items()}  # fmt: skip
    optimizer = Pion(
        parameters.items(),
        lr=0.05,
        weight_decay=0.1,
        momentum=0.9,
        nesterov=nesterov,
        promotion_steps=promotion,
        suppression_steps=suppression,
        update_scale=0.3,
    )
    for step in range(20):
        for number, (name, parameter) in enumerate(parameters.items()):
            parameter.grad = low_rank(SHAPES[name], 100 * step + number)
            for reference, G in zip(references[name], matrices_of(parameter.grad), strict=True):
                reference.step(G, lr=0.05, decay=0.1, mu=0.9, scale=0.3)
        optimizer.step()
    for name, parameter in parameters.items():
        expected = torch.stack([r.W for r in references[name]]).reshape(parameter.shape)
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-8)


def run(optimizer: Pion, parameters: list[nn.Parameter], gradients: list[list[Tensor]]) -> None:
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("head_axis", [0, 1])
@pytest.mark.parametrize("head_size", [2, 20])
def test_per_head_is_a_loop_over_heads(head_axis: int, head_size: int) -> None:
    heads, width = 4, 12
    shape = (heads * head_size, width) if head_axis == 0 else (width, heads * head_size)
    whole = nn.Parameter(low_rank(shape, 0))
    slices = [nn.Parameter(s.clone()) for s in whole.detach().chunk(heads, dim=head_axis)]
    gradients = [low_rank(shape, seed) for seed in range(1, 6)]
    run(Pion([whole], 0.1, num_heads=heads, head_axis=head_axis), [whole], [[g] for g in gradients])
    run(Pion(slices, 0.1), slices, [list(g.chunk(heads, dim=head_axis)) for g in gradients])
    together = torch.cat([s.detach() for s in slices], dim=head_axis)
    torch.testing.assert_close(whole.detach(), together)


def test_heads_differ_per_group_as_grouped_queries_need() -> None:
    query, key = nn.Parameter(low_rank((8, 6), 0)), nn.Parameter(low_rank((4, 6), 1))
    whole = copy.deepcopy(query)
    optimizer = Pion(
        [
            {"params": [query], "num_heads": 4, "head_axis": 0},
            {"params": [key], "num_heads": 2, "head_axis": 0},
            {"params": [whole]},
        ],
        lr=0.1,
    )
    run(optimizer, [query, key, whole], [[low_rank((8, 6), 2), low_rank((4, 6), 3),
                                         low_rank((8, 6), 2)]])  # fmt: skip
    assert not torch.allclose(query, whole)


def one_step(gradient: Tensor, **options: object) -> Tensor:
    """The change that the first step makes to a parameter of zeros."""
    parameter = nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient
    Pion([parameter], lr=1.0, **options).step()
    return parameter.detach()


def with_top_share(share: float, size: int = 40) -> Tensor:
    """A diagonal gradient whose first direction holds this share of the squared norm."""
    rest = math.sqrt((1 - share) / (size - 1))
    return torch.diag(torch.tensor([math.sqrt(share)] + [rest] * (size - 1)).double())


def test_default_is_one_promotion_step_and_four_of_suppression() -> None:
    group = Pion([nn.Parameter(torch.zeros(2, 2))], lr=1.0).param_groups[0]
    assert (group["promotion_steps"], group["suppression_steps"]) == (1, 4)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.55])
def test_without_promotion_nothing_passes_below_64_percent_of_the_energy(share: float) -> None:
    gradient = with_top_share(share)
    still = one_step(gradient, promotion_steps=0, suppression_steps=5)
    moves = one_step(gradient)
    assert still.norm() < 0.01 * moves.norm()
    full_step = 0.2 * math.sqrt(40)
    assert moves.norm().item() == pytest.approx(full_step, rel=0.1 if share > 0.4 else 0.25)


def test_without_promotion_something_passes_above_64_percent_of_the_energy() -> None:
    update = one_step(with_top_share(0.72), promotion_steps=0, suppression_steps=5)
    assert update.norm().item() == pytest.approx(0.2 * math.sqrt(40), rel=0.02)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 24), st.floats(0.0, 4.0), st.integers(0, 2**16))
def test_default_lets_at_most_four_directions_pass(size: int, decay: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.arange(1, size + 1, dtype=torch.float64) ** -decay
    Q = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0]
    update = one_step(Q @ torch.diag(sigma)) / (0.2 * math.sqrt(size))
    passed = torch.linalg.svdvals(update)
    assert (passed > 0.5).sum() <= 4
    assert passed.max() <= 1.0 + 1e-9


@pytest.mark.parametrize("shape", [(3, 12), (12, 3), (4, 3, 2, 2), (2, 3, 12)])
def test_scale_is_the_square_root_of_the_larger_side(shape: tuple[int, ...]) -> None:
    rows = torch.ones(shape)  # rank one: its direction passes with singular value one
    update = one_step(rows, update_scale=0.5)
    sides = (shape[0], math.prod(shape[1:])) if len(shape) == 4 else shape[-2:]
    count = shape[0] if len(shape) == 3 else 1
    expected = 0.5 * math.sqrt(max(sides)) * math.sqrt(count)
    assert update.norm().item() == pytest.approx(expected, rel=1e-5)


def test_per_head_scale_is_that_of_a_head() -> None:
    update = one_step(torch.ones(8, 3), num_heads=2, head_axis=0, update_scale=1.0)
    assert update.norm().item() == pytest.approx(math.sqrt(4) * math.sqrt(2), rel=1e-5)


def test_weight_decay_is_decoupled() -> None:
    parameter = nn.Parameter(torch.full((3, 4), 2.0))
    parameter.grad = torch.zeros(3, 4)
    Pion([parameter], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(parameter.detach(), torch.full((3, 4), 2.0 * (1 - 0.05)))


def test_each_group_has_its_own_learning_rate() -> None:
    slow, fast = (nn.Parameter(torch.zeros(3, 4)) for _ in range(2))
    optimizer = Pion([{"params": [slow], "lr": 0.1}, {"params": [fast]}], lr=0.2)
    run(optimizer, [slow, fast], [[torch.ones(3, 4)] * 2])
    torch.testing.assert_close(2 * slow.detach(), fast.detach())


def test_parameters_in_one_batch_do_not_influence_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes = [(4, 6), (6, 4), (4, 6), (2, 4, 6), (6, 2, 2, 1), (3, 3)]
    gradients = [[low_rank(s, 10 * t + i) for i, s in enumerate(shapes)] for t in range(4)]

    def trained(make: Callable[[list[nn.Parameter]], list[Pion]]) -> list[Tensor]:
        parameters = [nn.Parameter(low_rank(s, 99)) for s in shapes]
        for optimizer in make(parameters):
            owned = {id(p) for p in optimizer.param_groups[0]["params"]}
            index = [i for i, p in enumerate(parameters) if id(p) in owned]
            run(
                optimizer,
                [parameters[i] for i in index],
                [[g[i] for i in index] for g in gradients],
            )
        return [p.detach() for p in parameters]

    batched = trained(lambda ps: [Pion(ps, 0.1)])
    alone = trained(lambda ps: [Pion([p], 0.1) for p in ps])
    monkeypatch.setattr(_batches, "MAX_BATCH_ELEMENTS", 50)
    capped = trained(lambda ps: [Pion(ps, 0.1)])
    for one, two, three in zip(batched, alone, capped, strict=True):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, three)


def test_gradients_are_never_written() -> None:
    parameters = [nn.Parameter(torch.randn(s)) for s in SHAPES.values()]
    parameters += [nn.Parameter(torch.randn(4, 4, dtype=torch.bfloat16))]
    gradients = [torch.randn_like(p) for p in parameters]
    for nesterov in (True, False):
        optimizer = Pion(parameters, 0.1, nesterov=nesterov)
        for _ in range(3):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
            for parameter, gradient in zip(parameters, gradients, strict=True):
                assert torch.equal(parameter.grad, gradient)


def test_parameter_without_gradient_is_skipped() -> None:
    parameters = [nn.Parameter(torch.ones(3, 4)) for _ in range(2)]
    optimizer = Pion(parameters, 0.1)
    optimizer.step()
    parameters[0].grad = torch.ones(3, 4)
    optimizer.step()
    assert torch.equal(parameters[1], torch.ones(3, 4))
    assert parameters[1] not in optimizer.state
    assert optimizer.state[parameters[0]]["step"] == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_gradient_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    optimizer = Pion(model.named_parameters(), 0.1)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    model[1].weight.grad[0, 0] = bad
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(NonFiniteGradientError, match=r"1\.weight") as caught:
        optimizer.step()
    assert caught.value.names == ("1.weight",)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
    for index, entry in optimizer.state_dict()["state"].items():
        assert all(torch.equal(v, state["state"][index][k]) for k, v in entry.items())


def test_gradient_that_is_not_finite_is_described_without_names() -> None:
    parameter = nn.Parameter(torch.ones(3, 4))
    parameter.grad = torch.full((3, 4), float("nan"))
    with pytest.raises(NonFiniteGradientError, match=r"parameter 0 with shape \(3, 4\) of group 0"):
        Pion([parameter], 0.1).step()


def test_huge_but_finite_gradients_are_no_error() -> None:
    parameter = nn.Parameter(torch.ones(3, 4))
    parameter.grad = torch.full((3, 4), 1e30)  # its squared norm is infinite in float32
    Pion([parameter], 0.1).step()
    assert parameter.isfinite().all()


def test_closure_is_called_with_gradients_on_and_its_loss_returned() -> None:
    parameter = nn.Parameter(torch.ones(3, 4))
    optimizer = Pion([parameter], 0.1, weight_decay=0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(5)]
    assert losses[0] == 12.0
    assert losses == sorted(losses, reverse=True)


def test_group_added_later_is_trained_with_its_options() -> None:
    first, second = (nn.Parameter(torch.zeros(4, 4)) for _ in range(2))
    optimizer = Pion([first], 0.1)
    optimizer.add_param_group({"params": [second], "lr": 0.3, "promotion_steps": 2})
    run(optimizer, [first, second], [[torch.ones(4, 4)] * 2])
    torch.testing.assert_close(second.detach(), 3 * first.detach())


def test_unfit_group_is_refused_and_not_added() -> None:
    optimizer = Pion([nn.Parameter(torch.zeros(4, 4))], 0.1)
    with pytest.raises(ValueError, match="AdamW"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(4))]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"update_scale": float("inf")}, "update_scale"),
        ({"eps": 0.0}, "eps"),
        ({"promotion_steps": -1}, "promotion_steps"),
        ({"promotion_steps": 0, "suppression_steps": 0}, "both 0"),
        ({"num_heads": 2}, "head_axis"),
        ({"num_heads": 2, "head_axis": 2}, "head_axis is 0"),
        ({"num_heads": 4, "head_axis": 0}, "4 heads on axis 0 do not divide"),
        ({"num_heads": 0, "head_axis": 0}, "0 heads"),
    ],
)
def test_bad_option_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pion([nn.Parameter(torch.zeros(6, 6))], **{"lr": 0.1, **options})


def test_vectors_are_refused_with_the_name_and_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"bias has shape \(3,\).*build_optimizer"):
        Pion(nn.Linear(4, 3).named_parameters(), 0.1)


def test_layout_in_memory_does_not_matter() -> None:
    W, G = low_rank((4, 3, 2, 2), 0), low_rank((4, 3, 2, 2), 1)
    plain = nn.Parameter(W.clone())
    channels_last = nn.Parameter(W.clone(memory_format=torch.channels_last))
    run(Pion([plain], 0.1), [plain], [[G]] * 3)
    run(Pion([channels_last], 0.1), [channels_last], [[G]] * 3)
    torch.testing.assert_close(plain, channels_last)
    transposed = nn.Parameter(low_rank((4, 6), 0).T)
    other = nn.Parameter(low_rank((4, 6), 0).T.contiguous())
    run(Pion([transposed], 0.1), [transposed], [[low_rank((6, 4), 2)]] * 3)
    run(Pion([other], 0.1), [other], [[low_rank((6, 4), 2)]] * 3)
    torch.testing.assert_close(transposed, other)


def test_two_papers_are_told_apart() -> None:
    assert "2605.19282" in Pion.__doc__
    assert "2605.12492" in Pion.__doc__


# bfloat16 weights --------------------------------------------------------------------------------


def train(dtype: torch.dtype, steps: int) -> tuple[Tensor, Tensor]:
    """Weights before and after `steps` equal gradients; small lr, as in fine-tuning."""
    torch.manual_seed(0)
    parameter = nn.Parameter((0.02 * torch.randn(64, 96)).to(torch.bfloat16).to(dtype))
    before = parameter.detach().float().clone()
    optimizer = Pion([parameter], lr=1e-5, weight_decay=0.0)
    gradient = torch.randn(64, 1) @ torch.randn(1, 96)
    for _ in range(steps):
        parameter.grad = gradient.to(torch.bfloat16).to(dtype)
        optimizer.step()
    return before, parameter.detach().float()


def test_most_updates_round_to_nothing_in_bfloat16() -> None:
    """The reason for master weights: what the published code does with the same updates."""
    before, after = train(torch.float32, 1)
    update = after - before
    naive = before.bfloat16()
    for _ in range(100):
        naive += update.bfloat16()
    wanted = 100 * update
    moved = naive.float() - before
    assert (moved == 0).float().mean() > 0.5
    assert ((moved - wanted).norm() / wanted.norm()) > 0.3


def test_master_weights_accumulate_what_bfloat16_cannot_hold() -> None:
    _, exact = train(torch.float32, 100)
    _, rounded = train(torch.bfloat16, 100)
    assert torch.equal(rounded, exact.bfloat16().float())  # one rounding, not a hundred


def test_float16_weights_have_masters_too() -> None:
    parameter = nn.Parameter(torch.ones(4, 4, dtype=torch.float16))
    parameter.grad = torch.ones(4, 4, dtype=torch.float16)
    optimizer = Pion([parameter], 1e-5)
    optimizer.step()
    assert optimizer.state[parameter]["master"].dtype == torch.float32
    assert (optimizer.state[parameter]["master"] != 1.0).all()
    assert (parameter == 1.0).all()


def test_float32_weights_have_no_master() -> None:
    parameter = nn.Parameter(torch.ones(4, 4))
    parameter.grad = torch.ones(4, 4)
    optimizer = Pion([parameter], 1e-5)
    optimizer.step()
    assert set(optimizer.state[parameter]) == {"momentum", "step"}


def test_masters_follow_weights_that_somebody_else_changed() -> None:
    parameter = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = Pion([parameter], 1e-5, weight_decay=0.0)
    run(optimizer, [parameter], [[torch.ones(4, 4, dtype=torch.bfloat16)]])
    kept = optimizer.state[parameter]["master"][1:].clone()
    with torch.no_grad():
        parameter[0] = 3.0
    run(optimizer, [parameter], [[torch.zeros(4, 4, dtype=torch.bfloat16)]])
    master = optimizer.state[parameter]["master"]
    torch.testing.assert_close(master[0], torch.full((4,), 3.0), rtol=1e-4, atol=0)
    assert (master[1:] < kept).all()  # went on from the master, not from the rounded weight
    assert (parameter[0] == 3.0).all()
