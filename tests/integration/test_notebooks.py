"""The notebooks of docs/notebooks run top to bottom, and what is stored of them can be shown to anybody."""

import re
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
nbclient = pytest.importorskip("nbclient")

from jupyter_client.kernelspec import KernelSpec  # noqa: E402  (comes with nbclient)
from jupyter_client.manager import AsyncKernelManager  # noqa: E402

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NAMES = ("restore", "fuse", "detect", "segment")
MOST_BYTES = 150_000
MACHINE_PATH = re.compile(r"/(home|root|tmp|work|Users|usr|opt)/|[A-Z]:\\\\")


class ThisPython(AsyncKernelManager):
    """A kernel of the interpreter that runs the tests, whatever kernels are registered on the machine."""

    @property
    def kernel_spec(self):
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def pictures(notebook):
    return [output for output in outputs(notebook) if "image/jpeg" in output.get("data", {})]


def text(notebook):
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


def test_there_is_one_notebook_a_task():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))  # nothing is left in, or taken from, the user's folders
    stored, notebook = read(name), read(name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = nbclient.NotebookClient(
        notebook, kernel_manager_class=ThisPython, kernel_name="python3", startup_timeout=600,
        resources={"metadata": {"path": str(tmp_path)}},
    )  # fmt: skip
    client.execute()
    for ran, before in zip(notebook.cells, stored.cells, strict=True):
        kinds, kinds_before = ([output.output_type for output in cell.get("outputs", [])] for cell in (ran, before))
        assert set(kinds) == set(kinds_before), ran.source
    assert len(pictures(notebook)) == len(pictures(stored))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_has_its_outputs_is_small_and_names_no_machine(name):
    path, notebook = FOLDER / f"{name}.ipynb", read(name)
    nbformat.validate(notebook)
    assert path.stat().st_size <= MOST_BYTES
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert len(pictures(notebook)) >= 3
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))  # run in order, all of it
    assert not [
        output for output in outputs(notebook) if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert not MACHINE_PATH.search(text(notebook))
    assert not any(cell.metadata for cell in notebook.cells)
