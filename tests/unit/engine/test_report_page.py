"""The page as a browser sees it: parsed, not searched."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from moevision.engine.report import Item, Report, write_report
from moevision.engine.thumbnails import Thumbnail

NASTY = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    '"><img src=x onerror=alert(1)>.png',
    "' onmouseover='alert(1)",
    "a&lt;b&amp;c",
    "line\nbreak\r\u2028\u2029\x85\x0b",
    "\u202egnp.exe\u202c\u2066x",
    "שלום عربى.png",
    "lone \udce9\ud800 surrogate",
    "nul\x00 escape\x1b[31m",
    "]]>javascript:alert(1)",
    "{title} %s $x \\u003c",
)


class Page(HTMLParser):
    """Elements with their attributes, and the text of each kind of element."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self._open = [], {}, []
        self.feed(text)
        self.close()
        assert not [tag for tag in self._open if tag not in ("meta", "body")], "everything is closed"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open:
            self.texts[self._open[-1]][-1] += data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def script(self, name):
        at = [attributes.get("id") for attributes in self.of("script")].index(name)
        return self.texts["script"][at]

    def data(self):
        return json.loads(self.script("data"))


@pytest.fixture
def report():
    thumbnails = Thumbnail("before", b"\xff\xd8one"), Thumbnail("after", b"\xff\xd8two")
    items = (
        Item("in/a.png", "out/a.png", "done", 1.25, facts={"weather": "haze", "psnr": 20.0}, thumbnails=thumbnails),
        Item("in/b.png", "out/b.png", "done", 0.5, facts={"weather": "rain", "psnr": 30.0}),
        Item("in/c.png", "out/c.png", "failed", 0.1, "damaged"),
        Item("in/d.png", "out/d.png", "skipped", 0, "output exists"),
        Item("in/e.mp4", "out/e.mp4", "done", 3.0, facts={"frames": 9}),
        Item("f.png", "", "refused", 0, "no such file"),
        Item("g.png", "out/g.png", "unstarted", 0, "the run ended before"),
    )
    settings = {"model": "restoration-small", "tile_px": None}
    return Report("restore", "moevision restore in", settings, "1.2.3", "2030-01-01T00:00:00+0000", 95.0, 3, items)


@pytest.fixture
def written(tmp_path):
    def write(report):
        write_report(tmp_path / "r.html", report)
        return (tmp_path / "r.html").read_text("utf-8")

    return write


def test_the_head_of_the_page_says_what_when_how_long_and_with_what(written, report):
    page = Page(written(report))
    assert page.texts["h1"] == ["moevision restore: 3 done, 1 failed, 1 refused, 1 skipped, 1 unstarted"]
    said = " ".join(page.texts["dd"])
    for word in ("2030-01-01", "1 min 35 s", "moevision 1.2.3", "Python 3", "restoration-small", "1 haze, 1 rain"):
        assert word in said
    assert dict(zip(page.texts["dt"], page.texts["dd"], strict=True))["psnr"] == "25"
    assert "moevision restore in" in page.texts["code"]


def test_the_script_gets_every_item_and_its_thumbnails(written, report):
    page = Page(written(report))
    data = page.data()
    assert [row[0] for row in data["rows"]] == [item.input for item in report.items]
    assert data["columns"] == ["weather", "psnr", "frames"]
    assert data["rows"][0][6] == ["haze", 20.0, None]
    assert data["pictures"] == ["before", "after"]
    lines = page.script("thumbnails").split("\n")
    assert len(lines) == len(report.items)
    assert [base64.b64decode(text) for text in lines[0].split(" ")] == [b"\xff\xd8one", b"\xff\xd8two"]
    assert set(lines[1:]) == {""}


def test_a_row_without_pictures_says_why(written, report):
    notes = [row[5] for row in Page(written(report)).data()["rows"]]
    assert notes[0] == ""
    words = ("no room", "failed", "skipped", "a video", "could not be begun", "not begun")
    assert all(word in note for word, note in zip(words, notes[1:], strict=True))


