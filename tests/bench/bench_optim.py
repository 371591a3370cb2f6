"""Time a step of the matrix optimizers against others' on the shapes of real policies.

    pip install --no-deps --target peers heavyball pytorch-optimizer    # neither is a dependency
    OMP_NUM_THREADS=1 python tests/bench/bench_optim.py --peers peers
    python tests/bench/bench_optim.py --layers 1 --scale 2 --lists vla_adapter_pro qwen3_heads

Every optimizer makes five Newton-Schulz steps on the same gradients, in turns in one process. Times
are process CPU seconds, the least of the repeats, at one thread: on a busy machine wall time counts
other people's work; `--wall --threads 2` is for a quiet one with two cores. (A first step counts
where it takes above 3 s: creating the state is nothing beside that.) `floor` is the arithmetic of
the cheaper of the two textbook forms, 20 m^2 n + 10 m^3 or 4 m^2 n + 34 m^3 operations, at the
fastest rate of matrix products measured between the same repeats. Products of commuting symmetric
matrices need half their blocks, so a step may come out below it. `extra` is the peak of what a step
allocates beside what was there before.

Peers without heads get one parameter per head, as their users have to give them. Each peer is timed
as it comes, in 16 bits, and once more with its own code in float32 ("fp32"): most CPUs emulate 16
bits, and none of the three has an option for it, so that its rounding to 16 bits is replaced here.
heavyball compiles its functions by default, which takes minutes on a CPU; here they run as written
unless --compile is given. Pion is timed twice: on gradients of which some directions pass, and on
noise, of which none do and which it can drop early. The memory of peers is measured with their
matrix products left out, results allocated: that is quick, and memory does not depend on numbers.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from contenders import LISTS, Contender, Matrix, contenders, parameters_of
from torch.utils._python_dispatch import TorchDispatchMode

from vla_opt.io import atomic_write_json, atomic_write_text
from vla_opt.provenance import package_versions, run_metadata

type Clock = Callable[[], float]

SLOW = 3.0  # seconds of a first step beside which creating the state does not count


def floor_operations(matrices: Sequence[Matrix], layers: int) -> float:
    """Floating-point operations of the cheaper textbook form, heads on their own."""
    total = 0.0
    for matrix in matrices:
        sides = (matrix.rows // matrix.heads, matrix.columns)
        m, n = min(sides), max(sides)
        each = min(20 * m * m * n + 10 * m**3, 4 * m * m * n + 34 * m**3)
        total += each * matrix.heads * matrix.count * layers
    return total


def product_rate(matrices: Sequence[Matrix], clock: Clock) -> float:
    """Operations per second of the fastest product that these matrices need."""
    best = 0.0
    for matrix in matrices:
        sides = (matrix.rows // matrix.heads, matrix.columns)
        m, n = min(sides), max(sides)
        count = max(1, int(2e9 / (2 * m * m * n)))
        X = torch.randn(min(count, 64), m, n)
        for A, B in ((X, X.mT), (X[:, :, :m], X)):
            torch.bmm(A, B)
            used = timed(functools.partial(torch.bmm, A, B), clock)
            best = max(best, 2 * X.shape[0] * m * A.shape[2] * B.shape[2] / used)
    return best


def timed(step: Callable[[], object], clock: Clock) -> float:
    """Seconds of one call."""
    started = clock()
    step()
    return clock() - started


def peak_bytes(step: Callable[[], object]) -> float:
    """Most bytes that one call holds at a time beyond what was there before."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    now = peak = 0
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


class WithoutProducts(TorchDispatchMode):
    """Matrix products within are allocated and not computed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket not in PRODUCTS:
            return func(*args, **kwargs)
        if "out" in kwargs:
            return kwargs["out"].zero_()
        A, B = args[-2:]
        return A.new_zeros(*A.shape[:-1], B.shape[-1])


_ATEN = torch.ops.aten
PRODUCTS = (_ATEN.mm, _ATEN.bmm, _ATEN.addmm, _ATEN.baddbmm)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line says."""

    layers: int
    scale: int
    count: int
    repeats: int
    peers: bool
    memory: bool
    patience: float
    only: tuple[str, ...]
    without: tuple[str, ...]
    clock: Clock


@dataclass(frozen=True, kw_only=True)
class Found:
    """Of one contender on one list.

    Attributes:
        seconds: of its fastest step.
        steps: that were timed.
        extra_bytes: most that a step holds beyond what was there before; NaN if not measured.
    """

    seconds: float
    steps: int
    extra_bytes: float


class Entry:
    """A contender with its parameters and what was found."""

    def __init__(self, contender: Contender, matrices: Sequence[Matrix], layers: int) -> None:
        self.contender = contender
        self.weights, self.gradients = parameters_of(
            matrices, layers, heads=contender.heads, noise=contender.noise
        )
        self.optimizer = contender.make(self.weights)
        self.best, self.spent, self.steps, self.extra = math.inf, 0.0, 0, math.nan

    def time(self, clock: Clock, *, warm_up: bool) -> None:
        """One step; that which creates the state counts only where that is nothing beside it."""
        seconds = self._step(functools.partial(timed, clock=clock))
        self.spent += seconds
        if not warm_up or seconds > SLOW:
            self.best, self.steps = min(self.best, seconds), self.steps + 1

    def measure_memory(self) -> None:
        """One step more, without its products unless it is one of ours."""
        with WithoutProducts() if self.contender.peer else nullcontext():
            self.extra = self._step(peak_bytes)

    def _step(self, how: Callable[[Callable[[], object]], float]) -> float:
        for weight, gradient in zip(self.weights, self.gradients, strict=True):
            weight.grad = gradient.clone()  # one peer writes to it
        with self.contender.around():
            return how(self.optimizer.step)


