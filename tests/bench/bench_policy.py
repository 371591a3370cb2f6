"""Time the embedded policies: training steps, image encoding, one action chunk.

    OMP_NUM_THREADS=1 python tests/bench/bench_policy.py --threads 1
    python tests/bench/bench_policy.py --threads 2
    python tests/bench/bench_policy.py --flow --repeats 3

Wall time is the fastest of the repeats, so that other work on the machine counts as little as it
can; CPU time (also the fastest) is printed beside it and is the figure to trust on a busy machine
at one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature

from policies import VLAAdapterConfig, VLAAdapterPolicy, VLAFlowConfig, VLAFlowPolicy

TASKS = (
    "pick up the alphabet soup and place it in the basket",
    "pick up the bbq sauce and place it in the basket",
)
KEYS = ("observation.images.image", "observation.images.image2")


def features() -> dict[str, Any]:
    """Two views of 128 x 128 pixels, LIBERO's state and action."""
    image = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 128, 128))
    state = PolicyFeature(type=FeatureType.STATE, shape=(8,))
    return {
        "input_features": {**dict.fromkeys(KEYS, image), "observation.state": state},
        "output_features": {"action": PolicyFeature(type=FeatureType.ACTION, shape=(7,))},
    }


def build(**changes: Any) -> VLAAdapterPolicy:
    """The default policy, with ``changes``."""
    return VLAAdapterPolicy(VLAAdapterConfig(device="cpu", **features(), **changes))


def build_flow(**changes: Any) -> VLAFlowPolicy:
    """The default flow-matching policy, with ``changes``."""
    return VLAFlowPolicy(VLAFlowConfig(device="cpu", **features(), **changes))


def samples(size: int, *, features: bool) -> dict[str, Any]:
    """A random batch, with cached features or with images."""
    images = {key: torch.rand(size, 3, 128, 128) for key in KEYS}
    vision = {"observation.features": torch.randn(size, 2, 64, 112).half()} if features else images
    return {
        **vision,
        "observation.state": torch.randn(size, 8),
        "task": [TASKS[i % 2] for i in range(size)],
        "action": torch.rand(size, 8, 7) * 2 - 1,
    }


def fastest(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Wall and CPU milliseconds of the fastest of ``repeats`` calls, after one to warm up."""
    call()
    wall, cpu = [], []
    for _ in range(repeats):
        started, used = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    return 1e3 * min(wall), 1e3 * min(cpu)


def training_step(
    policy: VLAAdapterPolicy | VLAFlowPolicy, batch: dict[str, Any]
) -> Callable[[], None]:
    """Forward and backward pass; the optimizer is not part of it."""

    def step() -> None:
        policy.zero_grad(set_to_none=True)
        policy(batch)[0].backward()

    return step


def measure(repeats: int) -> list[tuple[str, float, float]]:
    """Rows of name, wall ms, CPU ms."""
    default, compact = build(), build(backbone="compact")
    default.prepare(TASKS)
    one, many = samples(1, features=False), torch.rand(16, 2, 3, 128, 128)
    cached = samples(32, features=True)
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "training step, batch 32, cached features": (training_step(default, cached), repeats),
        "training step, batch 32, compact backbone from images": (
            training_step(compact, samples(32, features=False)),
            max(2, repeats // 3),
        ),
        "encode 32 images": (lambda: default.encode_images(many), repeats),
        "encode the 2 images of one frame": (lambda: default.encode_images(many[:1]), repeats),
        "action chunk from raw images, batch 1": (
            lambda: default.predict_action_chunk(one),
            repeats,
        ),
    }
    return [(name, *fastest(call, times)) for name, (call, times) in calls.items()]


def measure_knobs(repeats: int) -> list[tuple[str, float, float]]:
    """A training step with cheaper tokens; taken in turns, so that all see the same load."""
    knobs: dict[str, dict[str, Any]] = {
        "default": {},
        "mlp_ratio=2": {"mlp_ratio": 2.0},
        "view_pooling=[2,2]": {"view_pooling": [2, 2]},
        "both": {"mlp_ratio": 2.0, "view_pooling": [2, 2]},
    }
    batch = samples(32, features=True)
    steps = {name: training_step(build(**changes), batch) for name, changes in knobs.items()}
    best = dict.fromkeys(steps, (float("inf"), float("inf")))
    for _ in range(repeats):
        for name, step in steps.items():
            found = fastest(step, 1)
            best[name] = (min(best[name][0], found[0]), min(best[name][1], found[1]))
    return [(f"training step, {name}", *times) for name, times in best.items()]


def measure_flow(repeats: int) -> list[tuple[str, float, float]]:
    """The l1 head and the flow head on the same cached features: a step, and one answer."""
    batch, one = samples(32, features=True), samples(1, features=True)
    l1, flow = build(), build_flow()
    heun = build_flow(solver="heun", inference_steps=5)
    for policy in (l1, flow):
        policy.prepare(TASKS)
    calls: dict[str, Callable[[], object]] = {
        "training step, batch 32, vla_adapter": training_step(l1, batch),
        "training step, batch 32, vla_flow": training_step(flow, batch),
        "action chunk from features, vla_adapter": lambda: l1.predict_action_chunk(one),
        "action chunk from features, vla_flow, 10 Euler steps": (
            lambda: flow.predict_action_chunk(one)
        ),
        "action chunk from features, vla_flow, 5 Heun steps": (
            lambda: heun.predict_action_chunk(one)
        ),
    }
    return [(name, *fastest(call, repeats)) for name, call in calls.items()]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--knobs", action="store_true", help="compare cheaper token settings")
    parser.add_argument("--flow", action="store_true", help="compare the two action heads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {arguments.threads} thread(s)")
    print(f"{'what':58}{'wall ms':>10}{'CPU ms':>10}")
    rows = measure_knobs if arguments.knobs else measure_flow if arguments.flow else measure
    for name, wall, cpu in rows(arguments.repeats):
        print(f"{name:58}{wall:10.1f}{cpu:10.1f}")


if __name__ == "__main__":
    main()
