import errno
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moevision.engine import runner
from moevision.engine.interrupts import Interruption
from moevision.engine.ledger import LEDGER_NAME, Ledger
from moevision.engine.plan import plan
from moevision.engine.runner import RunOptions, exit_code, remove_stale_parts, run
from moevision.engine.task import TaskResult
from moevision.engine.thumbnails import Thumbnails
from moevision.errors import InputError, MemoryExhaustedError, WeightsError


def statuses(outcomes):
    return [outcome.status for outcome in outcomes]


@pytest.fixture
def todo(here, make_image):
    for index in range(5):
        make_image(f"in/{index}.png", index)
    Path("out").mkdir()
    return plan(["in"], Path("out"))


def test_every_job_is_done_in_order(todo, invert):
    outcomes = list(run(todo.jobs, invert()))
    assert [outcome.job for outcome in outcomes] == list(todo.jobs)
    for job in todo.jobs:
        assert np.array_equal(255 - np.asarray(Image.open(job.inputs[0])), np.asarray(Image.open(job.output)))


def test_one_by_one_and_together_agree_bit_for_bit(todo, invert, here):
    list(run(todo.jobs, invert(), RunOptions(read_ahead=4)))
    for job in todo.jobs:
        single = plan([str(job.inputs[0])], Path("single"))
        list(run(single.jobs, invert()))
        assert single.jobs[0].output.read_bytes() == job.output.read_bytes()


def test_a_bad_file_does_not_stop_the_others(todo, invert):
    Path("in/1.png").write_bytes(b"not an image")
    Path("in/3.png").unlink()
    outcomes = list(run(todo.jobs, invert()))
    assert statuses(outcomes) == ["done", "failed", "done", "failed", "done"]
    assert not outcomes[1].reason.startswith("in/1.png"), "the input is named beside the reason"
    assert "No such file" in outcomes[3].reason
    assert exit_code(statuses(outcomes)) == 3
    assert sorted(path.name for path in Path("out").iterdir()) == ["0.png", "2.png", "4.png"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InputError("no"), "failed", 3),
        (ValueError("surprise"), "bug", 1),
        (MemoryExhaustedError("full"), "memory", 5),
        (MemoryError(), "memory", 5),
    ],
)
def test_an_error_of_the_task_is_one_outcome(todo, invert, error, status, code):
    calls = iter([None, error, None, None, None])

    def fail_second(_):
        if (now := next(calls)) is not None:
            raise now

    outcomes = list(run(todo.jobs, invert(before=fail_second)))
    assert statuses(outcomes) == ["done", status, "done", "done", "done"]
    assert exit_code(statuses(outcomes)) == code
    assert bool(outcomes[1].details) == (status == "bug")


def test_damaged_weights_end_the_run(todo, invert):
    def fail(_):
        raise WeightsError("damaged")

    with pytest.raises(WeightsError):
        list(run(todo.jobs, invert(before=fail)))


def test_a_full_disk_ends_the_run_with_one_failure(todo, invert, monkeypatch):
    def full(*_, **__):
        raise InputError("cannot be written") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runner, "write_picture", full)
    assert statuses(run(todo.jobs, invert())) == ["failed"]


def test_a_file_that_appeared_meanwhile_is_left_alone(todo, invert):
    Path("out/2.png").write_bytes(b"somebody else's")
    outcomes = list(run(todo.jobs, invert()))
    assert statuses(outcomes) == ["done", "done", "failed", "done", "done"]
    assert Path("out/2.png").read_bytes() == b"somebody else's"


@pytest.mark.parametrize("depth", [1, 3])
def test_pictures_are_read_ahead_but_only_so_many(todo, invert, monkeypatch, depth):
    lock, started = threading.Lock(), []
    read = runner.read_picture

    def counting(path, limits):
        with lock:
            started.append(path)
        return read(path, limits)

    monkeypatch.setattr(runner, "read_picture", counting)
    for done, _ in enumerate(run(todo.jobs, invert(), RunOptions(read_ahead=depth)), start=1):
        assert len(started) <= done + depth
    assert len(started) == 5