def measure(
    matrices: Sequence[Matrix], layers: int, settings: Settings
) -> tuple[dict[str, Found], float]:
    """What was found by name, and the fastest rate of products."""
    wanted = ("vla_opt Muon", *settings.only) if settings.only else ("",)
    entries = [
        Entry(contender, matrices, layers)
        for contender in contenders(matrices, settings.peers)
        if any(word in contender.name for word in wanted)
        and not any(word in contender.name for word in settings.without)
    ]
    rate = product_rate(matrices, settings.clock)
    for turn in range(settings.repeats + 1):
        for entry in entries:
            if entry.spent <= settings.patience:
                print(f"  turn {turn}: {entry.contender.name}", file=sys.stderr, flush=True)
                entry.time(settings.clock, warm_up=turn == 0)
                rate = max(rate, product_rate(matrices, settings.clock))
    for entry in entries if settings.memory else ():
        entry.measure_memory()
    found = {
        entry.contender.name: Found(seconds=entry.best, steps=entry.steps, extra_bytes=entry.extra)
        for entry in entries
    }
    return found, rate


def report(name: str, settings: Settings) -> dict[str, Any]:
    """Measure one list, print its table and return its figures."""
    shapes = LISTS[name]
    layers = min(settings.layers or shapes.depth, shapes.depth)
    matrices = [matrix.reduced(settings.scale, settings.count) for matrix in shapes.layer]
    sizes = ", ".join(
        f"{m.count} x {m.rows}x{m.columns}" + (f" in {m.heads} heads" if m.heads > 1 else "")
        for m in matrices
    )
    print(f"\n{name}: {layers} of {shapes.depth} layers, each {sizes}")
    found, rate = measure(matrices, layers, settings)
    floor = floor_operations(matrices, layers) / rate
    ours = found["vla_opt Muon"].seconds
    print(f"  products {rate / 1e9:.1f} GFLOP/s; floor {1e3 * floor:.0f} ms\n")
    print("| optimizer | ms | / floor | / vla_opt Muon | extra MB | steps |")
    print("|---|---|---|---|---|---|")
    for label, one in found.items():
        print(
            f"| {label} | {1e3 * one.seconds:.1f} | {one.seconds / floor:.2f} "
            f"| {one.seconds / ours:.2f} | {one.extra_bytes / 1e6:.1f} | {one.steps} |"
        )
    figures = {label: vars(one) for label, one in found.items()}
    return {"list": name, "sizes": sizes, "layers": layers, "floor_s": floor, "gflops": rate / 1e9,
            "found": figures}  # fmt: skip


def main() -> None:
    """Print a table per list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lists", nargs="+", choices=LISTS, default=list(LISTS))
    parser.add_argument("--layers", type=int, default=0, help="layers of each list; 0 for all")
    parser.add_argument("--scale", type=int, default=1, help="divide all sides by this")
    parser.add_argument("--count", type=int, default=0, help="parameters per shape; 0 for all")
    parser.add_argument("--no-memory", action="store_true", help="one step less for each")
    parser.add_argument(
        "--patience", type=float, default=40.0, help="seconds after which one is not repeated"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="wall seconds, for a quiet machine")
    parser.add_argument("--only", nargs="+", default=[], help="parts of names to time; always ours")
    parser.add_argument("--without", nargs="+", default=[], help="parts of names not to time")
    parser.add_argument("--compile", action="store_true", help="let heavyball compile")
    parser.add_argument("--peers", help="folder that heavyball, pytorch-optimizer were put into")
    parser.add_argument("--out", type=Path, help="folder for figures.jsonl and metadata.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peers:
        sys.path.append(arguments.peers)
    metadata = run_metadata()
    metadata["versions"] |= package_versions(["heavyball", "pytorch-optimizer"])
    kind = "wall" if arguments.wall else "CPU"
    print(
        f"torch {torch.__version__}, {arguments.threads} thread(s), {kind} time, least of repeats"
    )
    settings = Settings(
        layers=arguments.layers,
        scale=arguments.scale,
        count=arguments.count,
        repeats=arguments.repeats,
        peers=bool(arguments.peers),
        memory=not arguments.no_memory,
        patience=arguments.patience,
        only=tuple(arguments.only),
        without=tuple(arguments.without),
        clock=time.perf_counter if arguments.wall else time.process_time,
    )
    rows = []
    for name in arguments.lists:
        rows.append(json.dumps(report(name, settings)))
        if arguments.out:  # after each, so that a run that is cut off leaves what it found
            arguments.out.mkdir(parents=True, exist_ok=True)
            atomic_write_text(arguments.out / "figures.jsonl", "\n".join(rows) + "\n")
            atomic_write_json(arguments.out / "metadata.json", metadata)


if __name__ == "__main__":
    main()
