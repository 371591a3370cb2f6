"""A policy behind openpi's websocket protocol; openpi's own client works with it unchanged."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from deploy._handshake import answer_handshake
from deploy._inference import InferenceThread, ServedPolicy
from deploy.errors import DeployError, ProtocolError
from deploy.metadata import ServerMetadata
from deploy.protocol import MAX_MESSAGE_BYTES, pack, unpack

logger = logging.getLogger(__name__)

_CLOSE_REASON = "Internal server error. Traceback included in previous frame."  # openpi's words


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where to listen, whom to let in, and how much to take.

    Attributes:
        host: Address to listen on. The default is reachable from this machine alone; "0.0.0.0"
            from everywhere: set an API key then.
        port: TCP port; 0 takes a free one.
        api_key: What clients must know; None lets everybody in.
        max_message_bytes: Longer requests end their connection (close code 1009).
        max_pending: Requests that may wait for the policy.
        max_clients: Connections at the same time; further ones get HTTP 503.
        ping_timeout_s: A client that answers no ping for so long is dropped.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_pending: int = 4
    max_clients: int = 8
    ping_timeout_s: float = 20.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.port < 65536:
            raise ValueError(f"port={self.port}: expected 0 to 65535.")
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError("api_key is empty: give one, or null for none.")
        for name in ("max_message_bytes", "max_clients", "ping_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0.")
        if self.max_pending < 0:
            raise ValueError(f"max_pending={self.max_pending}: expected 0 or more.")


@dataclass(kw_only=True)
class ServerCounts:
    """What a server has done so far.

    Attributes:
        answered: Requests answered with a chunk.
        errors: Requests answered with an error: malformed, refused, or the policy raised.
        clients: Connections open now.
    """

    answered: int = 0
    errors: int = 0
    clients: int = 0


class PolicyServer:
    """Serves one policy to several clients.

    Inference runs in a thread of its own: pings, `/healthz` and other clients are answered
    meanwhile. A request that is malformed, or on which the policy fails, costs its sender the
    connection (a text frame with the reason, then close code 1011) and nobody else anything.

    Args:
        policy: See `ServedPolicy`.
        metadata: Sent to each client first.
        config: See `ServerConfig`.
    """

    def __init__(
        self,
        policy: ServedPolicy,
        *,
        metadata: ServerMetadata | None = None,
        config: ServerConfig | None = None,
    ) -> None:
        self.config = config or ServerConfig()
        self.counts = ServerCounts()
        self._policy = policy
        self._hello = pack((metadata or ServerMetadata()).to_wire())
        self._inference: InferenceThread | None = None
        self._server: Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._conversations: set[asyncio.Task[Any]] = set()

    @property
    def port(self) -> int:
        """The port it listens on.

        Raises:
            DeployError: It does not listen yet.
        """
        if self._server is None:
            raise DeployError("The server is not running.")
        return int(next(iter(self._server.sockets)).getsockname()[1])

    @property
    def url(self) -> str:
        """What a client on this machine connects to."""
        host = "127.0.0.1" if self.config.host in ("0.0.0.0", "") else self.config.host
        return f"ws://[{host}]:{self.port}" if ":" in host else f"ws://{host}:{self.port}"

    @property
    def serving(self) -> bool:
        """Whether it takes connections."""
        return self._server is not None and self._server.is_serving()

    async def run(self, started: Callable[[], None] | None = None) -> None:
        """Serve until cancelled.

        Args:
            started: Called once connections are taken.

        Raises:
            DeployError: The address cannot be listened on.
        """
        self._inference = InferenceThread(self._policy, self.config.max_pending)
        try:
            async with await self._listen() as self._server:
                logger.info("serving on %s", self.url)
                if started is not None:
                    started()
                try:
                    await self._server.wait_closed()
                finally:  # one of them may be waiting for a policy that hangs
                    for conversation in list(self._conversations):
                        conversation.cancel()
        finally:
            self._inference.close()

    async def _listen(self) -> Server:
        config = self.config
        try:
            return await serve(
                self._converse,
                config.host,
                config.port,
                compression=None,
                max_size=config.max_message_bytes,
                max_queue=1,  # a client that does not wait for answers waits here, not in memory
                ping_interval=config.ping_timeout_s,
                ping_timeout=config.ping_timeout_s,
                close_timeout=1.0,
                process_request=self._let_in,
                server_header=None,
            )
        except OSError as error:
            raise DeployError(
                f"Cannot listen on {config.host}:{config.port}: {error.strerror or error}. "
                "Choose another --port, or end what uses this one."
            ) from error

    def serve_forever(self) -> None:
        """Serve until interrupted; blocks."""
        asyncio.run(self.run())

    def _let_in(self, connection: ServerConnection, request: Request) -> Response | None:
        full = self.counts.clients >= self.config.max_clients
        why = f"{self.config.max_clients} clients are connected already." if full else ""
        return answer_handshake(connection, request, api_key=self.config.api_key, full=why)

    async def _converse(self, socket: ServerConnection) -> None:
        peer = socket.remote_address
        task = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)
        self.counts.clients += 1
        logger.info("client %s connected", peer)
        try:
            await socket.send(self._hello)
            previous_s: float | None = None
            while True:
                previous_s = await self._answer(socket, previous_s)
        except ConnectionClosed as closed:
            logger.info("client %s left: %s", peer, closed)
        except Exception as error:
            self.counts.errors += 1
            await _refuse(socket, error)
        finally:
            self.counts.clients -= 1
            self._conversations.discard(task)

    async def _answer(self, socket: ServerConnection, previous_s: float | None) -> float:
        """Answer one request; returns the seconds from waiting for it to having sent the answer."""
        started = time.monotonic()
        observation = unpack(await socket.recv(decode=False))
        if not isinstance(observation, dict):
            raise ProtocolError(f"A request must be a map, got a {type(observation).__name__}.")
        assert self._inference is not None
        inferred = await self._inference.infer(observation)
        timing = {"infer_ms": 1e3 * inferred.infer_s, "queue_ms": 1e3 * inferred.queue_s}
        if previous_s is not None:
            timing["prev_total_ms"] = 1e3 * previous_s
        await socket.send(pack({**inferred.result, "server_timing": timing}))
        self.counts.answered += 1
        return time.monotonic() - started

    @contextlib.contextmanager
    def running(self, timeout_s: float = 10.0) -> Iterator[PolicyServer]:
        """Serve from a thread of this process as long as the block lasts.

        Raises:
            DeployError: It could not be started.
        """
        started, failure = threading.Event(), []

        def target() -> None:
            try:
                asyncio.run(self._run_until_stopped(started.set))
            except DeployError as error:
                failure.append(error)
                started.set()

        thread = threading.Thread(target=target, name="policy-server", daemon=True)
        thread.start()
        if not started.wait(timeout_s):
            raise DeployError(f"The server did not start within {timeout_s:g} s.")
        if failure:
            raise failure[0]
        try:
            yield self
        finally:
            assert self._loop is not None
            assert self._task is not None
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._task.cancel)
            thread.join(timeout_s)

    async def _run_until_stopped(self, started: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(self.run(started))
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


async def _refuse(socket: ServerConnection, error: Exception) -> None:
    """Tell the client why, then close; it may be gone already."""
    if isinstance(error, DeployError):
        text = f"{type(error).__name__}: {error}"
        logger.warning("request of %s refused: %s", socket.remote_address, text)
    else:
        text = "".join(traceback.format_exception(error))
        logger.error("the policy failed on a request of %s\n%s", socket.remote_address, text)
    with contextlib.suppress(ConnectionClosed):
        await socket.send(text)
    await socket.close(CloseCode.INTERNAL_ERROR, _CLOSE_REASON)
