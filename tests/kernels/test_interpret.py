"""The Triton kernels, run in Triton's interpreter: in a process of their own, because triton reads at import whether to
interpret."""

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("triton")
FOLDER = pathlib.Path(__file__).with_name("interpreted")


@pytest.mark.slow
def test_kernels_agree_with_their_specification_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "MOEVISION_BACKEND": "interpret", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        str(FOLDER),
    ]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=420, cwd=FOLDER.parents[2])
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
