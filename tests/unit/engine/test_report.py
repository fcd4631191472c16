import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from moevision.engine.plan import plan
from moevision.engine.report import Item, Report, check_report_path, items_of, shows_pictures, write_report
from moevision.engine.runner import run
from moevision.errors import UsageError

NASTY = '<script>alert("x")</script>,"quoted"\\n; é 漢'


@pytest.fixture
def report():
    items = (
        Item(NASTY, "out/a.png", "done", 1.25, facts={"weather": "haze", "confidence": 0.5, "experts": [1, 2]}),
        Item("b.png", "", "refused", reason="no such file"),
    )
    return Report(
        "restore", "moevision restore ...", {"model": "m"}, "1.2.3", "2030-01-01T00:00:00+0000", 2.0, 3, items
    )


def test_json_holds_everything(tmp_path, report):
    path = tmp_path / "deep" / "r.json"
    write_report(path, report)
    values = json.loads(path.read_text("utf-8"))
    assert values["items"][0]["input"] == NASTY
    assert values["items"][0]["facts"]["experts"] == [1, 2]
    assert values["counts"] == {"done": 1, "refused": 1}
    assert {"version", "python", "platform", "command", "settings", "started", "seconds", "exit_code"} <= set(values)


def test_csv_can_be_read_back(tmp_path, report):
    path = tmp_path / "r.CSV"
    write_report(path, report)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["input"] for row in rows] == [NASTY, "b.png"]
    assert rows[0]["confidence"] == "0.5"
    assert rows[0]["experts"] == "[1, 2]"
    assert rows[1]["confidence"] == ""
    assert rows[1]["reason"] == "no such file"


def test_means_are_of_numbers_where_they_are_known(report):
    facts = ({"psnr": 20.0, "ok": True, "mixed": 1}, {"psnr": None, "mixed": "x"}, {"psnr": 25, "n": 2}, {})
    items = tuple(Item(f"{at}.png", "", "done", facts=values) for at, values in enumerate(facts))
    means = replace(report, items=items).means()
    assert means == {"psnr": 22.5, "n": 2.0}
    assert replace(report, items=()).means() == {}


def test_facts_become_columns_in_the_order_in_which_they_are_told(report):
    items = (Item("a", "", "done", facts={"z": 1, "a": 1}), Item("b", "", "done", facts={"m": 1, "z": 1}))
    assert replace(report, items=items).columns() == ["z", "a", "m"]


@pytest.mark.parametrize("suffix", ["json", "csv", "html"])
def test_a_name_that_is_no_text_does_not_cost_the_report(tmp_path, report, suffix):
    path = tmp_path / f"r.{suffix}"
    write_report(path, replace(report, settings={"model": "m\udce9"}, items=(Item("a\udce9", "", "done"),)))
    text = path.read_text("utf-8")
    assert "a\\udce9" in text
    if suffix == "json":
        assert json.loads(text)["items"][0]["input"] == "a\udce9"


@pytest.mark.parametrize(("name", "shows"), [("r.html", True), ("R.HTML", True), ("r.csv", False), ("r.json", False)])
def test_only_a_page_shows_pictures(name, shows):
    assert shows_pictures(Path(name)) == shows
    assert not shows_pictures(None)


@pytest.mark.parametrize("name", ["r.txt", "r", "r.xlsx"])
def test_an_unknown_format_is_refused(name):
    with pytest.raises(UsageError, match=r"\.csv"):
        check_report_path(Path(name))


def test_items_name_everything_the_plan_names(here, make_image, invert):
    for name in ("a", "b", "c"):
        make_image(f"in/{name}.png")
    make_image("out/c.png", 1)
    todo = plan(["in", "missing.png"], Path("out"), on_exists="skip")
    results = run(todo.jobs, invert())
    outcomes = [next(results)]
    results.close()
    assert [(item.input, item.status) for item in items_of(todo, outcomes)] == [
        ("in/a.png", "done"),
        ("in/b.png", "unstarted"),
        ("in/c.png", "skipped"),
        ("missing.png", "refused"),
    ]
