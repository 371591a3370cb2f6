"""A run from its configuration to a trained model: start, warm start, loop, log.

config.yaml     as `vla-opt rlvr --config_path` reads it
metadata.json   versions, sizes, the losses of the warm start
routing.txt     which parameter is updated by what
start/          the model as it was before the first reward; divergence is measured from it
log.jsonl       one row per measurement, by kind: train, noise, heads, spectra, eval
checkpoints/    of the loop, to resume from
model/          the trained model, as transformers reads it
report.html     the figures of the log as charts, and the warnings
"""

import math
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vla_opt._numerics import fixed_numerics, resolve_threads
from vla_opt._resume import only_writer
from vla_opt._run_log import RunLog
from vla_opt.config import to_tree, to_yaml
from vla_opt.errors import ConfigError
from vla_opt.io import atomic_write_json, atomic_write_text, read_jsonl
from vla_opt.provenance import PACKAGES, package_versions, run_metadata
from vla_opt.rlvr.accuracy import Accuracy, accuracy
from vla_opt.rlvr.collapse import CollapseWatch
from vla_opt.rlvr.config import RLVRConfig
from vla_opt.rlvr.heads import HeadMeter
from vla_opt.rlvr.page import write_page
from vla_opt.rlvr.rewards import for_trl, reward
from vla_opt.rlvr.tasks import PUBLISHED, examples
from vla_opt.rlvr.text_models import build_model, load_model
from vla_opt.rlvr.warm_start import warm_start
from vla_opt.seeding import seed_everything

if TYPE_CHECKING:
    from accelerate import PartialState

    from vla_opt.rlvr.recorder import Listener

CONFIG, METADATA, ROUTING = "config.yaml", "metadata.json", "routing.txt"
START, MODEL, CHECKPOINTS, LOG = "start", "model", "checkpoints", "log.jsonl"

# A run may go on although these differ: they do not change what is computed.
_FREE = {"output_dir", "device", "num_threads", "save_every", "tensorboard", "resume", "collapse"}


class Quiet:
    """A listener that does nothing."""

    def stepped(self, step: int, reward: float) -> None:
        """A row was logged."""

    def evaluated(self, step: int, accuracy: Accuracy) -> None:
        """Held-out questions were answered."""

    def warned(self, step: int, message: str) -> None:
        """Something about the run looks wrong."""


@dataclass(frozen=True, kw_only=True)
class RLVRSummary:
    """What a run came to.

    Attributes:
        steps: updates in all.
        first_reward: mean of the first tenth of the logged rewards.
        reward: mean of the last tenth.
        before: right answers on held-out questions before the first update.
        after: the same at the end.
        warnings: how many were given.
        wall_s: seconds of this session.
        model: folder of the trained model.
    """

    steps: int
    first_reward: float
    reward: float
    before: Accuracy
    after: Accuracy
    warnings: int
    wall_s: float
    model: Path


def rlvr(config: RLVRConfig, listener: "Listener | None" = None) -> RLVRSummary:
    """Train a language model on rewards that a program verifies, or go on with such a run.

    Raises:
        ConfigError: TRL is not installed, `output_dir` holds another run (or any, without
            `resume`), or model or questions cannot be had.
    """
    _require_trl()
    _silence_bars()
    begin = time.perf_counter()
    from accelerate import PartialState

    processes = PartialState(cpu=config.device == "cpu")
    with ExitStack() as stack:
        stack.enter_context(fixed_numerics(resolve_threads(config.num_threads), deterministic=True))
        if processes.is_main_process:
            stack.enter_context(only_writer(config.output_dir))
            if not _known_run(config):
                _begin(config)
        processes.wait_for_everyone()
        if not (config.output_dir / MODEL).is_dir():
            _train(config, listener or Quiet(), processes)
        if processes.is_main_process:
            write_page(config.output_dir)
    return _summary(config, time.perf_counter() - begin)


def _begin(config: RLVRConfig) -> None:
    """Make the model that the rewards begin with, and describe the run; the description is last."""
    seed_everything(config.seed, "model")
    model, tokenizer = build_model(config.model)
    losses = []
    if config.warm_start.steps:
        if config.task.name in PUBLISHED:
            raise ConfigError(
                f"warm_start.steps={config.warm_start.steps}: only tasks made here have answers a "
                f"random model can be started on, not {config.task.name!r}. Set it to 0."
            )
        data = examples(config.task, "train", config.seed)
        losses = warm_start(model, tokenizer, data, config.warm_start, config.seed)
    if config.model.path is None:
        model.save_pretrained(config.output_dir / START)
        tokenizer.save_pretrained(config.output_dir / START)
    atomic_write_text(config.output_dir / ROUTING, config.optimizer.table(model) + "\n")
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "warm_start_losses": losses,
        "versions": package_versions((*PACKAGES, "trl")),
    }
    atomic_write_json(config.output_dir / METADATA, {**run_metadata(), **facts})
    atomic_write_text(config.output_dir / CONFIG, to_yaml(config))


