"""A comparison as one HTML file: rates, seeds, pairs, learning curves, learning rates, protocol."""

from pathlib import Path

from vla_opt._comparison import Comparison
from vla_opt._curves import charts
from vla_opt.errors import ConfigError
from vla_opt.evaluation._charts import color_of, interval_bar
from vla_opt.evaluation._html import Section, esc, facts, page, paragraph, table
from vla_opt.evaluation.card import PROTOCOL, card
from vla_opt.evaluation.run_folder import read_run_folder
from vla_opt.evaluation.statistics import format_p, wilson
from vla_opt.provenance import utc_now


def comparison_page(comparison: Comparison, name: str, run_dir: Path) -> str:
    """Return the page.

    Args:
        comparison: What came out.
        name: Of the comparison.
        run_dir: One of its runs, whose protocol all share.
    """
    sections = [_rates(comparison), _pairs(comparison)]
    drawn = charts(comparison.curves)
    if drawn:
        note = "Lines are means over the seeds, bands the bootstrap intervals of these means."
        body = f'<div class="charts two">{"".join(drawn)}</div>{paragraph(note, "soft small")}'
        sections.append(Section(anchor="curves", title="Learning curves", body=body))
    if comparison.tuned:
        sections.append(_tuning(comparison))
    sections += _protocol(run_dir)
    notes = "".join(f"<li>{esc(note)}</li>" for note in comparison.notes)
    header = (
        f"<h1>{esc(name)}</h1><p class='soft'>comparison of {utc_now()}</p>"
        f'<div class="note" id="notes"><ul>{notes}</ul></div>'
    )
    footer = "Derived from the records of the runs; no number here is typed by hand."
    return page(f"{name} - vla_opt comparison", header, sections, footer)


def _rates(comparison: Comparison) -> Section:
    rows = []
    for index, arm in enumerate(comparison.arms):
        control = ' <span class="chip">control</span>' if arm.name in comparison.controls else ""
        bar = ""
        if arm.scored:
            bar = interval_bar(arm.successes / arm.scored, *wilson(arm.successes, arm.scored))
        rows.append(
            (
                f'<b style="color:{color_of(index)}">&#9632;</b> {esc(arm.name)}{control}',
                esc(arm.rate),
                bar,
                esc(arm.over_seeds),
                esc(arm.by_seed),
                esc(arm.loss),
                esc(arm.train_time),
            )
        )
    head = ("Arm", "Episodes of all seeds", "", "Mean over seeds", "By seed", "Loss", "Training")
    body = table(head, rows, numeric=(5, 6), anchor="arms-table") + _suites(comparison)
    return Section(anchor="success", title="Success", body=body)


def _suites(comparison: Comparison) -> str:
    found = comparison.suites
    if not found:
        return ""
    (_, *suites), *rows = found
    cells = [[esc(cell) for cell in row] for row in rows]
    return table(("Arm", *suites), cells, anchor="suites-table")


def _pairs(comparison: Comparison) -> Section:
    rows = [
        (
            esc(pair.a),
            esc(pair.b),
            f"{pair.pooled.only_a} : {pair.pooled.only_b}",
            f"{100 * pair.pooled.difference:+.1f}",
            esc(format_p(pair.pooled.p)),
            esc(format_p(pair.p_holm)),
            esc(format_p(pair.p_seeds)),
        )
        for pair in comparison.pairs
    ]
    head = ("A", "B", "A alone : B alone", "A - B, points", "McNemar", "Holm", "over seeds")
    found = "".join(paragraph(pair.describe(), "small") for pair in comparison.pairs)
    body = table(head, rows, numeric=range(2, 7), anchor="pairs-table") + found
    return Section(anchor="pairs", title="Pairs", body=body)


def _tuning(comparison: Comparison) -> Section:
    rows = [
        (
            esc(one.arm),
            f"{one.chosen.lr:g}" if one.chosen else "none",
            "<br>".join(esc(trial) for trial in one.trials),
        )
        for one in comparison.tuned
    ]
    listing = table(("Arm", "Chosen", "Tried"), rows, numeric=(1,), anchor="tuning-table")
    body = paragraph(comparison.budget) + listing
    return Section(anchor="tuning", title="Learning rates", body=body)


def _protocol(run_dir: Path) -> list[Section]:
    """What all runs were measured under; nothing where nothing was measured."""
    try:
        found = card(read_run_folder(run_dir))
    except ConfigError:
        return []
    body = facts((name, found[name]) for name in PROTOCOL)
    return [Section(anchor="protocol", title="Protocol of each run", body=body)]
