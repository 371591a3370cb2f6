"""All that a zeroth-order run is made of: frozen dataclasses that YAML and words fill."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from vla_opt import zeroth_order
from vla_opt._checks import require_at_least
from vla_opt.config import DataConfig
from vla_opt.evaluation.config import EvalConfig
from vla_opt.zeroth_order import ZerothOrder

Name = Literal[
    "mezo",
    "subspace_mezo",
    "zo_muon",
    "zo_high_pass",
    "ar1_zo",
    "zoar",
    "forward_gradient",
    "coordinate_wise",
    "subspace_newton",
    "bayesian_subspace",
]

# Fields of MethodConfig that each preset takes beside the learning rate, epsilon and the seed.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "mezo": ("directions", "rule", "weight_decay"),
    "subspace_mezo": ("directions", "rank", "every", "side", "weight_decay"),
    "zo_muon": ("directions", "rank", "every", "side", "vector_lr_ratio", "weight_decay"),
    "zo_high_pass": (
        *("directions", "rank", "every", "side", "vector_lr_ratio", "weight_decay"),
        *("momentum", "promotion_steps"),
    ),
    "ar1_zo": ("rule", "order"),
    "zoar": ("directions", "reuse", "rule", "weight_decay"),
    "forward_gradient": ("directions", "rule", "weight_decay"),
    "coordinate_wise": ("directions", "rule"),
    "subspace_newton": ("directions", "damping"),
    "bayesian_subspace": ("directions", "prior_variance", "noise_variance"),
}


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """How weights are updated. Options that are not given have the method's own defaults.

    Attributes:
        name: A preset of `vla_opt.zeroth_order`.
        lr: Learning rate; its scale differs by orders of magnitude between methods.
        epsilon: Length of a move along a direction.
        directions: New directions per step.
        rank: Of the subspace.
        every: Steps until the subspace is drawn again.
        side: Which side of a matrix is projected, "rows" or "shorter".
        rule: Inner rule, "sgd", "momentum", "adam" or "r-adazo".
        momentum: Of zo_high_pass.
        promotion_steps: Of zo_high_pass.
        reuse: Earlier steps whose queries zoar uses again.
        order: In which ar1_zo visits atoms, "cyclic" or "shuffled".
        damping: Of subspace_newton.
        prior_variance: Of bayesian_subspace.
        noise_variance: Of bayesian_subspace.
        vector_lr_ratio: Learning rate of everything but matrices, divided by lr.
        weight_decay: Multiplied by lr, for matrices only.

    Raises:
        ValueError: An option was given that the method does not have.
    """

    name: Name = "mezo"
    lr: float = 1e-4
    epsilon: float | None = None
    directions: int | None = None
    rank: int | None = None
    every: int | None = None
    side: Literal["rows", "shorter"] | None = None
    rule: Literal["sgd", "momentum", "adam", "r-adazo"] | None = None
    momentum: float | None = None
    promotion_steps: int | None = None
    reuse: int | None = None
    order: Literal["cyclic", "shuffled"] | None = None
    damping: float | None = None
    prior_variance: float | None = None
    noise_variance: float | None = None
    vector_lr_ratio: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        """Check that the method has the options."""
        given = self._given()
        other = sorted(given.keys() - {*_OPTIONS[self.name], "epsilon"})
        if other:
            raise ValueError(
                f"{self.name} has no option {', '.join(other)}; it has lr, epsilon, "
                f"{', '.join(_OPTIONS[self.name])}."
            )

    def build(self, model: nn.Module, seed: int) -> ZerothOrder:
        """Build the optimizer of the model's trainable parameters."""
        preset: Callable[..., ZerothOrder] = getattr(zeroth_order, self.name)
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        return preset(trained, self.lr, seed=seed, **self._given())

    def _given(self) -> dict[str, Any]:
        options = {name for names in _OPTIONS.values() for name in names} | {"epsilon"}
        values = {name: getattr(self, name) for name in sorted(options)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """LoRA: W + alpha B A in place of W, and only A and B are trained.

    Attributes:
        rank: Of the product.
        alpha: Its factor, whatever the rank: with the usual alpha / rank the signal that a query of
            one atom gets falls with the rank (AR1-ZO).
        modules: Regular expressions; linear layers whose names one of them finds get an adapter.
    """

    rank: int = 8
    alpha: float = 1.0
    modules: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        """Check the values."""
        require_at_least("rank", self.rank, 1)


@dataclass(frozen=True, kw_only=True)
class EpisodesConfig:
    """The episodes whose success is optimized; scenes are drawn at random as for demonstrations.

    Attributes:
        suite: Task suite.
        task_ids: Tasks that take turns.
        episodes: Per query; the same ones in all queries of a step, new ones in the next.
        execute_steps: Actions of a predicted chunk that are executed before the policy looks again.
        max_steps: Control steps until an episode has failed; the benchmark's limit if not given.
        render_profile: What the checkpoint was trained with if not given, else "exact".
    """

    suite: str = "libero_object"
    task_ids: tuple[int, ...] = (0, 1)
    episodes: int = 4
    execute_steps: int = 4
    max_steps: int | None = None
    render_profile: str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("episodes", "execute_steps"):
            require_at_least(name, getattr(self, name), 1)
        if self.max_steps is not None:
            require_at_least("max_steps", self.max_steps, 1)
        if not self.task_ids:
            raise ValueError("task_ids is empty: name at least one task.")


@dataclass(frozen=True, kw_only=True)
class ZOTrainConfig:
    """Fine-tune a checkpoint by forward calls alone.

    Attributes:
        checkpoint: Where to start: a run, one of its checkpoints, or a folder written by lerobot.
        method: How weights are updated.
        objective: "supervised", the policy's own loss on demonstrations; or "success", one minus
            the share of simulated episodes that succeed, which needs no derivative to exist.
        data: Demonstrations, for "supervised".
        episodes: Simulated episodes, for "success".
        adapter: Train LoRA adapters instead of the weights; they are merged into checkpoints.
        trainable: Regular expressions; only parameters whose names one of them finds are trained.
        output_dir: Folder of this run alone.
        budget: Forward calls (of the loss, or sets of episodes) in all; the last step may exceed
            it.
        batch_size: Samples per forward call, the same ones in all queries of a step.
        train_mode: Forward calls with dropout, equal in all queries of a step.
        seed: Of directions, data order and noise.
        workers: Ray processes that share the queries of a step; 0 = none. Same result with any.
        num_threads: Threads of torch in each process; part of the result's last bits.
        device: Of the policy.
        save_every: Steps between checkpoints; 0 = only the last. The last is always saved.
        keep_last: Checkpoints kept; 0 = all.
        eval: Periodic evaluation; its checkpoint and output folder are filled in.
        eval_every: Steps between evaluations; 0 = none.
    """

    checkpoint: Path
    method: MethodConfig = field(default_factory=MethodConfig)
    objective: Literal["supervised", "success"] = "supervised"
    data: DataConfig = field(default_factory=DataConfig)
    episodes: EpisodesConfig = field(default_factory=EpisodesConfig)
    adapter: AdapterConfig | None = None
    trainable: tuple[str, ...] = ("",)
    output_dir: Path = Path("runs/zo")
    budget: int = 1000
    batch_size: int = 32
    train_mode: bool = False
    seed: int = 0
    workers: int = 0
    num_threads: int = 1
    device: str = "cpu"
    save_every: int = 0
    keep_last: int = 2
    eval: EvalConfig = field(default_factory=EvalConfig)
    eval_every: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        least = {"budget": 1, "batch_size": 1, "num_threads": 1}
        for name in ("budget", "batch_size", "num_threads", "workers", "save_every", "eval_every"):
            require_at_least(name, getattr(self, name), least.get(name, 0))
        if self.method.name == "ar1_zo" and self.adapter is None:
            raise ValueError("method ar1_zo trains LoRA adapters: give --adapter.rank=...")
        if self.method.name == "forward_gradient" and self.objective == "success":
            raise ValueError(
                "the success of episodes has no derivative: forward_gradient needs "
                "--objective=supervised."
            )


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Rebuild the weights of a run from its start and its log, without a forward call.

    Attributes:
        run: Folder of the run.
        step: Updates to repeat; all if not given.
        output_dir: Where the checkpoint goes; nothing is written if not given.
        checkpoint: Where the start is now, if it was moved.
    """

    run: Path
    step: int | None = None
    output_dir: Path | None = None
    checkpoint: Path | None = None
