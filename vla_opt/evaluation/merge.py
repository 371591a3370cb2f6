"""Parts of one evaluation that ran on several machines, put together as if one had run them.

Only parts of the same experiment are: same checkpoint, same protocol, same simulator. An episode
that ran twice must have come out the same, and then counts once.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vla_opt.evaluation.dimensions import write_dimensions
from vla_opt.evaluation.records import EpisodeRecord, Key, load_records
from vla_opt.evaluation.variants import VARIANTS_FILE, Stratum, strata_from
from vla_opt.io import atomic_write_bytes, atomic_write_json, atomic_write_text
from vla_opt.provenance import run_metadata

SIMULATOR = ("mujoco", "robosuite", "hf-libero")
"""Distributions another version of which is another experiment."""

_OUTCOME = ("seed", "outcome", "steps", "variant", "render_profile")
_LOCAL = {
    *("checkpoint", "output_dir", "shard", "device", "num_workers", "backend", "timeout_s"),
    *("max_retries", "videos", "policy_threads", "policy_batch", "image_size", "render_profile"),
}
"""What may differ between the configurations: no number depends on it, or the identity has it."""
_SPAN = {"suites", "task_ids", "episodes", "trials"}


class MergeError(ValueError):
    """Parts that are not of one evaluation; says in what they differ."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one machine wrote.

    Attributes:
        folder: Where it is.
        records: Its rows, one per episode.
        metadata: Its metadata.json.
        config: Its config.yaml.
        variants: Its variants.json, empty without variants.
    """

    folder: Path
    records: tuple[EpisodeRecord, ...]
    metadata: dict[str, Any]
    config: dict[str, Any]
    variants: dict[str, Any]

    @property
    def strata(self) -> list[Stratum]:
        """The variants that were asked for."""
        return strata_from(self.variants)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The whole.

    Attributes:
        output_dir: Where it was written.
        records: One row per episode, by key.
        strata: The variants that were asked for.
        planned: Episodes that all parts together were to run.
        duplicates: Episodes that ran in more than one part, alike.
        notes: What a reader must know, for example a part that is missing.
    """

    output_dir: Path
    records: tuple[EpisodeRecord, ...]
    strata: tuple[Stratum, ...]
    planned: int
    duplicates: int
    notes: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every planned episode measured the policy."""
        return sum(record.scored for record in self.records) >= self.planned


def merge(folders: Sequence[Path], output_dir: Path) -> Merged:
    """Put the parts of an evaluation together.

    The result is an evaluation's folder like any other: `vla-opt eval` goes on with it, `report`
    shows it. Merging again replaces it.

    Args:
        folders: Each with the episodes.jsonl, metadata.json and config.yaml of a part.
        output_dir: Where the whole goes; none of the parts, and no other evaluation.

    Raises:
        MergeError: Not of one evaluation; an episode came out differently; nothing to merge.
        ValueError: A row is damaged; names the file and the line.
    """
    parts = [_read(folder) for folder in _distinct(folders, output_dir)]
    for other in parts[1:]:
        _check_same_experiment(parts[0], other)
    records, source, duplicates = _unite(parts)
    variants = _unite_variants(parts)
    strata = tuple(strata_from(variants))
    planned, notes = _planned(parts), [*_notes(parts, records)]
    for record in records:
        if record.video is not None:
            film = _film(source[record.key], record.video)
            atomic_write_bytes(output_dir / record.video, film)
    rows = (json.dumps(r.to_dict(), ensure_ascii=False, separators=(",", ":")) for r in records)
    atomic_write_text(output_dir / "config.yaml", _dump(_unite_configs(parts)))
    if variants:
        atomic_write_json(output_dir / VARIANTS_FILE, variants)
    atomic_write_json(output_dir / "metadata.json", _metadata(parts, planned, notes))
    atomic_write_text(output_dir / "episodes.jsonl", "".join(f"{row}\n" for row in rows))
    write_dimensions(output_dir, records, strata)
    return Merged(
        output_dir=output_dir,
        records=records,
        strata=strata,
        planned=planned,
        duplicates=duplicates,
        notes=tuple(notes),
    )


# -- reading ---------------------------------------------------------------------------------------


def _distinct(folders: Sequence[Path], output_dir: Path) -> list[Path]:
    places = {folder.resolve(): folder for folder in map(_evaluation_in, folders)}
    if len(places) < 2:
        raise MergeError(
            f"Nothing to merge: {len(places)} folder(s) given. Give the folders of two parts or "
            "more: vla-opt eval merge PART PART ... --output_dir=WHOLE"
        )
    if output_dir.resolve() in places:
        raise MergeError(f"{output_dir} is one of the parts: give another --output_dir.")
    if (output_dir / "episodes.jsonl").exists() and not _json(output_dir / "metadata.json").get(
        "merged_from"
    ):
        raise MergeError(
            f"{output_dir} holds an evaluation that is no result of merging. Give another "
            "--output_dir, or name that folder among the parts."
        )
    return list(places.values())


def _evaluation_in(folder: Path) -> Path:
    """The folder itself, or the evaluation of the run in it."""
    for place in (folder, folder / "eval"):
        if (place / "episodes.jsonl").is_file():
            return place
    raise MergeError(
        f"{folder} holds no evaluation: expected episodes.jsonl in it, as `vla-opt eval` writes."
    )


def _read(folder: Path) -> Part:
    metadata, config = _json(folder / "metadata.json"), folder / "config.yaml"
    if not metadata.get("identity") or not config.is_file():
        raise MergeError(
            f"{folder}: metadata.json or config.yaml is missing, so nobody can tell what was "
            "evaluated there. Copy the whole folder from its machine."
        )
    part = Part(
        folder=folder,
        records=tuple(load_records(folder / "episodes.jsonl")),
        metadata=metadata,
        config=yaml.safe_load(config.read_text(encoding="utf-8")),
        variants=_json(folder / VARIANTS_FILE),
    )
    strange = {record.config_hash for record in part.records} - {metadata["config_hash"]}
    if strange:
        raise MergeError(
            f"{folder} holds rows of another evaluation than its metadata says "
            f"({', '.join(sorted(strange))} beside {metadata['config_hash']})."
        )
    return part


def _film(part: Part, video: str) -> bytes:
    try:
        return (part.folder / video).read_bytes()
    except FileNotFoundError:
        raise MergeError(
            f"{part.folder} names the video {video}, but it is not there. Copy the whole folder "
            "from its machine."
        ) from None


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


# -- comparing -------------------------------------------------------------------------------------


def _check_same_experiment(a: Part, b: Part) -> None:
    """Name every difference at once."""
    versions = [
        {name: part.metadata.get("versions", {}).get(name) for name in SIMULATOR} for part in (a, b)
    ]
    pairs: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("", a.metadata["identity"], b.metadata["identity"]),
        ("env_spec.", a.metadata.get("env_spec", {}), b.metadata.get("env_spec", {})),
        ("version of ", versions[0], versions[1]),
        ("config.", _compared(a.config), _compared(b.config)),
    ]
    differences = [
        f"{prefix}{name}: {left.get(name)} against {right.get(name)}"
        for prefix, left, right in pairs
        for name in dict.fromkeys([*left, *right])
        if left.get(name) != right.get(name)
    ]
    if differences:
        raise MergeError(
            f"{a.folder} and {b.folder} are not parts of one evaluation:\n  "
            + "\n  ".join(differences)
        )


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree; an option that an older version did not have stood at its default."""
    import draccus

    from vla_opt.evaluation.config import EvalConfig

    whole = {**draccus.encode(EvalConfig(), EvalConfig), **config}
    return {name: value for name, value in whole.items() if name not in _LOCAL | _SPAN}


