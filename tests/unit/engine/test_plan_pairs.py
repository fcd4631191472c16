"""Pairs: matched by name, never guessed."""

from pathlib import Path

import pytest

from moevision.engine.plan import plan_pairs
from moevision.errors import UsageError


def jobs(made):
    return [(*map(str, job.inputs), str(job.output)) for job in made.jobs]


def test_two_files_are_a_pair_whatever_their_names(here, make_image):
    make_image("thermal.png")
    make_image("street.jpg")
    assert jobs(plan_pairs(["thermal.png", "street.jpg"], Path("out"))) == [
        ("thermal.png", "street.jpg", "out/street.jpg")
    ]
    named = plan_pairs(["thermal.png", "street.jpg"], Path("both.png"))
    assert jobs(named) == [("thermal.png", "street.jpg", "both.png")]
    assert named.names_file


def test_folders_match_by_path_without_suffix_and_outputs_are_called_as_the_second(here, make_image):
    for name in ("ir/a.png", "ir/sub/b.png", "vis/a.jpg", "vis/sub/b.jpg"):
        make_image(name)
    made = plan_pairs(["ir", "vis"], Path("out"), format="png")
    assert jobs(made) == [
        ("ir/a.png", "vis/a.jpg", "out/a.png"),
        ("ir/sub/b.png", "vis/sub/b.jpg", "out/sub/b.png"),
    ]
    assert made.refused == ()


def test_orphans_are_refused_with_what_they_lack_and_the_pairs_still_done(here, make_image):
    for name in ("ir/a.png", "ir/b.png", "vis/a.png", "vis/c.png"):
        make_image(name)
    made = plan_pairs(["ir", "vis"], Path("out"))
    assert jobs(made) == [("ir/a.png", "vis/a.png", "out/a.png")]
    assert {str(r.path): r.reason for r in made.refused} == {
        "ir/b.png": "no b in vis to pair it with",
        "vis/c.png": "no c in ir to pair it with",
    }


def test_several_candidates_are_refused_instead_of_chosen_from(here, make_image):
    for name in ("ir/a.png", "ir/a.jpg", "vis/a.png"):
        make_image(name)
    made = plan_pairs(["ir", "vis"], Path("out"))
    assert jobs(made) == []
    assert sorted(str(r.path) for r in made.refused) == ["ir/a.jpg", "ir/a.png", "vis/a.png"]
    assert all("several files are called a" in r.reason for r in made.refused)


def test_a_missing_file_is_refused_and_its_partner_not_fused_alone(here, make_image):
    make_image("a.png")
    made = plan_pairs(["gone.png", "a.png"], Path("out"))
    assert jobs(made) == []
    assert [(str(r.path), r.reason) for r in made.refused] == [("gone.png", "no such file")]


@pytest.mark.parametrize("inputs", [["a.png"], ["a.png", "a.png", "a.png"], ["a.png", "folder"], ["folder", "a.png"]])
def test_anything_but_two_files_or_two_folders_is_a_usage_error(here, make_image, inputs):
    make_image("a.png")
    make_image("folder/a.png")
    with pytest.raises(UsageError, match="two files or two folders"):
        plan_pairs(inputs, Path("out"))


def test_outputs_that_are_inputs_and_named_files_for_folders_are_refused(here, make_image):
    make_image("ir/a.png")
    make_image("vis/a.png")
    with pytest.raises(UsageError, match="overwrite the input"):
        plan_pairs(["ir", "vis"], Path("vis"))
    with pytest.raises(UsageError, match="overwrite the input"):
        plan_pairs(["ir", "vis"], Path("ir"))
    with pytest.raises(UsageError, match="names one file"):
        plan_pairs(["ir", "vis"], Path("x.png"))
    with pytest.raises(UsageError, match="--on-exists"):
        plan_pairs(["ir", "vis"], Path("out"), on_exists="perhaps")
