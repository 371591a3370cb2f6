"""Steps that each optimizer needs to reach a loss: a small transformer on handwritten digits.

    python tests/bench/bench_optim_ab.py                 # about an hour on one free core
    python tests/bench/bench_optim_ab.py --short         # minutes: two rates, two seeds

The data are scikit-learn's 1797 digits of 8 x 8 pixels, which come with the package; the network is
a vision transformer of two layers over 16 patches. Every optimizer updates the same matrices, with
AdamW on the rest under each, at a constant rate after ten steps of warm-up. The rate is tuned for
each by the median over seeds of its own; then runs with other seeds are compared with AdamW's on
the same seeds: same initial weights, same batches. A run that does not reach the loss counts as the
last step, and is marked.

What it shows is this task and this size: no more.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import t as student
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from vla_opt.optim import OptimizerConfig

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
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
WARMUP = 10


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
class Task:
    """Until when a run goes on."""

    data: Digits
    target: float
    steps: int
    batch: int = 64
    every: int = 5  # steps between looks at the held-out digits


def steps_to_loss(task: Task, config: OptimizerConfig, seed: int) -> int:
    """Updates until the held-out loss is at the target; one more than allowed if it never is."""
    torch.manual_seed(seed)
    model = Transformer()
    optimizer = config.build(model)
    rates = [group["lr"] for group in optimizer.param_groups]
    pictures, labels = task.data.train
    for step in range(task.steps):
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr * min(1.0, (step + 1) / WARMUP)
        chosen = torch.randint(len(labels), (task.batch,))
        loss = F.cross_entropy(model(pictures[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        if not math.isfinite(loss.item()):
            break
        optimizer.step()
        if (step + 1) % task.every == 0 and held_out_loss(model, task.data) <= task.target:
            return step + 1
    return task.steps + 1


@torch.no_grad()
def held_out_loss(model: nn.Module, data: Digits) -> float:
    """Mean cross-entropy of the 400 digits that are not trained on."""
    pictures, labels = data.held_out
    return F.cross_entropy(model(pictures), labels).item()


def tuned_rate(task: Task, arm: str, rates: Sequence[float], seeds: Sequence[int]) -> float:
    """The rate with the fewest steps in the median, over seeds that are not compared later."""
    found = {
        lr: statistics.median(steps_to_loss(task, ARMS[arm](lr), seed) for seed in seeds)
        for lr in rates
    }
    best = min(found, key=lambda lr: (found[lr], lr))
    edge = " (at the edge of the grid)" if best in (rates[0], rates[-1]) else ""
    shown = ", ".join(f"{lr:g}: {steps:g}" for lr, steps in found.items())
    print(f"  {arm}: rate {best:g}{edge}; steps by rate {shown}", flush=True)
    return best


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean with its 95 % interval by Student's t."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return mean, -math.inf, math.inf
    half = student.ppf(0.975, count - 1) * statistics.stdev(values) / math.sqrt(count)
    return mean, mean - half, mean + half


def report(results: dict[str, list[int]], rates: dict[str, float], limit: int) -> None:
    """Steps with interval, and the ratio to AdamW's on the same seeds."""
    print(f"\n{'optimizer':<10} {'rate':>7} {'steps':>7}  95 % interval   x AdamW  95 % interval")
    base = results.get("AdamW")
    for arm, steps in results.items():
        mean, low, high = interval(steps)
        missed = sum(s > limit for s in steps)
        note = f"  {missed}/{len(steps)} did not reach it" if missed else ""
        ratio = ""
        if base is not None and arm != "AdamW":
            logs = [math.log(a / b) for a, b in zip(steps, base, strict=True)]
            middle, least, most = (math.exp(x) for x in interval(logs))
            ratio = f"{middle:8.2f}  {least:.2f} to {most:.2f}"
        print(f"{arm:<10} {rates[arm]:>7g} {mean:>7.0f}  {low:5.0f} to {high:<5.0f} {ratio}{note}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=float, default=0.15, help="held-out cross-entropy")
    parser.add_argument("--steps", type=int, default=400, help="most updates of a run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--short", action="store_true", help="two rates, two seeds, loss 2.0")
    options = parser.parse_args()
    rates: Sequence[float] = RATES
    if options.short:
        options.target, options.steps, options.seeds, rates = 2.0, 60, 2, (1e-3, 3e-3)
    task = Task(data=Digits(), target=options.target, steps=options.steps)
    print(
        f"steps to a held-out loss of {task.target:g}, at most {task.steps}; rates tuned on 2 seeds"
    )
    best = {arm: tuned_rate(task, arm, rates, range(1000, 1002)) for arm in options.arms}
    results = {
        arm: [steps_to_loss(task, ARMS[arm](lr), seed) for seed in range(options.seeds)]
        for arm, lr in best.items()
    }
    report(results, best, task.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
