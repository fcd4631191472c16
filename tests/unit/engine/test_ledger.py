import json
import os
from pathlib import Path

import pytest

from moevision.engine.ledger import LEDGER_NAME, History, Ledger, finished_facts, settings_hash, stamps_of
from moevision.errors import UsageError


def record(root, source, target, settings="s", facts=None):
    with Ledger(root, settings) as ledger:
        ledger.begin((source,), target)
        target.write_bytes(b"output")
        ledger.finish((source,), target, "done", stamps=stamps_of((source,)), seconds=1.5, facts=facts)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.png"
    path.write_bytes(b"input")
    return path


def test_a_finished_job_is_remembered(tmp_path, source):
    record(tmp_path, source, tmp_path / "a.png", facts={"weather": "haze"})
    history = History.read(tmp_path)
    entry = history.find((source,), tmp_path / "a.png")
    assert history.is_finished(entry, (source,), "s")
    assert not history.is_finished(entry, (source,), "other settings")
    lines = [json.loads(line) for line in (tmp_path / LEDGER_NAME).read_text().splitlines()]
    assert [line["status"] for line in lines] == ["writing", "done"]
    assert lines[1]["facts"] == {"weather": "haze"}
    assert lines[1]["output_bytes"] == 6


def test_an_output_that_is_gone_or_changed_is_not_finished(tmp_path, source):
    target = tmp_path / "a.png"
    record(tmp_path, source, target)
    history = History.read(tmp_path)
    entry = history.find((source,), target)
    target.write_bytes(b"longer output")
    assert not history.is_finished(entry, (source,), "s")
    target.unlink()
    assert not history.is_finished(entry, (source,), "s")


def test_the_output_folder_can_be_moved(tmp_path, source):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    record(old, source, old / "a.png")
    old.rename(new)
    history = History.read(new)
    assert history.is_finished(history.find((source,), new / "a.png"), (source,), "s")


@pytest.mark.parametrize("tear", range(2, 60, 7))
def test_a_torn_last_line_is_passed_over_and_the_next_line_stays_apart(tmp_path, source, tear):
    record(tmp_path, source, tmp_path / "a.png")
    path = tmp_path / LEDGER_NAME
    record(tmp_path, source, tmp_path / "b.png")
    os.truncate(path, path.stat().st_size - tear)
    record(tmp_path, source, tmp_path / "c.png")
    history = History.read(tmp_path)
    for name in ("a.png", "c.png"):
        assert history.is_finished(history.find((source,), tmp_path / name), (source,), "s")
    assert history.find((source,), tmp_path / "b.png").status == "writing"


@pytest.mark.parametrize(
    "line",
    [b"", b"null", b"[]", b"7", b'{"inputs": 3}', b"\xff\xfe", b'{"inputs": ["a"]}', b'{"inputs": [1], "output": []}'],
)
def test_foreign_lines_are_passed_over(tmp_path, line):
    (tmp_path / LEDGER_NAME).write_bytes(line + b"\n")
    assert not History.read(tmp_path).outputs()


def test_a_ledger_cannot_name_outputs_elsewhere(tmp_path, source):
    line = {"inputs": [str(source)], "output": "../in.png", "status": "writing", "settings": "s"}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LEDGER_NAME).write_text(json.dumps(line) + "\n")
    assert History.read(tmp_path / "out").find((source,), tmp_path / "out" / "in.png") is None


def test_a_second_run_on_the_same_folder_is_refused(tmp_path):
    with Ledger(tmp_path, "s"), pytest.raises(UsageError, match="another run"):
        Ledger(tmp_path, "s")
    with Ledger(tmp_path, "s"):
        pass


def test_the_ledger_is_never_written_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out").mkdir()
    os.symlink(victim, tmp_path / "out" / LEDGER_NAME)
    with pytest.raises(UsageError):
        Ledger(tmp_path / "out", "s")
    assert victim.read_text() == "precious"


def test_names_that_are_not_utf8_survive(tmp_path):
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    source.write_bytes(b"x")
    target = tmp_path / "out" / source.name
    target.parent.mkdir()
    record(target.parent, source, target)
    history = History.read(target.parent)
    assert history.is_finished(history.find((source,), target), (source,), "s")


def test_settings_hash_ignores_order_and_nothing_else():
    assert settings_hash({"a": 1, "b": None}) == settings_hash({"b": None, "a": 1})
    assert settings_hash({"a": 1}) != settings_hash({"a": 2})


def test_facts_of_finished_outputs_are_told_by_their_last_run(tmp_path, source):
    for name, facts in (("b.png", {"n": 1}), ("a.png", {"n": 2}), ("b.png", {"n": 3}), ("gone.png", {"n": 4})):
        record(tmp_path, source, tmp_path / name, facts=facts)
    with Ledger(tmp_path, "s") as ledger:
        ledger.begin((source,), tmp_path / "c.png")
        (tmp_path / "c.png").touch()
    (tmp_path / "gone.png").unlink()
    assert list(finished_facts(tmp_path)) == [("a.png", {"n": 2}), ("b.png", {"n": 3})]
    assert list(finished_facts(tmp_path / "nowhere")) == []
