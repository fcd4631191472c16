"""Reads a live source in a thread: a short queue that forgets its oldest frame, and a new connection for a lost one."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

from moevision.errors import InputError, UsageError
from moevision.imaging.video import Frame

logger = logging.getLogger(__name__)

_JOIN_S = 2.0  # a reader stuck in a driver is left behind rather than waited for

Connect = Callable[[], Iterable[Frame]]
"""Opens a live source anew and gives its frames as they arrive. Raises InputError or OSError when it is lost."""

Wait = Callable[[threading.Condition, float], object]
"""Waits on a condition, whose lock is held, for at most so many seconds."""


@dataclass(frozen=True)
class LiveOptions:
    """How a live source is read.

    Attributes:
        queue_frames: frames that wait for a slow reader before the oldest is dropped; a third of a second rides out one
            slow frame, more would only make what is seen older.
        stall_s: no frame for so long counts as a lost connection.
        first_wait_s, longest_wait_s: before connecting again; doubled from the first to the longest.
        max_reconnects: attempts in a row without a frame before the source is given up; None tries for ever.
    """

    queue_frames: int = 8
    stall_s: float = 10.0
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    max_reconnects: int | None = None

    def __post_init__(self) -> None:
        if self.queue_frames < 1 or not self.stall_s > 0 or not 0 < self.first_wait_s <= self.longest_wait_s:
            raise UsageError("live options: the queue needs a frame, waiting times are above 0 and the first the least")
        if self.max_reconnects is not None and self.max_reconnects < 0:
            raise UsageError(f"max_reconnects is {self.max_reconnects}; use 0 or more, or None for no limit")


class LiveReader:
    """Frames as they arrive; times are those of arrival, from the first frame on.

    A first connection that fails is an error at once: then the address is more likely wrong than the network.

    Args:
        name: for logs and errors.
        connect: opens the source, at first and after every loss; called and iterated in the thread.
        options: queue, stall and reconnection.
        clock: seconds, never going back.
        wait: how to wait; for tests.

    Attributes:
        dropped: frames that were not taken in time.
        reconnects: how often a lost connection was restored.
    """

    def __init__(
        self,
        name: str,
        connect: Connect,
        options: LiveOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Wait = threading.Condition.wait,
    ) -> None:
        self.name = name
        self.dropped = self.reconnects = 0
        self._connect, self._options, self._clock, self._wait = connect, options, clock, wait
        self._changed = threading.Condition()  # guards all below
        self._queue: deque[tuple[Frame, bool]] = deque()
        self._start_s: float | None = None
        self._silent_since_s = math.inf  # infinite while nothing is expected
        self._losses = 0  # in a row
        self._failure: Exception | None = None
        self._closed = False
        self._start_thread()

    def take(self) -> tuple[Frame, bool] | None:
        """The next frame, waited for, and whether it is the first after a lost connection; None once closed.

        Raises InputError where the source cannot be reached, or is lost and given up.
        """
        with self._changed:
            while not self._queue and not self._closed:
                if self._failure is not None:
                    raise self._failure
                left_s = self._silent_since_s + self._options.stall_s - self._clock()
                if left_s > 0:
                    self._wait(self._changed, min(left_s, self._options.stall_s))
                elif self._lost(f"no frame for {self._options.stall_s:g} s"):
                    self._start_thread()  # the old one may be stuck for good; it leaves as soon as it notices
            return None if self._closed else self._queue.popleft()

    def close(self) -> None:
        """Stop reading; who waits for a frame gets None. From any thread or a signal handler, also twice."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"reader of {self.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """The thread: connect, read, and again, until closed, given up or replaced by another."""
        try:
            while self._may_connect():
                reason = self._read_connection()
                with self._changed:
                    if not self._is_current() or not self._lost(reason):
                        return
        except Exception as error:  # a bug, too, must reach the caller and not die with the thread
            with self._changed:
                if self._is_current():
                    self._failure = error
                    self._changed.notify_all()

    def _is_current(self) -> bool:
        return self._thread is threading.current_thread() and not self._closed

    def _may_connect(self) -> bool:
        """Wait as long as the losses so far demand; False if there is nothing to connect for any more."""
        options = self._options
        with self._changed:
            # The exponent is bounded: 2.0**1024 is an error.
            pause_s = options.first_wait_s * 2.0 ** min(self._losses - 1, 60) if self._losses else 0.0
            due_s = self._clock() + min(pause_s, options.longest_wait_s)
            while self._is_current() and (left_s := due_s - self._clock()) > 0:
                self._wait(self._changed, left_s)
            if not self._is_current():
                return False
            self._silent_since_s = self._clock()
            self._changed.notify_all()  # from here on whoever waits for a frame counts the seconds
            return True

    def _read_connection(self) -> str:
        """Read until the connection ends; says why it did."""
        frames: Iterable[Frame] = ()
        try:
            frames = self._connect()
            for frame in frames:
                if not self._put(frame):
                    break
            return "the stream ended"
        except (InputError, OSError) as error:
            return " ".join(str(error).removeprefix(f"{self.name}: ").split(";")[0].split())
        finally:
            if isinstance(frames, Generator):
                frames.close()

    def _put(self, frame: Frame) -> bool:
        """Queue a frame, in place of the oldest if there is no room; False if nobody wants it."""
        with self._changed:
            if not self._is_current():
                return False
            now_s = self._clock()
            self._start_s = now_s if self._start_s is None else self._start_s
            restarted = self._losses > 0
            if restarted:
                self.reconnects += 1
                logger.info("%s: connected again", self.name)
            self._queue.append((Frame(frame.pixels_HWC, now_s - self._start_s), restarted))
            if len(self._queue) > self._options.queue_frames:
                _, first_after_loss = self._queue.popleft()
                self._queue[0] = self._queue[0][0], first_after_loss or self._queue[0][1]
                self.dropped += 1
            self._losses, self._silent_since_s = 0, now_s
            self._changed.notify_all()
            return True

    def _lost(self, reason: str) -> bool:
        """Note a lost connection; False if it is not to be restored. The lock is held."""
        self._losses += 1
        self._silent_since_s = math.inf
        limit = self._options.max_reconnects
        if self._start_s is None:
            self._failure = InputError(f"{self.name}: no connection: {reason}; check the address and the camera")
        elif limit is not None and self._losses > limit:
            what = f"connection lost: {reason}, not restored in {limit} attempts"
            self._failure = InputError(f"{self.name}: {what}; check the camera and the network")
        else:
            logger.warning("%s: connection lost: %s; connecting again", self.name, reason)
        self._changed.notify_all()
        return self._failure is None


def paced(
    connect: Connect, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> Generator[Frame, None, None]:
    """Frames that arrive in bursts, let go at their own pace; a little faster, so that no backlog can grow."""
    due_s, last_s = -math.inf, math.nan
    for frame in connect():
        step_s = frame.time_s - last_s
        due_s = max(clock(), due_s + (0.95 * step_s if 0 < step_s < 1 else 0.0))
        sleep(max(0.0, due_s - clock()))
        last_s = frame.time_s
        yield frame
