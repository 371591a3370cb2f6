"""``vla-opt report RUN [RUN ...]``: write a run's report, or a comparison of several runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

HELP = "write the report of a run folder, or of several side by side: HTML, Markdown, LaTeX, CSV"


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write the report of a run, or compare runs: `vla-opt report RUN [RUN ...]`.

    Attributes:
        run_dir: The run folder; `--run_dir=RUN` is the same as RUN as the first word.
        runs: Two run folders or more, to be compared.
        out: The HTML file; .md, .tex and .csv go beside it. If not given, report.html in the run
            folder, comparison.html in the folder that all runs lie in.
        max_videos: Embed at most so many rollout videos, failures first.
        max_video_mb: Embed at most so many MB of video.
    """

    run_dir: Path | None = None
    runs: tuple[Path, ...] = ()
    out: Path | None = None
    max_videos: int = 24
    max_video_mb: float = 24.0

    def __post_init__(self) -> None:
        if (self.run_dir is None) == (not self.runs):
            raise ValueError("expected a run folder: vla-opt report RUN [RUN ...]")
        if self.max_videos < 0 or self.max_video_mb < 0:
            raise ValueError(
                f"max_videos={self.max_videos}, max_video_mb={self.max_video_mb}: "
                "expected 0 (no videos) or more."
            )


def main(argv: Sequence[str]) -> int:
    """Write the report; run folders may be given without their key, as the first words."""
    from vla_opt.cli._config import parse

    words = list(takewhile(lambda word: not word.startswith("-"), argv))
    named = [f"--runs=[{', '.join(words)}]"] if len(words) > 1 else []
    named += [f"--run_dir={words[0]}"] if len(words) == 1 else []
    config = parse(ReportConfig, [*named, *argv[len(words) :]])
    if config.runs:
        return _compare(config)
    from vla_opt.rl.curve import is_rl_run

    assert config.run_dir is not None
    return _curve(config) if is_rl_run(config.run_dir) else _report(config)


def _curve(config: ReportConfig) -> int:
    from vla_opt.rl.curve import write_curve

    assert config.run_dir is not None
    page = write_curve(config.run_dir, config.out)
    print(page.with_suffix(".md").read_text(encoding="utf-8"))
    _tell(page)
    return 0


def _compare(config: ReportConfig) -> int:
    from vla_opt.evaluation.exports import suites_grid
    from vla_opt.evaluation.side_by_side import read_runs, write_comparison

    path = write_comparison(config.runs, config.out)
    grid = suites_grid([(run.name, run.table) for run in read_runs(config.runs)])
    lines = [grid.head, *grid.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())
    _tell(path)
    return 0


def _report(config: ReportConfig) -> int:
    from vla_opt.evaluation.dimensions import dimension_tables, dimension_text
    from vla_opt.evaluation.report import write_report
    from vla_opt.evaluation.run_folder import read_run_folder
    from vla_opt.evaluation.tables import success_table, text_table

    assert config.run_dir is not None
    path = write_report(
        config.run_dir,
        config.out,
        max_videos=config.max_videos,
        max_video_bytes=int(config.max_video_mb * 2**20),
    )
    run = read_run_folder(config.run_dir)
    for note in run.notes:
        print(f"note: {note}")
    if run.records:
        print(text_table(success_table(run.records)))
    for shown in dimension_tables(run.records, run.strata):
        print(dimension_text(shown))
    _tell(path)
    return 0


def _tell(path: Path) -> None:
    print(f"report: {path}")
    beside = [str(path.with_suffix(end).name) for end in (".md", ".tex", ".csv")]
    present = [name for name in beside if (path.parent / name).exists()]
    if present:
        print(f"to paste: {', '.join(present)} beside it")
