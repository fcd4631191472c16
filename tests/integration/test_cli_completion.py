"""What the Tab key offers, asked as the shells' scripts ask."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from moevision.api import list_models
from moevision.cli.main import app
from moevision.tasks.anomaly.outputs import ALL_OUTPUTS
from moevision.tasks.restoration.weathers import WEATHERS


def bash(line):
    """What bash is offered at the end of a line; a line that ends in a space asks for a new word."""
    words = [*line.split(), ""] if line.endswith(" ") else line.split()
    return {
        "_MOEVISION_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }


def other(shell, line):
    return {
        "_MOEVISION_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }


def ask(environment):
    result = CliRunner().invoke(app, prog_name="moevision", env=environment)
    assert result.exit_code == 0, result.output
    return result.stdout


def offered(line):
    return ask(bash(line)).split()


def names_of(task):
    return [entry["name"] for entry in list_models() if entry["task"] == task]


@pytest.mark.parametrize(
    ("command", "task"),
    [
        ("restore", "restoration"),
        ("fuse", "fusion"),
        ("segment", "segmentation"),
        ("evaluate restoration", "restoration"),
        ("evaluate anomaly", "anomaly"),
    ],
)
def test_a_models_name_is_completed_and_only_those_of_the_task_are_offered(command, task):
    assert offered(f"moevision {command} --model ") == names_of(task)
    *_, name = names_of(task)
    assert offered(f"moevision {command} --model {name[:4]}") == names_of(task)
    assert offered(f"moevision {command} --model {name}") == [name]


def test_for_segment_what_restores_first_is_completed_too():
    assert offered("moevision segment --restore-model ") == names_of("restoration")


@pytest.mark.parametrize(
    ("command", "task"),
    [
        ("detect --model", "anomaly"),
        ("anomaly-fit --model", "anomaly"),
        ("train segmentation --start-from", "segmentation"),
    ],
)
def test_none_is_offered_where_there_may_be_no_model(command, task):
    assert offered(f"moevision {command} ") == [*names_of(task), "none"]


def test_where_no_model_is_called_so_the_shell_is_left_to_offer_files():
    assert offered("moevision restore --model runs/x") == []


def test_weathers_are_completed_one_after_the_other():
    assert offered("moevision restore --weather ") == [*WEATHERS, "auto"]
    assert offered("moevision restore --weather ra") == ["rain"]
    assert offered("moevision restore --weather rain,") == ["rain,drops", "rain,snow", "rain,haze"]
    assert offered("moevision segment --restore snow,h") == ["snow,haze"]
    assert offered("moevision segment --restore o") == ["off"]
    assert offered("moevision datasets synthesize --weather haze+r") == ["haze+rain"]


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("restore --on-exists ", ["fail", "skip", "overwrite", "rename"]),
        ("detect --on-exists ", ["fail", "overwrite"]),
        ("restore --device c", ["cpu", "cuda"]),
        ("fuse --precision b", ["bf16"]),
        ("restore --format ti", ["tiff"]),
        ("fuse --register ", ["none", "ecc"]),
        ("detect --outputs heat,s", ["heat,scores"]),
        ("res", ["restore"]),
        ("train se", ["segmentation"]),
        ("evaluate ", ["restoration", "fusion", "anomaly", "segmentation"]),
        ("restore --on-e", ["--on-exists"]),
    ],
)
def test_commands_options_and_their_values_are_completed(line, values):
    assert offered(f"moevision {line}") == values


def test_every_value_that_is_offered_is_one_that_the_command_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert offered("moevision detect --outputs ") == list(ALL_OUTPUTS)
    for option in ("--on-exists", "--format", "--weather"):
        for value in offered(f"moevision restore {option} "):
            result = CliRunner().invoke(app, ["restore", "missing.png", "-o", "out", "--dry-run", option, value])
            assert result.exit_code == 3, result.output  # only the picture is missing
            assert option not in result.output


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_answered_too(shell):
    answer = ask(other(shell, "moevision restore --weather rain,h"))
    assert "rain,haze" in answer
    assert "rain,snow" not in answer


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_shown(shell):
    environment = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    code = "from moevision.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--show-completion", shell],
        capture_output=True, text=True, check=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert f"_MOEVISION_COMPLETE=complete_{shell}" in done.stdout


def test_completing_a_value_imports_nothing_heavy():
    code = """
import sys
from moevision.cli.main import main
try:
    main()
finally:
    print({'torch', 'cv2', 'numpy', 'PIL', 'kornia', 'triton'} & set(sys.modules), file=sys.stderr)
"""
    for line in ("moevision restore --model ", "moevision restore --weather ra"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **bash(line)}
        )
        assert done.stdout.strip()
        assert done.stderr.strip() == "set()"
