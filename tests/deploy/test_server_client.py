"""Both ends of the protocol together, and each with openpi's genuine other end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import websockets.sync.client
import websockets.sync.server
from hypothesis import given, settings
from hypothesis import strategies as st
from policies_for_tests import DROID, Echo, droid_request
from websockets.exceptions import ConnectionClosed, InvalidStatus

from deploy.client import ClientConfig, PolicyClient
from deploy.errors import (
    AccessDeniedError,
    DeadlineError,
    DeployError,
    PolicyConnectionError,
    PolicyServerError,
    ProtocolError,
    ServerBusyError,
)
from deploy.metadata import ServerMetadata
from deploy.protocol import pack, unpack
from deploy.server import PolicyServer, ServerConfig
from envs.rollout import RolloutConfig
from vla_opt.evaluation.server import ServerPolicy, check_server, open_server

LONG_S = 20.0  # deadlines that are not to be missed, on a machine with other work


def server(policy: Any = None, **changes: Any) -> PolicyServer:
    return PolicyServer(policy or Echo(), metadata=DROID, config=ServerConfig(port=0, **changes))


def client_of(url: str, **changes: Any) -> PolicyClient:
    settings = {"connect_timeout_s": LONG_S, "answer_timeout_s": LONG_S, **changes}
    return PolicyClient(ClientConfig(url=url, **settings))


@pytest.fixture(scope="module")
def running() -> Iterator[PolicyServer]:
    with server().running() as it:
        yield it


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.01)


def test_answers_with_the_policys_numbers_and_its_own_timing(running: PolicyServer) -> None:
    with client_of(running.url) as client:
        assert client.metadata == DROID
        first, second = client.infer(droid_request()), client.infer(droid_request())
    expected = Echo().infer(droid_request())["actions"]
    np.testing.assert_array_equal(first["actions"], expected)
    assert set(first["server_timing"]) == {"infer_ms", "queue_ms"}
    assert second["server_timing"]["prev_total_ms"] >= first["server_timing"]["infer_ms"]


def test_openpis_client_works_with_our_server(
    running: PolicyServer, openpi_client: ModuleType
) -> None:
    for address in ({"host": "127.0.0.1", "port": running.port}, {"host": running.url}):
        client = openpi_client.WebsocketClientPolicy(**address)
        assert ServerMetadata.from_wire(client.get_server_metadata()) == DROID
        for _ in range(2):
            answer = client.infer(droid_request())
        np.testing.assert_array_equal(answer["actions"], Echo().infer(droid_request())["actions"])
        assert "prev_total_ms" in answer["server_timing"]


def test_openpis_client_sees_openpis_errors(
    running: PolicyServer, openpi_client: ModuleType
) -> None:
    client = openpi_client.WebsocketClientPolicy("127.0.0.1", running.port)
    with pytest.raises(RuntimeError, match=r"Error in inference server:\n(.|\n)*ZeroDivisionError"):
        client.infer(droid_request("raise"))
    with pytest.raises(ConnectionClosed) as closed:
        client.infer(droid_request())
    assert closed.value.rcvd.code == 1011
    assert "Traceback included in previous frame" in closed.value.rcvd.reason


@contextmanager
def genuine_server(openpi_server: ModuleType, policy: Any, metadata: Any) -> Iterator[str]:
    """openpi's server in a thread; it never ends by itself, so its loop is stopped."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    it = openpi_server.WebsocketPolicyServer(policy, "127.0.0.1", port, metadata)
    loop = asyncio.new_event_loop()
    task = loop.create_task(it.run())

    def serve() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    yield f"ws://127.0.0.1:{port}"
    loop.call_soon_threadsafe(task.cancel)
    thread.join(LONG_S)


def test_our_client_works_with_openpis_server(openpi_server: ModuleType) -> None:
    policy = Echo()
    with genuine_server(openpi_server, policy, None) as url, client_of(url) as client:
        assert client.metadata == ServerMetadata()
        answer = client.infer(droid_request())
        np.testing.assert_array_equal(answer["actions"], policy.infer(droid_request())["actions"])
        for key, value in droid_request().items():
            np.testing.assert_array_equal(policy.seen[0][key], value)
        with pytest.raises(PolicyServerError, match="the policy's own words"):
            client.infer(droid_request("raise"))
        assert not client.connected
        assert "actions" in client.infer(droid_request()), "it connects again by itself"


class Zeros:
    """A LIBERO policy of openpi's kind: no metadata, 50 actions of 7 numbers."""

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        assert set(obs) == {
            *("observation/image", "observation/wrist_image", "observation/state", "prompt")
        }
        return {"actions": np.full((50, 7), obs["observation/state"].sum())}


