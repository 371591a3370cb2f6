"""Subspaces: in which directions the weights are moved, and what coordinates a direction has.

A subspace hands out one block per parameter and step. The estimate, the inner rule and the map all
work in a block's coordinates; `lift` turns coordinates into a displacement of the weight.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from vla_opt.zeroth_order._blocks import Block, CoordinateBlock, DirectBlock, ProjectedBlock
from vla_opt.zeroth_order._seeds import BASIS, ORDER, QUERY, generator, mix, wide
from vla_opt.zeroth_order._sites import Site, as_matrix

type Order = Literal["cyclic", "shuffled"]


class Subspace(Protocol):
    """Which directions a step may move in."""

    random: bool
    """Whether seeds are those of Gaussian directions, whose estimates are averaged."""

    def epoch(self, step: int) -> int:
        """Number that changes when the subspace does."""

    def seeds(self, sites: Sequence[Site], step: int, count: int) -> list[int]:
        """Seeds of the directions of a step."""

    def block(self, site: Site, step: int) -> Block:
        """The directions of one parameter."""

    def carry(self, site: Site, step: int, name: str, buffer: Tensor) -> Tensor:
        """A rule's buffer in the coordinates of `step`, given in those of the step before."""


class Full:
    """All directions."""

    random = True

    def epoch(self, step: int) -> int:
        """Always the same."""
        return 0

    def seeds(self, sites: Sequence[Site], step: int, count: int) -> list[int]:
        """New ones at every step."""
        return _gaussian_seeds(sites, step, count)

    def block(self, site: Site, step: int) -> Block:
        """The whole parameter."""
        target = as_matrix(site.weight)
        return DirectBlock(site=site, target=target, visits=step + 1)

    def carry(self, site: Site, step: int, name: str, buffer: Tensor) -> Tensor:
        """Nothing changes."""
        return buffer


