"""``vla-opt eval``: run a checkpoint in simulation; ``vla-opt eval merge``: unite its parts."""

from collections.abc import Sequence

HELP = "evaluate a checkpoint in simulation: k/n with intervals per task, resumable rows, merge"


def main(argv: Sequence[str]) -> int:
    """Evaluate, or merge; 1 if an episode was not measured, so that numbers are not complete."""
    if argv and argv[0] == "merge":
        from vla_opt.cli._eval_merge import main as merge

        return merge(argv[1:])
    from vla_opt.cli._config import parse
    from vla_opt.cli._episodes_bar import episodes_bar
    from vla_opt.evaluation.dimensions import dimension_tables, dimension_text
    from vla_opt.evaluation.runner import EvalConfig, evaluate
    from vla_opt.evaluation.tables import success_table, text_table

    config = parse(EvalConfig, argv)
    with episodes_bar("evaluation") as told:
        summary = evaluate(config, told)
    for note in summary.notes:
        print(f"note: {note}")
    print(text_table(success_table(summary.records)))
    for shown in dimension_tables(summary.records, summary.strata):
        print(dimension_text(shown))
    print(f"rows and videos: {summary.output_dir}")
    if config.shard:
        print("next, with the folders of all shards: vla-opt eval merge FOLDER FOLDER ...")
    else:
        print(f"next: vla-opt report {summary.output_dir.parent}")
    if summary.errors:
        print(
            f"{summary.errors} of {len(summary.records)} episodes could not be run and count "
            "neither way; the same command tries them again."
        )
    return 1 if summary.errors else 0
