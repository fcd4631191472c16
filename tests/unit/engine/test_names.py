import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moevision.engine.names import collision_key, is_numbered, numbered, output_name, shown

NAMES = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=20)


@given(st.binary(max_size=40))
def test_shown_is_one_printable_line_whatever_the_bytes(data):
    text = shown(os.fsdecode(data))
    assert len(text.splitlines()) <= 1
    text.encode("utf-8")
    assert "\x1b" not in text


def test_shown_keeps_emoji_and_escapes_direction_marks():
    assert shown("👩‍👧 café.png") == "👩‍👧 café.png"
    assert shown("a\u202egnp.exe\n") == "a\\u202egnp.exe\\n"


@pytest.mark.parametrize(
    ("name", "wanted", "expected"),
    [
        ("a.JPG", "same", "a.JPG"),
        ("a.jpg", "png", "a.png"),
        ("a.b.tiff", "jpg", "a.b.jpg"),
        ("scan.v2", "same", "scan.v2.png"),
        ("noext", "same", "noext.png"),
        (".png", "same", ".png.png"),
    ],
)
def test_output_name(name, wanted, expected):
    assert output_name(name, wanted) == expected


@given(NAMES, st.integers(1, 999))
def test_a_numbered_sibling_is_recognised(name, number):
    base = Path("out") / f"a{name}.png"
    assert is_numbered(numbered(base, number), base)
    assert is_numbered(base, base)
    assert not is_numbered(Path("other") / base.name, base)


def test_names_that_are_one_file_on_some_system_collide():
    assert collision_key(Path("out/É.PNG")) == collision_key(Path("out/e\u0301.png"))
    assert collision_key(Path("out/a.png")) == collision_key(Path("out/x/../A.png"))
    assert collision_key(Path("out/a.png")) != collision_key(Path("out/b.png"))
