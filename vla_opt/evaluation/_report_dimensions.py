"""The report's section on variants of LIBERO's tasks, by dimension."""

from vla_opt.evaluation._html import Section
from vla_opt.evaluation.dimensions import dimension_html, dimension_tables
from vla_opt.evaluation.run_folder import RunFolder

_NAMES = {"libero_plus": "LIBERO-Plus", "libero_style": "Generated variants (libero_style)"}


def dimension_sections(run: RunFolder) -> list[Section]:
    """Return one section per family of variants; none where no variants were run."""
    return [
        Section(
            anchor=f"by-dimension-{shown.family}",
            title=f"{_NAMES[shown.family]} by dimension",
            body=dimension_html(shown),
        )
        for shown in dimension_tables(run.records, run.strata)
    ]