class LeftQR(Full):
    """For a matrix (m, n): P Psi with P (m, r) orthonormal, Psi (r, n) Gaussian.

    P is the Q factor of a Gaussian matrix, with the signs of R's diagonal so that it is uniform
    (Haar), as in ZO-Muon (arXiv 2602.17155). It is drawn again, from its own seed, every `every`
    steps. Vectors, and matrices with m <= r, use all directions.

    Args:
        rank: r.
        every: steps between draws.
        side: "rows" puts P on the rows, as in the paper; "shorter" on the shorter side, which
            spares a large QR and memory for embedding tables.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(
        self, rank: int, every: int = 100, side: Literal["rows", "shorter"] = "rows"
    ) -> None:
        for name, value in (("rank", rank), ("every", every)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if side not in ("rows", "shorter"):
            raise ValueError(f"side is {side!r}; choose rows or shorter")
        self.rank, self.every, self.side = rank, every, side
        self._bases: dict[int, tuple[int, Tensor]] = {}

    def epoch(self, step: int) -> int:
        """Number of the draw."""
        return step // self.every

    def block(self, site: Site, step: int) -> Block:
        """The projected parameter, or all of it where it is too small."""
        target = self._target(site)
        if not self._projects(target):
            return DirectBlock(site=site, target=target, visits=step + 1)
        basis = self.basis(site, self.epoch(step))
        return ProjectedBlock(site=site, target=target, basis=basis, visits=step + 1)

    def carry(self, site: Site, step: int, name: str, buffer: Tensor) -> Tensor:
        """Project means onto the new basis; second moments become their mean over the rows.

        The latter is what a random rotation of the coordinates makes of them on average.
        """
        now, before = self.epoch(step), self.epoch(step - 1)
        if now == before or not self._projects(self._target(site)):
            return buffer
        if name == "square":
            return buffer.mean(dim=0, keepdim=True).expand_as(buffer).contiguous()
        old = self.basis(site, before).to(buffer.dtype)
        carried: Tensor = self.basis(site, now).to(buffer.dtype).mT @ (old @ buffer)
        return carried

    def basis(self, site: Site, epoch: int) -> Tensor:
        """P (m, r) of a parameter, in its dtype; kept until the next draw."""
        kept = self._bases.get(site.index)
        if kept is None or kept[0] != epoch:
            kept = epoch, self._draw(site, epoch)
            self._bases[site.index] = kept
        return kept[1]

    def _draw(self, site: Site, epoch: int) -> Tensor:
        rows, weight = len(self._target(site)), site.weight
        source = generator(site.seed, BASIS, epoch, site.index, device=site.noise_device)
        gauss = torch.randn(
            rows, self.rank, generator=source, dtype=wide(weight.dtype), device=site.noise_device
        )
        q, r = torch.linalg.qr(gauss.to(weight.device))
        uniform: Tensor = (q * r.diagonal().sign()).to(weight.dtype)
        return uniform

    def _target(self, site: Site) -> Tensor:
        target = as_matrix(site.weight)
        turn = self.side == "shorter" and target.ndim == 2 and target.shape[0] > target.shape[1]
        return target.mT if turn else target

    def _projects(self, target: Tensor) -> bool:
        return target.ndim == 2 and len(target) > self.rank


class LoraAtoms:
    """One atom b_i a_i^T of each LoRA pair per step, as in AR1-ZO (arXiv 2605.19767).

    The update B A of rank r is the sum of r atoms: column i of B times row i of A. Only the atom of
    the step is moved. Each parameter group says along which axis its atoms lie: `atom_axis` 0 for
    A (r, d_in), 1 for B (d_out, r).

    Args:
        order: "cyclic", or "shuffled": each sweep over all atoms in another order.
    """

    random = True

    def __init__(self, order: Order = "cyclic") -> None:
        if order not in ("cyclic", "shuffled"):
            raise ValueError(f"order is {order!r}; choose cyclic or shuffled")
        self.order = order

    def epoch(self, step: int) -> int:
        """Another atom at every step."""
        return step

    def seeds(self, sites: Sequence[Site], step: int, count: int) -> list[int]:
        """New ones at every step."""
        return _gaussian_seeds(sites, step, count)

    def block(self, site: Site, step: int) -> Block:
        """The active row of A or column of B.

        Raises:
            ValueError: the parameter's group has no `atom_axis`, or it is no matrix.
        """
        axis = site.group.get("atom_axis")
        if axis not in (0, 1) or site.weight.ndim != 2:
            raise ValueError(
                f"a parameter of shape {tuple(site.weight.shape)} with atom_axis {axis!r} is "
                "neither A (r, d_in) with 0 nor B (d_out, r) with 1; give each group its atom_axis"
            )
        rank = site.weight.shape[axis]
        return DirectBlock(
            site=site,
            target=site.weight.select(axis, self.atom(site.seed, step, rank)),
            visits=step // rank + 1,
            select=(axis, self.atom(site.seed, step, rank)),
        )

    def atom(self, seed: int, step: int, rank: int) -> int:
        """Number of the active atom."""
        if self.order == "cyclic":
            return step % rank
        source = generator(seed, ORDER, step // rank)
        return int(torch.randperm(rank, generator=source)[step % rank])

    def carry(self, site: Site, step: int, name: str, buffer: Tensor) -> Tensor:
        """Each atom has its own entries in the buffer."""
        return buffer


class Coordinates:
    """Single entries of the weights, one per query (coordinate-wise estimation, as in DeepZero).

    A sweep visits every entry of every parameter once, in an order that is drawn anew for each
    sweep. With as many directions as entries, a step measures the whole gradient; with fewer it is
    random block-coordinate descent. Worth its queries only for small parameters.
    """

    random = False

    def __init__(self) -> None:
        self._sweep: tuple[int, Tensor] | None = None

    def epoch(self, step: int) -> int:
        """Always the same."""
        return 0

    def seeds(self, sites: Sequence[Site], step: int, count: int) -> list[int]:
        """Positions of the entries to visit, counted over all parameters; none twice."""
        total = sites[-1].offset + sites[-1].weight.numel()
        visits = range(step * count, step * count + min(count, total))
        positions = [self._position(sites[0].seed, visit, total) for visit in visits]
        return list(dict.fromkeys(positions))

    def block(self, site: Site, step: int) -> Block:
        """The whole parameter."""
        return CoordinateBlock(site=site, target=as_matrix(site.weight), visits=step + 1)

    def carry(self, site: Site, step: int, name: str, buffer: Tensor) -> Tensor:
        """Nothing changes."""
        return buffer

    def _position(self, seed: int, visit: int, total: int) -> int:
        sweep, place = divmod(visit, total)
        if self._sweep is None or self._sweep[0] != sweep:
            source = generator(seed, ORDER, sweep)
            self._sweep = sweep, torch.randperm(total, generator=source)
        return int(self._sweep[1][place])


def _gaussian_seeds(sites: Sequence[Site], step: int, count: int) -> list[int]:
    return [mix(sites[0].seed, QUERY, step, j) for j in range(count)]
