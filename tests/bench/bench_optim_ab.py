"""Steps that each optimizer needs to reach a loss: a small transformer on handwritten digits.

    OMP_NUM_THREADS=1 python tests/bench/bench_optim_ab.py --out RECORD     # about 20 minutes
    python tests/bench/bench_optim_ab.py --short         # half a minute: two seeds, a loss of 2.0

The data are scikit-learn's 1797 digits of 8 x 8 pixels, which come with the package; the network is
a vision transformer of two layers over 16 patches. Every optimizer updates the same matrices, with
AdamW at one rate on the rest under each, at a constant rate after ten steps of warm-up. The rate is
tuned for each on seeds of its own: from 3e-3 half a decade up or down while that takes fewer steps,
so that the best never lies at the edge of a grid. Then runs with other seeds are compared with
AdamW's on the same seeds: same initial weights, same batches. A run that does not reach the loss
counts as one step more than allowed, and is marked.

What it shows is this task and this size: no more.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from vla_opt.io import atomic_write_json, atomic_write_text
from vla_opt.optim import OptimizerConfig
from vla_opt.provenance import run_metadata

ARMS: dict[str, Callable[[float], OptimizerConfig]] = {
    "AdamW": lambda lr: _config("adamw", lr),
    "Muon": lambda lr: _config("muon", lr),
    "NorMuon": lambda lr: _config("normuon", lr),
    "Pion 0+5": lambda lr: _config("pion", lr, 0),
    "Pion 1+4": lambda lr: _config("pion", lr, 1),
    "Pion 2+3": lambda lr: _config("pion", lr, 2),
    "Pion 3+2": lambda lr: _config("pion", lr, 3),
    "Kaon": lambda lr: _config("kaon", lr),
    "PionOET": lambda lr: _config("pion_oet", lr),
}
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
WARMUP = 10
TUNING_SEEDS, FIRST_SEED = 2, 1000  # of tuning; the compared ones count from 0


def _config(name: str, lr: float, promotion: int = 1) -> OptimizerConfig:
    # What is no matrix keeps one rate in all arms: the matrices are what is compared.
    return OptimizerConfig(
        name=name, lr=lr, adamw_lr_ratio=1e-3 / lr, preset="default", promotion_steps=promotion,
        suppression_steps=5 - promotion,
    )  # fmt: skip


class Digits:
    """The pictures as 16 patches of four pixels, split the same way for every run."""

    def __init__(self) -> None:
        data = load_digits()
        pixels = torch.tensor(data.images, dtype=torch.float32) / 16.0 - 0.3
        patches = pixels.reshape(-1, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(-1, 16, 4)
        labels = torch.tensor(data.target)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        held, rest = order[:400], order[400:]
        self.train = (patches[rest], labels[rest])
        self.held_out = (patches[held], labels[held])


class Transformer(nn.Module):
    """Two pre-norm layers of width 48 with four heads, mean pooling."""

    def __init__(self, width: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.patches = nn.Linear(4, width)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(16, width))
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, 10)

    def forward(self, patches: Tensor) -> Tensor:  # (B, 16, 4) -> (B, 10)
        x = self.patches(patches) + self.pos_embed
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.lm_head(self.norm(x).mean(dim=1))
        return logits


class Layer(nn.Module):
    """Attention with four matrices of its own, and a hidden layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, width)
        y = self.norm1(x)
        q, k, v = (
            proj(y).unflatten(2, (4, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.o_proj(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run.

    Attributes:
        arm: what updated the matrices.
        rate: of the matrices.
        seed: of weights and batches.
        steps: updates until the held-out loss was at the target; one more than allowed if never.
        loss: held-out, at the end.
        seconds: of CPU time.
    """

    arm: str
    rate: float
    seed: int
    steps: int
    loss: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """Until when a run goes on, and all runs so far."""

    data: Digits
    target: float
    steps: int
    batch: int = 64
    every: int = 10  # steps between looks at the held-out digits
    runs: list[Run] = field(default_factory=list)


def run(task: Task, arm: str, rate: float, seed: int) -> Run:
    """Train until the target or the last step."""
    started = time.process_time()
    torch.manual_seed(seed)
    model = Transformer()
    optimizer = ARMS[arm](rate).build(model)
    rates = [group["lr"] for group in optimizer.param_groups]
    pictures, labels = task.data.train
    taken, reached = task.steps + 1, math.inf
    for step in range(1, task.steps + 1):
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr * min(1.0, step / WARMUP)
        chosen = torch.randint(len(labels), (task.batch,))
        loss = F.cross_entropy(model(pictures[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        if not math.isfinite(loss.item()):
            break
        optimizer.step()
        if step % task.every == 0:
            reached = held_out_loss(model, task.data)
            if reached <= task.target:
                taken = step
                break
    reached = reached if math.isfinite(reached) else math.inf
    seconds = time.process_time() - started
    found = Run(arm=arm, rate=rate, seed=seed, steps=taken, loss=reached, seconds=seconds)
    task.runs.append(found)
    return found


@torch.no_grad()
def held_out_loss(model: nn.Module, data: Digits) -> float:
    """Mean cross-entropy of the 400 digits that are not trained on."""
    pictures, labels = data.held_out
    return F.cross_entropy(model(pictures), labels).item()


def tuned_rate(task: Task, arm: str) -> float:
    """The rate with the fewest steps, found by walking uphill from the middle of the grid.

    Mean steps over seeds that are not compared later; where no run arrives, the lowest mean loss.
    """
    seen: dict[int, tuple[float, float]] = {}

    def cost(i: int) -> tuple[float, float]:
        if i not in seen:
            seeds = range(FIRST_SEED, FIRST_SEED + TUNING_SEEDS)
            runs = [run(task, arm, RATES[i], seed) for seed in seeds]
            mean = statistics.fmean
            seen[i] = mean(r.steps for r in runs), mean(r.loss for r in runs)
        return seen[i]

    best, last = RATES.index(3e-3), len(RATES) - 1
    while True:
        near = [i for i in (best, best - 1, best + 1) if 0 <= i <= last]  # a draw: stay
        better = min(near, key=cost)
        if better == best:
            break
        best = better
    shown = ", ".join(f"{RATES[i]:g}: {seen[i][0]:g}" for i in sorted(seen))
    edge = " (at the edge of the grid)" if best in (0, last) else ""
    print(f"  {arm}: rate {RATES[best]:g}{edge}; steps by rate {shown}", flush=True)
    return RATES[best]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean with its 95 % interval by Student's t."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return mean, -math.inf, math.inf
    half = student.ppf(0.975, count - 1) * statistics.stdev(values) / math.sqrt(count)
    return mean, mean - half, mean + half


def report(results: dict[str, list[Run]], limit: int) -> str:
    """Steps with interval, and the ratio to AdamW's on the same seeds."""
    head = (
        "optimizer",
        "rate",
        "steps (95 % interval)",
        "times AdamW's (95 % interval)",
        "reached",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    base = results.get("AdamW")
    for arm, runs in results.items():
        mean, low, high = interval([r.steps for r in runs])
        ratio = ""
        if base is not None and arm != "AdamW":
            logs = [math.log(a.steps / b.steps) for a, b in zip(runs, base, strict=True)]
            middle, least, most = (math.exp(x) for x in interval(logs))
            ratio = f"{middle:.2f} ({least:.2f} to {most:.2f})"
        arrived = sum(r.steps <= limit for r in runs)
        lines.append(
            f"| {arm} | {runs[0].rate:g} | {mean:.0f} ({low:.0f} to {high:.0f}) | {ratio} "
            f"| {arrived}/{len(runs)} |"
        )
    return "\n".join(lines)


def save(folder: Path, task: Task, table: str, metadata: dict[str, Any]) -> None:
    """Every run, the table, and where they come from."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps(asdict(run)) for run in task.runs]
    atomic_write_text(folder / "runs.jsonl", "\n".join(rows) + "\n")
    atomic_write_text(folder / "result.md", table + "\n")
    numbers = {"target": task.target, "steps": task.steps, "batch": task.batch}
    atomic_write_json(folder / "metadata.json", {**metadata, "task": numbers})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=float, default=0.5, help="held-out cross-entropy")
    parser.add_argument("--steps", type=int, default=250, help="most updates of a run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--short", action="store_true", help="two seeds, loss 2.0")
    parser.add_argument("--out", type=Path, help="folder for runs.jsonl, result.md, metadata.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.short:
        options.target, options.steps, options.seeds = 2.0, 60, 2
    metadata = run_metadata()
    task = Task(data=Digits(), target=options.target, steps=options.steps)
    print(f"steps to a held-out loss of {task.target:g}, at most {task.steps}; "
          f"rates tuned on {TUNING_SEEDS} seeds")  # fmt: skip
    results: dict[str, list[Run]] = {}
    for arm in options.arms:
        rate = tuned_rate(task, arm)
        results[arm] = [run(task, arm, rate, seed) for seed in range(options.seeds)]
        table = report(results, task.steps)
        if options.out:  # after each, so that a run that is cut off leaves what it found
            save(options.out, task, table, metadata)
    print(f"\n{table}\n\n{len(task.runs)} runs, {sum(r.seconds for r in task.runs):.0f} CPU s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
