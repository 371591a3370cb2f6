r"""What forward calls can gain on a policy, part by part: its gradient against its curvature.

    OMP_NUM_THREADS=1 python tests/bench/bench_zo_gain.py \
        --checkpoint runs/start/checkpoints/000200 --root runs/quickstart/demos \
        --cache runs/quickstart/cache --out runs/zo_gain

A two-point step along a Gaussian direction z with rate lr moves the weights by lr (g'z) z. To
second order the loss changes by -lr |g|^2 + lr^2 / 2 (|g|^2 tr H + 2 g'Hg) on average. The best
rate is about 1 / tr H where no direction dominates, a third of it where a single one does, and a
step gains at most |g|^2 / (2 tr H): the gradient against the curvature of all directions together,
however many there are. tr H is the mean second difference along random directions of length
epsilon; |g|^2 comes from a backward pass, which the methods themselves never make.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_opt._validation import held_out_loss
from vla_opt.cli._plugins import load_policies
from vla_opt.config import DataConfig
from vla_opt.io import atomic_write_json, atomic_write_text
from vla_opt.provenance import run_metadata
from vla_opt.zo_training.config import ZOTrainConfig
from vla_opt.zo_training.live_policy import LivePolicy
from vla_opt.zo_training.objectives import Supervised

PARTS = {
    "all": "",
    "action head": "action_head",
    "its last norm and layer": r"action_head\.(fc2|output_norm)\.",
    "its last layer": r"action_head\.fc2\.",
    "its last bias": r"action_head\.fc2\.bias",
    "its last block": r"action_head\.blocks\.3\.",
    "language model": "language_model",
    "projectors": "projector",
}


@torch.no_grad()
def curvature(
    loss: Callable[[], Tensor], weights: Sequence[Tensor], epsilon: float, directions: int
) -> Tensor:
    """Second differences of the loss along random directions, (directions,)."""
    source = torch.Generator().manual_seed(0)
    centre, found = float(loss()), []
    for _ in range(directions):
        zs = [torch.randn(w.shape, generator=source) for w in weights]
        losses = []
        for move in (epsilon, -2 * epsilon, epsilon):  # there, to the other side, and back
            for w, z in zip(weights, zs, strict=True):
                w.add_(z, alpha=move)
            losses.append(float(loss()) if len(losses) < 2 else centre)
        found.append((losses[0] + losses[1] - 2 * centre) / epsilon**2)
    return torch.tensor(found)


def report(model: nn.Module, loss: Callable[[], Tensor], arguments: Any) -> list[dict[str, Any]]:
    """Print a line per part and return it."""
    named = dict(model.named_parameters())
    for parameter in named.values():
        parameter.requires_grad_(True)
    gradients = torch.autograd.grad(loss(), list(named.values()), allow_unused=True)
    squares = {
        name: 0.0 if g is None else float(g.square().sum())
        for name, g in zip(named, gradients, strict=True)
    }
    rows = []
    print(f"{'part':26}{'weights':>10}{'|g|^2':>10}{'tr H':>10}{'gain per step':>15}{'1/tr H':>10}")
    for part, expression in PARTS.items():
        names = [name for name in named if re.search(expression, name)]
        signal = sum(squares[name] for name in names)
        found = curvature(loss, [named[n] for n in names], arguments.epsilon, arguments.directions)
        trace, error = float(found.mean()), float(found.std()) / len(found) ** 0.5
        count = sum(named[n].numel() for n in names)
        row = {"part": part, "weights": count, "gradient_squared": signal, "trace": trace}
        row |= {"trace_error": error, "gain": signal / 2 / trace, "rate": 1 / trace}
        rows.append(row)
        print(
            f"{part:26}{count:10,}{signal:10.3g}{trace:10.3g}{row['gain']:15.2g}{row['rate']:10.2g}",
            flush=True,
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="demonstrations")
    parser.add_argument("--cache", type=Path, help="their cache")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--epsilon", type=float, default=1e-3)
    parser.add_argument("--directions", type=int, default=6)
    parser.add_argument("--out", type=Path, help="folder for figures.jsonl and metadata.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load_policies([])
    data = DataConfig(root=arguments.root, cache_dir=arguments.cache, frame_stride=2, hold_out=8)
    config = ZOTrainConfig(checkpoint=arguments.checkpoint, data=data, batch_size=arguments.batch)
    live = LivePolicy(arguments.checkpoint / "pretrained_model", device="cpu", num_threads=1)
    held_out = held_out_loss(data, live.module, live.preprocessor, torch.device("cpu"), 32)
    print(f"loss on held-out demonstrations: {held_out:.4f}")
    loss: Any = Supervised(config, live, lambda what, done, total: None).closure(0)
    rows = [{"held_out_loss": held_out, **row} for row in report(live.module, loss, arguments)]
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        atomic_write_text(arguments.out / "figures.jsonl", text)
        atomic_write_json(arguments.out / "metadata.json", run_metadata())


if __name__ == "__main__":
    main()
