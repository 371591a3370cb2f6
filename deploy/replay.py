"""Recorded actions in place of a policy: an executor plays an episode of a data set again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deploy._chunk_check import ChunkRules, check_chunk
from deploy.errors import ContractMismatchError, DeployError
from deploy.fetcher import Answer, Failure, Request
from deploy.interfaces import Array
from deploy.metadata import ServerMetadata, check_fits
from deploy.spec_file import read_spec


class RecordedActions:
    """A `ChunkSource` whose only chunk is the whole episode.

    Args:
        actions: (length, dim).
    """

    def __init__(self, actions: Array) -> None:
        self._actions = actions
        self._ticket: int | None = None

    def submit(self, ticket: int, request: Request) -> bool:
        """See `ChunkSource`."""
        self._ticket = ticket
        return True

    def poll(self) -> Answer | Failure | None:
        """See `ChunkSource`."""
        if self._ticket is None:
            return None
        ticket, self._ticket = self._ticket, None
        return Answer(ticket=ticket, actions=self._actions, latency_s=0.0)

    def close(self) -> None:
        """See `ChunkSource`."""


def check_recording(
    root: Path, actions: Array, robot: ServerMetadata, *, stated: ServerMetadata, override: bool
) -> list[str]:
    """See that recorded actions mean on this robot what they meant when they were recorded.

    Args:
        root: Of the data set; its `meta` folder may say what its actions mean.
        actions: (length, dim).
        robot: What it does with an action.
        stated: By the operator, where the data set does not say it.
        override: See `check_fits`.

    Returns:
        Warnings.

    Raises:
        ContractMismatchError: They do not, or nobody says what they mean.
        ChunkError: They are not finite, too large, or too many or few numbers.
    """
    said = (read_spec(root / "meta") or ServerMetadata()).completed_by(stated)
    warnings = check_fits(said, robot, override=override)
    assert said.action_space is not None  # `check_fits` has seen to it
    dim = said.action_dim or robot.action_dim or actions.shape[1]
    rules = ChunkRules.for_space(
        said.action_space, action_dim=dim, least_steps=1, horizon=None, longest=len(actions)
    )
    check_chunk({"actions": actions}, rules)
    return warnings


def read_actions(root: Path, episode: int) -> tuple[Array, str]:
    """Return the actions of an episode of a LeRobotDataset v3, (length, dim), and its instruction.

    Raises:
        DeployError: There is no data set, or no such episode in it.
        ContractMismatchError: An action in it is not finite.
    """
    import pyarrow.parquet as pq

    files = sorted((root / "data").rglob("*.parquet"))
    if not files:
        raise DeployError(f"'{root}' holds no LeRobotDataset v3: no data/**/*.parquet.")
    columns = ["episode_index", "frame_index", "task_index", "action"]
    wanted = [("episode_index", "==", episode)]
    tables = [pq.read_table(file, columns=columns, filters=wanted) for file in files]
    rows = [row for table in tables for row in table.to_pylist()]
    if not rows:
        raise DeployError(f"'{root}' has no episode {episode}.")
    rows.sort(key=lambda row: row["frame_index"])
    actions = np.array([row["action"] for row in rows], dtype=np.float64)
    if not np.isfinite(actions).all():
        raise ContractMismatchError(
            f"Episode {episode} of '{root}' has actions that are not finite."
        )
    return actions, _instruction(root, rows[0]["task_index"])


def _instruction(root: Path, task_index: int) -> str:
    import pyarrow.parquet as pq

    table = pq.read_table(root / "meta" / "tasks.parquet").to_pylist()
    names = {row["task_index"]: row for row in table}
    row = names.get(task_index, {})
    texts = [value for value in row.values() if isinstance(value, str)]
    return texts[0] if texts else ""