def _train(config: RLVRConfig, listener: "Listener", processes: "PartialState") -> None:
    from vla_opt.rlvr.recorder import Recorder

    model, tokenizer = load_model(_start(config), config.model)
    resume = _last_checkpoint(config)
    step = int(resume.name.rpartition("-")[2]) if resume else 0
    score = reward(config.task.reward_name)
    held_out = examples(config.task, "test", config.seed)
    evaluate: Callable[[], Accuracy] = partial(
        accuracy,
        model,
        tokenizer,
        held_out,
        score,
        max_tokens=config.sampling.max_tokens,
        batch_size=config.sampling.microbatch,
        chat_options=config.sampling.chat_options,
    )
    watch = CollapseWatch(config.collapse, math.log(model.config.vocab_size))
    main = processes.is_main_process
    with RunLog(config.output_dir, step, tensorboard=config.tensorboard, enabled=main) as log:
        _replay(watch, config)
        # The model is still the start here; a checkpoint is loaded by the loop.
        heads = HeadMeter(model) if config.heads_every else None
        recorder = Recorder(config, log, watch, heads, evaluate, listener)
        trainer = _trainer(config, model, tokenizer, recorder, processes.num_processes)
        recorder.trainer = trainer
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    _save(trainer, tokenizer, config.output_dir, processes)


def _replay(watch: CollapseWatch, config: RLVRConfig) -> None:
    """Let the watch see what the log holds of the steps before."""
    for row in read_jsonl(config.output_dir / LOG):
        if row["kind"] == "train":
            watch.observe(
                reward=row["reward"],
                entropy=row.get("entropy", 0.0),
                equal_groups=row.get("equal_groups", 0.0),
            )


def _save(trainer: Any, tokenizer: Any, folder: Path, processes: "PartialState") -> None:
    """Write the trained model; it is whole or absent."""
    temporary = folder / f".{MODEL}.tmp"
    if processes.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    processes.wait_for_everyone()
    trainer.save_model(str(temporary))  # collective where weights are sharded
    if processes.is_main_process:
        tokenizer.save_pretrained(temporary)
        temporary.rename(folder / MODEL)
    processes.wait_for_everyone()


def _trainer(config: RLVRConfig, model: Any, tokenizer: Any, recorder: Any, processes: int) -> Any:
    import datasets
    from transformers import PrinterCallback

    from vla_opt.rlvr._trl_arguments import trl_arguments
    from vla_opt.rlvr.trainer import GeometricMeanTrainer, PolicyTrainer

    kind = GeometricMeanTrainer if config.objective.name == "gmpo" else PolicyTrainer
    trainer = kind(
        build_optimizer=config.optimizer.build,
        build_scheduler=config.scheduler.build,
        noise_every=config.noise_every,
        noise_samples=config.noise_samples,
        model=model,
        processing_class=tokenizer,
        reward_funcs=for_trl(reward(config.task.reward_name)),
        args=trl_arguments(config, processes),
        train_dataset=datasets.Dataset.from_list(examples(config.task, "train", config.seed)),
        callbacks=[recorder],
    )
    trainer.remove_callback(PrinterCallback)  # only the command line prints
    return trainer


def _silence_bars() -> None:
    """The bars of libraries, one per file of a model, hide that of the run."""
    import datasets
    from transformers.utils import logging

    bars: Any = logging
    bars.disable_progress_bar()
    datasets.disable_progress_bars()


def _start(config: RLVRConfig) -> str | Path:
    return config.output_dir / START if config.model.path is None else config.model.path


def _last_checkpoint(config: RLVRConfig) -> Path | None:
    """The newest checkpoint that was written to its end: the loop writes its state last."""
    found = [
        path
        for path in (config.output_dir / CHECKPOINTS).glob("checkpoint-*")
        if (path / "trainer_state.json").is_file()
    ]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _known_run(config: RLVRConfig) -> bool:
    """Whether `output_dir` holds this run."""
    file = config.output_dir / CONFIG
    if not file.is_file():
        return False
    if not config.resume:
        raise ConfigError(
            f"{config.output_dir} holds a run already. Go on with it (--resume=true), give another "
            "--output_dir, or delete the folder."
        )
    now, then = to_tree(config), yaml.safe_load(file.read_text(encoding="utf-8"))
    changed = [
        f"{key}: {then.get(key)!r} in the run, {now[key]!r} now"
        for key in now
        if key not in _FREE and now[key] != then.get(key)
    ]
    if changed:
        raise ConfigError(
            f"{config.output_dir} holds a run with another configuration:\n  "
            + "\n  ".join(changed)
            + "\nGive that configuration to go on with it, or another --output_dir."
        )
    return True


def _summary(config: RLVRConfig, seconds: float) -> RLVRSummary:
    rows = read_jsonl(config.output_dir / LOG)
    rewards = [float(row["reward"]) for row in rows if row["kind"] == "train"]
    evals = [row for row in rows if row["kind"] == "eval"]
    part = max(1, len(rewards) // 10)
    found = [
        Accuracy(right=row["right"], questions=row["questions"], reward=row["reward"])
        for row in (evals[0], evals[-1])
    ]
    return RLVRSummary(
        steps=config.steps,
        first_reward=math.fsum(rewards[:part]) / part,
        reward=math.fsum(rewards[-part:]) / part,
        before=found[0],
        after=found[1],
        warnings=len(read_jsonl(config.output_dir / "warnings.jsonl")),
        wall_s=seconds,
        model=config.output_dir / MODEL,
    )


def _require_trl() -> None:
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "vla-opt rlvr needs TRL, which is an extra: pip install 'vla_opt[rlvr]'."
        ) from error
