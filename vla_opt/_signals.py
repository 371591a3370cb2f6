"""Ending a run between two updates when it is asked to end."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody asked this process to end."""

    def __init__(self) -> None:
        self.made = False


@contextlib.contextmanager
def stop_request(*, enabled: bool) -> Iterator[StopRequest]:
    """Note the first Ctrl-C or SIGTERM instead of being torn apart by it; the second one counts.

    Args:
        enabled: False changes nothing; nor does another thread than the main one, where Python
            cannot set handlers.
    """
    request = StopRequest()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request.made:
            raise KeyboardInterrupt
        request.made = True
        logger.warning("ending after the update in progress; a second signal ends it at once")

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
