"""The spectral map against singular value decompositions in float64."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vla_opt import spectral
from vla_opt.spectral import (
    CUBIC,
    KAON,
    LOW_PASS,
    NEWTON_SCHULZ,
    POLAR_EXPRESS,
    PROMOTION,
    SUPPRESSION,
    YOU,
    _forms,
    _map,
    _products,
    _steps,
    between,
    high_pass,
    high_pass_at,
    kaon,
    measured_spectral_map,
    polar_express,
    scalar_map,
    spectral_map,
    top_eigenvalue,
)

LISTS = {
    "newton_schulz": NEWTON_SCHULZ,
    "polar_express": POLAR_EXPRESS,
    "polar_express_9": polar_express(9),
    "you": YOU,
    "cubic": CUBIC,
    "kaon": KAON,
    "low_pass": LOW_PASS,
    "high_pass_at": high_pass_at(0.1),
    **{f"high_pass_{p}_{5 - p}": high_pass(p, 5 - p) for p in range(6)},
}


def by_svd(X: Tensor, coefficients: spectral.Coefficients) -> Tensor:
    """U p(S / |X|) V^T, written out with float arithmetic on each singular value."""
    U, S, Vh = torch.linalg.svd(X.double(), full_matrices=False)
    mapped = []
    for s in (S / (S.norm() + 1e-7)).tolist():
        for a, b, c in coefficients:
            s = a * s + b * s**3 + c * s**5
        mapped.append(s)
    return U @ torch.diag(torch.tensor(mapped, dtype=torch.float64)) @ Vh


def with_spectrum(sigma: Tensor, m: int, n: int, seed: int = 0) -> Tensor:
    """A float64 matrix (m, n) with these singular values and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    r = sigma.numel()
    U = torch.linalg.qr(torch.randn(m, r, dtype=torch.float64, generator=generator))[0]
    V = torch.linalg.qr(torch.randn(n, r, dtype=torch.float64, generator=generator))[0]
    return U @ torch.diag(sigma.double()) @ V.T


def relative(X: Tensor, reference: Tensor) -> float:
    return ((X.double() - reference).norm() / reference.norm()).item()


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    m, n = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    decay = draw(st.floats(0.0, 3.0))
    scale = 10.0 ** draw(st.integers(-2, 4))
    sigma = scale * torch.arange(1, min(m, n) + 1, dtype=torch.float64) ** -decay
    return with_spectrum(sigma, m, n, seed=draw(st.integers(0, 2**16)))


@st.composite
def deficient(draw: st.DrawFn) -> Tensor:
    """(B, m, n) with ranks from zero on."""
    m, n = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    ranks = draw(st.lists(st.integers(0, min(m, n)), min_size=1, max_size=4))
    seed = draw(st.integers(0, 2**16))
    return torch.stack([with_spectrum(torch.ones(r), m, n, seed) for r in ranks])


def rounding(name: str) -> float:
    """What a float64 map may be off by. Kaon's steps take one to zero and then amplify by 4.1^4:
    of a matrix of rank one the Gram form keeps seven digits fewer than the direct form."""
    return 1e-7 if name == "kaon" else 1e-9


@settings(max_examples=150, deadline=None)
@given(matrices(), st.sampled_from(sorted(LISTS)), st.sampled_from(["auto", "direct", "gram"]))
def test_map_acts_on_singular_values_alone(X: Tensor, name: str, form: str) -> None:
    expected = by_svd(X, LISTS[name])
    mapped = spectral_map(X, LISTS[name], form=form)
    torch.testing.assert_close(mapped, expected, rtol=0, atol=rounding(name))


@settings(max_examples=100, deadline=None)
@given(deficient(), st.sampled_from(sorted(LISTS)), st.sampled_from(["auto", "direct", "gram"]))
def test_map_of_a_batch_of_any_rank(X: Tensor, name: str, form: str) -> None:
    expected = torch.stack([by_svd(x, LISTS[name]) for x in X])
    mapped = spectral_map(X, LISTS[name], form=form)
    torch.testing.assert_close(mapped, expected, rtol=0, atol=rounding(name))


