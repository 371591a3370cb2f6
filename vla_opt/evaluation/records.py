"""One row per evaluated episode: the only source of every success rate in this project.

Rows are appended to `episodes.jsonl` as episodes finish and never changed. Tables, comparisons and
reports are computed from them, so a number that is not in the rows cannot be in a report.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from vla_opt.io import append_jsonl, read_jsonl
from vla_opt.provenance import utc_now

Outcome = Literal["success", "failure", "error"]
Key = tuple[str, int, int, int]
"""(suite, task id, initial state, trial): what identifies an episode."""


@dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """What happened in one episode.

    Attributes:
        suite: Name of the task suite.
        task_id: Index of the task within its suite.
        init_state: Index of the fixed initial state.
        trial: Repetition of the same task and initial state.
        seed: Seed of the episode, a function of the four fields above.
        outcome: "success" or "failure" of the policy; "error" when the machinery failed and the
            policy was therefore not measured.
        success: True if and only if `outcome` is "success".
        steps: Control steps executed.
        wall_s: Wall-clock seconds of the episode.
        cpu_s: CPU seconds of the worker during the episode.
        worker: Number of the worker that ran it.
        retries: How often it had to be started again.
        error: What the machinery reported, for the outcome "error" only.
        video: Path of the video relative to the folder of the rows, if one was kept.
        language: Instruction given to the policy.
        variant: Name of the variant, "" for a LIBERO task as it is.
        dimension: What the variant perturbs, for example "camera".
        level: Its difficulty or magnitude, by which the sample was drawn.
        config_hash: Hash of the evaluation's configuration.
        checkpoint_hash: Hash of the evaluated checkpoint.
        versions: The code that ran it, see `vla_opt.provenance.versions_line`.
        render_profile: "exact", or the name of the simplification that was on.
        timestamp: When the row was made, UTC, ISO 8601.

    Raises:
        ValueError: The outcome is unknown, or contradicts `success` or `error`.
    """

    suite: str
    task_id: int
    init_state: int
    trial: int = 0
    seed: int
    outcome: Outcome
    success: bool
    steps: int
    wall_s: float
    cpu_s: float
    worker: int = 0
    retries: int = 0
    error: str | None = None
    video: str | None = None
    language: str = ""
    variant: str = ""
    dimension: str = ""
    level: int | None = None
    config_hash: str = ""
    checkpoint_hash: str = ""
    versions: str = ""
    render_profile: str = "exact"
    timestamp: str = field(default_factory=utc_now)

    def __post_init__(self) -> None:
        if self.outcome not in get_args(Outcome):
            raise ValueError(
                f"Episode {self.label}: outcome {self.outcome!r}, expected one of "
                f"{', '.join(get_args(Outcome))}."
            )
        if self.success != (self.outcome == "success"):
            raise ValueError(
                f"Episode {self.label}: success={self.success} contradicts {self.outcome!r}."
            )
        if bool(self.error) != (self.outcome == "error"):
            raise ValueError(
                f"Episode {self.label}: outcome {self.outcome!r} with error={self.error!r}; "
                "give the text for the outcome 'error', and only for it."
            )

    @property
    def key(self) -> Key:
        """What identifies the episode: (suite, task id, initial state, trial)."""
        return (self.suite, self.task_id, self.init_state, self.trial)

    @property
    def label(self) -> str:
        """The key as text, for example "libero_object/3/17/0"."""
        return "/".join(str(part) for part in self.key)

    @property
    def scored(self) -> bool:
        """Whether the policy was measured: a success or a failure, not an error."""
        return self.outcome != "error"

    def to_dict(self) -> dict[str, Any]:
        """Return the row as it is stored."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "EpisodeRecord":
        """Rebuild a record from its row; fields that later versions add are ignored.

        Raises:
            ValueError: A required field is missing, or the row contradicts itself.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        missing = [name for name, f in fields.items() if _is_required(f) and name not in row]
        if missing:
            raise ValueError(
                f"Episode row lacks {', '.join(missing)}; it has {', '.join(map(str, row))}."
            )
        return cls(**{name: row[name] for name in fields if name in row})


def append_record(path: str | os.PathLike[str], record: EpisodeRecord) -> None:
    """Append one record to a JSONL file, synced to disk before returning."""
    append_jsonl(path, record.to_dict())


def load_records(path: str | os.PathLike[str]) -> list[EpisodeRecord]:
    """Read the records of a JSONL file in the order written, one per episode.

    A missing file holds no episode yet; a half-written last line is ignored. See `unique_records`
    for rows that share a key.

    Raises:
        ValueError: A line is not a valid row; names the file and the line.
    """
    records = []
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            records.append(EpisodeRecord.from_dict(row))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{os.fspath(path)}, row {number}: {error}") from error
    return unique_records(records)


def unique_records(records: Iterable[EpisodeRecord]) -> list[EpisodeRecord]:
    """Keep one record per key: the first that was scored, else the first error.

    A measured outcome is final, so nobody can run an episode again until it succeeds. An error
    measured nothing, so a later attempt at the same episode takes its place.
    """
    kept: dict[Key, EpisodeRecord] = {}
    for record in records:
        present = kept.get(record.key)
        if present is None or (record.scored and not present.scored):
            kept[record.key] = record
    return list(kept.values())


def _is_required(f: "dataclasses.Field[Any]") -> bool:
    missing = cast(object, dataclasses.MISSING)
    return f.default is missing and f.default_factory is missing
