import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.engine.ledger import Ledger, settings_hash, stamps_of
from moevision.engine.plan import plan
from moevision.errors import UsageError


def pairs(made):
    return [(str(job.inputs[0]), str(job.output)) for job in made.jobs]


def test_one_file_into_a_folder(here, make_image):
    make_image("a.png")
    assert pairs(plan(["a.png"], Path("out"))) == [("a.png", "out/a.png")]


def test_one_file_to_a_named_file(here, make_image):
    make_image("a.jpg")
    made = plan(["a.jpg"], Path("res/b.png"))
    assert pairs(made) == [("a.jpg", "res/b.png")]
    assert made.names_file
    assert made.root == Path("res")


def test_a_folder_that_looks_like_a_file_name_is_a_folder(here, make_image):
    make_image("a.jpg")
    Path("out.png").mkdir()
    assert pairs(plan(["a.jpg"], Path("out.png"))) == [("a.jpg", "out.png/a.jpg")]


def test_several_inputs_do_not_fit_one_named_file(here, make_image):
    make_image("d/a.jpg")
    for inputs in (["d"], ["d/*.jpg"], ["d/a.jpg", "b.jpg"]):
        with pytest.raises(UsageError, match="one file"):
            plan(inputs, Path("out.png"))


def test_a_named_file_and_another_format_disagree(here, make_image):
    make_image("a.jpg")
    with pytest.raises(UsageError, match="disagree"):
        plan(["a.jpg"], Path("out.png"), format="jpg")


def test_the_sub_tree_is_kept_under_the_output_folder(here, make_image):
    for name in ("p/b.png", "p/x/a.jpg", "p/x/y/a.jpg"):
        make_image(name)
    assert pairs(plan(["p"], Path("out"))) == [
        ("p/b.png", "out/b.png"),
        ("p/x/a.jpg", "out/x/a.jpg"),
        ("p/x/y/a.jpg", "out/x/y/a.jpg"),
    ]
    assert pairs(plan(["p"], Path("out"), recursive=False)) == [("p/b.png", "out/b.png")]


def test_patterns_keep_the_tree_below_their_fixed_part(here, make_image):
    for name in ("p/b.png", "p/x/a.jpg", "p/x/y/c.jpg"):
        make_image(name)
    assert pairs(plan(["p/**/*.jpg"], Path("out"))) == [("p/x/a.jpg", "out/x/a.jpg"), ("p/x/y/c.jpg", "out/x/y/c.jpg")]
    assert [output for _, output in pairs(plan(["p/*"], Path("out")))] == ["out/b.png", "out/x/a.jpg", "out/x/y/c.jpg"]
    assert [output for _, output in pairs(plan(["p/x/*/../a.*"], Path("out")))] == ["out/a.jpg"]


