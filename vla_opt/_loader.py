"""The order of training samples: a pure function of seed, step and rank."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_opt._chunks import Batch, ChunkDataset
from vla_opt.errors import DataError


def epoch_order(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of range(length) that depends on nothing but its arguments.

    It sorts the raw output of a counter-based generator, whose stream numpy keeps stable between
    versions (that of ``Generator.permutation`` may change).

    Example:
        >>> bool((epoch_order(5, seed=0, epoch=1) == epoch_order(5, seed=0, epoch=1)).all())
        True
        >>> sorted(epoch_order(5, seed=0, epoch=1).tolist())
        [0, 1, 2, 3, 4]
    """
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(length), kind="stable")


class ChunkLoader:
    """Endless batches of a `ChunkDataset`, the same after a restart as without one.

    Each epoch is a fresh permutation. One step takes the next `world_size` * `batch_size` samples
    of it and deals them to the ranks; what is left at the end of an epoch and does not fill a step
    is dropped, so that no sample occurs twice in an epoch, on whatever rank.

    Args:
        dataset: Where samples come from.
        batch_size: Samples per step and rank.
        seed: Chooses the order.
        rank: Which share this process takes.
        world_size: How many processes share a step.
        step: The first step to give.

    Raises:
        ValueError: `rank` is not in [0, world_size), or a size is less than 1.
        DataError: The data set does not fill one step.

    Example:
        ``for batch in loader: ...`` goes on for ever; ``loader.batch(step)`` and
        ``loader.indices(step)`` look anywhere without moving the cursor.
    """

    def __init__(
        self,
        dataset: ChunkDataset,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        step: int = 0,
    ) -> None:
        if batch_size < 1 or world_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                "expected batch_size >= 1 and 0 <= rank < world_size, got "
                f"batch_size={batch_size}, rank={rank}, world_size={world_size}"
            )
        if len(dataset) < batch_size * world_size:
            raise DataError(
                f"{len(dataset)} samples do not fill one step of {world_size} x {batch_size}: "
                "record more episodes, or lower the batch size or frame_stride."
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.step = step
        self.steps_per_epoch = len(dataset) // (batch_size * world_size)
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            batch = self.batch(self.step)
            self.step += 1
            yield batch

    def __next__(self) -> Batch:
        """The batch at the cursor; moves the cursor on."""
        return next(iter(self))

    def batch(self, step: int) -> Batch:
        """The batch of a step; see `ChunkDataset.collate`."""
        return self.dataset.collate(self.indices(step))

    def indices(self, step: int) -> NDArray[np.int64]:
        """Numbers of the samples that this rank takes in a step: (batch_size,)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(len(self.dataset), self.seed, epoch)
        start = (within * self.world_size + self.rank) * self.batch_size
        return self._order[start : start + self.batch_size]

    def state_dict(self) -> dict[str, Any]:
        """The cursor, and what the order depends on, as JSON-able values."""
        return {"step": self.step, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader stopped.

        Raises:
            DataError: That loader had another seed, another data set or other sizes, so that its
                order cannot be continued; names what differs.
        """
        mine = self._identity()
        differing = {k: (state.get(k), mine[k]) for k in mine if state.get(k) != mine[k]}
        if differing:
            told = ", ".join(f"{k} {was!r} -> {now!r}" for k, (was, now) in differing.items())
            raise DataError(
                f"cannot continue the order of samples, because these changed: {told}. "
                "Restore them, or start a new run."
            )
        self.step = int(state["step"])

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "samples": len(self.dataset),
            "data": self.dataset.cache.fingerprint,
        }
