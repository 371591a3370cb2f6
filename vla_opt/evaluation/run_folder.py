"""Read what a run folder holds so far, and say what it does not hold.

Nothing here fails because a part is absent, unfinished or damaged: a run that is still going can be
looked at. Every gap becomes a note that the report shows at its top.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from envs._suite_names import PLUS, STYLE
from vla_opt.errors import ConfigError, nearest
from vla_opt.evaluation.records import EpisodeRecord, load_records
from vla_opt.evaluation.variants import VARIANTS_FILE, Stratum, strata_from
from vla_opt.io import read_jsonl

Row = dict[str, Any]

_PARTS = ("train", "eval", "demos", "demos_staging", "cache", "config.yaml")


@dataclass(kw_only=True)
class RunFolder:
    """What was found.

    Attributes:
        root: The run folder.
        train_dir: Where the training log is, or would be.
        eval_dir: Where the episode rows are, or would be.
        records: Evaluated episodes.
        log: Rows of the training log.
        warnings: Warnings of the run, without repetitions.
        configs: Text of each configuration file by its path in the folder.
        train_config: The training configuration.
        eval_config: The evaluation configuration.
        strata: The variants that were asked for, see `variants.VariantPlan`.
        planned_variants: (suite, task) of those that the last call set out to run.
        metadata: Provenance by part: "train", "eval".
        routing: Which parameter got which optimizer, as text.
        env_spec: Observations and actions of the evaluated environment.
        demos: What the demonstrations' info file says.
        demos_record: How they were made, and how often the expert succeeded.
        notes: What is missing, unfinished, damaged or to be known, as sentences.
        is_complete: Nothing is missing or unfinished.
        is_damaged: A file could not be read.
    """

    root: Path
    train_dir: Path
    eval_dir: Path
    records: list[EpisodeRecord] = field(default_factory=list)
    log: list[Row] = field(default_factory=list)
    warnings: list[Row] = field(default_factory=list)
    configs: dict[str, str] = field(default_factory=dict)
    train_config: Row = field(default_factory=dict)
    eval_config: Row = field(default_factory=dict)
    strata: list[Stratum] = field(default_factory=list)
    planned_variants: set[tuple[str, int]] = field(default_factory=set)
    metadata: dict[str, Row] = field(default_factory=dict)
    routing: str = ""
    env_spec: Row = field(default_factory=dict)
    demos: Row = field(default_factory=dict)
    demos_record: Row = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    is_complete: bool = True
    is_damaged: bool = False

    def note_gap(self, note: str) -> None:
        """Note something missing or unfinished."""
        self.notes.append(note)
        self.is_complete = False

    def note_damage(self, note: str) -> None:
        """Note a file that could not be read."""
        self.note_gap(note)
        self.is_damaged = True

    def rows(self, kind: str) -> list[Row]:
        """Return the rows of one kind from the training log, by step; the last of a step counts."""
        rows = {row["step"]: row for row in self.log if row.get("kind") == kind and "step" in row}
        return [rows[step] for step in sorted(rows)]

    @property
    def planned_steps(self) -> int | None:
        """Training steps the configuration asks for."""
        steps = self.train_config.get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def planned_records(self) -> list[EpisodeRecord]:
        """Those of the records that the stored evaluation configuration asks for."""
        asked = self.eval_config
        suites, trials = asked.get("suites"), asked.get("trials")
        first = asked.get("first_init_state") or 0
        states = asked.get("episodes")
        sizes = (("init_state", first + states if states else None), ("trial", trials))
        among = (("task_id", asked.get("task_ids")), ("suite", suites))
        return [
            record
            for record in self.records
            if (
                (record.suite, record.task_id) in self.planned_variants
                and (trials is None or record.trial < trials)
                if record.suite.startswith((f"{PLUS}/", f"{STYLE}/"))
                else all(getattr(record, name) in some for name, some in among if some is not None)
                and all(getattr(record, name) < size for name, size in sizes if size is not None)
                and record.init_state >= first
            )
        ]

    @property
    def planned_episodes(self) -> int | None:
        """Episodes the evaluation set out to run, None if that was not recorded."""
        planned = self.metadata.get("eval", {}).get("episodes_planned")
        return planned if isinstance(planned, int) else None


def read_run_folder(root: Path) -> RunFolder:
    """Read a run folder.

    A folder that holds a training log or episode rows directly is taken as that part alone.

    Raises:
        ConfigError: There is no such folder (names the nearest one), or no part of a run in it.
    """
    if not root.is_dir():
        siblings = [str(p) for p in root.parent.glob("*") if p.is_dir()]
        raise ConfigError(f"Run folder {root} does not exist.{nearest(str(root), siblings)}")
    run = RunFolder(
        root=root,
        train_dir=root if (root / "log.jsonl").exists() else root / "train",
        eval_dir=root if (root / "episodes.jsonl").exists() else root / "eval",
    )
    if root not in (run.train_dir, run.eval_dir) and not any((root / p).exists() for p in _PARTS):
        raise ConfigError(
            f"{root} holds no run: expected at least one of {', '.join(_PARTS)} in it. "
            "Give the folder that `vla-opt quickstart`, `train` or `eval` wrote to."
        )
    _read_evaluation(run)
    _read_training(run)
    _read_setup(run)
    return run


def _read_evaluation(run: RunFolder) -> None:
    path = run.eval_dir / "episodes.jsonl"
    try:
        run.records = load_records(path)
    except ValueError as error:
        run.note_damage(f"The episode rows are damaged and not used: {error}")
        return
    if not run.records:
        run.note_gap(f"No episode has been evaluated yet ({_name(run, path)} has no rows).")
    hashes = {record.config_hash for record in run.records}
    if len(hashes) > 1:
        run.notes.append(
            f"The episodes come from {len(hashes)} different evaluation configurations: "
            "their rates are not one experiment."
        )
    checkpoints = {record.checkpoint_hash for record in run.records}
    if len(checkpoints) > 1:
        run.notes.append(f"The episodes come from {len(checkpoints)} different checkpoints.")
    versions = sorted({record.versions for record in run.records if record.versions})
    if len(versions) > 1:
        run.notes.append(f"The episodes were run by different code: {'; '.join(versions)}.")


def _read_training(run: RunFolder) -> None:
    path = run.train_dir / "log.jsonl"
    try:
        run.log = read_jsonl(path)
        extra = read_jsonl(run.train_dir / "warnings.jsonl")
    except ValueError as error:
        run.note_damage(f"The training log is damaged: {error}")
        return
    if not run.train_dir.is_dir():
        run.notes.append(f"There is no training in this folder ({_name(run, path)} is absent).")
    elif not run.log:
        run.note_gap(f"No step of the training is logged yet ({_name(run, path)} has no rows).")
    seen: set[str] = set()
    for row in [*(r for r in run.log if r.get("kind") == "warning"), *extra]:
        text = json.dumps([row.get("step"), row.get("message"), row.get("layers")])
        if text not in seen:
            seen.add(text)
            run.warnings.append(row)
    run.warnings.sort(key=lambda row: row.get("step") or 0)


def _read_setup(run: RunFolder) -> None:
    run.train_config = _read_config(run, run.train_dir / "config.yaml")
    run.eval_config = _read_config(run, run.eval_dir / "config.yaml")
    _read_config(run, run.root / "config.yaml")
    for part, folder in (("train", run.train_dir), ("eval", run.eval_dir)):
        run.metadata[part] = _read_json(run, folder / "metadata.json")
    plan = _read_json(run, run.eval_dir / VARIANTS_FILE)
    try:
        run.strata = strata_from(plan)
        run.planned_variants = {(suite, task_id) for suite, task_id in plan.get("planned", ())}
    except (TypeError, ValueError) as error:
        run.note_damage(f"{VARIANTS_FILE} is not what an evaluation writes: {error}")
    run.demos = _read_json(run, run.root / "demos" / "meta" / "info.json")
    run.demos_record = _read_json(run, run.root / "demos" / "meta" / "demos.json")
    run.env_spec = run.metadata["eval"].pop("env_spec", None) or {}
    run.routing = str(run.metadata["train"].pop("routing", ""))
    steps = run.rows("train")
    if steps and run.planned_steps and steps[-1]["step"] < run.planned_steps:
        run.note_gap(
            f"Training is unfinished: {steps[-1]['step']} of {run.planned_steps} steps are logged."
        )
    run.notes += [f"Evaluation: {note}" for note in run.metadata["eval"].pop("notes", None) or ()]
    done, planned = len(run.planned_records), run.planned_episodes
    if run.records and planned is None:
        run.note_gap("How many episodes were planned is not recorded: this may be a part of them.")
    if run.records and planned and done < planned:
        run.note_gap(
            f"The evaluation is unfinished: {done} of {planned} planned episodes are done. "
            "The rates below are over those done."
        )
    if done < len(run.records):
        run.notes.append(
            f"{len(run.records) - done} of the {len(run.records)} episodes shown were asked for by "
            "an earlier call of the same evaluation, not by the last."
        )


def _read_config(run: RunFolder, path: Path) -> Row:
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    run.configs[_name(run, path)] = text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        run.note_damage(f"{_name(run, path)} is not valid YAML: {error}")
        return {}
    return dict(value) if isinstance(value, Mapping) else {}


def _read_json(run: RunFolder, path: Path) -> Row:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        run.note_damage(f"{_name(run, path)} is not valid JSON: {error}")
        return {}
    return dict(value) if isinstance(value, Mapping) else {}


def _name(run: RunFolder, path: Path) -> str:
    return path.relative_to(run.root).as_posix()
