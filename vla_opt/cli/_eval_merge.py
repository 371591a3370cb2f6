"""``vla-opt eval merge``: the shards of several machines as one evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Unite parts of an evaluation: `vla-opt eval merge PART PART ...`.

    Attributes:
        parts: Folders that `vla-opt eval --shard=I/N` wrote, copied from their machines.
        output_dir: Where the whole goes; the folder `eval` beside the first part if not given.
    """

    parts: tuple[Path, ...] = ()
    output_dir: Path | None = None


def main(argv: Sequence[str]) -> int:
    """Merge; 1 if planned episodes are missing or were not measured."""
    from vla_opt.cli._config import parse
    from vla_opt.evaluation.dimensions import dimension_tables, dimension_text
    from vla_opt.evaluation.merge import merge
    from vla_opt.evaluation.tables import success_table, text_table

    words = list(takewhile(lambda word: not word.startswith("-"), argv))
    named = [f"--parts=[{', '.join(words)}]"] if words else []
    config = parse(MergeConfig, [*named, *argv[len(words) :]])
    output_dir = config.output_dir or (
        config.parts[0].parent / "eval" if config.parts else Path("runs/merged/eval")
    )
    whole = merge(config.parts, output_dir)
    for note in whole.notes:
        print(f"note: {note}")
    print(text_table(success_table(whole.records)))
    for shown in dimension_tables(whole.records, whole.strata):
        print(dimension_text(shown))
    scored = sum(record.scored for record in whole.records)
    print(
        f"{scored} of {whole.planned} planned episodes measured; {whole.duplicates} ran twice, "
        "alike, and count once."
    )
    print(f"rows and videos: {whole.output_dir}")
    print(f"next: vla-opt report {whole.output_dir.parent}")
    return 0 if whole.is_complete else 1
