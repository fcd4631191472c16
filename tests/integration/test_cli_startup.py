"""What starting costs, and the public names."""

import os
import subprocess
import sys

import pytest

import moevision
from moevision import errors


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


HEAVY = "{'torch', 'cv2', 'numpy', 'kornia', 'triton', 'gradio'} & set(sys.modules)"


def test_importing_the_package_imports_nothing_heavy():
    assert python(f"import sys, moevision; print({HEAVY} | {{'typer', 'rich'}} & set(sys.modules))") == "set()"


@pytest.mark.parametrize("arguments", [["--help"], ["restore", "--help"], ["demo", "--help"], ["--version"]])
def test_help_imports_no_torch(arguments):
    code = f"""
import sys
sys.argv = ["moevision", *{arguments!r}]
from moevision.cli.main import main
try:
    main()
except SystemExit as stop:
    sys.stdout = sys.stderr
    print("CODE", stop.code, {HEAVY})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "CODE 0 set()" in done.stderr
    assert done.stdout


def test_models_lists_what_is_shipped_a_line_each_without_torch():
    code = f"import sys; from moevision.cli.main import app; app(['models'], standalone_mode=False); print({HEAVY})"
    head, *lines, heavy = python(code).splitlines()
    assert head.split() == ["name", "task", "parameters", "size", "quality"]
    assert [line.split()[0] for line in lines] == [model["name"] for model in moevision.list_models()]
    assert "ucsd_ped2_dev p0 micro_auc 0.98" in lines[0]
    assert heavy == "set()"


def test_help_answers_in_less_than_a_second():
    def seconds():
        before = os.times()
        subprocess.run([sys.executable, "-m", "moevision", "--help"], capture_output=True, check=True)
        after = os.times()
        # Processor time, not the clock's: other programs may keep the machine busy.
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds(), seconds()) < 1.0


def test_public_names_are_there_and_lazy():
    assert set(moevision.__all__) <= set(dir(moevision))
    assert moevision.MoevisionError is errors.MoevisionError
    assert moevision.InputError is errors.InputError
    assert isinstance(moevision.__version__, str)
    with pytest.raises(AttributeError, match="nonsense"):
        moevision.nonsense  # noqa: B018
    assert python("import sys, moevision.tasks.restoration.weathers; print('torch' in sys.modules)") == "False"
    assert python("import sys, moevision; moevision.UsageError; print('torch' in sys.modules)") == "False"


def test_usage_errors_give_2():
    def code(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "moevision", *arguments], capture_output=True, check=False
        ).returncode

    assert code("nonsense") == 2
    assert code("restore") == 2
