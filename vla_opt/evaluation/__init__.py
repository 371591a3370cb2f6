"""Evaluation: episode records, the statistics made of them, tables and the report."""

from vla_opt.evaluation.records import (
    EpisodeRecord,
    append_record,
    load_records,
    unique_records,
)
from vla_opt.evaluation.report import write_report
from vla_opt.evaluation.statistics import (
    PairedComparison,
    format_rate,
    holm,
    mcnemar,
    paired_comparison,
    pool_comparisons,
    wilson,
)
from vla_opt.evaluation.tables import (
    SuccessRow,
    SuccessTable,
    html_table,
    success_table,
    text_table,
)

__all__ = [
    "EpisodeRecord",
    "PairedComparison",
    "SuccessRow",
    "SuccessTable",
    "append_record",
    "format_rate",
    "holm",
    "html_table",
    "load_records",
    "mcnemar",
    "paired_comparison",
    "pool_comparisons",
    "success_table",
    "text_table",
    "unique_records",
    "wilson",
    "write_report",
]