def test_failures_stand_at_the_top_with_their_reasons(written, report):
    page = Page(written(report))
    assert page.texts["summary"][1] == "2 failed, and why"
    assert len(page.of("li")) == 2
    assert "damaged" in page.texts["span"]
    many = replace(report, items=tuple(Item(f"{at}.png", "", "failed", 0, "x") for at in range(1000)))
    page = Page(written(many))
    assert len(page.of("li")) == 100
    assert "900 more" in " ".join(page.texts["p"])
    fine = replace(report, items=report.items[:2])
    assert not Page(written(fine)).of("li")


def test_without_scripts_there_is_a_plain_table_of_everything(written, report):
    text = written(report)
    (plain,) = re.findall(r"<noscript>(.*?)</noscript>", text, re.DOTALL)
    page = Page(plain)
    assert len(page.of("tr")) == 1 + len(report.items)
    assert page.texts["th"] == ["input", "output", "status", "seconds", "reason", "weather", "psnr", "frames"]
    assert page.texts["td"][:8] == ["in/a.png", "out/a.png", "done", "1.25", "", "haze", "20", ""]


def test_nothing_is_loaded_and_nothing_else_runs(written, report):
    text = written(report)
    page = Page(text)
    policy = next(meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    (script,) = [
        text for text, attributes in zip(page.texts["script"], page.of("script"), strict=True) if not attributes
    ]
    for name, code in (("script-src", script), ("style-src", page.texts["style"][0])):
        assert rules[name] == f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
    assert not re.search(r"https?:|//[a-z]+\.|\ssrc=|href=|@import|url\(", text)
    assert not {tag for tag, _ in page.elements} & {"link", "img", "iframe", "object", "base", "form", "a"}
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on") or key == "style"]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)


@pytest.mark.parametrize("text", NASTY)
def test_strange_texts_are_harmless_wherever_they_stand(written, report, text):
    plain = Page(written(report))
    thumbnails = report.items[0].thumbnails
    strange = Item(
        text, text, "failed", 0, text, facts={text: text, "list": [text, {text: text}]}, thumbnails=thumbnails
    )
    items = (replace(report.items[0], facts={"weather": text, "psnr": 1.0}), strange, *report.items[1:])
    changed = replace(report, command=text, settings={text: text}, started=text, version=text, items=items)
    source = written(changed)
    page = Page(source)

    def shape(page):
        """What elements there are, but for those that hold a row, a fact or a failure each."""
        repeated = {"tr", "td", "th", "dl", "div", "dt", "dd", "h2", "li", "b", "span"}
        return [(tag, sorted(attributes)) for tag, attributes in page.elements if tag not in repeated]

    assert shape(page) == shape(plain)
    assert len(page.of("script")) == 3
    data = page.data()
    seen = data["rows"][1][0]
    assert seen in page.texts["b"], "the same with and without the script"
    assert all(character.isprintable() for character in seen)
    if text.isprintable():
        assert seen == text
    assert "<" not in page.script("data")
    assert not set(source) & set("\u202e\u2066\u2028\x00\x1b"), "nothing turns the direction of what follows"


def test_a_status_of_any_kind_cannot_become_a_tag(written, report):
    strange = replace(report, items=(Item("a", "b", "<b>"),))
    assert "<b>" not in written(strange)


def test_thumbnails_are_of_the_page_alone(tmp_path, report):
    write_report(tmp_path / "r.json", report)
    write_report(tmp_path / "r.csv", report)
    assert "thumbnails" not in (tmp_path / "r.json").read_text() + (tmp_path / "r.csv").read_text()


def test_an_empty_report_is_a_page(written, report):
    page = Page(written(replace(report, items=())))
    assert page.data()["rows"] == []


def test_ten_thousand_rows_take_a_kilobyte_each_at_most(written, report):
    facts = {
        "weather": "haze",
        "confidence": 0.123,
        "weathers": dict.fromkeys(("rain", "drops", "snow", "haze"), 0.123),
    }
    items = [
        Item(f"photos/2030/IMG_{at}.jpg", f"out/2030/IMG_{at}.jpg", "done", 1.234, "", facts) for at in range(10_000)
    ]
    assert len(written(replace(report, items=tuple(items)))) < 10_000 * 1000
