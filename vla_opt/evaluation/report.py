"""One self-contained HTML file that shows what a run did and how to repeat it.

Everything is derived from the run folder's files; whatever is missing is said, not guessed. The
file needs no network and refuses it.
"""

import os
from pathlib import Path

from vla_opt.evaluation._html import Section, esc, facts, page
from vla_opt.evaluation._report_dimensions import dimension_sections
from vla_opt.evaluation._report_setup import setup_sections
from vla_opt.evaluation._report_success import success_sections
from vla_opt.evaluation._report_training import training_sections
from vla_opt.evaluation.card import card, card_grid
from vla_opt.evaluation.dimensions import dimension_markdown, dimension_tables
from vla_opt.evaluation.exports import latex, markdown, success_csv, success_grid
from vla_opt.evaluation.run_folder import RunFolder, read_run_folder
from vla_opt.evaluation.tables import success_table
from vla_opt.io import atomic_write_text
from vla_opt.provenance import utc_now

MAX_VIDEOS = 24
MAX_VIDEO_BYTES = 24 * 2**20
"""Keeps a report small enough to mail and to open on a phone (base64 adds a third)."""


def write_report(
    run_dir: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    max_videos: int = MAX_VIDEOS,
    max_video_bytes: int = MAX_VIDEO_BYTES,
) -> Path:
    """Write the report of a run folder: HTML, and beside it .md, .tex and .csv.

    Works on partial runs: training or evaluation may be absent or still going, which the report
    says at its top.

    Args:
        run_dir: The run folder, or one that holds a training log or episode rows directly.
        out: Where to write; `report.html` in the run folder by default.
        max_videos: Embed at most so many rollout videos, failures first.
        max_video_bytes: Embed at most so many bytes of video.

    Returns:
        The path of the report.

    Raises:
        ConfigError: There is no such folder, or no part of a run in it.
        OSError: The report could not be stored.
    """
    run = read_run_folder(Path(run_dir))
    path = Path(out) if out is not None else run.root / "report.html"
    success, *rollouts = success_sections(
        run, max_videos=max_videos, max_video_bytes=max_video_bytes
    )
    sections = [
        success,
        *dimension_sections(run),
        *rollouts,
        *training_sections(run),
        *_protocol(run),
        *setup_sections(run),
    ]
    name = run.root.resolve().name
    footer = "Derived from the run folder's records; no number here is typed by hand."
    atomic_write_text(path, page(f"{name} - vla_opt report", _header(run, name), sections, footer))
    _write_exports(run, path, name)
    return path


def _write_exports(run: RunFolder, path: Path, name: str) -> None:
    """Success and protocol beside the page: .md, .tex and .csv; nothing where nothing was run."""
    if not run.records:
        return
    counts = success_table(run.records)
    grids = [success_grid(counts, f"Success of {name}"), card_grid(run, f"Protocol of {name}")]
    by_dimension = [dimension_markdown(t) for t in dimension_tables(run.records, run.strata)]
    text = "\n".join([markdown(grids[:1]), *by_dimension, markdown(grids[1:])])
    atomic_write_text(path.with_suffix(".md"), text)
    atomic_write_text(path.with_suffix(".tex"), latex(grids))
    atomic_write_text(path.with_suffix(".csv"), success_csv([(name, counts)]))


def _protocol(run: RunFolder) -> list[Section]:
    """What the rates were measured under; nothing where nothing was measured."""
    if not run.records:
        return []
    return [Section(anchor="protocol", title="Protocol", body=facts(card(run).items()))]


def _header(run: RunFolder, name: str) -> str:
    chips = "".join(f'<span class="chip {kind}">{esc(text)}</span> ' for kind, text in _chips(run))
    notes = "".join(f"<li>{esc(note)}</li>" for note in run.notes)
    box = f'<div class="note" id="notes"><ul>{notes}</ul></div>' if notes else ""
    return f'<h1>{esc(name)}</h1><p class="soft">{esc(_subtitle(run))}</p><div>{chips}</div>{box}'


def _subtitle(run: RunFolder) -> str:
    policy, optimizer = run.train_config.get("policy"), run.train_config.get("optimizer")
    parts = [
        str(policy.get("type", "")) if isinstance(policy, dict) else "",
        str(optimizer.get("name", "")) if isinstance(optimizer, dict) else "",
        f"report of {utc_now()}",
    ]
    return " · ".join(part for part in parts if part)


def _chips(run: RunFolder) -> list[tuple[str, str]]:
    chips = [("good", "complete")] if run.is_complete else [("warn", "partial run")]
    if run.is_damaged:
        chips.append(("bad", "damaged files"))
    profiles = {record.render_profile for record in run.records}
    if profiles - {"exact"}:
        chips.append(("warn", "simplified rendering: not comparable with exact rendering"))
    if any(m.get("git_dirty") for m in run.metadata.values()):
        chips.append(("warn", "uncommitted changes in the code"))
    if run.warnings:
        chips.append(("warn", _count(len(run.warnings), "training warning")))
    return chips


def _count(n: int, name: str) -> str:
    return f"{n} {name}{'s' if n != 1 else ''}"
