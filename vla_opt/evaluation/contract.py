"""Does a checkpoint fit the environment? Answered from its JSON files, before anything is built.

Every lerobot checkpoint says in config.json which observations it takes and what it answers; ours
say more in env_spec.json: what each dimension means, the rotation of the images, the control rate.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.spec import EnvSpec
from vla_opt._checkpoint_stats import Statistics, both_sides_agree, read_statistics
from vla_opt.checkpoint import (
    MANIFEST,
    PRETRAINED,
    CheckpointError,
    latest_checkpoint,
    list_checkpoints,
    read_manifest,
    sha256_of,
    verify_checkpoint,
)
from vla_opt.contracts import Finding, compare, compare_chunk, compare_features, lines
from vla_opt.conventions import normalisation_findings, rotation_of
from vla_opt.errors import nearest

if TYPE_CHECKING:
    from envs.rollout import RolloutConfig

ENV_SPEC = "env_spec.json"
_IMAGE_PREFIX = "observation.images."
_NOT_HASHED = {"README.md", "train_config.json"}  # they decide no action


class ContractError(ValueError):
    """A checkpoint does not fit the environment; the message lists the differences."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk, without its weights.

    Attributes:
        folder: Where config.json and model.safetensors are.
        config: config.json.
        spec: The environment its demonstrations came from, None if the checkpoint does not say.
        sha256: Of everything in the folder that decides an action.
        notes: What the user should know, for example that a damaged checkpoint was passed over.
    """

    folder: Path
    config: dict[str, Any]
    spec: EnvSpec | None
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def image_size(self) -> int | None:
        """Side of the images it was trained on, where it says so and they are square."""
        sizes = {tuple(shape[-2:]) for shape in self._image_shapes().values()}
        if self.spec is not None:
            sizes = {(image.height, image.width) for image in self.spec.images.values()}
        if len(sizes) == 1 and len({*next(iter(sizes))}) == 1:
            return int(next(iter(sizes))[0])
        return None

    def _image_shapes(self) -> dict[str, list[int]]:
        features = self.config.get("input_features") or {}
        return {
            key.removeprefix(_IMAGE_PREFIX): feature["shape"]
            for key, feature in features.items()
            if key.startswith(_IMAGE_PREFIX)
        }


def open_checkpoint(path: Path) -> Checkpoint:
    """Find a checkpoint and check that its files are whole.

    A damaged one is passed over for the newest good one of the same run, with a note.

    Args:
        path: See `EvalConfig.checkpoint`.

    Raises:
        CheckpointError: There is none, or none that is whole.
    """
    folder, notes = _locate(path)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"Checkpoint {folder}: config.json is missing.")
    try:
        config = json.loads((folder / "config.json").read_bytes())
        spec_file = folder / ENV_SPEC
        spec = EnvSpec.from_dict(json.loads(spec_file.read_bytes())) if spec_file.exists() else None
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"Checkpoint {folder}: config.json or {ENV_SPEC} cannot be read: {error}"
        ) from error
    return Checkpoint(
        folder=folder, config=config, spec=spec, sha256=_hash_of(folder), notes=tuple(notes)
    )


def rollout_as_trained(
    checkpoint: Checkpoint,
    *,
    image_size: int | None = None,
    render_profile: str | None = None,
    **how: Any,
) -> "RolloutConfig":
    """How episodes of a checkpoint are run: as it was trained, where nothing else is asked for.

    Args:
        checkpoint: The checkpoint.
        image_size: Side of both images in pixels, if another than it was trained with.
        render_profile: See `envs.rendering`, if another than it was trained with.
        how: The other fields of `RolloutConfig`.

    Raises:
        UnknownNameError: No such render profile.
    """
    from envs.rendering import get_profile
    from envs.rollout import RolloutConfig

    trained = checkpoint.spec.render_profile if checkpoint.spec else "exact"
    return RolloutConfig(
        image_size=image_size or checkpoint.image_size or 128,
        render_profile=get_profile(render_profile or trained).name,
        **how,
    )


def check_contract(checkpoint: Checkpoint, env: EnvSpec, *, execute_steps: int) -> list[str]:
    """Compare what a checkpoint takes and answers with what the environment shows and takes.

    Returns:
        Differences that are allowed but worth a warning: another renderer.

    Raises:
        ContractError: The two do not fit; lists every difference.
    """
    findings = contract_findings(checkpoint, env, execute_steps=execute_steps)
    if problems := lines(findings, "differs"):
        raise ContractError(
            f"The checkpoint {checkpoint.folder} does not fit the environment "
            "(checkpoint against environment):\n  " + "\n  ".join(problems)
        )
    return lines(findings, "warning")


def contract_findings(checkpoint: Checkpoint, env: EnvSpec, *, execute_steps: int) -> list[Finding]:
    """Every term of a checkpoint beside that of an environment.

    Args:
        checkpoint: See `open_checkpoint`.
        env: What the environment shows and takes.
        execute_steps: Actions of a chunk that are executed before the policy looks again.

    Raises:
        CheckpointError: Its statistics cannot be read.
    """
    found = _feature_findings(checkpoint, env)
    if checkpoint.spec is not None:
        found += compare(
            terms_of(checkpoint.spec), terms_of(env), complete=True, tolerated=["render_profile"]
        )
    found += compare_chunk(checkpoint.config.get("chunk_size"), execute_steps)
    found += _history_findings(checkpoint.config)
    found += statistics_findings(checkpoint)
    stats = read_statistics(checkpoint.folder).get("action", {})
    return found + _limit_findings(stats, env)


def terms_of(spec: EnvSpec) -> dict[str, Any]:
    """A specification's terms for `vla_opt.contracts.compare`."""
    terms = {key: value for key, value in spec.to_dict().items() if key != "images"}
    for name, image in spec.images.items():
        terms |= {f"images.{name}.{key}": value for key, value in asdict(image).items()}
    return {**terms, "rotation": rotation_of(spec.state_names)}


