"""What ``vla-opt train --dry-run`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla_opt._dry_run import DryRun
    from vla_opt.config import TrainConfig

FLAG = "--dry-run"


def without_flag(argv: Sequence[str]) -> list[str]:
    """The arguments without the flag."""
    return [word for word in argv if word != FLAG]


def report(config: TrainConfig) -> str:
    """Model, parameters per part, routing, memory, steps and cost, as text."""
    from vla_opt._dry_run import dry_run

    found = dry_run(config)
    return "\n\n".join(
        [
            _opening(config, found),
            _table(found),
            found.routing,
            _memory(config, found),
            _cost(config, found),
        ]
    )


def _opening(config: TrainConfig, found: DryRun) -> str:
    from vla_opt._dry_run import pretrained_sources

    sources = pretrained_sources(config.policy)
    reads = f"\nA real run reads {', '.join(sources)}." if sources else ""
    return (
        f"Dry run: {found.policy.name} with {config.optimizer.name}, nothing is loaded or trained."
        f"\nFeatures {found.features}.{reads}"
    )


def _table(found: DryRun) -> str:
    counts = found.parts.values()
    total = (sum(count for count, _ in counts), sum(trained for _, trained in counts))
    rows = {**found.parts, "in all": total}
    width = max(map(len, rows))
    lines = [f"{'part':{width}}  {'parameters':>15}  {'trained':>15}"]
    lines += [f"{name:{width}}  {n:15,}  {trained:15,}" for name, (n, trained) in rows.items()]
    return "\n".join(lines)


def _memory(config: TrainConfig, found: DryRun) -> str:
    held = found.weights + found.moments
    # Gradients of earlier batches are there when a later one comes.
    held += found.gradients if config.gradient_accumulation > 1 else 0
    parts = (
        f"weights {_bytes(found.weights)}, gradients {_bytes(found.gradients)}, optimizer "
        f"{_bytes(found.moments)}"
    )
    if config.sharding == "fsdp2":
        parts += " (these three are divided by the number of processes)"
    if found.working is None:
        total = found.weights + found.gradients + found.moments
        return (
            f"memory per process: {_bytes(total)} = {parts}; activations come on top and are not "
            f"estimated: {found.working_unknown}"
        )
    return (
        f"memory per process: about {_bytes(held + found.working)} at its most: {parts}; forward "
        f"and backward of a batch of {config.batch_size} {_bytes(found.working)}, gradients as "
        "they come included"
    )


def _cost(config: TrainConfig, found: DryRun) -> str:
    per_step = config.batch_size * config.gradient_accumulation
    passes = f" = {found.samples / found.frames:.1f} passes over its frames" if found.frames else ""
    trained = sum(count for _, count in found.parts.values())
    # Forward and backward take about 6 operations per parameter and token (arXiv 2001.08361).
    tokens = found.spectral_flops / (6 * trained) if trained else 0
    saved = 1 + (config.steps - 1) // config.save_every if config.save_every else 1
    kept = min(saved, config.keep_last) if config.keep_last else saved
    return (
        f"steps: {config.steps:,} of {per_step} samples per process, {found.samples:,} samples in "
        f"all{passes} (times the number of processes)\n"
        f"cost: {found.spectral_flops / 1e12:.4g} TFLOP per step for Muon's and Pion's spectral "
        f"maps, as much as forward and backward of {tokens:,.0f} tokens; {kept} checkpoints of "
        f"{_bytes(found.checkpoint)} on disk"
    )


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"
