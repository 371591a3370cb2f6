"""Everything a training run holds while it runs: building it, saving it, going on with it."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from deploy.spec_file import SPEC_FILE
from vla_opt._batches import (
    BatchSource,
    env_spec_of,
    open_cache,
    open_features,
    policy_features,
)
from vla_opt._policy import build_policy, build_processors, load_weights, trainable_parameters
from vla_opt._resume import CONFIG, CURSOR, ResumePoint, checkpoint_folder
from vla_opt._run_log import RunLog
from vla_opt._sharding import gathered, is_sharded, shard
from vla_opt._token_count import TokenCount
from vla_opt._training_state import (
    iterate_of,
    load_iterate,
    load_optimizer,
    optimizer_state,
    save_iterate,
    save_optimizer,
)
from vla_opt.checkpoint import (
    PRETRAINED,
    TRAINING_STATE,
    checkpoint_name,
    write_checkpoint,
)
from vla_opt.config import TrainConfig, config_hash, to_tree, to_yaml
from vla_opt.data import FrameCache
from vla_opt.diagnostics import SpectralMeter
from vla_opt.io import atomic_write_json, atomic_write_text
from vla_opt.optim import MixedOptimizer
from vla_opt.provenance import run_metadata
from vla_opt.seeding import seed_everything


@dataclass(kw_only=True)
class Window:
    """Sums since the last row of the log; saved, so that a resumed run writes the same rows."""

    steps: int = 0
    loss: float = 0.0
    grad_norm: float = 0.0

    def add(self, loss: float, grad_norm: float) -> None:
        """Count one step."""
        self.steps += 1
        self.loss += loss
        self.grad_norm += grad_norm


@dataclass(kw_only=True)
class Clocks:
    """Seconds spent since the last row of the log, and in all."""

    total: float = 0.0
    optimizer: float = 0.0
    data: float = 0.0
    steps: int = 0

    def add(self, total: float, optimizer: float, data: float) -> None:
        """Count one step."""
        self.total += total
        self.optimizer += optimizer
        self.data += data
        self.steps += 1


@dataclass(frozen=True, kw_only=True)
class _Contents:
    """Tensors of a checkpoint, whole; empty on processes that do not write.

    Attributes:
        policy: None if the policy on the writing process is whole itself.
        optimizer: Of `optimizer_state`.
        iterate: Of `iterate_of`.
    """

    policy: dict[str, Tensor] | None = None
    optimizer: dict[str, Any] = field(default_factory=dict)
    iterate: dict[str, Tensor] = field(default_factory=dict)


@dataclass(kw_only=True)
class Session:
    """One process of a run."""

    config: TrainConfig
    accelerator: Accelerator
    policy: PreTrainedPolicy
    model: torch.nn.Module  # the policy as wrapped for data parallelism: forward goes through it
    parameters: list[torch.nn.Parameter]
    optimizer: MixedOptimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    preprocessor: Any
    postprocessor: Any
    batches: BatchSource
    meter: SpectralMeter
    tokens: TokenCount
    log: RunLog
    routing: str
    env_spec: dict[str, Any] | None
    deploy_spec: bytes | None
    step: int = 0
    wall_s: float = 0.0
    window: Window = field(default_factory=Window)
    clocks: Clocks = field(default_factory=Clocks)
    last_checkpoint: Path | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)

    def save(self) -> Path:
        """Write a checkpoint of the present step; every process calls it."""
        path = checkpoint_folder(self.config) / checkpoint_name(self.step)
        contents = self._contents()
        if self.is_main:
            path = write_checkpoint(
                checkpoint_folder(self.config),
                self.step,
                lambda folder: self._fill(folder, contents),
                keep_last=self.config.keep_last,
            )
        self.accelerator.wait_for_everyone()
        self.last_checkpoint = path
        return path

    def _contents(self) -> "_Contents":
        """What all processes must come together for, where each has a part."""
        main, policy = self.is_main, None
        if is_sharded(self.policy):
            with self.optimizer.averaged():
                named = self.policy.state_dict(keep_vars=True).items()
                policy = gathered(named, keep=main)
        elif not main:
            return _Contents()
        return _Contents(
            policy=policy,
            optimizer=optimizer_state(self.optimizer, keep=main),
            iterate=iterate_of(self.policy, self.optimizer, keep=main),
        )

    def _fill(self, folder: Path, contents: "_Contents") -> None:
        pretrained, state = folder / PRETRAINED, folder / TRAINING_STATE
        pretrained.mkdir()
        state.mkdir()
        if contents.policy is not None:
            self.policy.save_pretrained(pretrained, state_dict=contents.policy)
        else:
            with self.optimizer.averaged():
                self.policy.save_pretrained(pretrained)
        self.preprocessor.save_pretrained(pretrained)
        self.postprocessor.save_pretrained(pretrained)
        if self.env_spec is not None:
            atomic_write_json(pretrained / "env_spec.json", self.env_spec)
        if self.deploy_spec is not None:
            (pretrained / SPEC_FILE).write_bytes(self.deploy_spec)
        save_optimizer(self.optimizer, state, contents.optimizer)
        save_iterate(contents.iterate, state)
        atomic_write_json(state / "scheduler.json", self.scheduler.state_dict())
        atomic_write_json(state / CURSOR, self._cursor())
        atomic_write_json(state / CONFIG, to_tree(self.config))

    def _cursor(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "seed": self.config.seed,
            "num_threads": torch.get_num_threads(),
            "data": self.batches.identity(),
            "window": asdict(self.window),
            "meter": self.meter.state_dict(),
            "wall_s": self.wall_s,
        }


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Return the accelerator of this process; the policy's device decides between CPU and GPU."""
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier run in this process
    return Accelerator(
        cpu=config.policy.device == "cpu",
        mixed_precision=config.mixed_precision,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[
            # Policies may leave parameters out of a forward pass.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            # The other processes wait while the main one evaluates.
            InitProcessGroupKwargs(timeout=timedelta(hours=12)),
        ],
    )


