from pathlib import Path

import pytest


def config(text):
    Path("moevision.toml").write_text(text)
    return "moevision.toml"


def test_flags_win_over_the_file_and_the_file_over_the_defaults(cli, folder, fake_api):
    file = config('[restore]\nstrength = 0.25\ntile = 256\ndevice = "cpu"\n')
    cli("restore", "in/a.png", "-o", "out", "--config", file, "--tile", "512")
    assert fake_api.requests == [
        {
            "model": "restoration-small",
            "device": "cpu",
            "precision": "auto",
            "tile_px": 512,
            "strength": 0.25,
            "weather": None,
            "runtime": "torch",
            "experts_map": False,
        }
    ]


def test_dashes_flags_and_the_output_can_be_set(cli, folder):
    file = config('[restore]\noutput = "res"\non-exists = "skip"\nrecursive = false\nformat = "png"\n')
    result = cli("restore", "in", "--config", file)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == ["res/a.png", "res/b.png"]
    assert "2 skipped" in cli("restore", "in", "--config", file).stderr
    assert len(cli("restore", "in", "--config", file, "--recursive").stdout.splitlines()) == 1


def test_a_file_for_other_commands_changes_nothing(cli, folder, fake_api):
    cli("restore", "in/a.png", "-o", "out", "--config", config("[train.restoration]\nseed = 3\n"))
    assert fake_api.requests[0]["strength"] == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[restore]\nstrenght = 1\n", "no option 'strenght'"),
        ("[restore]\nstrength = 7\n", "strength"),
        ("[restore]\nconfig = 'x'\n", "no option 'config'"),
        ("restore = 3\n", "must be a table"),
        ("[restore\n", "not a TOML file"),
    ],
)
def test_mistakes_in_the_file_are_usage_errors(cli, folder, text, message):
    result = cli("restore", "in", "-o", "out", "--config", config(text))
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("out").exists()


def test_a_missing_file_is_a_usage_error(cli, folder):
    result = cli("restore", "in", "-o", "out", "--config", "none.toml")
    assert result.exit_code == 2
    assert "none.toml" in result.stderr


def test_a_file_that_was_not_asked_for_is_not_read(cli, folder, fake_api):
    config("[restore]\nstrength = 0.5\n")
    cli("restore", "in/a.png", "-o", "out")
    assert fake_api.requests[0]["strength"] == 1.0
