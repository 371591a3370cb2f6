"""Policy, objective and optimizer in one process: all that answers queries and applies records."""

from collections.abc import Sequence

from vla_opt._session import weights_hash
from vla_opt.zeroth_order import Query, Reading, StepRecord
from vla_opt.zo_training.adapters import add_adapters, freeze_others
from vla_opt.zo_training.config import ZOTrainConfig
from vla_opt.zo_training.live_policy import LivePolicy
from vla_opt.zo_training.objectives import Closure, Objective, Progress, build_objective


class Replica:
    """One of the equal copies of a run.

    Args:
        config: the run.
        history: records of the steps made so far.
        progress: told about the preparation of the data.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
        ConfigError: nothing to train as configured.
    """

    def __init__(
        self,
        config: ZOTrainConfig,
        history: Sequence[StepRecord] = (),
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        self._config, self._progress = config, progress
        self.live = LivePolicy(
            config.checkpoint, device=config.device, num_threads=config.num_threads
        )
        module = self.live.module
        if config.adapter is not None:
            add_adapters(
                module,
                config.adapter.modules,
                rank=config.adapter.rank,
                alpha=config.adapter.alpha,
                seed=config.seed,
            )
        freeze_others(module, config.trainable)
        module.train(config.train_mode)
        self.optimizer = config.method.build(module, config.seed)
        self._objective: Objective | None = None
        self._closure: tuple[int, Closure] | None = None
        for record in history:
            self.optimizer.apply(record)

    def measure(self, queries: Sequence[Query]) -> list[Reading]:
        """Answer queries of the next step."""
        return self.optimizer.measure(queries, self._loss())

    def apply(self, record: StepRecord) -> None:
        """Make the update of a record."""
        self.optimizer.apply(record)

    def weights_hash(self) -> str:
        """Return what identifies the weights, adapters included."""
        return weights_hash(self.live.module)

    def prepare(self) -> None:
        """Open the data or the simulation now rather than at the first query."""
        if self._objective is None:
            self._objective = build_objective(self._config, self.live, self._progress)

    def close(self) -> None:
        """Free the simulation."""
        if self._objective is not None:
            self._objective.close()

    def _loss(self) -> Closure:
        step = self.optimizer.steps
        if self._closure is None or self._closure[0] != step:
            self.prepare()
            assert self._objective is not None
            self._closure = step, self._objective.closure(step)
        return self._closure[1]
