"""Zeroth-order methods at equal forward calls, on a small pretrained network; and their cost.

    OMP_NUM_THREADS=1 python tests/bench/bench_zeroth_order.py           # about 4 minutes
    OMP_NUM_THREADS=1 python tests/bench/bench_zeroth_order.py --cost    # what a step costs
    ... --out runs/bench_zeroth_order      # the same as figures.jsonl, with metadata.json beside it

A vision transformer of 7 matrices (9,300 weights) is trained on pictures of ten shapes, 8 x 8
pixels. Then the pictures change (dimmed, noisier, before a pattern), and each method adapts the
network to 500 of the new ones. Learning rates are tuned per method on a seed of their own, at the
full budget, over a grid that grows while its best value is at an edge; the table is of other seeds.
AdamW and the forward gradient see derivatives: they are there to tell a hard task from a bad
estimator. A forward call with a derivative counts as two, a step of AdamW with its backward pass as
three.

ZO-Muon's paper claims MeZO's accuracy with 24.7 % of its queries, on a language model of billions
of weights. What this prints is what comes out here, whichever way it goes.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_opt.io import atomic_write_json, atomic_write_text
from vla_opt.provenance import run_metadata
from vla_opt.zeroth_order import (
    ZerothOrder,
    forward_gradient,
    mezo,
    subspace_mezo,
    zo_high_pass,
    zo_muon,
    zoar,
)

CLASSES, SIDE, WIDTH, BATCH = 10, 8, 32, 32
MEASUREMENTS = 8  # of accuracy, in a run
SEEDS = (1, 2, 3)
STEP = 10**0.5  # of the grid of learning rates


# -- the task --------------------------------------------------------------------------------------


def pictures(count: int, *, shifted: bool, seed: int) -> tuple[Tensor, Tensor]:
    """(count, 8, 8) pictures of ten smooth shapes, moved by up to a pixel, and their classes."""
    source = torch.Generator().manual_seed(seed)
    coarse = torch.randn(CLASSES, 1, 4, 4, generator=torch.Generator().manual_seed(7))
    shapes = F.interpolate(coarse, (SIDE + 2, SIDE + 2), mode="bicubic")[:, 0]
    labels = torch.randint(CLASSES, (count,), generator=source)
    rows, columns = torch.randint(3, (2, count), generator=source)
    views = [
        shapes[k, r : r + SIDE, c : c + SIDE]
        for k, r, c in zip(labels.tolist(), rows.tolist(), columns.tolist(), strict=True)
    ]
    seen = torch.stack(views)
    noise = torch.randn(seen.shape, generator=source)
    pattern = torch.linspace(-0.8, 0.8, SIDE).expand(SIDE, SIDE)
    return (0.6 * seen + pattern + 0.4 * noise if shifted else seen + 0.4 * noise), labels


class Block(nn.Module):
    """Attention and a feed-forward, both residual; norms and layers without vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to the same."""
        fused = self.qkv(F.layer_norm(x, (WIDTH,))).unflatten(-1, (3, 2, WIDTH // 2))
        q, k, v = fused.permute(2, 0, 3, 1, 4)  # (B, heads, T, C / heads) each
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(F.gelu(self.up(F.layer_norm(x, (WIDTH,)))))
        return out


class Vit(nn.Module):
    """16 patches of 2 x 2 pixels, one block."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(4, WIDTH, bias=False)
        self.place = nn.Parameter(0.02 * torch.randn(16, WIDTH))
        self.block = Block()
        self.head = nn.Linear(WIDTH, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8, 8) to (B, 10)."""
        patches = x.unflatten(2, (4, 2)).unflatten(1, (4, 2)).transpose(2, 3).reshape(-1, 16, 4)
        seen = self.block(self.patch(patches) + self.place)
        out: Tensor = self.head(F.layer_norm(seen, (WIDTH,)).mean(1))
        return out


def pretrained() -> Vit:
    """The network after 300 steps of AdamW on pictures as they were."""
    torch.manual_seed(0)
    net, (x, y) = Vit(), pictures(2000, shifted=False, seed=100)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for step in range(300):
        rows = torch.randint(len(x), (BATCH,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return net


# -- the methods -----------------------------------------------------------------------------------

type Build = Callable[[Iterable[nn.Parameter], float, int], ZerothOrder]


@dataclass(frozen=True)
class Method:
    """A method, and the learning rate its grid begins around."""

    name: str
    centre: float
    build: Build | None  # None: AdamW
    cost: int = 1  # of a query, or of a step of AdamW, in forward calls


METHODS = (
    Method("MeZO", 3e-3, lambda p, lr, s: mezo(p, lr, seed=s)),
    Method("Subspace-MeZO r=16", 3e-3, lambda p, lr, s: subspace_mezo(p, lr, seed=s, rank=16)),
    Method("ZoAR q=4", 3e-3, lambda p, lr, s: zoar(p, lr, seed=s)),
    Method("ZO-Muon r=16 q=4", 1e-2, lambda p, lr, s: zo_muon(p, lr, seed=s, rank=16)),
    Method("ZO high-pass r=16 q=4", 3e-2, lambda p, lr, s: zo_high_pass(p, lr, seed=s, rank=16)),
    Method("forward gradient", 3e-3, lambda p, lr, s: forward_gradient(p, lr, seed=s), 2),
    Method("AdamW (backward)", 3e-3, None, 3),
)


@dataclass(frozen=True)
class Curve:
    """Test accuracy after numbers of forward calls."""

    calls: list[int]
    accuracy: list[float]

    @property
    def final(self) -> float:
        """Mean of the last three measurements."""
        return sum(self.accuracy[-3:]) / 3

    def reaches(self, accuracy: float) -> float:
        """Forward calls until the mean of three measurements is at least so high."""
        for i in range(2, len(self.calls)):
            if sum(self.accuracy[i - 2 : i + 1]) / 3 >= accuracy:
                return self.calls[i]
        return math.inf


def adapt(start: Vit, method: Method, lr: float, seed: int, budget: int) -> Curve:
    """Adapt a copy of the network; a diverged run keeps chance level."""
    net = copy.deepcopy(start)
    x, y = pictures(500, shifted=True, seed=200 + seed)
    test_x, test_y = pictures(256, shifted=True, seed=300)
    optimizer = None if method.build is None else method.build(net.parameters(), lr, seed)
    adamw = torch.optim.AdamW(net.parameters(), lr)
    every = budget / MEASUREMENTS
    calls, measured, curve = 0, -every, Curve([], [])
    for step in range(budget + 1):
        if calls - measured >= every or calls >= budget:
            measured = calls
            with torch.no_grad():
                right = (net(test_x).argmax(1) == test_y).float().mean()
            curve.calls.append(calls)
            curve.accuracy.append(float(right))
        if calls >= budget:
            break
        source = torch.Generator().manual_seed(1000 * seed + step)
        rows = torch.randint(len(x), (BATCH,), generator=source)

        def loss(rows: Tensor = rows) -> Tensor:
            return F.cross_entropy(net(x[rows]), y[rows])

        if optimizer is None:
            adamw.zero_grad()
            loss().backward()
            adamw.step()
            calls += method.cost
        else:
            try:
                optimizer.step(loss)  # type: ignore[arg-type]
            except FloatingPointError:
                return Curve([0, budget, budget], [1 / CLASSES] * 3)
            calls = method.cost * optimizer.queries
    return curve


def tuned(start: Vit, method: Method, budget: int) -> tuple[float, bool]:
    """The best learning rate of a growing grid, and whether it lies inside the grid."""
    found = {lr: adapt(start, method, lr, 0, budget).final for lr in _grid(method.centre)}
    for _ in range(4):
        best = max(found, key=lambda lr: found[lr])
        edge = {min(found): 1 / STEP, max(found): STEP}.get(best)
        if edge is None:
            return best, True
        found[best * edge] = adapt(start, method, best * edge, 0, budget).final
    return max(found, key=lambda lr: found[lr]), False


def _grid(centre: float) -> list[float]:
    return [centre * STEP**i for i in (-1, 0, 1)]


def compare(methods: Sequence[Method], budget: int) -> list[dict[str, Any]]:
    """Print the table, and what became of ZO-Muon's claim; return its rows."""
    started = time.process_time()
    start = pretrained()
    for shifted in (False, True):
        x, y = pictures(1000, shifted=shifted, seed=300)
        with torch.no_grad():
            right = float((start(x).argmax(1) == y).float().mean())
        print(f"pretrained, {'new' if shifted else 'old'} pictures: {100 * right:.1f} %")
    curves: dict[str, list[Curve]] = {}
    rows = []
    print(f"\n{'method':24}{'lr':>9}  accuracy after {budget} forward calls, seeds {SEEDS}")
    for method in methods:
        lr, inside = tuned(start, method, budget)
        curves[method.name] = [adapt(start, method, lr, seed, budget) for seed in SEEDS]
        finals = [100 * curve.final for curve in curves[method.name]]
        row = {"method": method.name, "lr": lr, "lr_inside_grid": inside, "budget": budget}
        row |= {"seeds": list(SEEDS), "accuracy_percent": finals}
        rows.append({**row, "curves": [vars(curve) for curve in curves[method.name]]})
        shown = "  ".join(f"{value:5.1f}" for value in finals)
        note = "" if inside else "   (lr at the edge of its grid)"
        print(
            f"{method.name:24}{lr:9.1e}  {shown}   mean {sum(finals) / 3:5.1f} %{note}", flush=True
        )
    claim(curves, budget)
    print(f"{time.process_time() - started:.0f} s of CPU time")
    return rows


