"""Asks a policy server, ours or openpi's. Every call ends within its deadline."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from deploy._handshake import authorization
from deploy.errors import (
    AccessDeniedError,
    DeadlineError,
    PolicyConnectionError,
    PolicyServerError,
    ProtocolError,
    ServerBusyError,
)
from deploy.metadata import ServerMetadata
from deploy.protocol import BUSY, MAX_MESSAGE_BYTES, pack, unpack

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 0.2  # a frozen server never answers a close frame


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """Which server to ask, and how long to wait.

    Attributes:
        url: "ws://host:8000", "wss://..." or "host:8000".
        api_key: The server's key, if it wants one.
        connect_timeout_s: For connection, handshake and the server's metadata together.
        answer_timeout_s: For one answer, sending included.
        max_message_bytes: Longer answers end the connection.
    """

    url: str = "ws://127.0.0.1:8000"
    api_key: str | None = None
    connect_timeout_s: float = 5.0
    answer_timeout_s: float = 1.0
    max_message_bytes: int = MAX_MESSAGE_BYTES

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("connect_timeout_s", "answer_timeout_s", "max_message_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0.")

    @property
    def uri(self) -> str:
        """The URL with its scheme."""
        return self.url if "://" in self.url else f"ws://{self.url}"


class PolicyClient:
    """One connection to a policy server, opened when it is first needed.

    The protocol has no request numbers: after a missed deadline a late answer would be taken for
    that of the next request. So every failure closes the connection, and the next call opens a new
    one. For one thread at a time; `deploy.fetcher.ChunkFetcher` keeps a control loop from waiting.

    Args:
        config: See `ClientConfig`.
    """

    def __init__(self, config: ClientConfig | None = None) -> None:
        self.config = config or ClientConfig()
        self.metadata: ServerMetadata | None = None
        self._connection: ClientConnection | None = None
        self._open_until = contextlib.ExitStack()

    @property
    def connected(self) -> bool:
        """Whether a connection is open, as far as is known."""
        return self._connection is not None

    def connect(self, timeout_s: float | None = None) -> ServerMetadata:
        """Open the connection if there is none.

        Args:
            timeout_s: Instead of the configured one.

        Returns:
            What the server says about itself.

        Raises:
            AccessDeniedError: The server does not accept the API key.
            PolicyConnectionError: It cannot be reached, or does not speak this protocol.
            DeadlineError: It did not answer in time.
        """
        if self._connection is not None and self.metadata is not None:
            return self.metadata
        timeout_s = self.config.connect_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        self._connection = self._open(timeout_s)
        try:
            frame = self._receive("with its metadata", deadline, timeout_s)
            self.metadata = ServerMetadata.from_wire(unpack(frame))
        except Exception:
            self.close()
            raise
        return self.metadata

    def infer(
        self, observation: Mapping[str, Any], timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Return the server's answer to an observation; "actions" is (horizon, dim), read-only.

        Args:
            observation: Keys and units as the server's metadata say.
            timeout_s: Instead of the configured one, for example for a first answer. Connecting
                anew after a failure counts in.

        Raises:
            PolicyServerError: The server answered with an error; `ServerBusyError` if it is only
                busy.
            DeadlineError: No answer in time.
            PolicyConnectionError: No connection, or it broke.
            ProtocolError: The answer is no message of this protocol.
        """
        data = pack(dict(observation))
        wait = self.config.answer_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + wait
        self.connect(min(wait, self.config.connect_timeout_s))
        try:
            self._send(data, max(0.0, deadline - time.monotonic()), wait)
            answer = unpack(self._receive("with a chunk", deadline, wait))
            if not isinstance(answer, dict):
                raise ProtocolError(f"An answer must be a map, got a {type(answer).__name__}.")
        except BaseException:
            self.close()
            raise
        return answer

    def reset(self) -> None:
        """Do nothing, as openpi's client: servers keep no state between requests."""

    def get_server_metadata(self) -> dict[str, Any]:
        """The metadata as a map, under openpi's name for it."""
        return self.connect().to_wire()

    def close(self) -> None:
        """Close the connection; at most a moment, whatever the server does."""
        self._connection = None
        with contextlib.suppress(Exception):  # it is being given up anyway
            self._open_until.close()

    def __enter__(self) -> PolicyClient:
        self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self, timeout_s: float) -> ClientConnection:
        config = self.config
        key = config.api_key
        headers = {} if key is None else {"Authorization": authorization(key)}
        try:
            return self._open_until.enter_context(
                connect(
                    config.uri,
                    compression=None,
                    proxy=None,  # robots and their policies are neighbours
                    additional_headers=headers,
                    open_timeout=timeout_s,
                    close_timeout=_CLOSE_TIMEOUT_S,
                    ping_interval=None,  # the deadline of each answer is the stricter watch
                    max_size=config.max_message_bytes,
                )
            )
        except TimeoutError as error:
            raise DeadlineError(
                f"{config.uri} did not complete a connection within {timeout_s:g} s."
            ) from error
        except InvalidURI as error:
            raise PolicyConnectionError(f"{config.url!r} is no address: {error}") from error
        except InvalidStatus as error:
            raise _explain_status(config.uri, error) from error
        except (OSError, WebSocketException, EOFError) as error:
            raise PolicyConnectionError(
                f"No policy server at {config.uri}: {error}. Is `vla-opt serve` running there?"
            ) from error

    def _send(self, data: bytes, left_s: float, timeout_s: float) -> None:
        """Send; a server that reads nothing fills the buffers, after which sending would block."""
        assert self._connection is not None
        _limit_sending(self._connection.socket, left_s)
        try:
            self._connection.send(data)
        except ConnectionClosed as closed:
            if isinstance(closed.__cause__, BlockingIOError):
                raise self._too_late("to take a request", timeout_s) from closed
            raise self._gone(closed) from closed

    def _receive(self, what: str, deadline: float, timeout_s: float) -> bytes:
        assert self._connection is not None
        try:
            frame = self._connection.recv(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            raise self._too_late(what, timeout_s) from error
        except ConnectionClosed as closed:
            raise self._gone(closed) from closed
        if isinstance(frame, str):
            raise (ServerBusyError if frame.startswith(BUSY) else PolicyServerError)(
                f"The policy server answered with an error:\n{frame.rstrip()}"
            )
        return frame

    def _too_late(self, what: str, wait_s: float) -> DeadlineError:
        return DeadlineError(
            f"{self.config.uri} did not answer {what} within {wait_s:.2g} s: it is overloaded, "
            "frozen or unreachable."
        )

    def _gone(self, closed: ConnectionClosed) -> PolicyConnectionError:
        return PolicyConnectionError(f"{self.config.uri} ended the connection: {closed}")


def _limit_sending(plain: socket.socket, timeout_s: float) -> None:
    """Let the kernel end a send that lasts too long; receiving is not touched."""
    seconds, fraction = divmod(max(timeout_s, 1e-3), 1.0)
    with contextlib.suppress(OSError):
        plain.setsockopt(
            socket.SOL_SOCKET,
            socket.SO_SNDTIMEO,
            struct.pack("ll", int(seconds), int(1e6 * fraction)),
        )


def _explain_status(uri: str, error: InvalidStatus) -> PolicyConnectionError:
    """What the server's HTTP answer means."""
    status = error.response.status_code
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return AccessDeniedError(
            f"{uri} refused the connection (HTTP {status}): give the server's own --api_key."
        )
    words = (error.response.body or b"").decode("utf-8", "replace").strip()[:200]
    return PolicyConnectionError(f"{uri} answered HTTP {status} instead of a websocket: {words}")
