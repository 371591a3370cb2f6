"""``vla-opt report RUN_DIR``: write a run's report and print its success rates."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HELP = "write the HTML report of a run folder: success, rollouts, curves, spectra, provenance"


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write the report of a run, as `vla-opt report RUN_DIR` too.

    Attributes:
        run_dir: The run folder.
        out: Where to write; report.html in the run folder if not given.
        max_videos: Embed at most so many rollout videos, failures first.
        max_video_mb: Embed at most so many MB of video.
    """

    run_dir: Path
    out: Path | None = None
    max_videos: int = 24
    max_video_mb: float = 24.0

    def __post_init__(self) -> None:
        if self.max_videos < 0 or self.max_video_mb < 0:
            raise ValueError(
                f"max_videos={self.max_videos}, max_video_mb={self.max_video_mb}: "
                "expected 0 (no videos) or more."
            )


def main(argv: Sequence[str]) -> int:
    """Write the report; the run folder may be given without its key, as the first word."""
    from vla_opt.cli._config import parse
    from vla_opt.evaluation.dimensions import dimension_tables, dimension_text
    from vla_opt.evaluation.report import write_report
    from vla_opt.evaluation.run_folder import read_run_folder
    from vla_opt.evaluation.tables import success_table, text_table

    words = list(argv)
    if words and not words[0].startswith("-"):
        words[0] = f"--run_dir={words[0]}"
    config = parse(ReportConfig, words)
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
    print(f"report: {path}")
    return 0
