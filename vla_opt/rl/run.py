"""Improving a checkpoint by the success of its own episodes.

    summary = rl_train(RLConfig(checkpoint=..., ...))

Gather groups of episodes, learn from them, again. A run that was killed and started again ends with
the same bytes as one that was not: scenes and noise are functions of (seed, group, member,
decision), everything else is in the checkpoint.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from envs.rollout import make_libero
from envs.standing_pool import StandingPool, standing_pool
from vla_opt._numerics import fixed_numerics
from vla_opt._resume import only_writer
from vla_opt._run_log import RunLog
from vla_opt.checkpoint import PRETRAINED, checkpoint_name
from vla_opt.evaluation.contract import open_checkpoint
from vla_opt.evaluation.runner import EvalSummary, evaluate
from vla_opt.io import Row, append_jsonl, filter_jsonl
from vla_opt.rl import _files
from vla_opt.rl._worker import MakeEnv, RolloutWorker
from vla_opt.rl.acting import ActingPolicy, save_version
from vla_opt.rl.collect import Collector, Harvest
from vla_opt.rl.config import RLConfig
from vla_opt.rl.curve import rate, write_curve
from vla_opt.rl.learner import UpdateReading
from vla_opt.rl.session import Session, build_session
from vla_opt.rl.watch import warning_row

logger = logging.getLogger(__name__)


class Listener:
    """Told about progress; does nothing."""

    def started(self, session: Session) -> None:
        """The first episode comes next."""

    def played(self, update: int, success: bool) -> None:
        """An episode of an update ended."""

    def updated(self, row: Row) -> None:
        """An update was made; its row of the log."""

    def warned(self, row: Row) -> None:
        """The policy may be collapsing."""

    def evaluated(self, row: Row) -> None:
        """The weights were evaluated without exploration."""


@dataclass(frozen=True, kw_only=True)
class RLSummary:
    """What a run came to.

    Attributes:
        updates: In all.
        episodes: Run by this call.
        wall_s: Seconds, in all sessions.
        checkpoint: The last one.
        weights: Hash of the weights.
    """

    updates: int
    episodes: int
    wall_s: float
    checkpoint: Path
    weights: str


def rl_train(
    config: RLConfig, listener: Listener | None = None, make_env: MakeEnv = make_libero
) -> RLSummary:
    """Improve a checkpoint, or go on with the run in `config.output_dir`.

    Args:
        config: the run.
        listener: told about progress.
        make_env: builds an environment of (suite, task), see `envs.rollout.EpisodeWorker`.

    Raises:
        CheckpointError: no checkpoint to start from, or a damaged one.
        ConfigError: `output_dir` holds another run, or the policy cannot be trained this way.
        ContractError: the checkpoint does not fit the environment.
        NoSignalError: too many updates in a row had no group to learn from; the run is saved.
        NonFiniteGradientError: the gradient is not finite.
        PoolError: no simulation worker could be started.
        RolloutError: no episode can be run.
    """
    listener = listener or Listener()
    with only_writer(config.output_dir), fixed_numerics(config.num_threads, deterministic=True):
        session = build_session(config)
        filter_jsonl(config.output_dir / _files.ROLLOUTS, lambda row: row["step"] <= session.step)
        log = RunLog(config.output_dir, session.step, tensorboard=config.tensorboard)
        for complaint in session.complaints:
            log.warn(session.step, f"{complaint} Going on from update {session.step}.")
        with log, _pool(config, session, make_env) as pool:
            listener.started(session)
            run = _Run(session, log, pool, listener)
            run.evaluate_if_due()
            while session.step < config.updates:
                run.update()
        path = session.last_checkpoint or session.save()
    return RLSummary(
        updates=session.step,
        episodes=run.episodes,
        wall_s=session.wall_s,
        checkpoint=path,
        weights=session.weights_hash(),
    )


def evaluate_start(config: RLConfig) -> EvalSummary:
    """Evaluate what a run begins with, as the run would before its first update.

    Raises:
        CheckpointError: no checkpoint to start from, or a damaged one.
        EvalError: it cannot run, or its folder holds another evaluation.
    """
    return _evaluate(config, 0, _start(config))


def _evaluate(config: RLConfig, step: int, checkpoint: Path) -> EvalSummary:
    folder = evaluation_folder(config, step)
    return evaluate(dataclasses.replace(config.eval, checkpoint=checkpoint, output_dir=folder))


def evaluation_folder(config: RLConfig, step: int) -> Path:
    """Return the folder of the evaluation after `step` updates."""
    return config.output_dir / "eval" / checkpoint_name(step)


def _start(config: RLConfig) -> Path:
    return open_checkpoint(config.checkpoint).folder


class _Run:
    """The loop's body."""

    def __init__(
        self, session: Session, log: RunLog, pool: StandingPool, listener: Listener
    ) -> None:
        self._session, self._log, self._listener = session, log, listener
        self._config = session.config
        self.episodes = 0
        self._collector = Collector(
            session.config.rollouts, pool, lambda ok: listener.played(session.step + 1, ok)
        )

    def update(self) -> None:
        """Gather, learn, log, save."""
        session, config, begin = self._session, self._config, time.perf_counter()
        if config.rollouts.backend == "ray":
            save_version(session.acting.actor, config.output_dir / _files.WEIGHTS, session.step)
        harvest = self._collector.collect(session.step, session.next_group, session.leftover)
        middle = time.perf_counter()
        reading = None
        if harvest.chosen:
            session.silent = 0
            reading = session.learner.update(harvest.chosen, session.step)
        else:
            session.silent += 1
            session.rescale_exploration(config.no_signal.factor(harvest))
        session.step += 1
        session.acting.version = session.step
        session.next_group, session.leftover = harvest.next_group, harvest.leftover
        self.episodes += len(harvest.notes)
        end = time.perf_counter()
        session.wall_s += end - begin
        self._note(harvest, reading, middle - begin, end - middle)
        last = session.step == config.updates
        if last or session.silent or _due(config.save_every, session.step):
            session.save()
        self.evaluate_if_due()
        write_curve(config.output_dir)
        config.no_signal.check(session.silent, harvest)

    def _note(
        self, harvest: Harvest, reading: UpdateReading | None, rollout_s: float, learn_s: float
    ) -> None:
        session = self._session
        for note in harvest.notes:
            file = self._config.output_dir / _files.ROLLOUTS
            append_jsonl(file, {"step": session.step, **asdict(note)})
        row = _row(session, harvest, reading)
        row["exploration"] = session.acting.actor.exploration
        row |= {"rollout_s": rollout_s, "learn_s": learn_s, "wall_s": session.wall_s}
        self._log.append(row)
        self._listener.updated(row)
        if reading is None:
            return
        signs = session.watch.check(
            successes=harvest.successes,
            episodes=harvest.scored,
            entropy=reading.entropy,
            clip_fraction=max(reading.clip_fraction, reading.after.clip_fraction),
            approx_kl=reading.after.approx_kl,
            gain=reading.gain,
        )
        if signs:
            warning = warning_row(session.step, signs)
            logger.warning("update %d: %s", session.step, warning["message"])
            self._log.append(warning)
            self._listener.warned(warning)

    def evaluate_if_due(self) -> None:
        """Evaluate the present weights without exploration, once."""
        session, config = self._session, self._config
        step = session.step
        due = config.eval_every and (step == config.updates or step % config.eval_every == 0)
        if not due or self._log.has("eval", step):
            return
        summary = _evaluate(config, step, self._evaluated())
        row = {"kind": "eval", "step": step, **rate(summary.successes, summary.scored)}
        self._log.append(row)
        write_curve(config.output_dir)
        self._listener.evaluated(row)

    def _evaluated(self) -> Path:
        session = self._session
        if session.step == 0:
            return _start(self._config)
        last = session.last_checkpoint
        if last is None or last.name != checkpoint_name(session.step):
            last = session.save()
        return last / PRETRAINED


