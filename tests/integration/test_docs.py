"""The README and the pages in docs/: commands can be typed, marked Python runs, links lead somewhere.

A Python block is run if the line before it is `<!-- runs -->`; the blocks of a page run in order and share their names,
in a folder of small pictures that are called as the pages call them.
"""

import re
import shlex
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from moevision.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = "<!-- runs -->"
SHELL = ("", "bash", "sh", "console")
ROOT_COMMAND = get_command(app)
OPERATORS = {"|", "||", "&&", ";", ">", ">>", "2>", "&"}
# They act while the line is parsed.
AT_ONCE = {"--install-completion", "--show-completion", "--version", "--help"}


def blocks(page):
    """(line before, language, text) of every fenced block."""
    found = re.finditer(r"([^\n]*)\n```(\w*)[^\n]*\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [match.groups() for match in found]


def commands(text):
    """The argument lists of every `moevision ...` in a block of shell lines."""
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a drawing, not a command
            continue
        starts = [0, *(i + 1 for i, word in enumerate(words) if word in OPERATORS)]
        for start in starts:
            if words[start : start + 1] == ["moevision"]:
                stop = next((i for i in range(start, len(words)) if words[i] in OPERATORS), len(words))
                yield words[start + 1 : stop]


def parse(arguments):
    """As the command line does it, without running anything. Raises its usage errors."""
    quiet = bool(AT_ONCE.intersection(arguments))
    command, name, parent = ROOT_COMMAND, "moevision", None
    while True:
        context = command.make_context(name, list(arguments), parent=parent, resilient_parsing=quiet)
        if not hasattr(command, "commands"):
            return
        rest = [*getattr(context, "_protected_args", []), *context.args]
        if not rest and quiet:
            return
        name, command, arguments = command.resolve_command(context, rest)
        parent = context


def is_named(page):
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The files that the pages name, small."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(60, 200, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    for name in ("foggy.jpg", "street.jpg"):
        Image.fromarray(scene).save(folder / name)
    Image.fromarray(scene[..., 0]).save(folder / "thermal.png")
    return folder


@pytest.fixture(scope="module")
def videos(pictures):
    """A video and the calibration of its camera, made without a network."""
    pytest.importorskip("av")
    from moevision.imaging.sources import open_source
    from moevision.imaging.video import VideoWriter
    from moevision.tasks.anomaly.fit import fit_site

    ground = np.asarray(Image.open(pictures / "foggy.jpg"))
    with VideoWriter(pictures / "odd.mp4", Fraction(10)) as writer:
        for number in range(60):
            frame = ground.copy()
            step = 7 if 35 <= number < 50 else 1
            left = number * step % 56
            frame[10:26, left : left + 8] = 250
            writer.write(frame)
    fit_site([partial(open_source, str(pictures / "odd.mp4"))], None).write(pictures / "site.json")
    return pictures


@pytest.mark.parametrize("page", PAGES, ids=is_named)
def test_every_command_is_one_that_the_command_line_takes(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = blocks(page)
    for _, language, text in shown:
        if language == "toml":
            assert text.startswith("# moevision.toml\n")
            Path("moevision.toml").write_text(text, encoding="utf-8")
    for _, language, text in shown:
        for arguments in commands(text) if language in SHELL else ():
            try:
                parse(arguments)
            except Exception as error:
                pytest.fail(f"moevision {shlex.join(arguments)}: {getattr(error, 'message', error)}")
    assert not list(tmp_path.glob("*/"))  # nothing was run


@pytest.mark.parametrize(
    "line", ["restore a.jpg", "restore a.jpg -o b --wether haze", "fuse a.png -o c", "evaluate sharpness --data d"]
)
def test_a_command_that_the_command_line_does_not_take_would_be_found(line):
    with pytest.raises(Exception, match=r"(?i)missing|no such"):
        parse(shlex.split(line))


def test_commands_are_found_behind_pipes_and_comments_left_out():
    text = (
        "find . | moevision restore - -o 'c d/'   # stdin\npip install x && moevision models > list\n+-- a drawing's\n"
    )
    assert list(commands(text)) == [["restore", "-", "-o", "c d/"], ["models"]]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if f"{MARK}\n```python\n" in page.read_text("utf-8")], ids=is_named
)
def test_marked_python_runs(page, pictures, request, monkeypatch):
    monkeypatch.chdir(pictures)
    marked = [text for before, language, text in blocks(page) if before.strip() == MARK]
    if any("odd.mp4" in text for text in marked):
        request.getfixturevalue("videos")
    names = {}
    for text in marked:
        exec(compile(text, str(page), "exec"), names)
    assert names.keys() > {"__builtins__"}  # something was run and left its results


@pytest.mark.parametrize("page", PAGES, ids=is_named)
def test_every_link_to_a_file_leads_to_one_and_to_a_heading_of_it(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", line).strip().lower().replace(" ", "-") for line in headings]
