"""The configuration of this project in TRL's words."""

from typing import Any

from trl.trainer.grpo_config import GRPOConfig

from vla_opt.rlvr.config import RLVRConfig


def trl_arguments(config: RLVRConfig, processes: int) -> GRPOConfig:
    """Everything TRL's trainer has to know, and nothing left to defaults that would surprise.

    Learning rate, schedule and weight decay are the optimizer's own matter; its gradient
    checkpointing, bfloat16 and reports are on by default there, and off here unless asked for.
    """
    sampling, objective = config.sampling, config.objective
    passes = config.passes_per_update(processes)
    return GRPOConfig(
        output_dir=str(config.output_dir / "checkpoints"),
        max_steps=config.steps,
        learning_rate=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
        max_grad_norm=config.grad_clip,
        per_device_train_batch_size=sampling.microbatch,
        gradient_accumulation_steps=passes,
        steps_per_generation=passes * objective.updates_per_batch,
        num_generations=sampling.group,
        max_completion_length=sampling.max_tokens,
        temperature=sampling.temperature,
        chat_template_kwargs=dict(sampling.chat_options),
        num_iterations=objective.iterations,
        loss_type="grpo" if objective.name == "gmpo" else objective.name,
        epsilon=objective.clip_low,
        epsilon_high=objective.clip_high,
        beta=objective.kl,
        scale_rewards="group" if objective.scale_advantages else "none",
        seed=config.seed,
        use_cpu=config.device == "cpu",
        bf16=config.mixed_precision,
        gradient_checkpointing=config.model.gradient_checkpointing,
        logging_steps=config.log_every * config.updates_per_round,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 1,
        report_to="none",
        disable_tqdm=True,
        log_level="warning",
        **_engine(config),
    )


def _engine(config: RLVRConfig) -> dict[str, Any]:
    if config.sampling.engine == "transformers":
        return {}
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": config.sampling.vllm_memory,
        "vllm_tensor_parallel_size": config.sampling.vllm_parallel,
    }