def test_the_ledger_gets_a_line_before_and_after_each_output(todo, invert):
    Path("in/1.png").write_bytes(b"bad")
    with Ledger(Path("out"), "s") as ledger:
        list(run(todo.jobs[:2], invert(), ledger=ledger))
    lines = [json.loads(line) for line in Path("out", LEDGER_NAME).read_text().splitlines()]
    assert [(line["output"], line["status"]) for line in lines] == [
        ("0.png", "writing"),
        ("0.png", "done"),
        ("1.png", "failed"),
    ]
    assert isinstance(lines[1]["facts"]["mean"], float), "NumPy numbers become plain ones"


def test_an_interrupt_while_writing_waits_for_the_ledger_line(todo, invert, monkeypatch):
    write = runner.write_picture

    def interrupted_write(*arguments, **options):
        signal.raise_signal(signal.SIGTERM)
        write(*arguments, **options)

    monkeypatch.setattr(runner, "write_picture", interrupted_write)
    done = []
    with Ledger(Path("out"), "s") as ledger, Interruption() as interruption, pytest.raises(KeyboardInterrupt):
        done += run(todo.jobs, invert(), ledger=ledger, interruption=interruption)
    lines = [json.loads(line) for line in Path("out", LEDGER_NAME).read_text().splitlines()]
    assert [line["status"] for line in lines] == ["writing", "done"]
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["0.png"]


@pytest.fixture
def sigint_not_ignored():
    # A shell ignores it for what it starts in the background, and a run respects that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint_not_ignored")
def test_an_interrupt_while_computing_is_immediate(todo, invert):
    def interrupt(_):
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the picture went on")

    with Interruption() as interruption, pytest.raises(KeyboardInterrupt):
        list(run(todo.jobs, invert(before=interrupt), interruption=interruption))
    assert not list(Path("out").iterdir())


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_leftovers_of_dead_runs_only_are_removed(here):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = [f".a.png.{dead.pid}.part", f".b 1.jpg.{dead.pid}.3.part", f".cut000.{dead.pid}.part"]
    kept = [
        f".a.png.{os.getppid()}.part",
        f"a.png.{dead.pid}.part",
        ".a.png.part",
        ".a.png.x.part",
        f".a.png.{dead.pid}",
    ]
    for name in stale + kept:
        Path(name).touch()
    os.symlink(kept[1], f".link.png.{dead.pid}.part")
    assert sorted(path.name for path in remove_stale_parts([Path(), Path("missing")])) == sorted(stale)
    assert sorted(os.listdir()) == sorted([*kept, f".link.png.{dead.pid}.part"])


def test_exit_code_is_the_worst_of_all():
    assert exit_code([]) == exit_code(["done"]) == 0
    assert exit_code(["done"], refused=True) == exit_code(["failed", "done"]) == 3
    assert exit_code(["failed", "memory"], refused=True) == 5
    assert exit_code(["memory", "bug", "failed"]) == 1


class CopyVideos:
    """A VideoTask; its videos have three frames."""

    name = "copy"

    def video(self, source, output, *, replaces, follow):
        if source.read_bytes() == b"bad":
            raise InputError(f"{source}: damaged")
        for number in range(3):
            follow(number + 1, 3)
        output.write_bytes(source.read_bytes())
        return {"frames": 3, "replaces": replaces}


def test_videos_are_made_by_the_task_itself_and_noted_like_pictures(here):
    Path("in").mkdir()
    for name, data in (("a.mp4", b"good"), ("b.mp4", b"bad"), ("c.mp4", b"fine")):
        Path("in", name).write_bytes(data)
    todo = plan(["in"], Path("out"), videos=True)
    Path("out").mkdir()
    followed = []
    options = RunOptions(follow=lambda job, frames, total: followed.append((job.output.name, frames, total)))
    with Ledger(Path("out"), "s") as ledger:
        outcomes = list(run(todo.jobs, CopyVideos(), options, ledger=ledger))
    assert statuses(outcomes) == ["done", "failed", "done"]
    assert outcomes[0].facts == {"frames": 3, "replaces": False}
    assert outcomes[1].reason == "damaged"
    assert followed == [(name, frames, 3) for name in ("a.mp4", "c.mp4") for frames in (1, 2, 3)]
    again = plan(["in"], Path("out"), videos=True, resume="s")
    assert [job.output.name for job in again.jobs] == ["b.mp4"]


class InvertWithMap:
    """The negative, and the source as a map."""

    name = "invert"

    def __call__(self, pictures):
        (picture,) = pictures
        return TaskResult(replace(picture, pixels_HWC=255 - picture.pixels_HWC), {}, {"source": picture})