def claim(curves: dict[str, list[Curve]], budget: int) -> None:
    """Print when each method reaches what MeZO reaches with the whole budget."""
    target = sum(curve.final for curve in curves["MeZO"]) / len(SEEDS)
    print(f"\nforward calls to MeZO's final {100 * target:.1f} %, per seed:")
    for name, found in curves.items():
        calls = [curve.reaches(target) for curve in found]
        mean = sum(calls) / len(calls)
        share = f"{100 * mean / budget:.0f} % of the budget" if math.isfinite(mean) else "not all"
        shown = ", ".join("never" if math.isinf(c) else str(c) for c in calls)
        print(f"  {name:24}{shown:22}{share}")
    print("  (ZO-Muon's paper: 24.7 % of MeZO's queries)\n")


# -- the cost --------------------------------------------------------------------------------------


def cost() -> list[dict[str, Any]]:
    """Print CPU time per step beside that of its forward calls, 1.6 million weights; return it."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(6)))
    batch = torch.randn(64, 512)

    def loss() -> Tensor:
        return net(batch).square().mean()

    def seconds(work: Callable[[], object], repeats: int = 5) -> float:
        work()
        times = []
        for _ in range(repeats):
            begin = time.process_time()
            work()
            times.append(time.process_time() - begin)
        return min(times)

    with torch.no_grad():
        forward = seconds(loss)
    rows = []
    print(f"{'method':24}{'ms per step':>12}{'of them forward':>17}   (CPU time, 1.6 M weights)")
    for method in METHODS:
        if method.build is None:
            continue
        optimizer = method.build(net.parameters(), 1e-6, 0)
        calls = len(optimizer.plan())
        total = seconds(lambda o=optimizer: o.step(loss))  # type: ignore[misc]
        print(f"{method.name:24}{1e3 * total:12.1f}{1e3 * forward * calls:17.1f}")
        rows.append({"method": method.name, "step_s": total, "forward_s": forward * calls})
    return rows


def write(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the figures, and what they were measured with."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    atomic_write_text(folder / "figures.jsonl", text)
    atomic_write_json(folder / "metadata.json", run_metadata())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cost", action="store_true", help="the cost of a step, instead")
    parser.add_argument("--budget", type=int, default=400, help="forward calls per run")
    parser.add_argument("--methods", nargs="*", help="beginnings of names; MeZO is always there")
    parser.add_argument("--out", type=Path, help="folder for figures.jsonl and metadata.json")
    arguments = parser.parse_args()
    wanted = ("MeZO", *(arguments.methods if arguments.methods is not None else [""]))
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread")
    chosen = [m for m in METHODS if m.name.startswith(wanted)]
    rows = cost() if arguments.cost else compare(chosen, arguments.budget)
    if arguments.out:
        write(arguments.out, rows)


if __name__ == "__main__":
    main()
