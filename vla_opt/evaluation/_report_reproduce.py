"""The report's section that says how to make the run again."""

import shlex
from typing import Any

from vla_opt.evaluation._html import Section, code, paragraph
from vla_opt.evaluation.run_folder import RunFolder

_DEMO_OPTIONS = ("image_size", "render_profile", "noise_levels", "tail_steps")


def reproduction(run: RunFolder) -> Section:
    """Return the section with the recorded commands, and those that start afresh."""
    blocks = []
    recorded = _recorded(run)
    if recorded:
        blocks.append(paragraph("As it was called; in the same folder this continues the run:"))
        blocks.append(code("\n".join(recorded)))
    afresh = _afresh(run)
    if afresh:
        blocks.append(paragraph("From the stored configurations, into a new folder:"))
        blocks.append(code("\n".join([*_checkout(run), *afresh])))
    if any(metadata.get("git_dirty") for metadata in run.metadata.values()):
        blocks.append(
            paragraph(
                "The source tree had uncommitted changes: the commit alone does not give this code."
            )
        )
    if not blocks:
        blocks.append(paragraph("Nothing in this run says how it was called.", "soft"))
    return Section(anchor="reproduce", title="Reproduce", body="".join(blocks))


def _recorded(run: RunFolder) -> list[str]:
    commands = [run.metadata.get(part, {}).get("command") for part in ("train", "eval")]
    return list(dict.fromkeys(str(command) for command in commands if command))


def _checkout(run: RunFolder) -> list[str]:
    commits = {m["git_commit"] for m in run.metadata.values() if m.get("git_commit")}
    if len(commits) != 1:
        return [f"# code of the parts: {', '.join(sorted(commits))}"] if commits else []
    return [f"git checkout {commits.pop()}", "make install"]


def _afresh(run: RunFolder) -> list[str]:
    """Commands that read the stored configurations and write beside the run."""
    again = run.root.with_name(run.root.name + "-again")
    commands = _demos_command(run, f"{again}/demos")
    if run.train_config:
        options = {"config_path": run.train_dir / "config.yaml", "output_dir": f"{again}/train"}
        if commands:
            options |= {"data.root": f"{again}/demos", "data.cache_dir": f"{again}/cache"}
        commands.append(_command("train", options))
    if run.eval_config:
        options = {"config_path": run.eval_dir / "config.yaml"}
        if run.train_config:
            options["checkpoint"] = f"{again}/train"
        commands.append(_command("eval", {**options, "output_dir": f"{again}/eval"}))
    return [*commands, _command("report", {"run_dir": again})] if commands else []


def _demos_command(run: RunFolder, root: str) -> list[str]:
    """Return the command that makes the same demonstrations, where one command can."""
    tasks = [(task["suite"], task["task_id"]) for task in run.demos_record.get("tasks", [])]
    suites = sorted({suite for suite, _ in tasks})
    ids = sorted({task_id for _, task_id in tasks})
    if not tasks or len(tasks) != len(suites) * len(ids):
        return []
    made = run.demos_record.get("options", {})
    options = {
        "suites": suites,
        "task_ids": ids,
        "per_task": run.demos_record.get("per_task"),
        **{name: made[name] for name in _DEMO_OPTIONS if name in made},
        **{f"diversity.{name}": value for name, value in made.get("diversity", {}).items()},
        "root": root,
    }
    return [_command("demos", options)]


def _command(verb: str, options: dict[str, Any]) -> str:
    words = [f"--{name}={_plain(value)}" for name, value in options.items()]
    return shlex.join(["vla-opt", verb, *words])


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
