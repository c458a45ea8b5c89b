"""Ctrl-C and SIGTERM as a request to stop between two steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written.

    Attributes:
        step: the last step done.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"Stopped after step {step}; the checkpoint is written.")
        self.step = step


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request that the loop reads between two steps.

    A second one interrupts at once, as ever. Outside the main thread, where signals can't be caught, nothing is
    changed.

    Example:
        >>> with stop_requests() as stop_wanted:
        ...     stop_wanted()
        False
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in caught}

    def note(number: int, frame: FrameType | None) -> None:
        requested.set()
        for each in caught:
            signal.signal(each, before[each])

    for number in caught:
        signal.signal(number, note)
    try:
        yield requested.is_set
    finally:
        for number in caught:
            signal.signal(number, before[number])