def test_a_pattern_without_match_is_reported(here, make_image):
    make_image("a.png")
    made = plan(["a.png", "nope/*.png"], Path("out"))
    assert len(made.jobs) == 1
    assert [str(refusal.path) for refusal in made.refused] == ["nope/*.png"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(here, make_image):
    make_image("a[1].png")
    make_image("a1.png", 1)
    assert pairs(plan(["a[1].png"], Path("out"))) == [("a[1].png", "out/a[1].png")]


def test_folders_leave_hidden_and_foreign_files_alone_but_named_files_are_tried(here, make_image):
    for name in ("p/a.png", "p/.hidden.png", "p/.git/b.png"):
        make_image(name)
    Path("p/notes.txt").write_text("no")
    assert pairs(plan(["p"], Path("out"))) == [("p/a.png", "out/a.png")]
    made = plan(["p/.hidden.png", "p/notes.txt"], Path("out"))
    assert [job.output.name for job in made.jobs] == [".hidden.png", "notes.txt.png"]


def test_a_file_named_twice_is_done_once(here, make_image):
    make_image("p/a.png")
    assert len(plan(["p", "p/a.png", "p/*.png", "./p/../p/a.png"], Path("out")).jobs) == 1


@pytest.mark.parametrize(
    "names", [("x/a.png", "y/a.png"), ("x/a.png", "y/A.PNG"), ("x/caf\u00e9.png", "y/cafe\u0301.png")]
)
def test_two_inputs_for_one_output_are_refused_and_both_named(here, make_image, names):
    for name in names:
        make_image(name)
    with pytest.raises(UsageError) as caught:
        plan(list(names), Path("out"))
    assert all(name in str(caught.value) for name in names)
    assert not Path("out").exists()


def test_a_change_of_format_can_make_outputs_collide(here, make_image):
    make_image("p/a.png")
    make_image("p/a.jpg")
    assert len(plan(["p"], Path("out")).jobs) == 2
    with pytest.raises(UsageError, match="would both become"):
        plan(["p"], Path("out"), format="png")


def test_an_output_that_is_an_input_is_refused(here, make_image):
    make_image("p/a.png")
    os.symlink("p", "link")
    for inputs, output in (
        (["p"], "p"),
        (["p/a.png"], "p"),
        (["p/a.png"], "p/a.png"),
        (["p"], "link"),
        (["p"], "p/../p"),
    ):
        for on_exists in ("fail", "overwrite", "skip", "rename"):
            with pytest.raises(UsageError, match="would overwrite the input"):
                plan(inputs, Path(output), on_exists=on_exists)


def test_an_output_that_links_to_another_input_is_refused(here, make_image):
    make_image("p/a.png")
    make_image("p/b.png")
    Path("out").mkdir()
    os.symlink("../p/b.png", "out/a.png")
    with pytest.raises(UsageError, match=r"would overwrite the input p/b\.png"):
        plan(["p"], Path("out"), on_exists="overwrite")


def test_outputs_inside_the_input_folder_are_not_taken_as_inputs(here, make_image):
    make_image("p/a.png")
    make_image("p/out/a.png", 1)
    for inputs in (["p"], ["p/**/*.png"], ["p/*"]):
        assert [job.inputs[0] for job in plan(inputs, Path("p/out"), on_exists="overwrite").jobs] == [Path("p/a.png")]


def test_the_ledger_keeps_earlier_outputs_from_becoming_inputs(here, make_image):
    make_image("p/day/a.jpg")
    make_image("p/a.png", 1)
    with Ledger(Path("p"), "s") as ledger:
        ledger.begin((Path("p/day/a.jpg"),), Path("p/a.png"))
    made = plan(["p"], Path("p"), format="png")
    assert pairs(made) == [("p/day/a.jpg", "p/day/a.png")]


def test_links_that_leave_the_output_folder_are_refused(here, make_image):
    make_image("p/sub/a.png")
    make_image("p/b.png")
    make_image("p/c.png")
    make_image("elsewhere/victim.png", 9)
    Path("out").mkdir()
    os.symlink("../elsewhere", "out/sub")
    os.symlink("../elsewhere/victim.png", "out/b.png")
    made = plan(["p"], Path("out"), on_exists="overwrite")
    assert [str(refusal.path) for refusal in made.refused] == ["p/b.png", "p/sub/a.png"]
    assert pairs(made) == [("p/c.png", "out/c.png")]


def test_linked_folders_are_not_followed(here, make_image):
    make_image("p/a.png")
    os.symlink(".", "p/loop")
    assert len(plan(["p"], Path("out")).jobs) == 1


def test_missing_odd_and_broken_inputs_are_reported_one_by_one(here, make_image):
    make_image("a.png")
    os.symlink("gone.png", "broken.png")
    os.mkfifo("pipe.png")
    made = plan(["missing.png", "broken.png", "pipe.png", "", "nul\0.png", "a.png"], Path("out"))
    assert [str(job.inputs[0]) for job in made.jobs] == ["a.png"]
    assert [refusal.reason for refusal in made.refused] == [
        "no such file",
        "broken link",
        "not a regular file",
        "not a file name",
        "not a file name",
    ]


def test_an_unreadable_folder_is_one_line_and_the_others_are_done(here, make_image, monkeypatch):
    make_image("p/a.png")
    make_image("p/secret/b.png")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    made = plan(["p"], Path("out"))
    assert pairs(made) == [("p/a.png", "out/a.png")]
    assert [(str(r.path), r.reason) for r in made.refused] == [
        ("p/secret", "cannot read this folder: Permission denied")
    ]


def test_existing_outputs(here, make_image):
    make_image("p/a.png")
    make_image("p/b.png")
    make_image("out/a.png", 1)
    make_image("out/a-1.png", 2)
    with pytest.raises(UsageError, match=r"out/a\.png already exists.*--on-exists"):
        plan(["p"], Path("out"))
    made = plan(["p"], Path("out"), on_exists="skip")
    assert [str(skip.job.output) for skip in made.skipped] == ["out/a.png"]
    assert pairs(made) == [("p/b.png", "out/b.png")]
    assert [job.replaces for job in plan(["p"], Path("out"), on_exists="overwrite").jobs] == [True, False]
    assert [str(job.output) for job in plan(["p"], Path("out"), on_exists="rename").jobs] == [
        "out/a-2.png",
        "out/b.png",
    ]


def test_rename_does_not_take_a_name_another_input_needs(here, make_image):
    make_image("p/a.png")
    make_image("p/a-1.png")
    make_image("out/a.png", 1)
    made = plan(["p"], Path("out"), on_exists="rename")
    assert sorted(str(job.output) for job in made.jobs) == ["out/a-1.png", "out/a-2.png"]


def test_unknown_words_and_places_are_usage_errors(here, make_image):
    make_image("a.png")
    for output, options in (
        ("out", {"on_exists": "ask"}),
        ("out", {"format": "gif"}),
        ("-", {}),
        ("a.png/x", {}),
    ):
        with pytest.raises(UsageError):
            plan(["a.png"], Path(output), **options)


def test_a_name_too_long_with_its_suffix_is_refused(here):
    Path("n" * 255).write_bytes(b"x")
    made = plan(["n" * 255], Path("out"))
    assert not made.jobs
    assert "255 bytes" in made.refused[0].reason


def test_resume_skips_what_is_finished_and_redoes_what_changed(here, make_image):
    for name in "abcd":
        make_image(f"p/{name}.png")
    key = settings_hash({"strength": 1})
    Path("out").mkdir()
    with Ledger(Path("out"), key) as ledger:
        for name in "abc":
            job = ((Path(f"p/{name}.png"),), Path(f"out/{name}.png"))
            ledger.begin(*job)
            make_image(job[1], 5)
            ledger.finish(*job, "done", stamps=stamps_of(job[0]))
        ledger.begin((Path("p/d.png"),), Path("out/d.png"))  # cut off here, perhaps after the output appeared
        make_image("out/d.png", 6)
    make_image("p/b.png", 77)  # an input that changed
    Path("out/c.png").write_bytes(b"short")  # an output that changed
    made = plan(["p"], Path("out"), resume=key)
    assert [str(skip.job.output) for skip in made.skipped] == ["out/a.png"]
    assert [(job.output.name, job.replaces) for job in made.jobs] == [("b.png", True), ("c.png", True), ("d.png", True)]
    assert len(plan(["p"], Path("out"), resume=settings_hash({"strength": 0.5})).jobs) == 4


def test_resume_never_overwrites_a_file_of_the_users(here, make_image):
    make_image("p/a.png")
    make_image("out/a.png", 1)
    with pytest.raises(UsageError, match="already exists"):
        plan(["p"], Path("out"), resume="s")
    with Ledger(Path("out"), "s") as ledger:  # we had begun, then found the user's file there
        ledger.begin((Path("p/a.png"),), Path("out/a.png"))
        ledger.finish((Path("p/a.png"),), Path("out/a.png"), "failed")
    with pytest.raises(UsageError, match="already exists"):
        plan(["p"], Path("out"), resume="s")


def test_a_failed_second_try_leaves_the_earlier_output_ours(here, make_image):
    make_image("p/a.png")
    make_image("out/a.png", 1)
    job = ((Path("p/a.png"),), Path("out/a.png"))
    with Ledger(Path("out"), "s") as ledger:
        ledger.begin(*job)
        ledger.finish(*job, "done", stamps=stamps_of(job[0]))
        ledger.finish(*job, "memory")
        ledger.begin(*job)
        ledger.finish(*job, "failed")
    assert plan(["p"], Path("out"), resume="s").jobs[0].replaces


def test_resume_after_rename_finds_the_numbered_output(here, make_image):
    make_image("p/a.png")
    make_image("out/a.png", 1)
    job = plan(["p"], Path("out"), on_exists="rename", resume="s").jobs[0]
    with Ledger(Path("out"), "s") as ledger:
        ledger.begin(job.inputs, job.output)
        make_image(job.output, 2)
        ledger.finish(job.inputs, job.output, "done", stamps=stamps_of(job.inputs))
    made = plan(["p"], Path("out"), on_exists="rename", resume="s")
    assert [str(skip.job.output) for skip in made.skipped] == ["out/a-1.png"]
    assert not made.jobs


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=12).filter(
            lambda name: name not in (".", "..")
        ),
        min_size=1,
        max_size=5,
        unique=True,
    )
)
def test_every_output_lies_in_the_output_folder_and_no_two_are_one(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    sources = []
    for name in names:
        source = folder / f"{name}.png"
        source.write_bytes(b"x")
        sources.append(str(source))
    try:
        made = plan(sources, folder / "out")
    except UsageError as error:
        assert "would both become" in str(error)  # noqa: PT017 - either is right
        return
    outputs = [os.path.realpath(job.output) for job in made.jobs]
    assert len(set(outputs)) == len(names)
    assert {os.path.dirname(output) for output in outputs} == {os.path.realpath(folder / "out")}


def test_videos_are_found_only_where_they_are_wanted(here, make_image):
    make_image("in/a.jpg")
    for name in ("in/clip.MOV", "in/sub/b.mp4"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert pairs(plan(["in"], Path("out"))) == [("in/a.jpg", "out/a.jpg")]
    made = plan(["in"], Path("out"), format="png", videos=True)
    assert pairs(made) == [
        ("in/a.jpg", "out/a.png"),
        ("in/clip.MOV", "out/clip.mp4"),
        ("in/sub/b.mp4", "out/sub/b.mp4"),
    ]
    assert [job.is_video for job in made.jobs] == [False, True, True]
    assert [str(job.inputs[0]) for job in plan(["in/**/*.mp4"], Path("out"), videos=True).jobs] == ["in/sub/b.mp4"]


def test_a_video_is_not_made_a_picture(here):
    Path("a.mp4").touch()
    with pytest.raises(UsageError, match=r"-o x\.png names a picture, but a\.mp4 is a video; name a folder"):
        plan(["a.mp4"], Path("x.png"), videos=True)