def _row(session: Session, harvest: Harvest, reading: UpdateReading | None) -> Row:
    return {
        "kind": "rl",
        "step": session.step,
        "success": rate(harvest.successes, harvest.scored),
        "groups": {
            "run": harvest.groups,
            "all_failed": harvest.all_failed,
            "all_succeeded": harvest.all_succeeded,
            "learned_episodes": len(harvest.chosen),
            "stale_refused": harvest.refused,
            "retries": sum(note.retries for note in harvest.notes),
        },
        "lr": session.config.optimizer.lr,
        **({"update": reading.row()} if reading else {"skipped": True}),
    }


@contextmanager
def _pool(config: RLConfig, session: Session, make_env: MakeEnv) -> Iterator[StandingPool]:
    """Workers that last as long as the run."""
    rollouts = config.rollouts
    options: dict[str, Any] = {
        "affinity": _task_of,
        "timeout_s": rollouts.timeout_s,
        "max_retries": rollouts.max_retries,
    }
    with ExitStack() as stack:
        policy: Any = session.acting
        if rollouts.backend == "ray":
            options |= {"ray": _cluster(config, stack), "num_workers": rollouts.num_workers}
            policy = _served(config, options["ray"], stack)
            options["wait_for"] = policy.wait_until_ready
        make = functools.partial(RolloutWorker, policy, session.rollout, config.seed, make_env)
        yield stack.enter_context(standing_pool(make, **options))


def _cluster(config: RLConfig, stack: ExitStack) -> Any:
    from envs._ray_cluster import ray_cluster

    spare = config.eval.num_workers if config.eval_every and config.eval.backend == "ray" else 0
    return stack.enter_context(ray_cluster(num_cpus=config.rollouts.num_workers + spare))


def _served(config: RLConfig, ray: Any, stack: ExitStack) -> Any:
    """The policy in a process of its own, which all workers ask once it is ready."""
    from envs.policy_server import serve_policy

    recipe = functools.partial(
        ActingPolicy,
        open_checkpoint(config.checkpoint).folder.absolute(),
        exploration=config.exploration,
        execute_steps=config.rollouts.execute_steps,
        seed=config.seed,
        weights=(config.output_dir / _files.WEIGHTS).absolute(),
        device=config.device,
        num_threads=config.num_threads,
    )
    make: Callable[[], Any] = recipe
    return stack.enter_context(
        serve_policy(
            ray,
            make,
            num_gpus=1.0 if config.device.startswith("cuda") else 0.0,
            timeout_s=config.rollouts.timeout_s / 2,  # the episode that waits must see it
            wait=False,  # the pool does, and builds simulators meanwhile
            env={"OMP_NUM_THREADS": str(config.num_threads)},
        )
    )


def _task_of(item: Any) -> tuple[str, int]:
    task: tuple[str, int] = item.key.task
    return task


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
