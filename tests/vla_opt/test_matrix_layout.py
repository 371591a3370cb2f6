"""Which matrices a parameter is cut into, and which of them share a stack."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vla_opt.diagnostics import SpectralMeter, spectrum
from vla_opt.optim import Muon, Pion, _batches
from vla_opt.optim._batches import Place, batches, places
from vla_opt.optim._layout import layout_of, merge_matrices, split_matrices
from vla_opt.optim._slot import Slot
from vla_opt.spectral import high_pass


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def trained(make: type, parameters: list[nn.Parameter], gradients: list[list[Tensor]],
            groups: list[dict] | None = None, **options: object) -> list[Tensor]:  # fmt: skip
    """The parameters after one step per list of gradients."""
    optimizer = make(groups or parameters, 0.1, **options)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("make", [Muon, Pion])
def test_one_head_size_fits_query_key_and_value_of_grouped_queries(make: type) -> None:
    shapes = [(24, 10), (8, 10), (8, 10)]  # 6, 2 and 2 heads of 4
    gradients = [[noise(s, 10 * t + i) for i, s in enumerate(shapes)] for t in range(3)]
    together = trained(make, [nn.Parameter(noise(s)) for s in shapes], gradients,
                       head_size=4, head_axis=0)  # fmt: skip
    parameters = [nn.Parameter(noise(s)) for s in shapes]
    groups = [{"params": [p], "num_heads": h, "head_axis": 0}
              for p, h in zip(parameters, (6, 2, 2), strict=True)]  # fmt: skip
    apart = trained(make, parameters, gradients, groups)
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "heads",
    [{}, {"num_heads": (6, 2, 2), "head_axis": 0}, {"head_size": 4, "head_axis": 0}],
    ids=["whole", "numbers of heads", "size of heads"],
)
def test_fused_projection_is_a_loop_over_its_parts(heads: dict[str, object]) -> None:
    sizes = (24, 8, 8)
    gradients = [[noise((40, 10), t)] for t in range(3)]
    (fused,) = trained(Muon, [nn.Parameter(noise((40, 10), 9))], gradients,
                       split_sizes=sizes, **heads)  # fmt: skip
    parts = [nn.Parameter(part.clone()) for part in noise((40, 10), 9).split(sizes)]
    counts = heads.get("num_heads", (6, 2, 2)) if heads else (None,) * 3
    axis = 0 if heads else None
    groups = [{"params": [p], "num_heads": h, "head_axis": axis}
              for p, h in zip(parts, counts, strict=True)]  # fmt: skip
    alone = trained(Muon, parts, [list(g[0].split(sizes)) for g in gradients], groups)
    torch.testing.assert_close(fused, torch.cat(alone))


def test_fused_columns_are_cut_along_columns() -> None:
    gradients = [[noise((6, 14), t)] for t in range(2)]
    (fused,) = trained(Muon, [nn.Parameter(noise((6, 14), 9))], gradients,
                       split_sizes=(4, 10), head_axis=1, head_size=2)  # fmt: skip
    parts = [nn.Parameter(p.clone()) for p in noise((6, 14), 9).split(2, dim=1)]
    alone = trained(Muon, parts, [list(g[0].split(2, dim=1)) for g in gradients])
    torch.testing.assert_close(fused, torch.cat(alone, dim=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 2, "head_size": 3, "head_axis": 0}, "give one of them"),
        ({"head_size": 4, "head_axis": 0}, r"W has shape \(6, 6\): head_size 4 does not divide"),
        ({"head_size": 0, "head_axis": 0}, "head_size 0"),
        ({"head_size": 3}, "head_axis"),
        ({"split_sizes": (2, 2)}, "do not add up to 6, its length on axis 0"),
        ({"split_sizes": (6, 0)}, "do not add up"),
        ({"split_sizes": (4, 2), "num_heads": 2, "head_axis": 0}, "one number for each"),
        ({"split_sizes": (4, 2), "num_heads": (2, 4), "head_axis": 0}, "4 heads on axis 0"),
        ({"head_axis": 0}, "heads need both"),
    ],
)
def test_cut_that_does_not_fit_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Muon([("W", nn.Parameter(torch.zeros(6, 6)))], 0.1, **options)


@pytest.mark.parametrize("shape", [(2, 6, 6), (6, 3, 2, 2)])
def test_heads_of_a_stack_or_convolution_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="2-D"):
        Muon([nn.Parameter(torch.zeros(shape))], 0.1, num_heads=2, head_axis=0)


@pytest.mark.parametrize("axis", [0, 1])
def test_merging_undoes_splitting(axis: int) -> None:
    X = noise((12, 12))
    stack = split_matrices(X, 3, axis)
    assert stack.shape == ((3, 4, 12) if axis == 0 else (3, 12, 4))
    assert torch.equal(merge_matrices(stack, X.shape, 3, axis), X)


def test_cut_and_its_shapes_agree_and_cuts_are_views() -> None:
    for shape, group in (
        ((12, 10), {"split_sizes": (8, 4), "head_size": 2, "head_axis": 0}),
        ((10, 12), {"split_sizes": (8, 4), "num_heads": (2, 1), "head_axis": 1}),
        ((3, 4, 5), {}),
        ((4, 3, 2, 2), {}),
        ((7, 5), {}),
    ):
        X = noise(shape)
        layout = layout_of(group, X.shape)
        parts = layout.cut(X)
        assert [tuple(part.shape) for part in parts] == layout.shapes(X.shape)
        for part in parts:
            part.zero_()
        assert not X.any()


# Stacks -----------------------------------------------------------------------------------------

MIXED = [
    (4, 6),
    (6, 4),
    (4, 6),
    (2, 4, 6),
    (5, 6),
    (3, 30),
    (30, 3),
    (40, 50),
    (1, 2),
    (6, 2, 2, 1),
]


def slots_of(shapes: list[tuple[int, ...]]) -> list[Slot]:
    return [Slot(weight=noise(s, i), grad=noise(s, 50 + i), state={}) for i, s in enumerate(shapes)]


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("cap", [1, 50, 1 << 24])
def test_every_matrix_is_in_one_window_of_one_stack(
    pad: bool, cap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_batches, "MAX_BATCH_ELEMENTS", cap)
    slots = slots_of(MIXED)
    for batch in batches({"params": [s.weight for s in slots]}, slots, pad=pad):
        stack = batch.stack_in(None)
        assert stack.numel() <= max(cap, stack[0].numel())
        for piece, window in zip(batch.pieces, batch.windows(stack), strict=True):
            window.copy_(piece.of(piece.slot.weight))
            piece.of(piece.slot.weight).zero_()
            assert window.any()  # nobody else took it
    assert not any(slot.weight.any() for slot in slots)


def test_small_shapes_share_a_stack_and_large_ones_do_not() -> None:
    def stacks(shapes: list[tuple[int, ...]], *, pad: bool) -> int:
        slots = slots_of(shapes)
        return len(list(batches({"params": [s.weight for s in slots]}, slots, pad=pad)))

    small = [(16, 64), (16, 80), (96, 16), (8, 90)]
    assert stacks(small, pad=True) == 1
    assert stacks(small, pad=False) == 4
    assert stacks([(16, 64), (64, 16)], pad=False) == 1  # transposition alone
    assert stacks([(300, 310), (300, 320)], pad=True) == 2
    assert stacks([(256, 1024), (1024, 256)], pad=True) == 2  # copying would cost more


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.integers(1, 80), st.integers(1, 80)), st.integers(1, 30), min_size=1
    ),
    st.booleans(),
)
def test_place_is_never_too_small(counts: dict[tuple[int, int], int], pad: bool) -> None:
    found = places(tuple(sorted(counts.items())), 3e6, pad)
    assert found.keys() == counts.keys()
    for (m, n), place in found.items():
        a, b = (n, m) if place.transposed else (m, n)
        assert a <= place.shape[0]
        assert b <= place.shape[1]
        assert pad or (a, b) == place.shape
        assert found[place.shape] == Place(place.shape)  # a host is at home


@pytest.mark.parametrize("make", [Muon, Pion])
def test_padding_changes_nothing(make: type, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [s for s in MIXED if s != (40, 50)]
    gradients = [[noise(s, 20 * t + i) for i, s in enumerate(shapes)] for t in range(3)]

    def run() -> list[Tensor]:
        return trained(make, [nn.Parameter(noise(s)) for s in shapes], gradients)

    padded = run()
    monkeypatch.setattr(_batches, "_CALLS_ON_CPU", 0.0)
    for a, b in zip(padded, run(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_stacks_do_not_depend_on_who_has_a_gradient() -> None:
    """So that a rank that updates a part of the parameters rounds as one that updates all."""
    slots = slots_of(MIXED)
    group = {"params": [s.weight for s in slots]}

    def shapes(some: list[Slot]) -> dict[int, set[tuple[int, int]]]:
        found: dict[int, set[tuple[int, int]]] = {}
        for batch in batches(group, some, pad=True):
            for piece in batch.pieces:
                found.setdefault(id(piece.slot), set()).add(batch.shape)
        return found

    everybody = shapes(slots)
    for slot in slots:
        assert shapes([slot])[id(slot)] == everybody[id(slot)]


def test_bfloat16_gradients_are_converted_a_batch_at_a_time() -> None:
    weights = [nn.Parameter(torch.zeros(8, 8)) for _ in range(3)]
    for i, weight in enumerate(weights):
        weight.grad = noise((8, 8), i).float()
    exact = trained(Muon, weights, [[w.grad.bfloat16().float() for w in weights]])
    slots = [Slot(weight=torch.zeros(8, 8), grad=w.grad.bfloat16(), state={}) for w in weights]
    optimizer = Muon([s.weight for s in slots], 0.1)
    optimizer._rule(optimizer.param_groups[0]).update(optimizer.param_groups[0], slots)
    for slot, weight in zip(slots, exact, strict=True):
        assert torch.equal(slot.weight, weight)


def test_meter_sees_what_the_map_sees() -> None:
    weight = nn.Parameter(torch.zeros(12, 6))
    weight.grad = torch.zeros(12, 6)
    for head in range(6):  # in each head of two rows one direction, in the whole six
        weight.grad[2 * head, head] = 1.0
    optimizer = Pion([weight], 0.1, split_sizes=(8, 4), head_size=2, head_axis=0)
    meter = SpectralMeter(optimizer, every=1)
    meter.before_step(1)
    optimizer.step()
    reading = meter.after_step()
    assert reading is not None
    assert reading.groups["group 0"].directions_passed == pytest.approx(1.0)
    assert reading.groups["group 0"].stable_rank == pytest.approx(1.0)


def test_meter_counts_directions_under_spectral_normalisation() -> None:
    assert spectrum(torch.eye(9), high_pass(0, 5)).directions_passed < 1e-6
    passed = spectrum(torch.eye(9), high_pass(0, 5), "spectral").directions_passed
    assert passed == pytest.approx(9.0, rel=1e-3)