def test_kaon_of_rank_one_needs_the_direct_form_in_float32() -> None:
    spectra = [with_spectrum(torch.ones(1), 5, 2, seed) for seed in range(100)]

    def worst(form: str) -> float:
        off = [spectral_map(X.float(), KAON, form=form) - by_svd(X, KAON) for X in spectra]
        return max(error.abs().max().item() for error in off)

    assert worst("direct") < 5e-4
    assert 1e-3 < worst("gram") < 0.2


@settings(max_examples=50, deadline=None)
@given(matrices(), st.sampled_from(sorted(LISTS)), st.integers(0, 2**16))
def test_map_commutes_with_rotations(X: Tensor, name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    square = [torch.randn(k, k, dtype=torch.float64, generator=generator) for k in X.shape]
    U, V = (torch.linalg.qr(A)[0] for A in square)
    mapped = partial(spectral_map, coefficients=LISTS[name])
    expected = U @ mapped(X) @ V
    torch.testing.assert_close(mapped(U @ X @ V), expected, rtol=0, atol=rounding(name))


@pytest.mark.parametrize("form", ["auto", "direct", "gram"])
@pytest.mark.parametrize("shape", [(16, 9), (16, 15), (40, 9)])
def test_tall_is_transpose_of_wide(shape: tuple[int, int], form: str) -> None:
    X = torch.randn(shape)
    wide = spectral_map(X.T.contiguous(), high_pass(3, 2), form=form)
    torch.testing.assert_close(spectral_map(X, high_pass(3, 2), form=form), wide.T)


@pytest.mark.parametrize("shape", [(2, 3, 6, 7), (2, 3, 6, 30), (2, 3, 30, 6), (4, 5, 5)])
def test_leading_dimensions_are_a_batch(shape: tuple[int, ...]) -> None:
    X = torch.randn(shape, dtype=torch.float64)
    flat = X.reshape(-1, *shape[-2:])
    one_by_one = torch.stack([spectral_map(x, NEWTON_SCHULZ) for x in flat]).reshape(shape)
    torch.testing.assert_close(spectral_map(X, NEWTON_SCHULZ), one_by_one)


# promotion steps, suppression steps, singular value whose output is 0.01, 0.5 and 0.99, share of
# the squared norm it takes to pass, how many directions can hold that share at once
CUT_OFFS = [
    (0, 5, (0.748, 0.798, 0.846), 0.636, 1),
    (1, 4, (0.416, 0.492, 0.575), 0.242, 4),
    (2, 3, (0.187, 0.263, 0.352), 0.0692, 14),
    (3, 2, (0.066, 0.131, 0.214), 0.0171, 58),
    (4, 1, (0.013, 0.060, 0.135), 0.00354, 282),
    (5, 0, (0.0004, 0.023, 0.090), 0.00054, 1850),
]


def first_above(level: float, coefficients: spectral.Coefficients) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        value = scalar_map(torch.tensor(middle, dtype=torch.float64), coefficients).item()
        low, high = (middle, high) if value < level else (low, middle)
    return high


@pytest.mark.parametrize(("promotion", "suppression", "points", "share", "most"), CUT_OFFS)
def test_cut_offs(
    promotion: int, suppression: int, points: tuple[float, ...], share: float, most: int
) -> None:
    coefficients = high_pass(promotion, suppression)
    for level, point in zip((0.01, 0.5, 0.99), points, strict=True):
        assert first_above(level, coefficients) == pytest.approx(point, abs=6e-4)
    half = first_above(0.5, coefficients) ** 2
    assert half == pytest.approx(share, rel=0.01)
    assert 1 / half == pytest.approx(most, rel=0.005) or int(1 / half) == most


@pytest.mark.parametrize(("promotion", "suppression", "points", "share", "most"), CUT_OFFS[:3])
def test_directions_above_the_cut_off_pass_and_others_vanish(
    promotion: int, suppression: int, points: tuple[float, ...], share: float, most: int
) -> None:
    above = 1.15 * points[2]
    below = min(0.85 * points[0], 0.99 * math.sqrt(1 - above**2))
    tail = math.sqrt((1 - above**2 - below**2) / 200)  # fills the norm up to one
    X = with_spectrum(torch.tensor([above, below] + [tail] * 200), 210, 230)
    mapped = torch.linalg.svdvals(spectral_map(X, high_pass(promotion, suppression)))
    assert mapped[0].item() == pytest.approx(1.0, abs=0.01)
    assert mapped[1].item() < 0.01


def test_both_pion_maps_fix_one_and_are_flat_there() -> None:
    for coefficients in (high_pass(1, 0), high_pass(0, 1)):
        one = torch.ones((), dtype=torch.float64, requires_grad=True)
        value = scalar_map(one, coefficients)
        value.backward()
        assert (value.item(), one.grad.item()) == (1.0, 0.0)


def test_muon_levels_the_spectrum() -> None:
    sigma = torch.logspace(-2, 0, 4000, dtype=torch.float64)
    low, high = scalar_map(sigma, NEWTON_SCHULZ).aminmax()
    assert low.item() == pytest.approx(0.682, abs=1e-3)
    assert high.item() == pytest.approx(1.134, abs=1e-3)
    assert (scalar_map(sigma, polar_express(7)) - 1).abs().max().item() < 0.01


def test_zero_in_zero_out_and_neighbours_are_unharmed() -> None:
    X = torch.randn(3, 4, 8)
    X[1] = 0.0
    mapped = spectral_map(X, NEWTON_SCHULZ)
    assert torch.equal(mapped[1], torch.zeros(4, 8))
    torch.testing.assert_close(mapped[2], spectral_map(X[2], NEWTON_SCHULZ))


def test_nan_stays_in_its_matrix() -> None:
    X = torch.randn(3, 4, 8)
    X[1, 2, 3] = float("nan")
    mapped = spectral_map(X, high_pass())
    assert mapped[1].isnan().any()
    assert mapped[[0, 2]].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4, 8), (2, 0, 8), (3, 4, 0), (0, 0)])
