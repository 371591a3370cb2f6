"""Rate and gaps of the control loop at several policy latencies, and what the protocol costs.

    python tests/bench/bench_deploy.py                       # both parts, about a minute
    python tests/bench/bench_deploy.py --latencies 0.1 0.3 --seconds 10
    python tests/bench/bench_deploy.py --part protocol --requests 300

Loop: each latency with our executor, and with the loop of openpi's DROID example (ask, wait, play
eight actions, sleep the rest of each period) on the same server in the same run. Gaps are between
executed actions; the executor's ticks are given, too.

Protocol: the same request (two 224 x 224 pictures) to our server and to openpi's own, from our
client and from openpi's own, in turns. openpi's packages are those of `.venv/beside`; without them
their rows are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deploy._chunk_check import ChunkRules
from deploy.client import ClientConfig, PolicyClient
from deploy.executor import Executor, ExecutorConfig
from deploy.fetcher import ChunkFetcher
from deploy.interfaces import Array, Frame

HORIZON, DIM, HZ, PLAYED = 15, 8, 15.0, 8
RULES = ChunkRules(action_dim=DIM, least_steps=PLAYED, largest=5.0, horizon=None)


class Slow:
    """A policy that takes its time."""

    def __init__(self, latency_s: float) -> None:
        self.latency_s = latency_s

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        time.sleep(self.latency_s)
        return {"actions": np.zeros((HORIZON, DIM))}

    def reset(self) -> None: ...


class Still:
    """A robot that takes no time, and two cameras that are always fresh."""

    def __init__(self) -> None:
        self.words = request()

    def observe(self) -> Frame:
        return Frame(observation=self.words)

    def act(self, action: Array | None) -> Mapping[str, Any]:
        return {}

    def reset(self) -> None: ...

    def stop(self) -> None: ...


def request() -> dict[str, Any]:
    """A request as a DROID client sends it."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (224, 224, 3), dtype=np.uint8)
    return {
        "observation/exterior_image_1_left": image,
        "observation/wrist_image_left": image.copy(),
        "observation/joint_position": np.zeros(7),
        "observation/gripper_position": np.zeros(1),
        "prompt": "put the cube in the bowl",
    }


@contextmanager
def our_server(latency_s: float) -> Iterator[str]:
    """Our server in a process of its own, as on a policy host."""
    with _process(f"ours {latency_s}") as url:
        yield url


@contextmanager
def their_server(latency_s: float) -> Iterator[str]:
    """openpi's server, likewise."""
    with _process(f"theirs {latency_s}") as url:
        yield url


