"""SIGTERM (Slurm's warning) and Ctrl-C as a request to save and stop."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether a signal came; a second Ctrl-C interrupts at once."""
    requests: list[int] = []

    def request_stop(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and requests:
            raise KeyboardInterrupt
        requests.append(number)

    previous = {number: signal.signal(number, request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
