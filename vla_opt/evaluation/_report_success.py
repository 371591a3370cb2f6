"""The report's sections about episodes: the headline, success per task, and the rollouts."""

from collections.abc import Sequence
from pathlib import Path

from vla_opt.evaluation._html import Section, esc, folded, paragraph, prose, table
from vla_opt.evaluation._videos import Clips, choose_clips, clip_anchor, clips_html
from vla_opt.evaluation.records import EpisodeRecord
from vla_opt.evaluation.run_folder import RunFolder
from vla_opt.evaluation.statistics import format_percent, format_rate
from vla_opt.evaluation.tables import SuccessRow, SuccessTable, html_table, success_table


def success_sections(run: RunFolder, *, max_videos: int, max_video_bytes: int) -> list[Section]:
    """Return the sections on success and on rollouts."""
    if not run.records:
        nothing = paragraph("No episode has been evaluated yet.", "soft")
        return [Section(anchor="success", title="Success", body=nothing)]
    counts = success_table(run.records)
    clips = choose_clips(
        run.records,
        _video_folders(run),
        max_videos=max_videos,
        max_bytes=max_video_bytes,
    )
    body = "\n".join(
        [
            _cards(run, counts),
            html_table(counts, lambda row: _strip(row, clips)),
            _how_to_read(counts),
            _errors(run.records),
        ]
    )
    return [
        Section(anchor="success", title="Success", body=body),
        Section(anchor="rollouts", title="Rollouts", body=clips_html(clips)),
    ]


def _video_folders(run: RunFolder) -> Sequence[Path]:
    return (run.eval_dir, run.eval_dir / "videos", run.root)


def _cards(run: RunFolder, counts: SuccessTable) -> str:
    total = counts.total
    cards = [_headline(total)]
    if len(counts.suites) > 1:
        cards += [_card(f"{r.successes}/{r.scored}", _rate_text(r), r.suite) for r in counts.suites]
    if not counts.is_balanced and counts.task_mean is not None:
        cards.append(
            _card(
                f"{format_percent(counts.task_mean)} %",
                "mean over tasks",
                "every task weighs the same; the headline weighs every episode the same",
            )
        )
    cards.append(_card(str(len(counts.tasks)), "tasks", _suites_text(counts)))
    cards.append(_card(*_error_card(total)))
    done, planned = len(run.planned_records), run.planned_episodes
    if planned and done < planned:
        cards.append(_card(f"{done}/{planned}", "episodes done", "in progress"))
    return f'<div class="cards">{"".join(cards)}</div>'


def _headline(total: SuccessRow) -> str:
    if total.rate is None:
        return _card("0/0", "nothing measured", "all episodes ended with an error", kind="head")
    low, high = total.interval
    return (
        f'<div class="card head" data-successes="{total.successes}" data-scored="{total.scored}">'
        f'<div class="big">{total.successes}/{total.scored}</div>'
        f'<div class="strong">{format_percent(total.rate)} % success</div>'
        f'<div class="label">95&nbsp;% Wilson interval '
        f'<span class="nowrap">{low * 100:.1f}&ndash;{high * 100:.1f}&nbsp;%</span></div></div>'
    )


def _card(value: str, name: str, label: str, kind: str = "") -> str:
    return (
        f'<div class="card {kind}"><div class="mid">{esc(value)}</div><div>{prose(name)}</div>'
        f'<div class="label">{prose(label)}</div></div>'
    )


def _rate_text(row: SuccessRow) -> str:
    if row.rate is None:
        return "not measured"
    low, high = row.interval
    return f"{format_percent(row.rate)} %, interval {low * 100:.1f}-{high * 100:.1f}"


def _suites_text(counts: SuccessTable) -> str:
    per_task = sorted({len(row.records) for row in counts.tasks})
    episodes = str(per_task[0]) if len(per_task) == 1 else f"{per_task[0]} to {per_task[-1]}"
    return f"{', '.join(row.suite for row in counts.suites)}; {episodes} episodes each"


def _error_card(total: SuccessRow) -> tuple[str, str, str]:
    if not total.errors:
        return "0", "errors", "every episode that was run has an outcome"
    return (
        str(total.errors),
        "errors of the machinery",
        f"not in the {total.scored} above; counted as failures it would be "
        f"{format_rate(total.successes, total.scored + total.errors)}",
    )


def _how_to_read(counts: SuccessTable) -> str:
    lines = [
        "Intervals are 95 % Wilson intervals over scored episodes. They treat episodes as "
        "independent draws for this one trained policy and say nothing about another training "
        "seed. Steps is the mean over successful episodes, in control steps.",
    ]
    if len(counts.suites) > 1 and counts.suite_mean is not None:
        lines.append(f"Mean of the suites' rates: {format_percent(counts.suite_mean)} %.")
    legend = (
        '<span class="strip" style="display:inline-flex;width:auto;vertical-align:middle">'
        '<i class="{0}"></i></span> {0}'
    )
    marks = " &nbsp; ".join(legend.format(name) for name in ("success", "failure", "error"))
    order = "one square per episode, in the order of initial states"
    return (
        "".join(paragraph(line, "soft small") for line in lines)
        + f'<p class="soft small">{marks} &nbsp; ({order})</p>'
    )


def _strip(row: SuccessRow, clips: Clips) -> str:
    """One square per episode; it leads to the video where there is one."""
    squares = []
    for record in row.records:
        title = f"{record.label}: {record.outcome}, {record.steps} steps"
        square = (
            f'<i class="{record.outcome}" data-episode="{esc(record.label)}" '
            f'data-outcome="{record.outcome}" title="{esc(title)}"></i>'
        )
        if record.key in clips.keys:
            square = f'<a href="#{esc(clip_anchor(record))}">{square}</a>'
        squares.append(square)
    return f'<div class="strip">{"".join(squares)}</div>'


def _errors(records: Sequence[EpisodeRecord]) -> str:
    lost = [record for record in records if not record.scored]
    if not lost:
        return ""
    rows = [
        (esc(r.label), str(r.retries), str(r.worker), esc(_shorten(r.error or ""))) for r in lost
    ]
    listing = table(
        ("Episode", "Retries", "Worker", "What happened"), rows, numeric=(1, 2), anchor="errors"
    )
    title = f"{len(lost)} episodes ended with an error of the machinery, not of the policy"
    return folded(title.replace("1 episodes", "1 episode"), listing, is_open=len(lost) <= 10)


def _shorten(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else text[: limit - 4] + " ..."