def test_openpis_server_is_evaluated_by_its_address(openpi_server: ModuleType) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    look = {"pixels": {"image": image, "image2": image}, "task": "put it", "seed": 1}
    with genuine_server(openpi_server, Zeros(), None) as url:
        checkpoint, said = open_server(url)
        check_server(url, said, RolloutConfig().env_spec, execute_steps=8)
        policy = ServerPolicy(url)
        states = [np.full(8, value, np.float32) for value in (0.5, -1.0)]
        chunks = policy.infer([{**look, "agent_pos": state} for state in states])
    assert checkpoint.image_size == 256
    assert [chunk.shape for chunk in chunks] == [(50, 7)] * 2
    assert [chunk[0, 0] for chunk in chunks] == [4.0, -8.0]


def test_servers_put_the_same_bytes_on_the_wire(openpi_server: ModuleType) -> None:
    """Ours adds queue_ms and nothing else."""

    def conversation(url: str) -> tuple[bytes, dict[str, Any]]:
        with websockets.sync.client.connect(url, compression=None, proxy=None) as raw:
            hello = raw.recv()
            raw.send(pack(droid_request()))
            return hello, unpack(raw.recv())

    metadata = DROID.to_wire()
    with genuine_server(openpi_server, Echo(), metadata) as url:
        theirs = conversation(url)
    with server().running() as it:
        ours = conversation(it.url)
    assert ours[0] == theirs[0] == pack(metadata)
    assert pack(ours[1]["actions"]) == pack(theirs[1]["actions"])
    timing = {**ours[1].pop("server_timing"), **theirs[1]["server_timing"]}
    assert timing.keys() == {"queue_ms"} | theirs[1].pop("server_timing").keys()
    assert ours[1].keys() == theirs[1].keys()


