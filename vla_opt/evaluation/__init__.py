"""Evaluation: episode records, the statistics made of them, tables and the report."""

from vla_opt.evaluation.records import (
    EpisodeRecord,
    append_record,
    load_records,
    unique_records,
)
from vla_opt.evaluation.statistics import (
    PairedComparison,
    format_rate,
    holm,
    mcnemar,
    paired_comparison,
    pool_comparisons,
    wilson,
)

__all__ = [
    "EpisodeRecord",
    "PairedComparison",
    "append_record",
    "format_rate",
    "holm",
    "load_records",
    "mcnemar",
    "paired_comparison",
    "pool_comparisons",
    "unique_records",
    "wilson",
]
