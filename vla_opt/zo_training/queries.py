"""Who answers the queries of a step: this process, or Ray workers that share them.

Workers hold equal copies of the run. They are sent seeds and send back scalars; then each makes the
update itself. A reading depends on the weights and the query alone, so neither the number of
workers nor who answers what can change a run.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from vla_opt.zeroth_order import Query, Reading, StepRecord

logger = logging.getLogger(__name__)

_ATTEMPTS = 3  # at a worker's share of one step


class Answering(Protocol):
    """What answers queries."""

    def measure(self, queries: Sequence[Query]) -> list[Reading]:
        """Readings of queries of the next step, in their order."""

    def apply(self, record: StepRecord) -> None:
        """Make the update of a record wherever queries are answered."""


type MakeReplica = Callable[[Sequence[StepRecord]], Answering]


class _Host:
    """The actor: a replica in its own process."""

    def __init__(self, make_replica: MakeReplica, history: Sequence[StepRecord]) -> None:
        self._replica = make_replica(history)

    def measure(self, queries: Sequence[Query]) -> list[Reading]:
        return self._replica.measure(queries)

    def apply(self, record: StepRecord) -> None:
        self._replica.apply(record)


class RayQueries:
    """Replicas in Ray actors; one that dies is built again from the log, and nothing is lost.

    Args:
        ray: the module, with a cluster behind it.
        make_replica: builds a replica that has made the given steps; cloudpickled.
        workers: number of actors, at least 1.
        history: records of the steps made so far.
        threads: of each worker's libraries.
    """

    def __init__(
        self,
        ray: Any,
        make_replica: MakeReplica,
        *,
        workers: int,
        history: Sequence[StepRecord] = (),
        threads: int = 1,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {"env_vars": dict.fromkeys(names, str(threads))}
        self._actor = ray.remote(num_cpus=1, runtime_env=environment)(_Host)
        self._ray, self._make, self._history = ray, make_replica, list(history)
        self._actors = [self._start() for _ in range(workers)]

    def measure(self, queries: Sequence[Query]) -> list[Reading]:
        """Share the queries out; answers are put in order again."""
        count = len(self._actors)
        shares = {i: list(queries[i::count]) for i in range(count) if queries[i::count]}
        calls = {i: self._actors[i].measure.remote(share) for i, share in shares.items()}
        readings: list[Reading | None] = [None] * len(queries)
        for i, share in shares.items():
            readings[i::count] = self._answer(i, share, calls[i])
        return [reading for reading in readings if reading is not None]

    def apply(self, record: StepRecord) -> None:
        """Tell every worker; none is waited for, calls to one worker stay in order."""
        self._history.append(record)
        for actor in self._actors:
            actor.apply.remote(record)

    def close(self) -> None:
        """End the workers."""
        for actor in self._actors:
            self._ray.kill(actor)

    def _start(self) -> Any:
        return self._actor.remote(self._make, list(self._history))

    def _answer(self, index: int, share: Sequence[Query], call: Any) -> list[Reading]:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                found: list[Reading] = self._ray.get(call)
                return found
            except self._ray.exceptions.RayActorError as error:
                if attempt == _ATTEMPTS:
                    raise
                logger.warning("worker %d died and is started again: %s", index, error)
                self._actors[index] = self._start()
                call = self._actors[index].measure.remote(share)
        raise AssertionError("unreachable")


@contextmanager
def ray_queries(
    make_replica: MakeReplica,
    *,
    workers: int,
    history: Sequence[StepRecord],
    threads: int,
    spare_cpus: int = 0,
) -> Iterator[RayQueries]:
    """Give `RayQueries` on a local cluster, or on the one that RAY_ADDRESS names.

    Args:
        make_replica: see `RayQueries`.
        workers: see there.
        history: see there.
        threads: see there.
        spare_cpus: of a local cluster, for evaluations that run in between.
    """
    from envs._ray_cluster import ray_cluster

    with ray_cluster(num_cpus=workers + spare_cpus) as ray:
        queries = RayQueries(ray, make_replica, workers=workers, history=history, threads=threads)
        try:
            yield queries
        finally:
            queries.close()
