"""Ctrl-C and friends: stop at once, but never between an output and its line in the ledger."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interruption:
    """While entered, SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt; inside `hold()` the first of them waits.

    Outside the main thread (where Python allows no handlers) it does nothing.
    """

    def __init__(self) -> None:
        self._requested = False
        self._holding = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and friends mean it
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self._requested = self._requested, True
        if again or not self._holding:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Let the body finish first; a second signal does not wait."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._requested:
            raise KeyboardInterrupt
