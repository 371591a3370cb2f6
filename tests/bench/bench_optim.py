"""Time a step of the matrix optimizers against others' on the shapes of real policies.

    pip install --no-deps --target peers heavyball pytorch-optimizer    # neither is a dependency
    OMP_NUM_THREADS=1 python tests/bench/bench_optim.py --peers peers
    python tests/bench/bench_optim.py --layers 1 --scale 2 --lists vla_adapter_pro qwen3_heads

Every optimizer makes five Newton-Schulz steps on the same gradients, in turns in one process. Times
are process CPU seconds, the least of the repeats, at one thread: on a busy machine wall time counts
other people's work. (A first step counts where it takes above 3 s: creating the state is nothing
beside that.) `floor` is the arithmetic of the cheaper of the two textbook forms, 20 m^2 n + 10 m^3
or 4 m^2 n + 34 m^3 operations, at the fastest rate of matrix products measured between the same
repeats. Products of commuting symmetric matrices need half their blocks, so a step may come out
below it. `extra` is the peak of what a step allocates beside what was there before.

Peers without heads get one parameter per head, as their users have to give them. heavyball compiles
its functions by default, which takes minutes on a CPU; here they run as written unless --compile is
given. Pion is timed twice: on gradients of which some directions pass, and on noise, of which none
do and which it can drop early.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vla_opt.optim import Muon, Pion
from vla_opt.spectral import NEWTON_SCHULZ

COMPILE = "--compile" in sys.argv
SLOW = 3.0  # CPU seconds of a first step beside which creating the state does not count


@dataclass(frozen=True)
class Matrix:
    """`count` parameters of one shape per layer, cut into heads of rows where given."""

    rows: int
    columns: int
    count: int = 1
    heads: int = 1

    def reduced(self, scale: int, count: int) -> Matrix:
        """Sides divided by `scale`, heads as many; at most `count` parameters unless 0."""
        number = min(self.count, count) if count else self.count
        return Matrix(self.rows // scale, self.columns // scale, number, self.heads)


@dataclass(frozen=True)
class ShapeList:
    """The matrices of one layer, of `depth`."""

    layer: tuple[Matrix, ...]
    depth: int


LISTS = {
    # Query, three keys and values, output, feed-forward; the unused FiLM generator has no gradient.
    "vla_adapter_pro": ShapeList((Matrix(896, 896, 9),), 24),
    "qwen25_05b": ShapeList(
        (Matrix(896, 896, 2), Matrix(128, 896, 2), Matrix(4864, 896, 2), Matrix(896, 4864)), 24
    ),
    "pi05_expert": ShapeList(
        (Matrix(2048, 1024), Matrix(256, 1024, 2), Matrix(1024, 2048), Matrix(4096, 1024, 2),
         Matrix(1024, 4096)), 18,
    ),
    "qwen3_heads": ShapeList((Matrix(2048, 2048, 1, 16), Matrix(1024, 2048, 2, 8)), 28),
    "small": ShapeList((Matrix(128, 128, 64), Matrix(128, 512, 64)), 1),
}  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """An optimizer, and whether it is given whole parameters or one per head."""

    name: str
    make: Callable[[list[nn.Parameter]], Any]
    heads: bool = False
    noise: bool = False


class Loop:
    """Muon one matrix after the other in float32: what one writes first."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.momenta = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Momentum, five quintics, weight decay and step."""
        for p, momentum in zip(self.parameters, self.momenta, strict=True):
            assert p.grad is not None
            momentum.lerp_(p.grad, 0.05)
            X = p.grad.lerp(momentum, 0.95)
            X = X.mT if X.shape[0] > X.shape[1] else X
            X = X / (X.norm() + 1e-7)
            for a, b, c in NEWTON_SCHULZ:
                A = X @ X.mT
                X = torch.addmm(X, torch.addmm(A, A, A, beta=b, alpha=c), X, beta=a)
            update = X.mT if p.shape[0] > p.shape[1] else X
            p.mul_(1 - 1e-5).add_(update, alpha=-1e-3 * 0.2 * math.sqrt(max(p.shape)))