def get(url: str, **headers: str) -> tuple[int, bytes]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url.replace("ws://", "http://"), headers=headers)
    try:
        with opener.open(request, timeout=LONG_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_health_pings_and_a_second_client_are_answered_while_the_policy_works() -> None:
    policy = Echo()
    with server(policy).running() as it:
        policy.go_on.clear()
        first = client_of(it.url)
        answers: queue.Queue[dict[str, Any]] = queue.Queue()
        asking = threading.Thread(target=lambda: answers.put(first.infer(droid_request())))
        asking.start()
        wait_until(lambda: policy.seen)
        assert get(it.url + "/healthz") == (200, b"OK\n")
        with websockets.sync.client.connect(it.url, proxy=None) as second:
            assert unpack(second.recv(timeout=LONG_S)) == DROID.to_wire()
            assert second.ping().wait(LONG_S)
        assert answers.empty()
        policy.go_on.set()
        asking.join(LONG_S)
        assert "actions" in answers.get(timeout=LONG_S)
        first.close()


def test_two_clients_get_their_own_answers() -> None:
    with server(Echo(0.01)).running() as it:
        found: dict[int, list[float]] = {0: [], 1: []}

        def ask(number: int) -> None:
            with client_of(it.url) as client:
                for _ in range(5):
                    state = np.full(7, float(number))
                    answer = client.infer({"observation/joint_position": state})
                    found[number].append(float(answer["actions"][0, 0]))

        threads = [threading.Thread(target=ask, args=(n,)) for n in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG_S)
    assert found == {0: [0.0] * 5, 1: [1.0] * 5}
    assert it.counts.answered == 10


def test_a_policy_that_hangs_does_not_keep_the_server_from_ending() -> None:
    policy = Echo()
    policy.go_on.clear()
    with server(policy).running() as it:
        client = client_of(it.url)
        failures: queue.Queue[DeployError] = queue.Queue()

        def ask() -> None:
            try:
                client.infer(droid_request())
            except DeployError as error:
                failures.put(error)

        threading.Thread(target=ask).start()
        wait_until(lambda: policy.seen)
    assert not it.serving
    assert isinstance(failures.get(timeout=LONG_S), PolicyConnectionError)
    policy.go_on.set()


def test_a_full_queue_says_so_and_keeps_what_it_has() -> None:
    policy = Echo()
    policy.go_on.clear()
    with server(policy, max_pending=1).running() as it:
        clients = [client_of(it.url) for _ in range(3)]
        outcomes: queue.Queue[Any] = queue.Queue()

        def ask(client: PolicyClient) -> None:
            try:
                outcomes.put(client.infer(droid_request()))
            except DeployError as error:
                outcomes.put(error)

        threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        refused = outcomes.get(timeout=LONG_S)
        assert isinstance(refused, ServerBusyError)
        assert "--max_pending" in str(refused)
        policy.go_on.set()
        assert [type(outcomes.get(timeout=LONG_S)) for _ in range(2)] == [dict, dict]
        for thread, client in zip(threads, clients, strict=True):
            thread.join(LONG_S)
            client.close()


def test_a_client_that_gives_up_leaves_room_for_the_others() -> None:
    policy = Echo()
    policy.go_on.clear()
    with server(policy, max_pending=1).running() as it:
        patient = client_of(it.url)
        asking = threading.Thread(target=patient.infer, args=(droid_request(),))
        asking.start()
        wait_until(lambda: policy.seen)
        with pytest.raises(DeadlineError):
            client_of(it.url).infer(droid_request(), timeout_s=0.05)
        policy.go_on.set()
        asking.join(LONG_S)
        assert "actions" in patient.infer(droid_request())
        patient.close()
        wait_until(lambda: it.counts.clients == 0)
    assert it.counts.errors == 0


def test_only_the_right_key_opens_the_door(openpi_client: ModuleType) -> None:
    with server(api_key="right").running() as it:
        for wrong in (None, "wrong", "righ", "rightly"):
            with pytest.raises(AccessDeniedError, match="--api_key"):
                client_of(it.url, api_key=wrong).connect()
        for scheme in ("right", "Bearer right", "Api-Key  right"):
            assert get(it.url, Authorization=scheme)[0] == 401
        with pytest.raises(InvalidStatus):
            openpi_client.WebsocketClientPolicy(it.url, api_key="wrong")
        assert get(it.url + "/healthz") == (200, b"OK\n")
        assert it.counts.clients == 0
        client = openpi_client.WebsocketClientPolicy(it.url, api_key="right")
        assert "actions" in client.infer(droid_request())
        with client_of(it.url, api_key="right") as ours:
            assert "actions" in ours.infer(droid_request())


def test_web_pages_and_too_many_clients_are_turned_away() -> None:
    with server(max_clients=1).running() as it:
        with pytest.raises(InvalidStatus, match="403"):
            websockets.sync.client.connect(it.url, proxy=None, origin="https://example.org")
        with client_of(it.url), pytest.raises(PolicyConnectionError, match=r"503.*1 clients are"):
            client_of(it.url).connect()


def test_listens_on_loopback_unless_told_otherwise() -> None:
    assert ServerConfig().host == "127.0.0.1"
    with server().running() as it:
        assert it.url == f"ws://127.0.0.1:{it.port}"
        taken = PolicyServer(Echo(), config=ServerConfig(port=it.port))
        with pytest.raises(DeployError, match="Choose another --port"), taken.running():
            pass


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"\xc1", "ProtocolError"),
        ("text", "ProtocolError"),
        (pack([1, 2]), "must be a map"),
        (pack({"prompt": "unsendable"}), "ProtocolError: This message cannot be sent"),
        (pack({"prompt": "raise"}), "ZeroDivisionError: the policy's own words"),
    ],
    ids=["garbage", "text", "list", "answer that cannot travel", "policy raises"],
)
def test_a_bad_request_costs_its_sender_the_connection_and_nobody_else_anything(
    running: PolicyServer, frame: str | bytes, reason: str
) -> None:
    with client_of(running.url) as bystander:
        with websockets.sync.client.connect(running.url, proxy=None) as raw:
            raw.recv()
            raw.send(frame)
            text = raw.recv(timeout=LONG_S)
            assert isinstance(text, str)
            assert reason in text
            with pytest.raises(ConnectionClosed) as closed:
                raw.recv(timeout=LONG_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
        assert "actions" in bystander.infer(droid_request())


def test_too_large_a_request_is_refused() -> None:
    with server(max_message_bytes=1000).running() as it:
        with client_of(it.url) as client, pytest.raises(PolicyConnectionError, match="1009"):
            client.infer({"observation/state": np.zeros(1000)})
        assert "actions" in client_of(it.url).infer({"prompt": "short"})


def test_our_own_errors_come_without_a_traceback(running: PolicyServer) -> None:
    with websockets.sync.client.connect(running.url, proxy=None) as raw:
        raw.recv()
        raw.send(b"\xc1")
        assert "Traceback" not in raw.recv(timeout=LONG_S)


@settings(max_examples=15, deadline=None)
@given(frames=st.lists(st.binary(max_size=40) | st.text(max_size=10), min_size=1, max_size=3))
def test_garbage_frames_never_end_the_server(
    running: PolicyServer, frames: list[bytes | str]
) -> None:
    with websockets.sync.client.connect(running.url, proxy=None, close_timeout=1) as raw:
        raw.recv()
        try:
            for frame in frames:
                raw.send(frame)
                raw.recv(timeout=LONG_S)
        except ConnectionClosed:
            pass
    with client_of(running.url) as client:
        assert "actions" in client.infer({})


@settings(max_examples=12, deadline=None)
@given(data=st.binary(min_size=1, max_size=60))
def test_garbage_instead_of_a_handshake_never_ends_the_server(
    running: PolicyServer, data: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=LONG_S) as raw:
        raw.sendall(data)
    assert get(running.url + "/healthz") == (200, b"OK\n")


# ---------------------------------------------------------------- servers that go wrong


@contextmanager
def raw_server(behave: Any) -> Iterator[str]:
    """A TCP server that does what it is told with each connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
            behave(connection)

    threading.Thread(target=accept, daemon=True).start()
    yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    for connection in held:
        connection.close()


def test_nobody_listening_is_said_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(PolicyConnectionError, match="vla-opt serve"):
        client_of(url).connect()


def test_a_server_that_accepts_and_says_nothing_misses_the_deadline() -> None:
    with raw_server(lambda connection: None) as url, pytest.raises(DeadlineError):
        client_of(url, connect_timeout_s=0.1).connect()


def test_a_server_that_sends_no_metadata_misses_the_deadline() -> None:
    over = threading.Event()
    silent = websockets.sync.server.serve(lambda socket: over.wait(LONG_S) and None, "127.0.0.1", 0)
    with silent:
        threading.Thread(target=silent.serve_forever, daemon=True).start()
        url = f"ws://127.0.0.1:{silent.socket.getsockname()[1]}"
        with pytest.raises(DeadlineError, match=r"with its metadata within 0\.3 s"):
            client_of(url, connect_timeout_s=0.3).connect()
        over.set()


def test_garbage_instead_of_a_handshake_is_explained() -> None:
    def behave(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
        connection.close()

    with raw_server(behave) as url, pytest.raises(PolicyConnectionError, match="No policy server"):
        client_of(url).connect()


@pytest.mark.parametrize("hello", [b"\xc1", pack([1]), "text", pack({"action_dim": "eight"})])
def test_a_server_with_other_metadata_is_refused(hello: bytes | str) -> None:
    broken = server()
    broken._hello = hello  # type: ignore[assignment]
    with broken.running(), pytest.raises((ProtocolError, PolicyServerError)):
        client_of(broken.url).connect()


def test_a_missed_deadline_gives_up_the_connection_so_that_answers_stay_in_step() -> None:
    policy = Echo()
    with server(policy).running() as it:
        client = client_of(it.url)
        client.connect()
        policy.go_on.clear()
        with pytest.raises(DeadlineError, match=r"within 0\.05"):
            client.infer({"observation/joint_position": np.full(7, 1.0)}, timeout_s=0.05)
        assert not client.connected
        policy.go_on.set()
        answer = client.infer({"observation/joint_position": np.full(7, 2.0)})
        assert answer["actions"][0, 0] == 2.0
        client.close()


SERVER_PROCESS = """
import sys, time
sys.path.insert(0, {tests!r})
from deploy.server import PolicyServer, ServerConfig
from policies_for_tests import DROID, Echo
server = PolicyServer(Echo(), metadata=DROID, config=ServerConfig(port=0))
with server.running():
    print(server.url, flush=True)
    time.sleep(60)
"""


@contextmanager
def server_process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    code = SERVER_PROCESS.format(tests=str(Path(__file__).parent / "helpers"))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_killed_server_is_named_at_once() -> None:
    with server_process() as (process, url), client_of(url) as client:
        client.infer(droid_request())
        process.kill()
        process.wait()
        for reason in ("ended the connection", "No policy server"):
            with pytest.raises(PolicyConnectionError, match=reason):
                client.infer(droid_request())


def test_a_frozen_server_is_left_at_the_deadline_however_much_is_sent() -> None:
    with server_process() as (process, url), client_of(url) as client:
        client.infer(droid_request())
        os.kill(process.pid, signal.SIGSTOP)
        try:
            large = {"observation/image": np.zeros((3000, 3000, 3), np.uint8)}  # fills the buffers
            with pytest.raises(DeadlineError, match=r"to take a request within 0\.3 s"):
                client.infer(large, timeout_s=0.3)
            client.config = ClientConfig(url=url, connect_timeout_s=0.3)
            with pytest.raises(DeadlineError, match="did not complete a connection"):
                client.infer(droid_request())
        finally:
            os.kill(process.pid, signal.SIGCONT)
        client.config = ClientConfig(url=url, connect_timeout_s=LONG_S, answer_timeout_s=LONG_S)
        assert "actions" in client.infer(droid_request()), "it comes back by itself"
