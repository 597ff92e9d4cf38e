"""Ctrl-C and SIGTERM, put off until a step has ended: what is on disk then is a whole training."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C or SIGTERM came; the signal is delivered when the block is left.

    A second one does at once what it would have done without this. Outside the main thread, where Python delivers no
    signals, nothing is put off.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[int] = []
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}

    def put_off(number: int, frame: object) -> None:
        came.append(number)
        signal.signal(number, before[number])
        print("\nInterrupted: this step ends and its checkpoint is written. Once more stops at once.", file=sys.stderr)

    for number in before:
        signal.signal(number, put_off)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
