"""`moevision anomaly-fit`, and calibrations that fit or do not."""

import json
import shutil
from pathlib import Path

import pytest

import moevision
from moevision.errors import UsageError

from .conftest import SIZE_HW, done, moevision_cli, names, refused, rows, write_pictures, write_video

pytest.importorskip("av")

# Calibrations


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--site", "missing.json"], 3, "missing.json: cannot be read (No such file or directory)"),
        (["--site", "frames"], 3, "frames: cannot be read"),
        (["--site", "cut.json"], 3, "cut.json: not a site calibration"),
        (["--site", "foreign.json"], 3, "foreign.json: not a site calibration"),
        (["--site", "yard.mp4"], 3, "yard.mp4: not a site calibration"),
        (["--site", "net.json", "--model", "other.safetensors"], 3, "made with other weights than other.safetensors"),
        (["--site", "net.json", "--model", "restoration-small"], 3, "made with other weights than restoration-small"),
        (["--site", "net.json", "--model", "none"], 3, "made with the model net.safetensors; leave out --model none"),
        (["--site", "site.json", "--model", "net.safetensors"], 3, "site.json: the calibration was made without a"),
        (["--site", "frames/net.json"], 4, "frames/net.safetensors: no such file, but frames/net.json was made"),
        (["--model", "net.safetensors"], 3, "has no calibration (net.site.json) beside it; name one"),
    ],
)  # fmt: skip
def test_a_calibration_that_cannot_be_used_is_one_line(here, arguments, code, words):
    Path("frames").mkdir()
    shutil.copy("net.json", "frames/net.json")
    Path("cut.json").write_text(Path("site.json").read_text()[:300])
    Path("foreign.json").write_text('{"format": 1, "streams": []}')
    refused(moevision_cli("detect", "yard.mp4", "-o", "out", *arguments), code, words)
    assert not Path("out").exists()


def test_a_network_may_lie_elsewhere_or_have_its_calibration_beside_it(here):
    Path("sub").mkdir()
    shutil.copy("net.json", "sub/net.json")
    options = ["--outputs", "scores", "--quiet"]
    done("detect", "yard.mp4", "-o", "a", "--site", "sub/net.json", "--model", "net.safetensors", *options)
    done("detect", "yard.mp4", "-o", "b", "--site", "net.json", *options)
    shutil.copy("net.json", "net.site.json")
    done("detect", "yard.mp4", "-o", "c", "--model", "net.safetensors", *options)
    done("detect", "yard.mp4", "-o", "d", "--site", "site.json", "--model", "none", *options)
    tables = [Path(folder, "scores.csv").read_bytes() for folder in "abc"]
    assert tables[0] == tables[1] == tables[2]
    assert "prediction" in rows("a")[0]
    assert "prediction" not in rows("d")[0]


# anomaly-fit


def test_fit_prints_the_file_and_says_what_it_rests_on(here):
    result = done("anomaly-fit", "normal-0.mp4", "normal-1.mp4", "-o", "fit.json", "--model", "none")
    assert result.stdout == "fit.json\n"
    assert Path("fit.json").read_text() == Path("site.json").read_text(), "nothing in it is left to chance"
    assert "clip 2 of 2" in result.stderr
    assert "0.2 minutes of normal footage at 10 frames a second" in result.stderr
    command = ["anomaly-fit", "normal-0.mp4", "-o", "fit.json", "--model", "none"]
    refused(moevision_cli(*command), 2, "fit.json: exists already", "--on-exists overwrite")
    done(*command, "--on-exists", "overwrite")
    assert Path("fit.json").read_text() != Path("site.json").read_text()


@pytest.mark.parametrize(("site", "model"), [("site.json", "none"), ("net.json", "net.safetensors")])
def test_python_fits_as_the_command_does(here, site, model):
    clips, seen = ["normal-0.mp4", Path("normal-1.mp4")], []
    fitted = moevision.fit_site(
        clips, "fit.json", model=model, precision="fp32", seen=lambda source, count: seen.append((source.name, count))
    )
    assert Path("fit.json").read_text() == Path(site).read_text()
    assert fitted.hours == pytest.approx(2 * 50 / 10 / 3600, rel=0.1)
    assert seen[-1] == ("normal-1.mp4", 50)
    moevision.fit_site(clips[:1], "fit.json", model="none")
    assert Path("fit.json").read_text() != Path(site).read_text(), "it is replaced"
    with pytest.raises(UsageError, match="a restoration model"):
        moevision.fit_site(clips, model="restoration-small")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["normal-0.mp4", "small.mp4"], 3, "small.mp4: 32x24 after 64x48; fit each camera on its own"),
        (["mixed"], 3, "mixed: frame 9 is 48x32 after frames of 64x48"),
        (["one.mp4"], 3, "20 are the least; use more normal footage"),
        (["junk.mp4"], 3, "junk.mp4: cannot be read as a video"),
        (["normal-0.mp4", "missing.mp4"], 3, "missing.mp4: cannot be read"),
        (["normal-0.mp4", "-o", "no/fit.json"], 2, "no: no such folder"),
        (["normal-0.mp4", "-o", "mixed"], 2, "mixed: name a .json file"),
        (["normal-0.mp4", "-o", "normal-0.mp4", "--on-exists", "overwrite"], 2, "name a .json file"),
        (["normal-0.mp4", "--on-exists", "skip"], 2, "use fail or overwrite"),
        (["normal-0.mp4", "--model", "missing.safetensors"], 4, "missing.safetensors: no such weights file"),
        (["normal-0.mp4", "--model", "restoration-small"], 2, "a restoration model; choose one for anomaly"),
        (["normal-0.mp4", "--model", "net.safetensors", "--fine-tune", "2"], 2, "at least two recordings"),
        (["normal-0.mp4", "normal-1.mp4", "--fine-tune", "2"], 2, "--fine-tune needs a network"),
        (["normal-0.mp4", "one.mp4", "one.mp4", "--model", "restoration-small", "--fine-tune", "2"], 2, "restoration"),
    ],
)  # fmt: skip
def test_a_fit_that_cannot_be_made_is_one_line_and_leaves_nothing(here, arguments, code, words):
    write_video(here / "small.mp4", 12, size_hw=(24, 32))
    write_video(here / "one.mp4", 1)
    write_pictures(here / "mixed", [SIZE_HW] * 9 + [(32, 48)])
    Path("junk.mp4").write_bytes(b"no video" * 100)
    before = names(here)
    result = moevision_cli("anomaly-fit", "-o", "fit.json", "--model", "none", *arguments)
    refused(result, code, words)
    assert names(here) == before


def test_fine_tuned_weights_lie_beside_the_calibration_which_finds_them(here):
    Path("home").mkdir()
    command = ["anomaly-fit", "normal-0.mp4", "normal-1.mp4", "-o", "home/fit.json", "--model", "net.safetensors"]
    result = done(*command, "--fine-tune", "2")
    assert result.stdout == "home/fit.json\n"
    assert names("home") == ["fit.json", "fit.safetensors"]
    assert "clip 1 of 1" in result.stderr, "the recording that was not learned from"
    assert json.loads(Path("home/fit.json").read_text())["model"] == "fit.safetensors"
    done("detect", "yard.mp4", "-o", "out", "--site", "home/fit.json", "--outputs", "scores")
    assert "prediction" in rows("out")[0]
    Path("home/fit.json").unlink()
    refused(moevision_cli(*command, "--fine-tune", "2"), 2, "home/fit.safetensors: exists already")