def test_empty_batch_is_left_alone(shape: tuple[int, ...]) -> None:
    mapped, figures = measured_spectral_map(torch.empty(shape), NEWTON_SCHULZ)
    assert mapped.shape == shape
    assert figures.directions_passed.shape == figures.top_energy.shape == shape[:-2]


def test_input_is_not_changed() -> None:
    X = torch.randn(4, 8)
    before = X.clone()
    spectral_map(X, NEWTON_SCHULZ)
    assert torch.equal(X, before)


@pytest.mark.parametrize("form", ["direct", "gram"])
def test_suppression_multiplies_nothing_to_a_subnormal_number(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bmm, baddbmm = torch.bmm, torch.baddbmm
    smallest: list[float] = []

    def note(A: Tensor, B: Tensor) -> None:
        factors = [X.double().abs() for X in (A, B)]
        least = [X[X > 0].min().item() if X.any() else 1.0 for X in factors]
        smallest.append(least[0] * least[1])

    def spy_bmm(A: Tensor, B: Tensor, **options: Tensor) -> Tensor:
        note(A, B)
        return bmm(A, B, **options)

    def spy_baddbmm(C: Tensor, A: Tensor, B: Tensor, **scales: float) -> Tensor:
        note(A, B)
        return baddbmm(C, A, B, **scales)

    monkeypatch.setattr(torch, "bmm", spy_bmm)
    monkeypatch.setattr(torch, "baddbmm", spy_baddbmm)
    torch.manual_seed(0)
    for X in (
        torch.randn(48, 96),  # nothing passes: all of it shrinks
        torch.randn(48, 1) @ torch.randn(1, 96) + 1e-4 * torch.randn(48, 96),  # one passes
        torch.randn(48, 96) * torch.logspace(0, -40, 48).unsqueeze(1),  # tiny from the start
        torch.eye(48, 96) * torch.logspace(0, -40, 48).unsqueeze(1),
    ):
        spectral_map(X, high_pass(0, 5), form=form)
    assert len(smallest) >= 30
    assert min(smallest) >= 0.99 * torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("promotion", [0, 1, 2])
def test_result_holds_no_subnormal_number(promotion: int) -> None:
    mapped = spectral_map(torch.randn(4, 48, 64), high_pass(promotion, 5 - promotion))
    assert not ((mapped != 0) & (mapped.abs() < torch.finfo(torch.float32).tiny)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    assert spectral_map(torch.randn(4, 8).to(dtype), high_pass()).dtype == dtype


def test_bfloat16_input_is_computed_in_float32_on_a_cpu() -> None:
    X = torch.randn(16, 64).bfloat16()
    exact = spectral_map(X.float(), NEWTON_SCHULZ).bfloat16()
    assert torch.equal(spectral_map(X, NEWTON_SCHULZ), exact)
    rough = spectral_map(X, NEWTON_SCHULZ, precision="bfloat16")
    assert not torch.equal(rough, exact)
    assert relative(rough, exact.double()) < 0.05


SPECTRA = {
    "1/i": 1 / torch.arange(1, 97, dtype=torch.float64),
    "1/i^2": torch.arange(1, 97, dtype=torch.float64) ** -2,
    "one and a tail": torch.tensor([1.0] + [0.01] * 95, dtype=torch.float64),
}


@pytest.mark.parametrize("spectrum", sorted(SPECTRA))
@pytest.mark.parametrize("name", sorted(LISTS))
@pytest.mark.parametrize("form", ["direct", "gram"])
def test_float32_rounding_stays_small(name: str, spectrum: str, form: str) -> None:
    # Also the reason for starting the Gram form again: without, polar_express lists fail.
    X = with_spectrum(SPECTRA[spectrum], 96, 384)
    exact = by_svd(X, LISTS[name])
    error = relative(spectral_map(X.float(), LISTS[name], form=form), exact)
    # Chaos multiplies what rounding leaves; nobody should need more of a control.
    assert error < (2e-5 if "high_pass" in name else 2e-2 if name == "kaon" else 1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"X": torch.ones(3)}, r"\(\.\.\., m, n\)"),
        ({"X": torch.ones(3, 3, dtype=torch.int64)}, "floating-point"),
        ({"X": torch.ones(3, 3, dtype=torch.complex64)}, "floating-point"),
        ({"X": torch.ones(3, 3), "precision": "float8"}, "bfloat16"),
        ({"X": torch.ones(3, 3), "form": "svd"}, "direct or gram"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectral_map(coefficients=NEWTON_SCHULZ, **arguments)


@pytest.mark.parametrize("steps", [(-1, 4), (1, -2), (0, 0), (1.5, 2)])
def test_impossible_step_counts_are_refused(steps: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="steps"):
        high_pass(*steps)


def test_polar_express_needs_a_step() -> None:
    with pytest.raises(ValueError, match="steps >= 1"):
        polar_express(0)


# Coefficients -----------------------------------------------------------------------------------


def test_family_joins_pion_s_two_maps() -> None:
    assert between(0.0) == SUPPRESSION
    assert between(1.0) == PROMOTION
    for level in (0.1, 0.5, 0.9):
        a, b, c = between(level)
        assert a + b + c == pytest.approx(1.0)  # f(1) = 1
        assert a + 3 * b + 5 * c == pytest.approx(0.0)  # f'(1) = 0
        assert a == pytest.approx((3 + 2 * c) / 2)  # appendix E
        assert b == pytest.approx(-(1 + 4 * c) / 2)
        values = scalar_map(torch.linspace(0, 1, 999, dtype=torch.float64), [(a, b, c)])
        assert (values.diff() > 0).all()


@pytest.mark.parametrize("promotion", [-0.1, 1.1, math.nan])
def test_family_ends_at_its_ends(promotion: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        between(promotion)


@pytest.mark.parametrize(("share", "steps"), [(0.5, 5), (0.242, 5), (0.1, 5), (0.03, 6), (0.3, 3)])
def test_high_pass_at_passes_what_holds_that_share(share: float, steps: int) -> None:
    coefficients = high_pass_at(share, steps)
    assert len(coefficients) == steps
    assert first_above(0.5, coefficients) ** 2 == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize("promotion", range(1, 5))
def test_high_pass_at_meets_the_lists_of_whole_steps(promotion: int) -> None:
    whole = high_pass(promotion, 5 - promotion)
    share = first_above(0.5, whole) ** 2
    torch.testing.assert_close(torch.tensor(high_pass_at(share)), torch.tensor(whole),
                               rtol=0, atol=1e-4)  # fmt: skip


@pytest.mark.parametrize(("share", "steps"), [(0.9, 5), (1e-5, 5), (0.01, 1), (0.1, 0)])
def test_share_out_of_reach_is_refused(share: float, steps: int) -> None:
    with pytest.raises(ValueError, match="steps"):
        high_pass_at(share, steps)


def test_low_pass_drops_what_high_pass_keeps() -> None:
    passed = scalar_map(torch.linspace(0.05, 0.5, 500, dtype=torch.float64), LOW_PASS)
    stopped = scalar_map(torch.linspace(0.75, 1.0, 500, dtype=torch.float64), LOW_PASS)
    assert (passed - 1).abs().max() < 0.03
    assert stopped.abs().max() < 0.01
    spectrum = torch.tensor([0.9] + [0.2] * 4, dtype=torch.float64)
    mapped = torch.linalg.svdvals(spectral_map(with_spectrum(spectrum, 8, 9), LOW_PASS))
    torch.testing.assert_close(mapped, torch.tensor([1.0] * 4 + [0.0] * 4).double(),
                               rtol=0, atol=0.02)  # fmt: skip


def test_kaon_is_bounded_and_uneven() -> None:
    values = scalar_map(torch.linspace(0, 1, 4001, dtype=torch.float64), KAON)
    assert values.min() >= 0.0
    assert values.max() <= 1.0
    before = 1.175 * values  # the figures of the iteration itself
    assert (before.mean().item(), before.std().item()) == pytest.approx((0.56, 0.40), abs=0.01)
    with pytest.raises(ValueError, match="steps >= 1"):
        kaon(0)


def test_lists_of_muon_bring_singular_values_near_one() -> None:
    sigma = torch.logspace(-1.5, 0, 2000, dtype=torch.float64)
    for coefficients, most in ((YOU, 0.25), (CUBIC, 0.35)):
        assert (scalar_map(sigma, coefficients) - 1).abs().max() < most


# Forms and precision ----------------------------------------------------------------------------


def test_forms_break_even_at_one_and_a_half() -> None:
    gpu, muon = torch.device("cuda"), tuple(NEWTON_SCHULZ)

    def form(n: int, dtype: torch.dtype = torch.float32) -> str:
        return _steps.cheaper_form(100, n, muon, dtype, gpu)

    assert [form(n) for n in (100, 149, 151, 800)] == ["direct", "direct", "gram", "gram"]
    # float32 products beside bfloat16 ones: only for very wide matrices.
    assert [form(n, torch.bfloat16) for n in (3000, 4000)] == ["direct", "gram"]


def test_gram_form_starts_again_for_lists_that_amplify_rounding_alone() -> None:
    eps = torch.finfo(torch.float32).eps
    for promotion in range(5):
        assert len(_steps.segments(high_pass(promotion, 5 - promotion), eps)) == 1
    assert len(_steps.segments(tuple(POLAR_EXPRESS), eps)) > 1
    assert len(_steps.segments(tuple(POLAR_EXPRESS), torch.finfo(torch.float64).eps)) == 1


@pytest.mark.parametrize("name", ["newton_schulz", "polar_express", "high_pass_2_3"])
def test_blocks_of_symmetric_products_change_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    X = torch.randn(2, 70, 110, dtype=torch.float64)
    whole = spectral_map(X, LISTS[name])
    monkeypatch.setattr(_products, "_BLOCK", 16)
    monkeypatch.setattr(_products, "_BLOCK_OF_LONG_SUMS", 16)
    for form in ("direct", "gram"):
        blocks = spectral_map(X, LISTS[name], form=form)
        torch.testing.assert_close(blocks, whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(7, 5, 9), (7, 9, 5)])
def test_pieces_change_nothing(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    X = torch.randn(shape)
    X[2] = 0.0
    whole, figures = measured_spectral_map(X, high_pass())
    monkeypatch.setattr(_map, "_CPU_PIECE", 100)
    pieces, others = measured_spectral_map(X, high_pass())
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(others.top_energy, figures.top_energy)


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_products_are_float32_whatever_the_process_allows(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    matmul, seen = torch.backends.mkldnn.matmul, set()
    bmm = torch.bmm

    def spy(*arguments: Tensor, **options: Tensor) -> Tensor:
        seen.add(matmul.fp32_precision)
        return bmm(*arguments, **options)

    monkeypatch.setattr(torch, "bmm", spy)
    torch.set_float32_matmul_precision(setting)
    try:
        before = matmul.fp32_precision
        spectral_map(torch.randn(4, 9), NEWTON_SCHULZ)
        with pytest.raises(TypeError):
            spectral_map(torch.randn(4, 9), NEWTON_SCHULZ, eps="none")
        assert (matmul.fp32_precision, torch.get_float32_matmul_precision()) == (before, setting)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == {"ieee"}


def test_gram_form_in_bfloat16_iterates_in_float32() -> None:
    X = with_spectrum(SPECTRA["1/i"], 96, 384).float()
    exact = by_svd(X, NEWTON_SCHULZ)
    options = {"precision": "bfloat16"}
    gram = relative(spectral_map(X, NEWTON_SCHULZ, form="gram", **options), exact)
    direct = relative(spectral_map(X, NEWTON_SCHULZ, form="direct", **options), exact)
    assert gram < 0.02
    assert gram < direct < 0.05


@pytest.mark.parametrize("form", ["direct", "gram"])
def test_matrices_of_which_nothing_passes_leave_the_iteration(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    one = torch.randn(60, 1) @ torch.randn(1, 90)
    X = torch.stack([torch.randn(60, 90), one, torch.randn(60, 90), torch.zeros(60, 90)])
    sizes = []
    factor = _forms._factor

    def spy(A: Tensor, b: float, c: float) -> Tensor:
        sizes.append(len(A))
        return factor(A, b, c)

    monkeypatch.setattr(_forms, "_factor", spy)
    mapped = spectral_map(X, high_pass(1, 4), form=form)
    assert sizes[0] == 4
    assert sizes[-1] == 1
    assert not mapped[[0, 2, 3]].any()
    torch.testing.assert_close(mapped[1].double(), by_svd(one, high_pass(1, 4)), rtol=0, atol=1e-5)
    sizes.clear()
    assert not spectral_map(X[[0, 2]], high_pass(1, 4), form=form).any()
    assert len(sizes) < 5


def test_bound_by_which_matrices_are_left_out_is_safe() -> None:
    for promotion in range(5):
        steps = high_pass(promotion, 5 - promotion)
        limit = _forms.vanishing_norm(steps, 1e-13)
        assert scalar_map(torch.tensor(limit, dtype=torch.float64), steps).item() < 1e-13


# Normalisation by the largest singular value, regularisation, figures ---------------------------


@settings(max_examples=60, deadline=None)
@given(matrices(), st.sampled_from(["direct", "gram"]))
def test_spectral_normalisation_divides_by_the_largest(X: Tensor, form: str) -> None:
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    expected = U @ torch.diag(scalar_map(S / (1.02 * S[0]), high_pass(1, 4))) @ Vh
    mapped = spectral_map(X, high_pass(1, 4), normalize="spectral", form=form)
    torch.testing.assert_close(mapped, expected, rtol=0, atol=1e-4)  # eps is relative to X


@pytest.mark.parametrize("promotion", [0, 1, 2])
@pytest.mark.parametrize("decay", [0.0, 0.1, 1.0])
def test_top_direction_always_passes_under_spectral_normalisation(
    promotion: int, decay: float
) -> None:
    sigma = torch.arange(1, 201, dtype=torch.float64) ** -decay
    X = with_spectrum(sigma, 200, 240).float()
    coefficients = high_pass(promotion, 5 - promotion)
    mapped = spectral_map(X, coefficients, normalize="spectral")
    assert torch.linalg.matrix_norm(mapped, 2).item() == pytest.approx(1.0, abs=0.02)
    if decay < 1.0 and promotion == 0:
        assert not spectral_map(X, coefficients).any()  # the dead zone


@pytest.mark.parametrize("normalize", ["frobenius", "spectral"])
def test_zero_stays_zero_under_every_option(normalize: str) -> None:
    for regularization in (0.0, 0.3):
        mapped = spectral_map(torch.zeros(2, 3, 4), NEWTON_SCHULZ, normalize=normalize,
                              regularization=regularization)  # fmt: skip
        assert torch.equal(mapped, torch.zeros(2, 3, 4))


def regularised_by_svd(X: Tensor, coefficients: spectral.Coefficients, epsilon: float) -> Tensor:
    U, S, Vh = torch.linalg.svd(X.double(), full_matrices=False)
    r = (S**2 + epsilon**2).sqrt()
    norm = (S.square().sum() + min(X.shape) * epsilon**2).sqrt() + 1e-7
    return U @ torch.diag(scalar_map(r / norm, coefficients) * S / r) @ Vh


@settings(max_examples=80, deadline=None)
@given(matrices(), st.sampled_from(sorted(LISTS)), st.floats(1e-6, 3.0))
def test_regularisation_adds_to_every_singular_value(X: Tensor, name: str, share: float) -> None:
    epsilon = share * X.norm().item()
    mapped = spectral_map(X, LISTS[name], regularization=epsilon)
    expected = regularised_by_svd(X, LISTS[name], epsilon)
    torch.testing.assert_close(mapped, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("epsilon", [1e-4, 1e-2, 0.3])
def test_regularisation_survives_a_new_start_of_the_gram_form(epsilon: float) -> None:
    X = with_spectrum(SPECTRA["1/i"], 96, 384)
    expected = regularised_by_svd(X, polar_express(6), epsilon)
    mapped = spectral_map(X.float(), polar_express(6), regularization=epsilon)
    assert relative(mapped, expected) < 1e-3


def test_regularised_muon_is_the_paper_s_map() -> None:
    X = with_spectrum(SPECTRA["1/i"], 96, 384)
    epsilon = 0.5 * X.norm().item() / math.sqrt(96)
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    expected = U @ torch.diag(S / (S**2 + epsilon**2).sqrt()) @ Vh
    assert relative(spectral_map(X, polar_express(6), regularization=epsilon), expected) < 2e-3


def test_regularisation_may_differ_per_matrix() -> None:
    X = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    epsilon = torch.rand(2, 3, dtype=torch.float64)
    mapped = spectral_map(X, NEWTON_SCHULZ, regularization=epsilon)
    alone = spectral_map(X[1, 2], NEWTON_SCHULZ, regularization=epsilon[1, 2].item())
    torch.testing.assert_close(mapped[1, 2], alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "nuclear"}, "frobenius or spectral"),
        ({"regularization": -1.0}, ">= 0"),
        ({"regularization": torch.ones(3)}, r"expected one number per matrix, \(2,\)"),
        ({"regularization": 0.1, "form": "direct"}, "gram"),
    ],
)
def test_bad_option_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectral_map(torch.ones(2, 3, 3), NEWTON_SCHULZ, **options)


@settings(max_examples=60, deadline=None)
@given(deficient(), st.sampled_from(["high_pass_1_4", "newton_schulz"]), st.booleans())
def test_figures_are_those_of_the_singular_values(X: Tensor, name: str, wide: bool) -> None:
    mapped, figures = measured_spectral_map(X, LISTS[name], form="gram" if wide else "direct")
    assert torch.equal(mapped, spectral_map(X, LISTS[name], form="gram" if wide else "direct"))
    S = torch.linalg.svdvals(X)
    energy = S.square().sum(-1)
    top = torch.where(energy > 0, S[:, 0].square() / energy.clamp_min(1e-30), 0.0)
    passed = torch.linalg.svdvals(mapped).square().sum(-1)
    for value, expected in (
        (figures.top_energy, top),
        (figures.stable_rank, torch.where(top > 0, 1 / top, 0.0)),
        (figures.directions_passed, passed),
    ):
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)


def test_figures_cost_no_product_of_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    bmm, counted = torch.bmm, []

    def spy(A: Tensor, B: Tensor, **options: Tensor) -> Tensor:
        counted.append(min(*A.shape[1:], *B.shape[1:]) > 1)
        return bmm(A, B, **options)

    monkeypatch.setattr(torch, "bmm", spy)
    X = torch.randn(2, 30, 70)
    spectral_map(X, NEWTON_SCHULZ)
    plain = sum(counted)
    counted.clear()
    measured_spectral_map(X, NEWTON_SCHULZ)
    assert sum(counted) == plain


def test_figures_have_the_shape_of_the_batch() -> None:
    _, figures = measured_spectral_map(torch.randn(2, 3, 4, 5), NEWTON_SCHULZ)
    assert figures.top_energy.shape == figures.directions_passed.shape == (2, 3)


@pytest.mark.parametrize("decay", [0.0, 0.02, 0.5, 2.0])
def test_top_eigenvalue_is_close_and_from_below(decay: float) -> None:
    sigma = torch.arange(1, 301, dtype=torch.float64) ** -decay
    X = with_spectrum(sigma, 300, 300).float().unsqueeze(0)
    found = top_eigenvalue(X @ X.mT).item()
    assert found <= 1.0 + 1e-5
    assert found >= (0.999 if decay >= 0.5 or decay == 0.0 else 0.95)
