"""What is committed is what is installed, under the right names and nothing else."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("moevision", "kernels", "tasks", "datasets", "app", "weights")


def committed():
    """Files that belong in the wheel, by their name in the package; skips outside a git checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing to compare the wheel with")
    listed = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [path for path in listed.stdout.splitlines() if not (ROOT / path).is_symlink()]
    wanted = (".py", ".safetensors", ".json", ".md", ".typed", ".css", ".js")
    paths = [path for path in paths if path.endswith(wanted) or path.startswith(("app/examples/", "app/scenes/"))]
    return {path if path.startswith("moevision/") else f"moevision/{path}" for path in paths}


@pytest.mark.slow
def test_the_wheel_holds_exactly_the_committed_files(tmp_path):
    expected = committed()
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    # A build in the source tree would leave build/ behind and pick up stale files from it.
    result = subprocess.run(build, capture_output=True, text=True, env={**os.environ, "PYTHONSAFEPATH": "1"})
    assert result.returncode == 0, result.stderr[-2000:]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("moevision/")}
    assert packed == expected


def test_a_third_partys_datasets_package_is_not_hidden_by_ours(tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("WHOSE = 'theirs'\n")
    code = "import datasets, moevision.datasets; print(datasets.WHOSE, moevision.datasets.__name__)"
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["theirs", "moevision.datasets"]


def test_the_folder_links_are_relative_and_lead_to_the_top_level():
    for name in FOLDERS[1:]:
        link = ROOT / "moevision" / name
        if not link.is_symlink():
            pytest.skip("checked out without links; the mapping in pyproject.toml is what counts")
        assert os.readlink(link) == f"../{name}"


def test_every_public_name_exists():
    import moevision

    assert set(moevision.__all__) <= set(dir(moevision))
    for name in moevision.__all__:
        assert getattr(moevision, name) is not None
