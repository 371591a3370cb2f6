"""All that a run of reinforcement learning with verifiable rewards is made of."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vla_opt._checks import require_at_least
from vla_opt.optim.config import OptimizerConfig
from vla_opt.rlvr.collapse import CollapseConfig
from vla_opt.rlvr.tasks import TaskConfig
from vla_opt.rlvr.text_models import ModelConfig
from vla_opt.schedules import SchedulerConfig


@dataclass(frozen=True, kw_only=True)
class WarmStartConfig:
    """Supervised steps before the first reward, on training questions with their answers.

    Attributes:
        steps: updates by AdamW, whatever the run's optimizer; 0 = none.
        batch_size: questions per update.
        lr: learning rate, constant.
    """

    steps: int = 0
    batch_size: int = 64
    lr: float = 3e-3

    def __post_init__(self) -> None:
        """Check the values."""
        if self.steps < 0 or self.batch_size < 1 or not self.lr > 0.0:
            raise ValueError(
                f"warm_start: steps={self.steps}, batch_size={self.batch_size}, lr={self.lr}: "
                "expected >= 0, >= 1 and > 0."
            )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is maximized.

    Attributes:
        name: "gmpo" (geometric mean, arXiv 2507.20673), "grpo" (a mean over tokens, then over
            completions), "dapo" or "bnpo" (a mean over all tokens) or "dr_grpo".
        clip_low: bound of importance ratios; 1 - clip_low, under "gmpo" exp(-clip_low).
        clip_high: the same above.
        kl: weight of the divergence from the model the run began with (k3 estimate); 0 = none,
            which saves that model's memory.
        scale_advantages: divide by the standard deviation of the group's rewards.
        updates_per_batch: optimizer steps on the completions of one round.
        iterations: times that each completion is used.
    """

    name: Literal["grpo", "gmpo", "dapo", "bnpo", "dr_grpo"] = "grpo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: float = 0.0
    scale_advantages: bool = True
    updates_per_batch: int = 1
    iterations: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        for name, least in (("updates_per_batch", 1), ("iterations", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"objective.{name}={getattr(self, name)}: expected >= {least}.")
        for name in ("clip_low", "clip_high", "kl"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"objective.{name}={getattr(self, name)}: expected >= 0.")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How completions are drawn.

    Attributes:
        prompts: questions per round, over all processes.
        group: completions per question; advantages are relative to their mean.
        max_tokens: length at which a completion is cut off.
        temperature: of sampling; ratios and entropies are taken at it too.
        microbatch: completions per forward pass and process.
        chat_options: for the chat template, such as {enable_thinking: false} of Qwen3.
        engine: "transformers", or "vllm" in the same process (needs a GPU; not run here).
        vllm_memory: share of the GPU's memory for vllm.
        vllm_parallel: GPUs per copy of the model in vllm.
    """

    prompts: int = 16
    group: int = 8
    max_tokens: int = 32
    temperature: float = 1.0
    microbatch: int = 128
    chat_options: dict[str, bool] = field(default_factory=dict)
    engine: Literal["transformers", "vllm"] = "transformers"
    vllm_memory: float = 0.4
    vllm_parallel: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        for name, least in (("prompts", 1), ("group", 2), ("max_tokens", 1), ("microbatch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"sampling.{name}={getattr(self, name)}: expected >= {least}.")
        if not self.temperature > 0.0:
            raise ValueError(f"sampling.temperature={self.temperature}: expected > 0.")


@dataclass(frozen=True, kw_only=True)
class RLVRConfig:
    """Reinforcement learning of a language model with rewards that a program verifies.

    Attributes:
        model: What is trained.
        task: Questions, and when an answer is right.
        sampling: How completions are drawn.
        objective: What is maximized.
        optimizer: Which parameter is updated how; `preset=qwen3` with num_heads and num_kv_heads
            maps each attention head on its own.
        scheduler: How the learning rate moves.
        warm_start: Supervised steps before.
        collapse: When to warn of a collapsed policy.
        output_dir: Folder of this run alone.
        steps: Updates of the weights.
        grad_clip: Largest norm of the whole gradient; 0 = no clipping.
        seed: Of the random model, the questions and all sampling.
        device: "cpu", or "cuda" where there is one.
        mixed_precision: Compute in bfloat16, weights stay as they are.
        num_threads: Threads of torch; 0 = one per core.
        log_every: Rounds of sampling between rows of the log; figures are means over their updates.
        eval_every: Steps between evaluations on held-out questions, greedy; 0 = first and last.
        noise_every: Steps between measurements of the gradient's noise, at least: they are made at
            the first update of a round. Each is about as long as a step without sampling; 0 = none.
        noise_samples: Parts a microbatch is cut into for it.
        heads_every: Steps between measurements of attention heads; 0 = none.
        spectra_every: Steps between measurements of spectra; 0 = none.
        save_every: Steps between checkpoints; 0 = none but the final model.
        tensorboard: Mirror the log to TensorBoard.
        resume: Go on where a run in `output_dir` stopped; without it, such a folder is an error.

    Raises:
        ValueError: A number is out of range, or sizes do not divide each other.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(preset="qwen3"))
    scheduler: SchedulerConfig = field(default_factory=lambda: SchedulerConfig(name="constant"))
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    collapse: CollapseConfig = field(default_factory=CollapseConfig)
    output_dir: Path = Path("runs/rlvr")
    steps: int = 100
    grad_clip: float = 1.0
    seed: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    mixed_precision: bool = False
    num_threads: int = 0
    log_every: int = 1
    eval_every: int = 0
    noise_every: int = 10
    noise_samples: int = 4
    heads_every: int = 10
    spectra_every: int = 0
    save_every: int = 0
    tensorboard: bool = False
    resume: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        for key in ("steps", "log_every"):
            require_at_least(key, getattr(self, key), 1)
        for key in (
            *("grad_clip", "seed", "num_threads", "eval_every", "noise_every", "heads_every"),
            *("spectra_every", "save_every"),
        ):
            require_at_least(key, getattr(self, key), 0)
        require_at_least("noise_samples", self.noise_samples, 2)
        self.passes_per_update(1)

    @property
    def completions(self) -> int:
        """Completions per round."""
        return self.sampling.prompts * self.sampling.group

    @property
    def updates_per_round(self) -> int:
        """Updates between two rounds of sampling."""
        return self.objective.updates_per_batch * self.objective.iterations

    def passes_per_update(self, processes: int) -> int:
        """Forward passes of each process per update.

        Raises:
            ValueError: the completions of a round do not divide into them.
        """
        updates, size = self.objective.updates_per_batch, self.sampling.microbatch * processes
        passes, rest = divmod(self.completions, updates * size)
        if rest or passes < 1:
            raise ValueError(
                f"{self.sampling.prompts} prompts x {self.sampling.group} completions = "
                f"{self.completions} do not divide into {updates} updates of microbatches of "
                f"{self.sampling.microbatch} on {processes} processes: choose "
                "sampling.microbatch so that they do."
            )
        return passes
