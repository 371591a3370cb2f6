"""One policy for all simulation workers: Ray actors that answer their requests in batches."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.pool import PoolError
from envs.rollout import Observation, Policy

_MAX_RESTARTS = 5
_MAX_CALL_RETRIES = 2


class PolicyServer:
    """The actor. Gathers requests for a moment, asks the policy, hands the answers back.

    A policy's answer must not depend on what else is in the batch; then it does not matter which
    requests happen to meet here.

    Args:
        make_policy: builds the policy in the actor's process.
        max_batch: requests handed to the policy at once, at most.
        window_s: how long the first request of a batch waits for company; unused for batches of 1.
    """

    def __init__(self, make_policy: Callable[[], Policy], max_batch: int, window_s: float) -> None:
        # all of the policy lives in one thread, the event loop keeps taking requests meanwhile
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._policy = self._thread.submit(make_policy).result()
        self._max_batch = max_batch
        self._window_s = window_s if max_batch > 1 else 0.0
        self._waiting: list[tuple[Observation, asyncio.Future[NDArray[np.float64]]]] = []
        self._busy: asyncio.Task[None] | None = None

    async def ready(self) -> None:
        """Answer once the policy is built."""

    async def infer(self, observation: Observation) -> NDArray[np.float64]:
        """Answer one observation with a chunk of actions (chunk, 7)."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[NDArray[np.float64]] = loop.create_future()
        self._waiting.append((observation, answer))
        if self._busy is None or self._busy.done():
            self._busy = loop.create_task(self._work_off())
        return await answer

    async def _work_off(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._window_s)
        while self._waiting:
            batch = self._waiting[: self._max_batch]
            del self._waiting[: self._max_batch]
            observations = [observation for observation, _ in batch]
            try:
                chunks = await loop.run_in_executor(self._thread, self._policy.infer, observations)
                for (_, answer), chunk in zip(batch, chunks, strict=True):
                    answer.set_result(chunk)
            except Exception as error:
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)


class RemotePolicy:
    """A `Policy` that asks one of several `PolicyServer`. Picklable: made here, used in a worker.

    Every observation goes to the next server in turn. They all hold the same policy, whose answer
    depends on the observation alone: which one is asked decides nothing.

    Args:
        servers: handles of the actors.
        timeout_s: a server that has not answered for so long is killed; Ray builds it again, and
            the pool runs the episode again.
    """

    def __init__(self, servers: Sequence[Any], timeout_s: float) -> None:
        self._servers = tuple(servers)
        self._timeout_s = timeout_s
        self._asked = 0

    def infer(self, observations: Sequence[Observation]) -> list[NDArray[np.float64]]:
        """Return one chunk of actions (chunk, 7) per observation.

        Raises:
            TimeoutError: no answer in time.
        """
        import ray

        asked = [self._next() for _ in observations]
        answers = [
            server.infer.remote(observation)
            for server, observation in zip(asked, observations, strict=True)
        ]
        try:
            return list(ray.get(answers, timeout=self._timeout_s))
        except ray.exceptions.GetTimeoutError as error:
            late = ray.wait(answers, num_returns=len(answers), timeout=0)[1]
            for server, answer in zip(asked, answers, strict=True):
                if answer in late:
                    ray.kill(server, no_restart=False)
            raise TimeoutError(
                f"the policy did not answer within {self._timeout_s:g} s and was restarted."
            ) from error

    def wait_until_ready(self, timeout_s: float = 300.0) -> None:
        """Return when every server has built its policy.

        Args:
            timeout_s: wall seconds to wait.

        Raises:
            PoolError: the policy could not be built; holds what the recipe raised.
        """
        import ray

        try:
            ray.get([server.ready.remote() for server in self._servers], timeout=timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            raise PoolError(f"The policy was not built within {timeout_s:g} s.") from error
        except ray.exceptions.RayError as error:
            raise PoolError(f"The policy could not be built: {error}") from error

    def _next(self) -> Any:
        """In turn; workers, which have different process ids, begin with different ones."""
        self._asked += 1
        return self._servers[(os.getpid() + self._asked) % len(self._servers)]


@contextlib.contextmanager
def serve_policy(
    ray: Any,
    make_policy: Callable[[], Policy],
    *,
    count: int = 1,
    max_batch: int = 1,
    window_s: float = 0.005,
    num_gpus: float = 0.0,
    timeout_s: float = 300.0,
    start_timeout_s: float = 300.0,
    wait: bool = True,
    env: Mapping[str, str] | None = None,
) -> Iterator[RemotePolicy]:
    """Start policy servers on Ray and end them on leaving.

    A server that dies is built again by Ray from `make_policy`, and the calls it owed are repeated.

    Args:
        ray: the initialised module.
        make_policy: cloudpickle-able.
        count: how many processes hold the policy.
        max_batch: see `PolicyServer`.
        window_s: see `PolicyServer`.
        num_gpus: share of a GPU each needs. It asks for no CPU: it works while the workers wait.
        timeout_s: for one answer, see `RemotePolicy`; keep it below the time limit of an episode.
        start_timeout_s: for building the policy, if it is waited for here.
        wait: until it is built; if not, call `RemotePolicy.wait_until_ready` before it is asked.
        env: environment variables of the actor's process.

    Raises:
        PoolError: the policy could not be built; holds what `make_policy` raised.
    """
    actor = ray.remote(PolicyServer).options(
        num_cpus=0,
        num_gpus=num_gpus,
        max_restarts=_MAX_RESTARTS,
        max_task_retries=_MAX_CALL_RETRIES,
        runtime_env={"env_vars": dict(env or {})},
    )
    servers = [actor.remote(make_policy, max_batch, window_s) for _ in range(count)]
    try:
        policy = RemotePolicy(servers, timeout_s)
        if wait:
            policy.wait_until_ready(start_timeout_s)
        yield policy
    finally:
        for server in servers:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(server, no_restart=True)
