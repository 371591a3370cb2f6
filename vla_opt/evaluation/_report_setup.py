"""The report's sections about how the run was made: data, routing, configuration, versions."""

from collections.abc import Iterable
from typing import Any

import yaml

from vla_opt.evaluation._html import Section, code, esc, facts, folded, paragraph, table
from vla_opt.evaluation._report_reproduce import reproduction
from vla_opt.evaluation._report_training import clock
from vla_opt.evaluation.run_folder import RunFolder


def setup_sections(run: RunFolder) -> list[Section]:
    """Return the sections on data, routing, configuration, provenance, reproduction."""
    parts = [_routing(run), _configuration(run), _provenance(run), reproduction(run)]
    return [*_demonstrations(run), *parts]


def _demonstrations(run: RunFolder) -> list[Section]:
    """What was learned from; no section where the run holds no data set."""
    if not run.demos:
        return []
    total = (
        f"{run.demos.get('total_episodes', '?')} episodes, "
        f"{run.demos.get('total_frames', '?')} frames at {run.demos.get('fps', '?')} Hz"
    )
    options = run.demos_record.get("options", {})
    body = facts([("Data set", total), *((str(k), _text(v)) for k, v in options.items())])
    tasks = run.demos_record.get("tasks", [])
    if tasks:
        body += _expert_table(tasks)
    return [Section(anchor="demonstrations", title="Demonstrations", body=body)]


def _expert_table(tasks: list[dict[str, Any]]) -> str:
    rows = [
        (
            esc(f"{task['suite']} {task['task_id']}"),
            f"{task['successes']}/{task['attempts']}",
            f"{task['mean_steps']:.0f}",
            esc("; ".join(task.get("reasons", ()))),
        )
        for task in tasks
    ]
    head = ("Task", "Expert success", "Steps", "Why attempts were dropped")
    note = "The scripted expert sees simulator state; its failed attempts are not learned from."
    return table(head, rows, numeric=(1, 2), anchor="expert-table") + paragraph(note, "soft small")


def _routing(run: RunFolder) -> Section:
    body = (
        folded("Which parameter got which optimizer", code(run.routing), is_open=True)
        if run.routing
        else paragraph("No routing table was recorded.", "soft")
    )
    return Section(anchor="routing", title="Routing", body=body)


def _configuration(run: RunFolder) -> Section:
    parts = [folded(name, code(text)) for name, text in sorted(run.configs.items())]
    if run.env_spec:
        contract = yaml.safe_dump(run.env_spec, sort_keys=False)
        parts.append(folded("observations and actions of the environment", code(contract)))
    body = "".join(parts) or paragraph("No configuration file in this run.", "soft")
    return Section(anchor="configuration", title="Configuration", body=body)


def _provenance(run: RunFolder) -> Section:
    parts = [part for part in ("train", "eval") if run.metadata.get(part)]
    blocks = [facts(_run_facts(run))]
    if parts:
        blocks.append(_metadata_table(run, parts))
    else:
        blocks.append(paragraph("No metadata.json: code and versions are unknown.", "soft"))
    return Section(anchor="provenance", title="Provenance", body="".join(blocks))


def _run_facts(run: RunFolder) -> Iterable[tuple[str, str]]:
    if "seed" in run.train_config:
        yield "Training seed", str(run.train_config["seed"])
    if not run.records:
        return
    seeds = [record.seed for record in run.records]
    yield (
        "Episode seeds",
        f"{len(set(seeds))} distinct, from {min(seeds)} to {max(seeds)}; each is a function of "
        "suite, task, initial state and trial",
    )
    yield "Rendering", ", ".join(sorted({record.render_profile for record in run.records}))
    yield "Checkpoint hash", ", ".join(sorted({r.checkpoint_hash for r in run.records if r}) or "?")
    yield "Evaluation config", ", ".join(sorted({r.config_hash for r in run.records}))
    if versions := sorted({r.versions for r in run.records if r.versions}):
        yield "Run by", "; ".join(versions)
    stamps = sorted(record.timestamp for record in run.records)
    yield "Episodes run", f"{stamps[0]} to {stamps[-1]}"
    wall, cpu = sum(r.wall_s for r in run.records), sum(r.cpu_s for r in run.records)
    workers = len({record.worker for record in run.records})
    yield (
        "Episode time",
        f"{clock(wall)} wall and {clock(cpu)} CPU, summed over {len(run.records)} episodes on "
        f"{workers} worker{'s' if workers != 1 else ''}",
    )
    yield "Retries", str(sum(record.retries for record in run.records))


def _metadata_table(run: RunFolder, parts: list[str]) -> str:
    flat = {part: _flatten(run.metadata[part]) for part in parts}
    names = list(dict.fromkeys(name for part in parts for name in flat[part]))
    rows = [(esc(name), *(_value(flat[part].get(name)) for part in parts)) for name in names]
    return table(("", *parts), rows, anchor="metadata-table")


def _flatten(metadata: dict[str, Any]) -> dict[str, Any]:
    """What is nested as rows of their own; versions under the bare names of the packages."""
    flat: dict[str, Any] = {}
    for name, value in metadata.items():
        if isinstance(value, dict):
            prefix = "" if name == "versions" else f"{name}."
            flat.update({f"{prefix}{inner}": text for inner, text in value.items()})
        else:
            flat[name] = value
    return flat


def _value(value: Any) -> str:
    if value is None:
        return '<span class="soft">&ndash;</span>'
    return esc(_text(value))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