def mapped(place):
    return RunOptions(maps={"source": place})


def test_maps_are_written_beside_the_pictures(todo):
    assert statuses(run(todo.jobs, InvertWithMap(), mapped(lambda job: Path("maps/new", job.output.name)))) == [
        "done"
    ] * len(todo.jobs)
    assert len(list(Path("maps/new").iterdir())) == len(todo.jobs)


@pytest.mark.parametrize("name", ["taken/x.png", "x.png", "x.unknown"])
def test_a_picture_whose_map_cannot_be_written_does_not_stay_and_can_be_resumed(todo, name):
    Path("taken").touch()
    Path("x.png").write_bytes(b"mine")
    with Ledger(Path("out"), "s") as ledger:
        (outcome,) = run(todo.jobs[:1], InvertWithMap(), mapped(lambda job: Path(name)), ledger=ledger)
    assert outcome.status == "failed"
    assert not todo.jobs[0].output.exists()
    assert Path("x.png").read_bytes() == b"mine"
    assert [job.output for job in plan(["in/0.png"], Path("out"), resume="s").jobs] == [Path("out/0.png")]


def test_of_a_map_that_cannot_be_written_one_is_told_that_it_can_be_left_out(todo):
    (outcome,) = run(todo.jobs[:1], InvertWithMap(), mapped(lambda job: Path("x.unknown")))
    assert outcome.reason.endswith("or do without the source")


def test_a_picture_that_is_replaced_stays_where_its_map_cannot_be_written(todo):
    job = replace(todo.jobs[0], replaces=True)
    job.output.write_bytes(b"old")
    (outcome,) = run([job], InvertWithMap(), mapped(lambda job: Path("x.unknown")))
    assert outcome.status == "failed"
    assert job.output.exists()


class InvertWithViews(InvertWithMap):
    """The negative; counts how often somebody wants to see it."""

    seen = 0

    def __call__(self, pictures):
        def views(longer_px):
            self.seen += 1
            return {"view": pictures[0]}

        return replace(super().__call__(pictures), views=views)


def test_nothing_is_done_for_thumbnails_that_nobody_asked_for(todo, monkeypatch):
    monkeypatch.setattr(Thumbnails, "of", lambda *_: pytest.fail("asked for"))
    task = InvertWithViews()
    outcomes = list(run(todo.jobs, task))
    assert statuses(outcomes) == ["done"] * len(todo.jobs)
    assert not any(outcome.thumbnails for outcome in outcomes)
    assert task.seen == 0


def test_thumbnails_are_made_of_what_is_in_memory(todo, monkeypatch):
    reads = []
    read = runner.read_picture
    monkeypatch.setattr(runner, "read_picture", lambda path, limits: reads.append(path) or read(path, limits))
    task = InvertWithViews()
    outcomes = list(run(todo.jobs, task, RunOptions(thumbnails=Thumbnails(len(todo.jobs)))))
    assert [[one.name for one in outcome.thumbnails] for outcome in outcomes] == [["view"]] * len(todo.jobs)
    assert task.seen == len(reads) == len(todo.jobs)


def test_a_judgement_joins_the_facts_in_the_outcome_and_in_the_ledger(todo, invert):
    def judge(job, pictures, made):
        assert job.output.exists()
        assert np.array_equal(made.pixels_HWC, 255 - pictures[0].pixels_HWC)
        return {"psnr": np.float32(20), "mean": "replaced"}

    with Ledger(Path("out"), "s") as ledger:
        (outcome,) = run(todo.jobs[:1], invert(), RunOptions(judge=judge), ledger=ledger)
    assert outcome.facts == {"psnr": 20.0, "mean": "replaced"}
    assert json.loads(Path("out", LEDGER_NAME).read_text().splitlines()[-1])["facts"] == outcome.facts


def test_a_picture_that_is_written_is_done_even_if_it_cannot_be_judged_or_shown(todo, invert, caplog):
    def judge(job, pictures, made):
        raise ZeroDivisionError("odd")

    options = RunOptions(judge=judge, thumbnails=Thumbnails(5))
    outcomes = list(run(todo.jobs, invert(), options))
    assert statuses(outcomes) == ["done"] * len(todo.jobs)
    assert "odd" in caplog.text
