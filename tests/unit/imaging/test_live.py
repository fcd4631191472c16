"""Live sources without network, camera or waiting: scripted connections, a clock that is set by hand."""

import threading

import numpy as np
import pytest

from moevision.errors import InputError
from moevision.imaging.live import LiveOptions, LiveReader, paced
from moevision.imaging.sources import LiveSource
from moevision.imaging.video import Frame

LONG_S = 20  # how long a broken test hangs


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


class Gate(threading.Event):
    """A connection waits here until the test lets it go on."""


class Script:
    """Connections one after the other; each a list of frame values, errors to raise, events to set and gates.

    The reader's waiting moves the clock and is noted. The test's own waiting ends with the next change, or moves the
    clock where `silent` says that there will be none.
    """

    def __init__(self, *connections):
        self.connections, self.clock, self.waits_s = list(connections), Clock(), []
        self.silent = False

    def connect(self):
        for step in self.connections.pop(0):
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Gate):
                step.wait(LONG_S)
            elif isinstance(step, threading.Event):
                step.set()
            else:
                self.clock.now_s += 0.1
                yield Frame(np.full((2, 3, 3), step, np.uint8), 0.0)

    def wait(self, condition, seconds):
        if threading.current_thread() is not threading.main_thread():
            self.waits_s.append(round(seconds, 6))
            self.clock.now_s += seconds
        elif self.silent:
            self.silent = False
            self.clock.now_s += seconds
        else:
            assert condition.wait(LONG_S)

    def reader(self, **options):
        return LiveReader("cam", self.connect, LiveOptions(**options), clock=self.clock, wait=self.wait)

    def source(self, **options):
        return LiveSource("cam", self.reader(**options))


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.set()


def value(frame):
    return int(frame.pixels_HWC[0, 0, 0])


def test_frames_come_in_order_with_their_times_of_arrival(gate):
    with Script([1, 2, 3, gate]).source() as source:
        assert (source.is_live, source.fps, source.size_hw) == (True, None, (2, 3))
        frames = [next(source) for _ in range(3)]
        gate.set()
    assert [value(frame) for frame in frames] == [1, 2, 3]
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.1, 0.2])
    assert list(source) == []


def test_the_oldest_frames_are_dropped_and_counted_when_the_queue_is_full(gate):
    arrived = threading.Event()
    reader = Script([1, 2, 3, 4, 5, arrived, gate]).reader(queue_frames=2)
    assert arrived.wait(LONG_S)
    assert [value(reader.take()[0]) for _ in range(2)] == [4, 5]
    assert reader.dropped == 3
    gate.set()
    reader.close()


def test_a_lost_connection_is_restored_after_growing_waits_and_the_next_frame_is_marked(gate):
    script = Script([1, OSError("gone")], [InputError("cam: no; x")], [], [2, 3, gate])
    with script.source() as source:
        seen = [(value(next(source)), source.restarted) for _ in range(3)]
        assert seen == [(1, False), (2, True), (3, False)]
        assert script.waits_s == [0.5, 1, 2]
        assert source.reconnects == 1
        gate.set()


def test_waits_grow_to_their_limit_and_the_source_is_given_up_after_the_last_attempt():
    script = Script([1], *[[OSError("gone")]] * 8)
    with script.source(max_reconnects=8) as source:
        assert value(next(source)) == 1
        with pytest.raises(InputError, match="cam: connection lost: gone, not restored in 8 attempts; check"):
            next(source)
    assert script.waits_s == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_frame_starts_the_count_of_attempts_and_the_waits_anew(gate):
    script = Script([1], [2], [3], [4, gate])
    with script.source(max_reconnects=1) as source:
        assert [value(next(source)) for _ in range(4)] == [1, 2, 3, 4]
        assert script.waits_s == [0.5, 0.5, 0.5]
        assert source.reconnects == 3
        gate.set()


def test_the_mark_of_a_restart_moves_to_the_next_frame_when_its_own_is_dropped(gate):
    arrived = threading.Event()
    reader = Script([1], [2, 3, arrived, gate]).reader(queue_frames=1)
    assert arrived.wait(LONG_S)
    frame, restarted = reader.take()
    assert (value(frame), restarted, reader.dropped, reader.reconnects) == (3, True, 2, 1)
    gate.set()
    reader.close()


def test_a_silent_connection_counts_as_lost_and_its_late_frames_are_not_wanted(gate):
    stuck = Gate()
    script = Script([1, stuck, 99], [2, gate])
    reader = script.reader(stall_s=10)
    assert value(reader.take()[0]) == 1
    first_thread = reader._thread
    script.silent = True
    frame, restarted = reader.take()
    assert (value(frame), restarted) == (2, True)
    assert frame.time_s == pytest.approx(10 + 0.5 + 0.1)
    stuck.set()
    first_thread.join(LONG_S)
    assert not reader._queue
    gate.set()
    reader.close()


def test_a_first_connection_that_fails_is_an_error_at_once():
    with pytest.raises(InputError, match="cam: no connection: refused; check"):
        Script([OSError("refused")]).source()


def test_a_first_connection_that_stays_silent_is_an_error_after_the_stall_time(gate):
    connected = threading.Event()
    script = Script([connected, gate])
    reader = script.reader()
    assert connected.wait(LONG_S)
    script.silent = True
    with pytest.raises(InputError, match="cam: no connection: no frame for 10 s; check"):
        reader.take()
    gate.set()
    reader.close()


def test_a_bug_in_the_reader_reaches_the_caller():
    with Script([1, ZeroDivisionError("bug")]).source() as source:
        next(source)
        with pytest.raises(ZeroDivisionError):
            next(source)


def test_frames_of_another_size_after_a_restart_are_refused():
    sizes, script = iter([(2, 3), (4, 5)]), Script()
    script.connect = lambda: iter([Frame(np.zeros((*next(sizes), 3), np.uint8), 0.0)])
    with script.source() as source:
        next(source)
        with pytest.raises(InputError, match="frame 1 is 5x4 after frames of 3x2"):
            next(source)


def test_close_ends_the_waiting_of_another_thread_and_the_reader(gate):
    taken, waiting, script = [], threading.Event(), Script([1, gate])

    def wait(condition, seconds):
        if threading.current_thread() is consumer:
            waiting.set()
        condition.wait(LONG_S)

    consumer = threading.Thread(target=lambda: taken.append(reader.take()))
    script.wait = wait
    reader = script.reader()
    assert value(reader.take()[0]) == 1
    consumer.start()
    assert waiting.wait(LONG_S)
    gate.set()
    reader.close()
    reader.close()
    consumer.join(LONG_S)
    assert taken == [None]
    assert not reader._thread.is_alive()


def test_bursts_are_spread_over_their_own_length_and_late_frames_are_not_held_back():
    clock, sleeps = Clock(), []

    def sleep(seconds):
        sleeps.append(round(seconds, 6))
        clock.now_s += seconds

    def connect():
        for number in range(4):
            yield Frame(np.zeros((2, 2, 3), np.uint8), number / 10)
        clock.now_s += 5
        yield Frame(np.zeros((2, 2, 3), np.uint8), 0.4)
        yield Frame(np.zeros((2, 2, 3), np.uint8), 60.0)  # a jump of the camera's clock

    assert len(list(paced(connect, clock, sleep))) == 6
    assert sleeps == [0, 0.095, 0.095, 0.095, 0, 0]