def statistics_findings(checkpoint: Checkpoint) -> list[Finding]:
    """Whether a checkpoint carries the statistics it normalises with; nothing if it has no file.

    Raises:
        CheckpointError: They cannot be read.
    """
    config, before = checkpoint.config, read_statistics(checkpoint.folder)
    if not before:
        return []
    features = {**(config.get("input_features") or {}), **(config.get("output_features") or {})}
    modes = config.get("normalization_mapping") or {}
    found = normalisation_findings(features, modes, before) + _floor_findings(config, before)
    return found + both_sides_agree(before, read_statistics(checkpoint.folder, "after"))


def _floor_findings(config: Mapping[str, Any], stats: Statistics) -> list[Finding]:
    """Whether a state is divided by as much as its policy asks for, where it does.

    `lerobot-train --policy.path` puts the data set's own statistics in the place of the stored
    ones; an axis that hardly moves there then turns a millimetre into an input never seen.
    """
    floor = float(config.get("state_std_floor") or 0.0)
    std = stats.get("observation.state", {}).get("std", np.ones(1))
    least = float(np.min(std))
    if least >= floor * (1 - 1e-4):
        return []
    return [
        Finding(
            item="standard deviation of the state",
            ours=f"{least:.2g} in dimension {int(np.argmin(std))}",
            theirs=f"at least {floor:g}, its state_std_floor",
            verdict="warning",
            remedy="lerobot-train --policy.path replaces it: fine-tune with vla-opt train "
            "--policy.pretrained_path instead",
        )
    ]


def _history_findings(config: Mapping[str, Any]) -> list[Finding]:
    looks = config.get("n_obs_steps", 1)
    return [
        Finding(
            item="n_obs_steps",
            ours=str(looks),
            theirs="1" if looks == 1 else "1, histories of frames are not supported",
            verdict="match" if looks == 1 else "differs",
        )
    ]


def _limit_findings(stats: Mapping[str, Any], env: EnvSpec) -> list[Finding]:
    """Whether actions keep to the environment's limits, and the gripper counts as it does there.

    A gripper from 0 to 1 where -1 to 1 is taken would close at half and never open.
    """
    if not {"min", "max"} <= stats.keys() or len(stats["min"]) != len(env.action_names):
        return []
    low, high, span = env.action_low, env.action_high, env.action_high - env.action_low
    found = []
    least, most = float(stats["min"].min()), float(stats["max"].max())
    keeps = least >= low - 0.05 * span and most <= high + 0.05 * span
    found.append(
        Finding(
            item="action range",
            ours=f"{least:.3g} .. {most:.3g}",
            theirs=f"{low:g} .. {high:g}",
            verdict="match" if keeps else "warning",
            remedy="" if keeps else "what lies beyond is cut off",
        )
    )
    if env.action_names[-1] == "gripper":
        least, most = float(stats["min"][-1]), float(stats["max"][-1])
        between = any(low + 0.25 * span < end < high - 0.25 * span for end in (least, most))
        found.append(
            Finding(
                item="gripper range",
                ours=f"{least:.3g} .. {most:.3g}",
                theirs=f"{low:g} open .. {high:g} closed",
                verdict="differs" if between else "match",
                remedy="its polarity is another: train on data that count like the environment"
                if between
                else "",
            )
        )
    return found


