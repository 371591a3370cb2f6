"""Loss shared by the policies that regress a chunk, whatever predicts it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from policies._chunk_policy import ChunkPolicy, reduce_steps


class L1Policy(ChunkPolicy):
    """L1 regression of the chunk; a subclass predicts it."""

    name = "l1_policy"

    def mean_chunk(self, batch: Mapping[str, Any]) -> Tensor:
        """Predicted chunk (B, chunk, A), differentiable: the centre of a policy that explores."""
        return self._predict(batch)

    def forward(
        self, batch: Mapping[str, Any], reduction: str = "mean"
    ) -> tuple[Tensor, dict[str, float]]:
        """L1 loss of the predicted chunk; padded actions do not count.

        Args:
            batch: see the class.
            reduction: "mean" over all real actions, or "none" for one loss per sample, (B,).

        Returns:
            the loss, and figures for the log.

        Raises:
            ValueError: a key is missing or has the wrong shape.
        """
        error = (self._predict(batch) - self._target(batch)).abs()
        loss = reduce_steps(error.mean(-1), self._real_steps(batch, error), reduction)
        return loss, {"l1_loss": loss.detach().mean().item()}
