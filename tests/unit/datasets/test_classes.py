"""Lists of classes: both forms of a line, what is taken out, what is refused in one line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.datasets.classes import IGNORE, ClassList, read_classes
from moevision.errors import UsageError


def listed(folder, text):
    (folder / "classes.txt").write_text(text, "utf-8")
    return read_classes(folder / "classes.txt")


def test_ids_names_and_colours_are_read_in_the_order_of_the_ids(tmp_path):
    classes = listed(tmp_path, "# a comment\n\n1 Road 128 64 128  # asphalt\n0 Traffic Light 1 2 3\n2 9 lives 7 7 7\n")
    assert classes.names == ("Traffic Light", "Road", "9 lives")
    assert classes.palette == ((1, 2, 3), (128, 64, 128), (7, 7, 7))
    assert classes.index_of_id == {0: 0, 1: 1, 2: 2, 255: IGNORE}


@pytest.mark.parametrize("name", ["Unlabelled", "unlabeled", "VOID", "ignore"])
def test_a_class_that_means_no_label_is_taken_out_and_the_others_close_up(tmp_path, name):
    classes = listed(tmp_path, f"0 a 0 0 1\n1 {name} 0 0 0\n2 b 0 0 2\n3 c 0 0 3\n")
    assert classes.names == ("a", "b", "c")
    assert classes.index_of_id == {0: 0, 1: IGNORE, 2: 1, 3: 2, 255: IGNORE}
    assert classes.index_of_colour == {1: 0, 2: 1, 3: 2, 0: IGNORE}


def test_several_mean_no_label_and_their_ids_may_be_far_off(tmp_path):
    classes = listed(tmp_path, "0 a 0 0 1\n1 b 0 0 2\n300 void 0 0 0\n7 void 0 0 0\n")
    assert classes.ignore_ids == {7, 300}
    assert classes.names == ("a", "b")


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 255), st.integers(0, 300))
def test_names_alone_get_ids_in_order_and_distinct_colours(tmp_path_factory, count, void):
    names = [f"class {i} x" for i in range(count)]
    shown = [*names[:void], "void", *names[void:]] if count < 255 else names
    text = "\n".join(shown)
    folder = tmp_path_factory.mktemp("classes")
    classes = listed(folder, text)
    assert classes.names == tuple(names)
    assert len({*classes.palette, (0, 0, 0)}) == count + 1
    assert classes == listed(folder, text)
    assert [classes.index_of_id[i] for i in range(len(shown)) if shown[i] != "void"] == list(range(count))
    assert all(classes.index_of_id[i] == IGNORE for i in range(len(shown)) if shown[i] == "void")


def test_made_up_colours_are_those_of_pascal_voc(tmp_path):
    assert listed(tmp_path, "aeroplane\nbicycle\nbird\n").palette == ((128, 0, 0), (0, 128, 0), (128, 128, 0))


def test_a_list_of_a_model_needs_names_and_colours_only():
    classes = ClassList(("a", "b"), ((1, 1, 1), (2, 2, 2)))
    assert classes.index_of_id == {0: 0, 1: 1, 255: IGNORE}


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfsky\r\nroad\r\n")
    assert read_classes(tmp_path / "classes.txt").names == ("sky", "road")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no class"),
        ("void\n", "no class"),
        ("0 a 1 1 1\n2 b 2 2 2\n", "no class with id 1"),
        ("1 a 1 1 1\n", "no class with id 0"),
        ("0 a 1 1 1\n0 b 2 2 2\n", "id 0 comes twice"),
        ("Road\nroad\n", "name road comes twice"),
        ("0 a 1 1 1\n1 b 1 1 1\n", "colour .* comes twice"),
        ("0 a 0 0 0\n1 void 0 0 0\n", "colour .* comes twice"),
        ("0 a 1 1 1\nb\n", "in one form"),
        ("sky\n0 road\n", "line 2: '0 road'"),
        ("sky 1 2 3\n", "line 1"),
        ("-1 sky 1 2 3\n", "line 1"),
        ("0 sky 1 2 256\n", "0 to 255"),
        ("999999999 a 1 1 1\n", "0 to 254"),
        ("9999999999999999999999 a 1 1 1\n", "line 1"),
        ("\n".join(f"c{i}x" for i in range(256)), "0 to 254"),
    ],
)
def test_a_faulty_list_is_refused_in_one_line_with_its_path(tmp_path, text, says):
    with pytest.raises(UsageError, match=says) as caught:
        listed(tmp_path, text)
    assert "classes.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_list_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.txt"):
        read_classes(tmp_path / "gone.txt")
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UsageError, match="not a text file"):
        read_classes(tmp_path / "picture.txt")


@settings(max_examples=60, deadline=None)
@given(st.text("0129 abVOID#-\n\r\t\u2028\u00e9", max_size=60))
def test_any_text_is_a_list_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "classes.txt"
    path.write_bytes(text.encode())
    try:
        classes = read_classes(path)
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert len(classes.names) == len(classes.palette) >= 1
