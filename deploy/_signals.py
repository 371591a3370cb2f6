"""What a program that drives an arm does when it is asked to end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from deploy.executor import Executor

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def stop_on_signal(executor: Executor) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal bring the arm to rest; they never tear the loop apart.

    What is ignored, as under nohup, stays ignored. Outside the main thread nothing is changed.

    Args:
        executor: Asked to stop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        executor.request_stop(f"{signal.Signals(number).name} was received")

    heard = [n for n in _SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    before = {n: signal.signal(n, stop) for n in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_like_ctrl_c() -> None:
    """From now on SIGTERM and a closed terminal raise KeyboardInterrupt: everything is closed.

    What is ignored stays ignored; outside the main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
