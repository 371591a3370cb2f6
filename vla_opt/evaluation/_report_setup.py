"""The report's sections about how the run was made and how to make it again."""

import shlex
from collections.abc import Iterable
from typing import Any

from vla_opt.evaluation._html import Section, code, esc, facts, folded, paragraph, table
from vla_opt.evaluation._report_training import clock
from vla_opt.evaluation.run_folder import RunFolder


def setup_sections(run: RunFolder) -> list[Section]:
    """Return the sections on routing, configuration, provenance and reproduction."""
    return [_routing(run), _configuration(run), _provenance(run), _reproduction(run)]


def _routing(run: RunFolder) -> Section:
    body = (
        folded("Which parameter got which optimizer", code(run.routing), is_open=True)
        if run.routing
        else paragraph("No routing table was recorded.", "soft")
    )
    return Section(anchor="routing", title="Routing", body=body)


def _configuration(run: RunFolder) -> Section:
    parts = [folded(name, code(text)) for name, text in sorted(run.configs.items())]
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
    if run.demos:
        yield (
            "Demonstrations",
            f"{run.demos.get('total_episodes', '?')} episodes, "
            f"{run.demos.get('total_frames', '?')} frames at {run.demos.get('fps', '?')} Hz",
        )
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
    return esc({True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value)


def _reproduction(run: RunFolder) -> Section:
    lines: list[str] = []
    metadata = run.metadata.get("train") or run.metadata.get("eval") or {}
    commit = metadata.get("git_commit")
    if commit:
        lines += [f"git checkout {commit}", "pip install -e . -c constraints.txt"]
    for part in ("train", "eval"):
        recorded = run.metadata.get(part, {}).get("command")
        if recorded and recorded not in lines:
            lines.append(str(recorded))
    lines.append(f"vla-opt report --run_dir={shlex.quote(str(run.root))}")
    body = code("\n".join(lines))
    if metadata.get("git_dirty"):
        body += paragraph(
            "The source tree had uncommitted changes: the commit alone does not give this code.",
            "soft",
        )
    body += paragraph(
        "The same commands in the same folder continue an unfinished run; give another output "
        "folder to start afresh.",
        "soft small",
    )
    return Section(anchor="reproduce", title="Reproduce", body=body)