def contenders(matrices: Sequence[Matrix], peers: bool) -> Iterator[Contender]:
    """Ours, torch's, the loop, and the peers that can be imported."""
    heads = max(matrix.heads for matrix in matrices) > 1
    size = next((m.rows // m.heads for m in matrices if m.heads > 1), None)
    cut: dict[str, Any] = {"head_size": size, "head_axis": 0} if heads else {}
    yield Contender("vla_opt Muon", lambda ps: Muon(ps, 1e-3, **cut), heads=True)
    yield Contender("vla_opt Pion", lambda ps: Pion(ps, 1e-3, **cut), heads=True)
    yield Contender("vla_opt Pion, noise", lambda ps: Pion(ps, 1e-3, **cut), True, True)
    yield Contender("loop in float32", Loop)
    yield Contender("torch.optim.Muon", lambda ps: torch.optim.Muon(ps, lr=1e-3))
    if peers:
        yield from imported("heavyball", "Muon", lr=1e-3)
        groups = {"use_muon": True}
        yield from imported("pytorch_optimizer", "Muon", lr=1e-3, group=groups)


def imported(
    module: str, name: str, *, lr: float, group: dict[str, Any] | None = None
) -> Iterator[Contender]:
    """A peer's optimizer; a line and nothing else if it cannot be imported."""
    try:
        package = importlib.import_module(module)
        make = getattr(package, name)
    except Exception as error:  # whatever a package does when it is imported
        print(f"  {module}.{name}: not timed ({type(error).__name__}: {error})")
        return

    if module == "heavyball" and not COMPILE:
        package.utils.compile_mode = None

    def build(parameters: list[nn.Parameter]) -> Any:
        return make([{"params": parameters, **group}] if group else parameters, lr=lr)

    yield Contender(f"{module}.{name}", build)


def parameters_of(
    matrices: Sequence[Matrix], layers: int, *, heads: bool, noise: bool
) -> tuple[list[nn.Parameter], list[Tensor]]:
    """Parameters and gradients; one parameter per head unless `heads`."""
    generator = torch.Generator().manual_seed(0)
    weights, gradients = [], []
    for matrix in [m for m in matrices for _ in range(m.count * layers)]:
        shape = (matrix.rows, matrix.columns)
        G = torch.randn(shape, generator=generator)
        if not noise:  # two directions that pass in each head
            G = G.div_(math.sqrt(max(shape)))
            for part in G.chunk(matrix.heads):
                U = torch.randn(part.shape[0], 2, generator=generator)
                part.addmm_(U, torch.randn(2, part.shape[1], generator=generator))
        parts = [G] if heads else G.chunk(matrix.heads)
        gradients += [part.clone() for part in parts]
        weights += [nn.Parameter(torch.zeros_like(part)) for part in parts]
    return weights, gradients


def floor_operations(matrices: Sequence[Matrix], layers: int) -> float:
    """Floating-point operations of the cheaper textbook form, heads on their own."""
    total = 0.0
    for matrix in matrices:
        sides = (matrix.rows // matrix.heads, matrix.columns)
        m, n = min(sides), max(sides)
        each = min(20 * m * m * n + 10 * m**3, 4 * m * m * n + 34 * m**3)
        total += each * matrix.heads * matrix.count * layers
    return total


def product_rate(matrices: Sequence[Matrix]) -> float:
    """Operations per CPU second of the fastest product that these matrices need."""
    best = 0.0
    for matrix in matrices:
        sides = (matrix.rows // matrix.heads, matrix.columns)
        m, n = min(sides), max(sides)
        count = max(1, int(2e9 / (2 * m * m * n)))
        X = torch.randn(min(count, 64), m, n)
        for A, B in ((X, X.mT), (X[:, :, :m], X)):
            torch.bmm(A, B)
            started = time.process_time()
            torch.bmm(A, B)
            used = time.process_time() - started
            best = max(best, 2 * X.shape[0] * m * A.shape[2] * B.shape[2] / used)
    return best


def timed(step: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    step()
    return time.process_time() - started


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


def measure(
    matrices: Sequence[Matrix], layers: int, settings: Settings
) -> tuple[dict[str, tuple[float, float]], float]:
    """Least CPU seconds and peak bytes by name; the fastest rate of products."""
    entries = []
    for contender in contenders(matrices, settings.peers):
        wanted = ("vla_opt Muon", *settings.only) if settings.only else ("",)
        if not any(word in contender.name for word in wanted):
            continue
        weights, gradients = parameters_of(
            matrices, layers, heads=contender.heads, noise=contender.noise
        )
        entries.append((contender.name, contender.make(weights), weights, gradients))
    best = {name: math.inf for name, *_ in entries}
    spent = dict.fromkeys(best, 0.0)
    rate = product_rate(matrices)
    for turn in range(settings.repeats + 1):
        for name, optimizer, weights, gradients in entries:
            if spent[name] > settings.patience:
                continue
            print(f"  turn {turn}: {name}", file=sys.stderr, flush=True)
            seconds = one_step(optimizer, weights, gradients, timed)
            spent[name] += seconds
            if turn or seconds > SLOW:  # the first creates the state and warms up
                best[name] = min(best[name], seconds)
            rate = max(rate, product_rate(matrices))
    memory = dict.fromkeys(best, math.nan)
    for name, optimizer, weights, gradients in entries if settings.memory else ():
        print(f"  memory: {name}, {1e3 * best[name]:.1f} ms", file=sys.stderr, flush=True)
        memory[name] = one_step(optimizer, weights, gradients, peak_bytes)
    return {name: (best[name], memory[name]) for name in best}, rate


def one_step(
    optimizer: Any,
    weights: Sequence[nn.Parameter],
    gradients: Sequence[Tensor],
    how: Callable[[Callable[[], object]], float],
) -> float:
    """What `how` finds about a step with these gradients."""
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.clone()  # one peer writes to it
    return how(optimizer.step)


def report(name: str, settings: Settings) -> None:
    """Measure one list and print its table."""
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
    ours = found["vla_opt Muon"][0]
    print(f"  products {rate / 1e9:.1f} GFLOP/s; floor {1e3 * floor:.0f} ms")
    print(f"  {'':22}{'CPU ms':>10}{'/ floor':>9}{'/ ours':>9}{'extra MB':>10}")
    for label, (seconds, extra) in found.items():
        print(
            f"  {label:22}{1e3 * seconds:10.1f}{seconds / floor:9.2f}{seconds / ours:9.2f}"
            f"{extra / 1e6:10.1f}"
        )
    peers = [s for label, (s, _) in found.items() if "." in label and math.isfinite(s)]
    if peers:
        print(f"  fastest peer / vla_opt Muon: {min(peers) / ours:.2f}")


def main() -> None:
    """Print a table per list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lists", nargs="+", choices=LISTS, default=list(LISTS))
    parser.add_argument("--layers", type=int, default=0, help="layers of each list; 0 for all")
    parser.add_argument("--scale", type=int, default=1, help="divide all sides by this")
    parser.add_argument("--count", type=int, default=0, help="parameters per shape; 0 for all")
    parser.add_argument("--no-memory", action="store_true", help="one step less for each")
    parser.add_argument(
        "--patience", type=float, default=40.0, help="CPU seconds after which one is not repeated"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], help="parts of names to time; always ours")
    parser.add_argument("--compile", action="store_true", help="let heavyball compile")
    parser.add_argument("--peers", help="folder that heavyball, pytorch-optimizer were put into")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peers:
        sys.path.append(arguments.peers)
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), CPU time, least of repeats")
    settings = Settings(
        layers=arguments.layers,
        scale=arguments.scale,
        count=arguments.count,
        repeats=arguments.repeats,
        peers=bool(arguments.peers),
        memory=not arguments.no_memory,
        patience=arguments.patience,
        only=tuple(arguments.only),
    )
    for name in arguments.lists:
        report(name, settings)


if __name__ == "__main__":
    main()
