"""Choose which rollout videos a report carries, and embed them."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from vla_opt.evaluation._html import esc, paragraph
from vla_opt.evaluation.records import EpisodeRecord, Key


@dataclass(frozen=True, kw_only=True)
class Clips:
    """The chosen videos, failures first, and what was left out."""

    chosen: tuple[tuple[EpisodeRecord, bytes], ...]
    available: int
    lost: int  # named by a row but absent on disk
    available_failures: int

    @property
    def keys(self) -> set[Key]:
        """Keys of the episodes shown."""
        return {record.key for record, _ in self.chosen}


def choose_clips(
    records: Sequence[EpisodeRecord], folders: Sequence[Path], *, max_videos: int, max_bytes: int
) -> Clips:
    """Read the videos to show.

    Failures come before successes; within each, tasks take turns, so that no task crowds out the
    others when not all fit.

    Args:
        records: The evaluated episodes.
        folders: Folders that the rows' video paths may be relative to.
        max_videos: At most so many.
        max_bytes: At most so many bytes in total; a video that does not fit is passed over.
    """
    named = [record for record in records if record.video]
    paths = {r.key: path for r in named if (path := _find(r, folders)) is not None}
    present = [record for record in named if record.key in paths]
    lost_first = [r for r in present if not r.success], [r for r in present if r.success]
    chosen: list[tuple[EpisodeRecord, bytes]] = []
    used = 0
    for record in (r for group in lost_first for r in _take_turns(group)):
        size = paths[record.key].stat().st_size
        if len(chosen) < max_videos and used + size <= max_bytes:
            chosen.append((record, paths[record.key].read_bytes()))
            used += size
    chosen.sort(key=lambda clip: (clip[0].success, clip[0].key))
    return Clips(
        chosen=tuple(chosen),
        available=len(present),
        lost=len(named) - len(present),
        available_failures=len(lost_first[0]),
    )


def clip_anchor(record: EpisodeRecord) -> str:
    """Return the id of a video's frame in the page."""
    return "episode-" + "-".join(str(part) for part in record.key)


def clips_html(clips: Clips) -> str:
    """Return the grid of videos with a sentence about what is not in it."""
    if not clips.chosen:
        return paragraph(_summary(clips), "soft")
    figures = "\n".join(_figure(record, data) for record, data in clips.chosen)
    return (
        f"{paragraph(_summary(clips), 'soft')}<button type='button' data-play>Play all</button>"
        f'<div class="videos">{figures}</div>'
    )


def _summary(clips: Clips) -> str:
    lost = f" {clips.lost} named by the rows are missing on disk." if clips.lost else ""
    if not clips.available:
        return (
            f"No videos were kept.{lost} The evaluation's `videos` option says which are: "
            "failures, all, none."
        )
    failures = sum(not record.success for record, _ in clips.chosen)
    return (
        f"{len(clips.chosen)} of {clips.available} recorded videos are embedded: "
        f"{failures} of {clips.available_failures} failures and {len(clips.chosen) - failures} of "
        f"{clips.available - clips.available_failures} successes.{lost} Each shows the frames the "
        "policy looked at, both cameras side by side."
    )


def _figure(record: EpisodeRecord, data: bytes) -> str:
    kind = "good" if record.success else "bad"
    encoded = base64.b64encode(data).decode("ascii")
    trial = f" &middot; trial {record.trial}" if record.trial else ""
    return (
        f'<figure id="{esc(clip_anchor(record))}" class="{record.outcome}">'
        f'<video muted loop controls playsinline preload="metadata" '
        f'src="data:video/mp4;base64,{encoded}"></video>'
        f'<figcaption><div class="row"><span class="strong">{esc(record.suite)} '
        f"{record.task_id}</span>"
        f'<span class="chip {kind}">{record.outcome}</span></div>'
        f'<div class="soft">init {record.init_state}{trial} &middot; {record.steps} steps</div>'
        f'<div class="soft">{esc(record.language)}</div></figcaption></figure>'
    )


def _find(record: EpisodeRecord, folders: Sequence[Path]) -> Path | None:
    candidates = [folder / (record.video or "") for folder in folders]
    return next((path for path in candidates if path.is_file()), None)


def _take_turns(records: Iterable[EpisodeRecord]) -> list[EpisodeRecord]:
    tasks: dict[tuple[str, int], list[EpisodeRecord]] = {}
    for record in sorted(records, key=lambda r: r.key):
        tasks.setdefault((record.suite, record.task_id), []).append(record)
    return [r for turn in zip_longest(*tasks.values()) for r in turn if r is not None]
