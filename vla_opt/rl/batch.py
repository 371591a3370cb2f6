"""Episodes as tensors: rows of decisions, and the tokens made of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_opt.rl.actors import Actor
from vla_opt.rl.trajectories import Trajectory
from vla_opt.seeding import derive_seed


@dataclass(frozen=True, kw_only=True)
class Rows:
    """R decisions, episode after episode.

    Attributes:
        inputs: name -> (R, ...).
        tasks: R instructions.
        latents: (R, ...).
        behaviour: (R, U) log-probabilities noted while acting.
        real: (R, U) bool.
        episode: (R,) position of the episode each belongs to.
        episodes: number of episodes.
    """

    inputs: dict[str, Tensor]
    tasks: list[str]
    latents: Tensor
    behaviour: Tensor
    real: Tensor
    episode: Tensor
    episodes: int

    def pick(self, rows: Tensor) -> tuple[dict[str, Any], Tensor]:
        """Return what an actor takes for some of the rows: a batch, and latents."""
        batch: dict[str, Any] = {name: value[rows] for name, value in self.inputs.items()}
        batch["task"] = [self.tasks[i] for i in rows.tolist()]
        return batch, self.latents[rows]


def build_rows(
    trajectories: Sequence[Trajectory], actor: Actor, *, decisions: int = 0, seed: int = 0
) -> Rows:
    """Put episodes one after the other.

    Args:
        trajectories: at least one.
        actor: says which parts count, and on which device.
        decisions: keep so many of each, drawn at random, in order; 0 = all.
        seed: of that draw.
    """
    kept = [_kept(t, decisions, seed) for t in trajectories]
    device = next(actor.parameters()).device

    def join(arrays: list[Any]) -> Tensor:
        joined = np.concatenate([a[k] for a, k in zip(arrays, kept, strict=True)])
        return torch.from_numpy(joined).to(device)

    counts = torch.tensor([len(k) for k in kept])
    return Rows(
        inputs={
            name: join([t.inputs[name] for t in trajectories]) for name in trajectories[0].inputs
        },
        tasks=[t.task for t, k in zip(trajectories, kept, strict=True) for _ in k],
        latents=join([t.latents for t in trajectories]),
        behaviour=join([t.log_prob for t in trajectories]),
        real=actor.real(join([t.executed for t in trajectories])),
        episode=torch.repeat_interleave(torch.arange(len(trajectories)), counts).to(device),
        episodes=len(trajectories),
    )


def to_tokens(values: Tensor, real: Tensor, episode: Tensor, level: str) -> tuple[Tensor, Tensor]:
    """Arrange numbers of decisions as padded sequences.

    Args:
        values: (R, U), per part of a decision.
        real: (R, U) bool.
        episode: (R,) ascending positions 0..S-1.
        level: "part": every part is a token; "chunk": those of a decision are added up.

    Returns:
        (S, T), differentiable, and a mask (S, T), True for real tokens.
    """
    if level == "chunk":
        values, real = (values * real).sum(1, keepdim=True), real.any(1, keepdim=True)
    units = values.shape[1]
    counts = torch.bincount(episode)
    first = torch.cumsum(counts, 0) - counts
    place = torch.arange(len(episode), device=episode.device) - first[episode]
    shape = (len(counts), int(counts.max()), units)
    padded = values.new_zeros(shape).index_put((episode, place), values)
    mask = real.new_zeros(shape).index_put((episode, place), real)
    return padded.flatten(1), mask.flatten(1)


def in_slices(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Cut row numbers into pieces of at most `size`."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


@torch.no_grad()
def log_probs(actor: Actor, rows: Rows, max_rows: int) -> Tensor:
    """Return (R, U) of the present weights, no gradient."""
    every = torch.arange(len(rows.tasks), device=rows.episode.device)
    parts = [actor.log_prob(*rows.pick(piece)) for piece in in_slices(every, max_rows)]
    return torch.cat(parts)


def select(rows: Rows, chosen: Tensor) -> tuple[Rows, Tensor]:
    """Return the rows of some episodes, numbered anew in the order given, and where they were."""
    picked = [(rows.episode == int(e)).nonzero().flatten() for e in chosen]
    index = torch.cat(picked)
    counts = torch.tensor([len(p) for p in picked])
    found = Rows(
        inputs={name: value[index] for name, value in rows.inputs.items()},
        tasks=[rows.tasks[i] for i in index.tolist()],
        latents=rows.latents[index],
        behaviour=rows.behaviour[index],
        real=rows.real[index],
        episode=torch.repeat_interleave(torch.arange(len(picked)), counts).to(index.device),
        episodes=len(picked),
    )
    return found, index


def _kept(trajectory: Trajectory, decisions: int, seed: int) -> Any:
    count = trajectory.decisions
    if not decisions or decisions >= count:
        return np.arange(count)
    source = np.random.default_rng(derive_seed(seed, "decisions", str(trajectory.key)))
    return np.sort(source.choice(count, decisions, replace=False))
