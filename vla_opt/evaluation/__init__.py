"""Evaluation: running it, episode records, the statistics made of them, tables and the report.

What runs episodes (`evaluate`, `EvalConfig`) is imported when it is first asked for, so that
reading records and writing reports needs neither simulator nor policy.
"""

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from vla_opt.evaluation.config import EvalConfig
    from vla_opt.evaluation.runner import EvalSummary, evaluate

__all__ = [
    "EpisodeRecord",
    "EvalConfig",
    "EvalSummary",
    "PairedComparison",
    "SuccessRow",
    "SuccessTable",
    "append_record",
    "evaluate",
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

_LAZY = {"EvalConfig": "config", "EvalSummary": "runner", "evaluate": "runner"}


def __getattr__(name: str) -> Any:
    """Import what runs episodes when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