def _feature_findings(checkpoint: Checkpoint, env: EnvSpec) -> list[Finding]:
    inputs = checkpoint.config.get("input_features") or {}
    outputs = checkpoint.config.get("output_features") or {}
    shown = {
        f"{_IMAGE_PREFIX}{key}": [3, image.height, image.width] for key, image in env.images.items()
    }
    shown["observation.state"] = [len(env.state_names)]
    found = compare_features({name: f["shape"] for name, f in inputs.items()}, shown)
    if not any(name.startswith(_IMAGE_PREFIX) for name in inputs):
        nothing = "the checkpoint takes no image"
        found.append(
            Finding(item="observation.images.*", ours=nothing, theirs="", verdict="differs")
        )
    taken = outputs.get("action")
    shape, wanted = taken and list(taken["shape"]), [len(env.action_names)]
    return [
        *found,
        Finding(
            item="action",
            ours=f"shape {shape}",
            theirs=str(wanted),
            verdict="match" if shape == wanted else "differs",
        ),
    ]


def _locate(path: Path) -> tuple[Path, list[str]]:
    """The folder with config.json, and notes."""
    if path.name == PRETRAINED and (path.parent / MANIFEST).exists():
        path = path.parent
    if (path / "config.json").is_file():
        return path, []
    if (path / MANIFEST).exists():
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            return _last_good(path.resolve().parent, str(error))
        return path / PRETRAINED, []
    if (path / PRETRAINED / "config.json").is_file():
        return path / PRETRAINED, []  # of lerobot's own trainer
    for run in (path / "train" / "checkpoints", path / "checkpoints", path):
        if list_checkpoints(run):
            return _last_good(run)
    if list_checkpoints(path.parent) and path.exists():
        return _last_good(path.parent, f"Checkpoint {path}: {MANIFEST} is missing.")
    raise CheckpointError(f"There is no checkpoint {path}.{_neighbours(path)}")


def _last_good(run: Path, complaint: str = "") -> tuple[Path, list[str]]:
    """The newest whole checkpoint of a run, with what is wrong with those passed over."""
    if not any((path / MANIFEST).exists() for path in list_checkpoints(run)):
        return list_checkpoints(run)[-1] / PRETRAINED, []  # of lerobot's own trainer
    good, damaged = latest_checkpoint(run)
    complaints = [found.reason for found in damaged] or ([complaint] if complaint else [])
    if good is None:
        raise CheckpointError(" ".join([*complaints, f"No checkpoint in {run} is whole."]))
    return good / PRETRAINED, [*complaints, f"Using {good} instead."] if complaints else []


def _neighbours(path: Path) -> str:
    """Checkpoints the user may have meant."""
    for folder in (path.parent, path.parent.parent):
        names = [str(found) for found in list_checkpoints(folder)]
        if names:
            return nearest(str(path), names)
    siblings = [str(entry) for entry in path.parent.glob("*") if entry.is_dir()]
    return nearest(str(path), siblings) if siblings else f" {path.parent} does not exist either."


def _hash_of(folder: Path) -> str:
    """Hash of the folder's files; those of a verified checkpoint are taken from its manifest."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in _NOT_HASHED)
    known: dict[str, Any] = {}
    if folder.name == PRETRAINED and (folder.parent / MANIFEST).exists():
        known = read_manifest(folder.parent)["files"]
    total = hashlib.sha256()
    for file in files:
        name = file.relative_to(folder).as_posix()
        entry = known.get(f"{PRETRAINED}/{name}")
        total.update(f"{name} {entry['sha256'] if entry else sha256_of(file)}\n".encode())
    return total.hexdigest()[:16]
