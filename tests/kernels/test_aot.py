"""Every kernel and every packaged choice of blocks compiles for every supported device, within that device's means.

This says nothing about speed, races or coalescing: only a device can. It does say what cannot be launched: a kernel
that needs more shared memory than a device has compiles without a word.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

triton = pytest.importorskip("triton")
SCRIPT = pathlib.Path(__file__).with_name("aot.py")
BUDGETS = SCRIPT.with_name("budgets.json")

SHARED_BYTES = {"sm80": 163 * 1024, "sm90": 227 * 1024, "sm100": 227 * 1024, "gfx942": 64 * 1024}
# gfx942 has 512 vector registers a lane at one wave per SIMD, half of them shared with the accumulators.
REGISTERS = {"sm80": 255, "sm90": 255, "sm100": 255, "gfx942": 512}
# Those whose products may be of half precision; the router's, and sums as products, are exact float32 by intent.
PRODUCTS = {
    "fused_forward_kernel", "rows_backward_kernel", "grouped_gemm_kernel", "weight_gradient_kernel",
    "film_forward_kernel", "film_backward_kernel", "quant_linear_kernel",
}  # fmt: skip
SLOWEST_SECONDS = 15.0
# The assembler itself gives up a few registers where that lets more warps live on a multiprocessor.
SPILL_BYTES = 32


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """({name: {target: what the kernel takes}}, seconds of the slowest compilation), from a process of its own."""
    out = tmp_path_factory.mktemp("aot") / "measured.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", str(SCRIPT), "--out", str(out)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-4000:]
    result = json.loads(out.read_text())
    return result["kernels"], result["slowest_seconds"]


@pytest.fixture(scope="module")
def budgets():
    stored = json.loads(BUDGETS.read_text())
    if stored["triton"].split(".")[:2] != triton.__version__.split(".")[:2]:
        pytest.skip(f"budgets are of triton {stored['triton']}, this is {triton.__version__}")
    return stored["kernels"]


@pytest.mark.slow
def test_no_kernel_spills_more_than_a_few_registers(compiled):
    spills = {(n, t): u["spill_bytes"] for n, of in compiled[0].items() for t, u in of.items() if u["spill_bytes"]}
    assert {key: spilled for key, spilled in spills.items() if spilled > SPILL_BYTES} == {}
    assert len(spills) <= 0.05 * sum(map(len, compiled[0].values()))


@pytest.mark.slow
def test_every_kernel_fits_the_shared_memory_and_registers_of_every_device(compiled):
    for name, targets in compiled[0].items():
        for target, usage in targets.items():
            assert usage["shared_bytes"] <= SHARED_BYTES[target], (name, target)
            assert usage["registers"] <= REGISTERS[target], (name, target)


@pytest.mark.slow
def test_products_of_half_precision_use_matrix_instructions_everywhere(compiled):
    half = {n: of for n, of in compiled[0].items() if n.split()[0] in PRODUCTS and "float16" in n.split()[1]}
    assert {name.split()[0] for name in half} == PRODUCTS
    for name, targets in half.items():
        assert all(usage["matrix"] for usage in targets.values()), name


@pytest.mark.slow
def test_no_compilation_is_slow(compiled):
    assert compiled[1] <= SLOWEST_SECONDS


@pytest.mark.slow
def test_no_kernel_takes_a_tenth_more_than_its_budget(compiled, budgets):
    assert set(compiled[0]) == set(budgets), "run python tests/kernels/aot.py and look at what changed"
    for name, targets in compiled[0].items():
        for target, usage in targets.items():
            budget = budgets[name][target]
            assert usage["registers"] <= 1.1 * budget["registers"], (name, target)
            assert usage["shared_bytes"] <= 1.1 * budget["shared_bytes"], (name, target)


@pytest.mark.slow
def test_the_kernels_of_every_operator_are_among_them(compiled):
    names = {name.split()[0] for name in compiled[0]}
    files = (SCRIPT.parents[2] / "kernels" / "triton").glob("*.py")
    written = {name for path in files for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE)}
    assert written
    assert names == written