def _unite(
    parts: Iterable[Part],
) -> tuple[tuple[EpisodeRecord, ...], dict[Key, Part], int]:
    """The rows by key, the part each comes from, and how many were there twice."""
    kept: dict[Key, EpisodeRecord] = {}
    source: dict[Key, Part] = {}
    duplicates = 0
    for part in parts:
        for record in part.records:
            present = kept.get(record.key)
            if present is not None and present.scored and record.scored:
                _check_same_outcome(present, source[record.key], record, part)
                duplicates += 1
            if present is None or (record.scored and not present.scored):
                kept[record.key], source[record.key] = record, part
    return tuple(kept[key] for key in sorted(kept)), source, duplicates


def _check_same_outcome(a: EpisodeRecord, part_a: Part, b: EpisodeRecord, part_b: Part) -> None:
    differences = [
        f"{name} {getattr(a, name)} against {getattr(b, name)}"
        for name in _OUTCOME
        if getattr(a, name) != getattr(b, name)
    ]
    if differences:
        raise MergeError(
            f"Episode {a.label} ran in {part_a.folder} and in {part_b.folder} and came out "
            f"differently: {', '.join(differences)}. The same episode gives the same numbers: one "
            "of the machines computes something else (processor, driver, library). Find out which "
            "before any of these rows is used."
        )


