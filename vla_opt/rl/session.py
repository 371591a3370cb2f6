"""Everything a run holds while it runs: building it, saving it, going on with it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from envs.rollout import RolloutConfig
from vla_opt._session import weights_hash
from vla_opt._training_state import load_optimizer, save_optimizer
from vla_opt.checkpoint import (
    PRETRAINED,
    TRAINING_STATE,
    newest_for_writer,
    write_checkpoint,
)
from vla_opt.evaluation.contract import (
    Checkpoint,
    check_contract,
    open_checkpoint,
    rollout_as_trained,
)
from vla_opt.io import atomic_write_json
from vla_opt.rl import _files
from vla_opt.rl.acting import ActingPolicy
from vla_opt.rl.config import RLConfig
from vla_opt.rl.learner import Learner
from vla_opt.rl.trajectories import Trajectory, load_trajectories, save_trajectories
from vla_opt.rl.watch import CollapseWatch
from vla_opt.zo_training.adapters import freeze_others

_STATE, _OWN = "rl.json", "actor.safetensors"


@dataclass(kw_only=True)
class Session:
    """A run.

    Attributes:
        config: The run.
        rollout: How episodes are run.
        acting: The policy, as it acts and learns.
        optimizer: Of its trainable parameters.
        learner: Makes updates.
        watch: Looks out for a collapse.
        step: Updates done.
        next_group: The first group number not used yet.
        leftover: Good groups that were not learned from yet.
        silent: Updates in a row, up to now, without a group to learn from.
        wall_s: Seconds spent, in all sessions.
        last_checkpoint: The newest one.
        complaints: What was wrong with newer ones.
    """

    config: RLConfig
    rollout: RolloutConfig
    acting: ActingPolicy
    optimizer: torch.optim.Optimizer
    learner: Learner
    watch: CollapseWatch
    step: int = 0
    next_group: int = 0
    leftover: list[Trajectory] = field(default_factory=list)
    silent: int = 0
    wall_s: float = 0.0
    last_checkpoint: Path | None = None
    complaints: list[str] = field(default_factory=list)

    def save(self) -> Path:
        """Write a checkpoint of the present weights, and all that resuming needs."""
        folder = _files.checkpoint_folder(self.config)
        self.last_checkpoint = write_checkpoint(
            folder, self.step, self._fill, keep_last=self.config.keep_last
        )
        return self.last_checkpoint

    def rescale_exploration(self, factor: float) -> None:
        """Multiply the noise of the episodes to come."""
        if factor != 1:
            self.acting.actor.rescale(factor)
            self.watch.first_entropy = None  # a fall that was asked for is no sign of a collapse

    def weights_hash(self) -> str:
        """Return what identifies the weights, a learned standard deviation included."""
        return weights_hash(self.acting.actor)

    def _fill(self, folder: Path) -> None:
        self.acting.save(folder / PRETRAINED)
        state = folder / TRAINING_STATE
        state.mkdir()
        save_optimizer(self.optimizer, state)
        save_file(_own(self.acting), state / _OWN)
        save_trajectories(state, self.leftover)
        atomic_write_json(
            state / _STATE,
            {
                "step": self.step,
                "next_group": self.next_group,
                "silent": self.silent,
                "watch": self.watch.state_dict(),
                "weights": self.weights_hash(),
                "wall_s": self.wall_s,
            },
        )


def build_session(config: RLConfig) -> Session:
    """Build the policy and its optimizer, and put them where the run left off.

    Raises:
        CheckpointError: no checkpoint to start from, or a damaged one.
        ConfigError: `output_dir` holds another run, or the policy has no likelihood.
        ContractError: the checkpoint does not fit the environment.
    """
    _files.check_same_run(config)
    folder = _files.checkpoint_folder(config)
    found, complaints = newest_for_writer(folder)
    start = open_checkpoint(config.checkpoint)
    acting = _acting(config, found / PRETRAINED if found else start.folder)
    freeze_others(acting.module, config.trainable)
    optimizer = config.optimizer.build(acting.actor)
    session = Session(
        config=config,
        rollout=_rollout(config, start),
        acting=acting,
        optimizer=optimizer,
        learner=Learner(
            acting.actor,
            optimizer,
            config.objective,
            grad_clip=config.grad_clip,
            seed=config.seed,
            reference=_acting(config, start.folder).actor if config.objective.kl_weight else None,
        ),
        watch=CollapseWatch(config.watch, _dimensions(acting)),
        complaints=complaints,
    )
    if found is not None:
        _restore(session, found)
    else:
        _files.write_description(
            config,
            start=start.sha256,
            initial_weights=session.weights_hash(),
            trained_parameters=sum(p.numel() for p in acting.actor.parameters() if p.requires_grad),
            routing=config.optimizer.table(acting.actor),
        )
    return session


def _acting(config: RLConfig, path: Path) -> ActingPolicy:
    return ActingPolicy(
        path,
        exploration=config.exploration,
        execute_steps=config.rollouts.execute_steps,
        seed=config.seed,
        device=config.device,
        num_threads=config.num_threads,
    )


def _rollout(config: RLConfig, start: Checkpoint) -> RolloutConfig:
    rollout = rollout_as_trained(
        start,
        execute_steps=config.rollouts.execute_steps,
        render_profile=config.rollouts.render_profile,
        videos="none",
        max_steps=config.rollouts.max_steps,
    )
    check_contract(start, rollout.env_spec, execute_steps=rollout.execute_steps)
    return rollout


def _restore(session: Session, checkpoint: Path) -> None:
    folder = checkpoint / TRAINING_STATE
    state: dict[str, Any] = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    load_optimizer(session.optimizer, folder)
    for name, value in load_file(folder / _OWN).items():
        session.acting.actor.get_parameter(name).data.copy_(value)
    session.step = session.acting.version = state["step"]
    session.next_group, session.wall_s = state["next_group"], state["wall_s"]
    session.silent = state["silent"]
    session.watch.load_state_dict(state["watch"])
    session.leftover = load_trajectories(folder)
    session.last_checkpoint = checkpoint


def _own(acting: ActingPolicy) -> dict[str, torch.Tensor]:
    """Parameters of the actor that are not the policy's: a standard deviation."""
    named = acting.actor.named_parameters()
    return {name: p.detach().clone() for name, p in named if not name.startswith("policy.")}


def _dimensions(acting: ActingPolicy) -> int:
    """How many numbers a decision's entropy is the sum over, per action or path."""
    own = _own(acting).values()
    return sum(p.numel() for p in own) or 1
