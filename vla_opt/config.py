"""All that a training run is made of: frozen dataclasses that YAML and the command line fill."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import draccus
from lerobot.configs import PreTrainedConfig

from vla_opt._checks import require_at_least
from vla_opt.errors import ConfigError
from vla_opt.evaluation.config import EvalConfig
from vla_opt.optim.config import OptimizerConfig
from vla_opt.schedules import SchedulerConfig

# A run may go on although these differ: they do not change what is computed.
_FREE_KEYS = frozenset(
    {
        "output_dir",
        "data.root",
        "data.cache_dir",
        "policy.device",
        "steps",
        "num_threads",
        "sharding",
        "save_every",
        "keep_last",
        "log_every",
        "spectra_every",
        "eval_every",
        "tensorboard",
        "resume",
        "eval",
    }
)


def _default_policy() -> PreTrainedConfig:
    import policies  # noqa: F401 - registers the policy types of this project

    config: PreTrainedConfig = PreTrainedConfig.get_choice_class("vla_adapter")(device="cpu")
    return config


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learned from.

    Attributes:
        root: Folder of a LeRobotDataset v3.
        cache_dir: Where decoded frames and features are kept; default: `cache` beside `root`.
        frame_stride: A sample starts at every n-th frame of an episode.
        cache_features: Compute what a frozen encoder sees once per frame instead of every step.
        hold_out: Every n-th episode is not learned from, so that a loss can be measured on it; 0 =
            all are learned from.
    """

    root: Path = Path("runs/quickstart/demos")
    cache_dir: Path | None = None
    frame_stride: int = 1
    cache_features: bool = True
    hold_out: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        require_at_least("data.frame_stride", self.frame_stride, 1)
        if self.hold_out < 0 or self.hold_out == 1:
            raise ValueError(
                f"data.hold_out={self.hold_out}: expected 0 (none), or 2 or more (every n-th)."
            )

    @property
    def cache(self) -> Path:
        """Folder of the cache."""
        return self.cache_dir or self.root.parent / "cache"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Attributes:
        policy: Any policy type of lerobot or of this project: `--policy.type=vla_adapter`.
        data: Demonstrations.
        optimizer: Which parameter is updated how.
        scheduler: How the learning rate moves.
        eval: Periodic evaluation in simulation; its checkpoint and output folder are filled in.
        output_dir: Folder of this run alone.
        steps: Updates of the weights.
        batch_size: Samples per process and forward pass.
        gradient_accumulation: Forward passes per update.
        grad_clip: Largest norm of the whole gradient; 0 = no clipping.
        seed: Of the initial weights, the data order and all noise.
        num_threads: Threads of torch; 0 = one per core, or those of the run that is resumed: sums
            are added in another order with another number, so runs repeat bitwise only with equal.
        mixed_precision: "bf16" computes the forward pass in bfloat16, weights stay as they are.
        sharding: What several processes do with the weights: "none", each has all of them; or
            "fsdp2", each keeps its part of weights, gradients and optimizer state.
        deterministic: Ask torch for algorithms that repeat bitwise.
        log_every: Steps between rows of the log.
        save_every: Steps between checkpoints; 0 = only the last step. The last is always saved.
        keep_last: Checkpoints kept; 0 = all.
        eval_every: Steps between evaluations; 0 = none.
        spectra_every: Steps between measurements of spectra; 0 = none.
        tensorboard: Mirror the log to TensorBoard.
        resume: Go on where a run in `output_dir` stopped; without it, such a folder is an error.

    Raises:
        ValueError: A number is out of range.
    """

    policy: PreTrainedConfig = field(default_factory=_default_policy)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    output_dir: Path = Path("runs/default/train")
    steps: int = 1000
    batch_size: int = 32
    gradient_accumulation: int = 1
    grad_clip: float = 1.0
    seed: int = 0
    num_threads: int = 0
    mixed_precision: Literal["no", "bf16"] = "no"
    sharding: Literal["none", "fsdp2"] = "none"
    deterministic: bool = True
    log_every: int = 10
    save_every: int = 200
    keep_last: int = 2
    eval_every: int = 0
    spectra_every: int = 50
    tensorboard: bool = True
    resume: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        for key in ("steps", "batch_size", "gradient_accumulation", "log_every"):
            require_at_least(key, getattr(self, key), 1)
        for key in (
            *("grad_clip", "num_threads", "save_every", "keep_last"),
            *("eval_every", "spectra_every", "seed"),
        ):
            require_at_least(key, getattr(self, key), 0)
        if self.scheduler.warmup_steps > self.steps:
            raise ValueError(
                f"scheduler.warmup_steps={self.scheduler.warmup_steps}: expected at most "
                f"steps={self.steps}; the learning rate would never reach its value."
            )


def to_tree(config: object) -> dict[str, Any]:
    """Return a configuration as nested mappings of plain values, as they stand in YAML."""
    tree: dict[str, Any] = json.loads(json.dumps(draccus.encode(config, type(config))))
    return tree  # through JSON: draccus leaves enumerations of strings as they are


def to_yaml(config: object) -> str:
    """Return a configuration as the YAML that `--config_path` reads."""
    import yaml

    return str(yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True))


def config_hash(config: object) -> str:
    """Return 16 hexadecimal digits that identify a configuration."""
    text = json.dumps(to_tree(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_same_run(config: TrainConfig, earlier: Mapping[str, Any]) -> None:
    """Refuse to go on with a run whose computation was configured otherwise.

    Args:
        config: The configuration given now.
        earlier: That of the run, as `to_tree` gave it.

    Raises:
        ConfigError: Lists every difference that matters.
    """
    differences = [
        f"{key}: {then!r} in the run, {now!r} now"
        for key, then, now in changed_settings(earlier, config, free=_FREE_KEYS)
    ]
    if differences:
        raise ConfigError(
            f"{config.output_dir} holds a run with another configuration:\n  "
            + "\n  ".join(differences)
            + "\nGive that configuration to go on with it, or another --output_dir."
        )


def changed_settings(
    earlier: Mapping[str, Any], config: object, *, free: Collection[str]
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, value then, value now) of what an earlier configuration had otherwise.

    A key that is new since then has its default, and is none of them.

    Args:
        earlier: As `to_tree` gave it.
        config: The one of now.
        free: Keys, with all below them, that may differ.
    """
    now, then = _flat(to_tree(config)), _flat(earlier)
    for key in sorted(then):
        branches = key.split(".")
        if any(".".join(branches[: i + 1]) in free for i in range(len(branches))):
            continue
        if now.get(key, "(absent)") != then[key]:
            yield key, then[key], now.get(key, "(absent)")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