# -- uniting ---------------------------------------------------------------------------------------


def _unite_variants(parts: Sequence[Part]) -> dict[str, Any]:
    strata: dict[tuple[Any, ...], Stratum] = {}
    planned: dict[tuple[str, int], None] = {}
    levels: dict[str, str] = {}
    for part in parts:
        levels.update(part.variants.get("levels", {}))
        planned.update({(suite, task): None for suite, task in part.variants.get("planned", ())})
        for stratum in part.strata:
            name = (stratum.suite, stratum.dimension, stratum.level)
            present = strata.setdefault(name, stratum)
            if present != stratum:
                raise MergeError(
                    f"{part.folder} stands for {stratum.tasks} tasks of {'/'.join(map(str, name))} "
                    f"with {stratum.runnable} that can run, another part for {present.tasks} with "
                    f"{present.runnable}: evaluate all parts with the same assets and labels."
                )
    if not strata:
        return {}
    return {
        "levels": levels,
        "strata": [vars(stratum) for stratum in strata.values()],
        "planned": [list(task) for task in planned],
    }


def _unite_configs(parts: Sequence[Part]) -> dict[str, Any]:
    """The configuration of one machine that would have run all parts."""
    configs = [part.config for part in parts]
    tasks = [config.get("task_ids") for config in configs]
    return {
        **configs[0],
        "suites": list(dict.fromkeys(suite for c in configs for suite in c["suites"])),
        "task_ids": None
        if any(ids is None for ids in tasks)
        else sorted({i for ids in tasks for i in ids or ()}),
        "episodes": max(config["episodes"] for config in configs),
        "trials": max(config["trials"] for config in configs),
        "shard": None,
        "output_dir": None,
    }


def _planned(parts: Sequence[Part]) -> int:
    """How many different episodes the configurations ask for, all shards of each included."""
    from vla_opt.evaluation.config import EvalConfig, episode_keys
    from vla_opt.evaluation.variants import VariantConfig

    keys = set()
    for part in parts:
        config = part.config
        keys |= set(
            episode_keys(
                EvalConfig(
                    suites=tuple(config["suites"]),
                    task_ids=None if config["task_ids"] is None else tuple(config["task_ids"]),
                    episodes=config["episodes"],
                    first_init_state=config.get("first_init_state", 0),
                    trials=config["trials"],
                    variants=_rebuilt(VariantConfig, config.get("variants") or {}),
                )
            )
        )
    return len(keys)


def _rebuilt[T](config_class: type[T], tree: Mapping[str, Any]) -> T:
    import draccus

    built: T = draccus.decode(config_class, dict(tree))
    return built


def _notes(parts: Sequence[Part], records: Sequence[EpisodeRecord]) -> Iterable[str]:
    yield f"Merged from {len(parts)} parts with {len(records)} episodes."
    shards = {str(part.config["shard"]) for part in parts if part.config.get("shard")}
    for count in sorted({shard.partition("/")[2] for shard in shards}, key=int):
        expected = [f"{i}/{count}" for i in range(1, int(count) + 1)]
        missing = [shard for shard in expected if shard not in shards]
        if missing:
            yield f"Missing shards: {', '.join(missing)}."
    for name in ("git_commit", "cpu", "python"):
        values = sorted({str(part.metadata.get(name)) for part in parts})
        if len(values) > 1:
            yield f"The parts differ in {name}: {', '.join(values)}."
    for name in parts[0].metadata.get("versions", {}):
        values = sorted({str(part.metadata["versions"].get(name)) for part in parts})
        if len(values) > 1:
            yield f"The parts differ in the version of {name}: {', '.join(values)}."
    seen = [note for part in parts for note in part.metadata.get("notes", ())]
    yield from dict.fromkeys(seen)


def _metadata(parts: Sequence[Part], planned: int, notes: Sequence[str]) -> dict[str, Any]:
    first = parts[0].metadata
    same = ("identity", "config_hash", "checkpoint", "policy", "env_spec")
    told = ("time_utc", "git_commit", "git_dirty", "versions", "python", "platform", "cpu")
    return {
        **run_metadata(),
        **{name: first.get(name) for name in same},
        "episodes_planned": planned,
        "notes": list(notes),
        "merged_from": [
            {
                "folder": str(part.folder),
                "shard": part.config.get("shard"),
                "episodes": len(part.records),
                "command": part.metadata.get("command"),
                **{name: part.metadata.get(name) for name in told},
            }
            for part in parts
        ],
    }


def _dump(config: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(config), sort_keys=False))
