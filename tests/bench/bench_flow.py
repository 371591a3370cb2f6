"""What the flow head should predict, and on how many noises: four random chunks learned by heart.

    python tests/bench/bench_flow.py [--updates 120]

Every setting begins with the same weights and makes the same number of AdamW updates on the same
four samples. Printed is the mean absolute error of the chunks that the policy answers with, of
actions in [-1, 1]; an answer of zeros has 0.5. It says how fast a target is learned, and nothing
about success in a simulation.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from bench_policy import build_flow
from torch import Tensor

SIZES: dict[str, Any] = {"width": 32, "num_layers": 2, "num_heads": 2, "mlp_ratio": 2.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "velocity, 1 noise": {"prediction": "velocity", "noise_draws": 1},
    "velocity, 4 noises": {"prediction": "velocity", "noise_draws": 4},
    "actions, 1 noise": {"prediction": "actions", "noise_draws": 1},
    "actions, 4 noises": {"prediction": "actions", "noise_draws": 4},
}
ANSWERS = (1, 10)  # Euler steps from noise to actions


def samples() -> dict[str, Any]:
    """Four observations as the cache gives them, with chunks of random actions."""
    rng = torch.Generator().manual_seed(1)
    return {
        "observation.features": torch.randn(4, 2, 64, 112, generator=rng).half(),
        "observation.state": torch.randn(4, 8, generator=rng),
        "task": ["pick up the soup", "pick up the sauce", "open the drawer", "pick up the soup"],
        "action": torch.rand(4, 8, 7, generator=rng) * 2 - 1,
    }


def errors(
    setting: dict[str, Any], batch: dict[str, Any], updates: int
) -> tuple[list[Tensor], float]:
    """Errors after learning, one per number of steps in `ANSWERS`, and the CPU seconds it took."""
    torch.manual_seed(0)
    policy = build_flow(frequency_weight=0.0, **SIZES, **setting)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3, weight_decay=0.0)
    start = time.process_time()
    for _ in range(updates):
        optimizer.zero_grad()
        policy(batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    seconds, found = time.process_time() - start, []
    for steps in ANSWERS:
        policy.config.inference_steps = steps
        chunk = policy.predict_action_chunk({**batch, "noise_seed": [1, 2, 3, 4]})
        found.append((chunk - batch["action"]).abs().mean())
    return found, seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=120)
    options = parser.parse_args()
    torch.set_num_threads(1)
    batch = samples()
    columns = "".join(f"{f'error, {n} steps':>18}" for n in ANSWERS)
    print(f"{f'{options.updates} updates':24}{columns}{'CPU s':>8}")
    for name, setting in SETTINGS.items():
        found, seconds = errors(setting, batch, options.updates)
        print(
            f"{name:24}" + "".join(f"{e.item():18.3f}" for e in found) + f"{seconds:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
