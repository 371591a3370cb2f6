"""Direct form and Gram form, pieces and precision: the same map."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent / "plugin"))

from spectral_truth import LISTS, SPECTRA, by_svd, relative, with_spectrum

from vla_opt.spectral import (
    NEWTON_SCHULZ,
    POLAR_EXPRESS,
    _forms,
    _map,
    _products,
    _steps,
    high_pass,
    measured_spectral_map,
    scalar_map,
    spectral_map,
)


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
