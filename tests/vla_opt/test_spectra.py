"""Spectra of a checkpoint: figures from known singular values, both formats, the verb."""

import json
import math
from pathlib import Path

import pytest
import torch
from lerobot.optim import save_optimizer_state
from torch import nn

from vla_opt._optimizer_state import StoredParameter, find_checkpoint, read_optimizer_state
from vla_opt._training_state import save_optimizer
from vla_opt.checkpoint import CheckpointError
from vla_opt.cli.main import main
from vla_opt.optim import OptimizerConfig
from vla_opt.spectra import layer_spectra, table, threshold, what_if
from vla_opt.spectral import high_pass, spectral_map

SIGMA = (4.0, 2.0, 1.0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(5, 3)
        self.lm_head = nn.Linear(3, 4)


def known(sigma: tuple[float, ...], m: int, n: int) -> torch.Tensor:
    """A matrix (m, n) of these singular values."""
    torch.manual_seed(1)
    U, V = torch.linalg.qr(torch.randn(m, m))[0], torch.linalg.qr(torch.randn(n, n))[0]
    return U[:, : len(sigma)] @ torch.diag(torch.tensor(sigma)) @ V[: len(sigma)]


def stepped(**options: object) -> torch.optim.Optimizer:
    """An optimizer whose momentum of body.weight has the singular values SIGMA, up to a factor."""
    net = Net()
    optimizer = OptimizerConfig(preset="default", **options).build(net)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    net.body.weight.grad = known(SIGMA, 3, 5)
    optimizer.step()
    return optimizer


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with checkpoints of two steps and one logged reading."""
    for step in ("000001", "000002"):
        folder = tmp_path / "run" / "checkpoints" / step / "training_state"
        folder.mkdir(parents=True)
        save_optimizer(stepped(), folder)
    groups = {"matrix/pion": {"directions_passed": 1.0, "top_energy": 0.5, "stable_rank": 2.0,
                              "update_to_weight": 1e-3}}  # fmt: skip
    layer = {"name": "body.weight", "group": "matrix/pion", "shape": [3, 5], "ranks": [1, 2, 3],
             "values": {"gradient": [0.8, 0.6, 0.0], "update": [1.0, 0.0, 0.0]}}  # fmt: skip
    rows = [
        {"kind": "spectra", "step": step, "groups": groups, "layers": [{**layer, "name": name}]}
        for step, name in ((1, "lm_head.weight"), (2, "body.weight"))
    ]
    log = tmp_path / "run" / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "run"


def test_figures_are_those_of_the_known_singular_values(run: Path) -> None:
    layers = layer_spectra(read_optimizer_state(find_checkpoint(run)))
    body = next(layer for layer in layers if layer.name == "body.weight")
    total = sum(s * s for s in SIGMA)
    expected = torch.tensor([s / math.sqrt(total) for s in SIGMA], dtype=torch.float64)
    torch.testing.assert_close(body.sigma[0], expected, rtol=1e-5, atol=1e-5)
    assert body.stable_rank == pytest.approx(total / 16.0, rel=1e-5)
    assert body.top_energy == pytest.approx(16.0 / total, rel=1e-5)
    share = [s / sum(SIGMA) for s in SIGMA]
    entropy = -sum(p * math.log(p) for p in share)
    assert body.effective_rank == pytest.approx(math.exp(entropy), rel=1e-5)
    mapped = spectral_map(known(SIGMA, 3, 5).double(), high_pass(1, 4))
    assert body.directions_passed == pytest.approx(mapped.square().sum().item(), rel=1e-4)
    assert (body.algorithm, body.shape, body.dead) == ("pion", (3, 5), 0)
    head = next(layer for layer in layers if layer.name == "lm_head.weight")
    assert head.mapped is None
    assert head.directions_passed is None


def test_heads_are_looked_at_one_by_one(tmp_path: Path) -> None:
    from vla_opt.optim import Rule, build_optimizer

    net = nn.Linear(4, 6, bias=False)
    rules = [Rule("", "pion", options={"num_heads": 3, "head_axis": 0})]
    optimizer = build_optimizer(net, rules, lr=0.1)
    one, two = known((3.0, 3.0), 2, 4), known((5.0, 0.0), 2, 4)
    net.weight.grad = torch.cat([one, two, torch.zeros(2, 4)])
    optimizer.step()
    folder = tmp_path / "training_state"
    folder.mkdir()
    save_optimizer(optimizer, folder)
    [layer] = layer_spectra(read_optimizer_state(tmp_path))
    assert layer.sigma.shape == (2, 2)  # the head without gradient has no spectrum
    half = math.sqrt(0.5)
    expected = torch.tensor([[half, half], [1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(layer.sigma, expected, rtol=1e-3, atol=1e-3)


def test_blocks_of_a_fused_matrix_are_looked_at_one_by_one() -> None:
    momentum = torch.cat([known((3.0, 1.0), 2, 4), known((5.0, 5.0, 5.0), 3, 4)])
    group = {"algorithm": "pion", "promotion_steps": 1, "suppression_steps": 4}
    fused = StoredParameter(
        name="qkv", group={**group, "split_sizes": (2, 3)}, state={"momentum": momentum}
    )
    first, second = layer_spectra([fused])
    assert (first.name, second.name) == ("qkv[0]", "qkv[1]")
    assert first.top_energy == pytest.approx(0.9, rel=1e-5)
    assert second.stable_rank == pytest.approx(3.0, rel=1e-5)


def test_dead_matrices_are_counted_and_more_promotion_lets_more_through() -> None:
    from vla_opt._optimizer_state import StoredParameter

    group = {"promotion_steps": 0, "suppression_steps": 5, "algorithm": "pion"}
    flat = known((1.0,) * 8, 8, 8)  # an eighth each: 24 % are needed for 1 + 4, 7 % for 2 + 3
    stored = StoredParameter(name="W", group=group, state={"momentum": flat})
    [layer] = layer_spectra([stored])
    assert layer.dead == 1
    answers = what_if([layer])
    assert [row.dead for row in answers] == [1, 1, 0, 0, 0, 0]
    assert [round(row.passed) for row in answers][2:] == [8, 8, 8, 8]
    assert "W" in table([layer])


@pytest.mark.parametrize(("promotion", "share"), [(0, 0.64), (1, 0.24), (2, 0.069), (3, 0.017)])
def test_thresholds_are_those_of_the_papers_maps(promotion: int, share: float) -> None:
    assert threshold(high_pass(promotion, 5 - promotion)) == pytest.approx(share, rel=0.02)


def test_checkpoint_of_lerobot_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "000010" / "training_state"
    folder.mkdir(parents=True)
    optimizer = stepped()
    save_optimizer_state(optimizer, folder)
    ours = tmp_path / "ours" / "training_state"
    ours.mkdir(parents=True)
    save_optimizer(optimizer, ours)
    theirs = table(layer_spectra(read_optimizer_state(find_checkpoint(tmp_path))))
    assert theirs == table(layer_spectra(read_optimizer_state(tmp_path / "ours")))


def test_verb_prints_tables_and_writes_a_page(run: Path, capsys: pytest.CaptureFixture) -> None:
    page = run / "page.html"
    assert main(["spectra", str(run), f"--out={page}"]) == 0
    printed = capsys.readouterr().out
    assert "checkpoints/000002" in printed
    assert "body.weight" in printed
    assert "1 + 4" in printed
    text = page.read_text()
    assert text.count("<svg") == 2 + 1 + 4  # two groups, one that was looked at, four courses
    [line] = [line.split() for line in printed.splitlines() if line.startswith("body.weight  3x5")]
    assert line[2:] == ["0.64", "-", "1.00", "1.56", "-", "1.00"]
    assert main(["spectra", str(run), "--step=1", "--layers=body", f"--out={page}"]) == 0
    printed = capsys.readouterr().out
    assert "checkpoints/000001" in printed
    assert "lm_head" not in printed


def test_directions_passed_have_a_chart_for_each_group(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    pion, muon = {"directions_passed": 1.0}, {"directions_passed": 90.0}
    row = {"kind": "spectra", "step": 2, "groups": {"action/pion": pion, "language/muon": muon}}
    (run / "log.jsonl").write_text(json.dumps({**row, "layers": []}) + "\n")
    page = run / "page.html"
    assert main(["spectra", str(run), f"--out={page}"]) == 0
    text = page.read_text()
    for name in ("action/pion", "language/muon"):
        assert text.count(f"<h3>Directions passed: {name}") == 1


def test_verb_says_what_is_missing(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["spectra", str(run), "--step=7"]) == 1
    assert "no checkpoint of step 7; it has 000001, 000002" in capsys.readouterr().err
    assert main(["spectra", str(run / "nowhere")]) == 1
    assert "neither a checkpoint" in capsys.readouterr().err
    assert main(["spectra", str(run), "--layers=("]) == 2
    assert main(["spectra", str(run), "--layers=nothing"]) == 2
    assert "no matrix with a momentum matches 'nothing'" in capsys.readouterr().err
    (run / "empty" / "training_state").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no optimizer state"):
        read_optimizer_state(run / "empty")
