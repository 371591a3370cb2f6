"""What to import, and finding out which format it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from vla_opt.errors import DataError, nearest

Format = Literal["auto", "libero", "rlds", "droid", "lerobot_v21"]
FORMATS: tuple[str, ...] = get_args(Format)
Pairing = Literal["before", "as_stored"]


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Make a LeRobotDataset v3 of demonstrations in another format.

    Attributes:
        source: A file, or a folder that is searched.
        root: Folder to create.
        format: "libero" (*_demo.hdf5), "rlds" (TFRecords: of LIBERO as openvla publishes them, of
            DROID's release, or of another robot), "droid" (trajectory.h5 and MP4), "lerobot_v21";
            "auto" looks at the files.
        drop_noops: Leave out steps that command nothing, see `noops.kept_rows`; in DROID those at
            which the operator had let go.
        noop_threshold: Norm of an action below which it is none.
        pairing: Of LIBERO's hdf5, whose stored observation t is the one *after* action t: "before"
            pairs each action with the observation that came before it, "as_stored" does not.
        image_size: Scale pictures to squares of so many pixels; 0 keeps their size (DROID's
            become 320 x 180, as in its RLDS release).
        limit: Import at most so many episodes; 0 = all.
        task: Instruction of all episodes, instead of the one that the files give.
        annotations: DROID's file of instructions by episode, aggregated-annotations-*.json.
        skip_broken: Leave out episodes that cannot be read instead of stopping at the first.
        rate: Of RLDS of another robot: control steps per second, which the files do not tell. All
            pictures are taken, no step is left out, and nothing is claimed of what numbers mean.
        state_fields: Of RLDS of another robot: fields of a step that make up the state, in order.
        action_fields: The same of the action.
        verify: Check the checksums of the data in TFRecords, too; slow.
    """

    source: Path
    root: Path
    format: Format = "auto"
    drop_noops: bool = True
    noop_threshold: float = 1e-4
    pairing: Pairing = "before"
    image_size: int = 0
    limit: int = 0
    task: str = ""
    annotations: Path | None = None
    skip_broken: bool = False
    rate: int = 0
    state_fields: tuple[str, ...] = ("observation/state",)
    action_fields: tuple[str, ...] = ("action",)
    verify: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("noop_threshold", "image_size", "limit", "rate"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more")


def detect_format(source: Path) -> str:
    """The format of a file or folder, by the names of the files in it.

    Raises:
        DataError: There is no such place, or nothing in it is known.
    """
    if not source.exists():
        siblings = [str(path) for path in source.parent.glob("*")]
        raise DataError(f"{source} does not exist.{nearest(str(source), siblings)}")
    if (source / "meta/info.json").is_file():
        return "lerobot_v21"
    for name, patterns in (
        ("droid", ("trajectory.h5",)),
        ("rlds", ("*.tfrecord*",)),
        ("libero", ("*.hdf5",)),
    ):
        if any(files_of(source, pattern) for pattern in patterns):
            return name
    raise DataError(
        f"{source} holds neither *.hdf5 (LIBERO), *.tfrecord* (RLDS), trajectory.h5 (DROID) nor "
        "meta/info.json (LeRobot v2.1): give the folder of the demonstrations, or --format."
    )


def files_of(source: Path, pattern: str) -> list[Path]:
    """The file itself, or the files below a folder, sorted by name."""
    if source.is_file():
        return [source] if source.match(pattern) else []
    return sorted(path for path in source.rglob(pattern) if path.is_file())