def build_session(
    config: TrainConfig,
    accelerator: Accelerator,
    resume: ResumePoint,
    progress: Callable[[str, int, int], None],
) -> Session:
    """Build data, policy, optimizer and log, and put them where the run left off."""
    with accelerator.main_process_first():
        cache = open_cache(config.data, progress)
    seed_everything(config.seed, "weights")  # the same on all processes
    policy = build_policy(config.policy, policy_features(cache)).to(accelerator.device)
    with accelerator.main_process_first():
        features = open_features(config.data, cache, policy, accelerator.device, progress)
    preprocessor, postprocessor = build_processors(policy.config, cache.stats)
    initial = weights_hash(policy) if resume.path is None and accelerator.is_main_process else ""
    if resume.path is not None:
        load_weights(policy, resume.path / PRETRAINED)
    model = _spread(policy, config, accelerator)
    optimizer = config.optimizer.build(policy)
    scheduler = config.scheduler.build(optimizer, config.steps)
    session = Session(
        config=config,
        accelerator=accelerator,
        policy=policy,
        model=model,
        parameters=trainable_parameters(policy),
        optimizer=optimizer,
        scheduler=scheduler,
        preprocessor=preprocessor,
        postprocessor=postprocessor,
        batches=BatchSource(
            cache,
            policy.config,
            config.data,
            features,
            batch_size=config.batch_size,
            accumulation=config.gradient_accumulation,
            seed=config.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        ),
        meter=SpectralMeter(optimizer, every=config.spectra_every),
        tokens=TokenCount(policy),
        log=RunLog(
            config.output_dir,
            resume.step,
            tensorboard=config.tensorboard,
            enabled=accelerator.is_main_process,
        ),
        routing=config.optimizer.table(policy),
        env_spec=env_spec_of(config.data.root, cache),
        deploy_spec=_deploy_spec_of(config.data.root),
    )
    if resume.path is not None:
        _restore(session, resume)
    elif session.is_main:
        _describe(session, cache, initial)
    for complaint in resume.complaints:
        session.log.warn(session.step, f"{complaint} Going on from step {session.step}.")
    return session


def _spread(
    policy: PreTrainedPolicy, config: TrainConfig, accelerator: Accelerator
) -> torch.nn.Module:
    """The policy as it runs on all processes; with FSDP2, its parameters are others afterwards."""
    config.optimizer.freeze(policy)  # before anything looks at which parameters get gradients
    model: torch.nn.Module = policy
    if config.sharding == "fsdp2" and accelerator.num_processes > 1:
        shard(policy, accelerator.device)
    else:
        model = accelerator.prepare_model(policy)
    return model


def _deploy_spec_of(root: Path) -> bytes | None:
    """What data of a real or simulated arm say of their actions, see `deploy.spec_file`."""
    file = root / "meta" / SPEC_FILE
    return file.read_bytes() if file.is_file() else None


def _restore(session: Session, resume: ResumePoint) -> None:
    assert resume.path is not None
    state, cursor = resume.path / TRAINING_STATE, resume.cursor
    load_optimizer(session.optimizer, state)
    load_iterate(session.policy, state)
    schedule = json.loads((state / "scheduler.json").read_text(encoding="utf-8"))
    session.scheduler.load_state_dict(schedule)
    factor = session.config.scheduler.factor(cursor["step"], session.config.steps)
    for group in session.optimizer.param_groups:  # `steps` may have changed, and the rate with it
        group["lr"] = group["initial_lr"] * factor
    session.meter.load_state_dict(cursor["meter"])
    session.step, session.wall_s = cursor["step"], cursor["wall_s"]
    session.window = Window(**cursor["window"])
    session.last_checkpoint = resume.path
    _warn_of_changes(session, cursor)


def _warn_of_changes(session: Session, cursor: dict[str, Any]) -> None:
    """Say what makes the rest of the run differ from an undisturbed one."""
    now = {**session.batches.identity(), "num_threads": torch.get_num_threads()}
    then = {**cursor["data"], "num_threads": cursor["num_threads"]}
    changed = [f"{k} {then.get(k)} -> {now[k]}" for k in now if then.get(k) != now[k]]
    if changed:
        session.log.warn(
            session.step,
            f"The run goes on with {', '.join(changed)}: it will not repeat bit for bit what it "
            "would have been.",
        )


def _describe(session: Session, cache: FrameCache, initial: str) -> None:
    """Write what identifies a new run."""
    config = session.config
    trainable = sum(p.numel() for p in session.parameters)
    atomic_write_text(config.output_dir / "config.yaml", to_yaml(config))
    atomic_write_json(
        config.output_dir / "metadata.json",
        {
            **run_metadata(),
            "config_hash": config_hash(config),
            "seed": config.seed,
            "processes": session.accelerator.num_processes,
            "device": str(session.accelerator.device),
            "num_threads": torch.get_num_threads(),
            "parameters": sum(p.numel() for p in session.policy.parameters()),
            "trainable_parameters": trainable,
            "initial_weights": initial,
            "frames": len(cache),
            "episodes": len(cache.episode_starts) - 1,
            "data": session.batches.identity(),
            "routing": session.routing,
        },
    )


def weights_hash(policy: torch.nn.Module) -> str:
    """Return 16 hexadecimal digits of the sha256 of all weights and buffers in the checkpoint."""
    digest = hashlib.sha256()
    for name, tensor in sorted(policy.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