@contextmanager
def _process(words: str) -> Iterator[str]:
    command = [sys.executable, __file__, "--serve", *words.split()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def serve(kind: str, latency_s: float) -> None:
    """What the process of `_process` does."""
    policy = Slow(latency_s)
    if kind == "ours":
        from deploy.server import PolicyServer, ServerConfig

        with PolicyServer(policy, config=ServerConfig(port=0)).running() as it:
            print(it.url, flush=True)
            threading.Event().wait()
    module = beside("openpi_server.websocket_policy_server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    it = module.WebsocketPolicyServer(policy, "127.0.0.1", port, {})

    async def run() -> None:
        task = asyncio.ensure_future(it.run())
        while socket.socket().connect_ex(("127.0.0.1", port)):
            await asyncio.sleep(0.05)
        print(f"ws://127.0.0.1:{port}", flush=True)
        await task

    asyncio.run(run())


def beside(name: str) -> Any:
    """A module of openpi's packages."""
    folder = str(Path(sys.prefix) / "beside")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def has_openpi() -> bool:
    """Whether openpi's packages are there."""
    try:
        beside("openpi_client.websocket_client_policy")
        beside("openpi_server.websocket_policy_server")
    except ImportError:
        return False
    return True


def gaps_ms(moments: list[float]) -> tuple[float, float, float]:
    """p50, p99 and largest gap."""
    gaps = 1e3 * np.diff(moments)
    return float(np.median(gaps)), float(np.percentile(gaps, 99)), float(gaps.max())


def executor_loop(url: str, seconds: float, mode: str) -> str:
    """One row of the table."""
    client = PolicyClient(ClientConfig(url=url, answer_timeout_s=10.0))
    fetcher = ChunkFetcher(client, RULES, expected=client.connect())
    steps = int(seconds * HZ)
    config: Any = {"mode": mode, "max_steps": steps, "execute_steps": PLAYED, "max_hold_s": 10.0}
    executor = Executor(Still(), ExecutorConfig(**config))
    executor.connect()
    executor.reset()
    report = executor.run("bench", fetcher)
    fetcher.close()
    tick, action = report.tick_gap_ms, report.action_gap_ms
    rate = report.executed / (report.seconds or 1.0)
    fell_back = any("synchronous" in text for _, text in report.notes)
    return (
        f"{report.rate_hz:9.2f}{rate:10.2f}{tick.p99:10.1f}{action.p50:10.1f}{action.p99:10.1f}"
        f"{action.largest:10.1f}{report.held:7}{report.held_at_start:7}{report.late:6}"
        + ("   fell back to synchronous" if fell_back else "")
    )


def example_loop(url: str, seconds: float) -> str:
    """openpi's DROID example: the loop stands still while the policy is asked."""
    client = PolicyClient(ClientConfig(url=url, answer_timeout_s=10.0))
    client.connect()
    words, moments = request(), []
    for step in range(int(seconds * HZ)):
        began = time.monotonic()
        if step % PLAYED == 0:
            client.infer(words)
        moments.append(time.monotonic())  # here the action is executed
        time.sleep(max(0.0, began + 1 / HZ - time.monotonic()))
    client.close()
    p50, p99, largest = gaps_ms(moments)
    rate = (len(moments) - 1) / (moments[-1] - moments[0])
    return f"{'-':>9}{rate:10.2f}{'-':>10}{p50:10.1f}{p99:10.1f}{largest:10.1f}"


def loops(latencies: list[float], seconds: float) -> None:
    """The first table."""
    print(f"{HZ:g} Hz for {seconds:g} s, chunks of {HORIZON}, {PLAYED} played; ms")
    print(
        f"{'latency':>8}  {'loop':22}{'ticks/s':>9}{'actions/s':>10}{'tick p99':>10}"
        f"{'act p50':>10}{'act p99':>10}{'act max':>10}{'held':>7}{'start':>7}{'late':>6}"
    )
    for latency in latencies:
        with our_server(latency) as url:
            row = f"{latency:8.2f}  "
            print(f"{row}{'executor':22}{executor_loop(url, seconds, 'auto')}", flush=True)
            print(f"{row}{'executor, synchronous':22}{executor_loop(url, seconds, 'sync')}")
            print(f"{row}{'openpi example':22}{example_loop(url, seconds)}", flush=True)


def round_trips(requests: int) -> None:
    """The second table; the four pairs take turns, so that all see the same load."""
    pairs: list[tuple[str, str, Callable[[], Any]]] = []
    stack: list[Any] = []
    words = request()
    servers = {"ours": our_server} | ({"openpi's": their_server} if has_openpi() else {})
    for name, make in servers.items():
        context = make(0.0)
        url = context.__enter__()
        stack.append(context)
        mine = PolicyClient(ClientConfig(url=url, answer_timeout_s=10.0))
        mine.connect()
        pairs.append(("ours", name, lambda client=mine: client.infer(words)))
        if has_openpi():
            theirs = beside("openpi_client.websocket_client_policy").WebsocketClientPolicy(url)
            pairs.append(("openpi's", name, lambda client=theirs: client.infer(words)))
    times: list[list[float]] = [[] for _ in pairs]
    for _ in range(requests):
        for found, (_, _, ask) in zip(times, pairs, strict=True):
            began = time.perf_counter()
            ask()
            found.append(1e3 * (time.perf_counter() - began))
    print(f"\nround trip of a policy that takes no time, {requests} requests each; ms")
    print(f"{'client':12}{'server':12}{'p50':>8}{'p95':>8}{'least':>8}")
    for (client, server, _), found in zip(pairs, times, strict=True):
        p50, p95 = np.percentile(found[5:], [50, 95])
        print(f"{client:12}{server:12}{p50:8.2f}{p95:8.2f}{min(found):8.2f}")
    for context in stack:
        context.__exit__(None, None, None)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["loop", "protocol", "both"], default="both")
    parser.add_argument("--latencies", type=float, nargs="+", default=[0.1, 0.3, 0.6])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve[0], float(arguments.serve[1]))
        return
    if arguments.part in ("loop", "both"):
        loops(arguments.latencies, arguments.seconds)
    if arguments.part in ("protocol", "both"):
        round_trips(arguments.requests)


if __name__ == "__main__":
    main()
