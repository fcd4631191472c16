"""Compiles every kernel the launchers launch, for devices that are not here, and says what each takes of them.

The launchers run on fake CUDA tensors and their launches are written down, so what is compiled is what would run. As a
script it rewrites the budgets: `python tests/kernels/aot.py`. It needs a process that does not interpret.
"""

import argparse
import functools
import json
import multiprocessing
import os
import pathlib
import re
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moevision.kernels import quantization
from moevision.kernels.triton import common

BUDGETS = pathlib.Path(__file__).with_name("budgets.json")
BINARIES = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.uint8: "*u8",
}  # fmt: skip
# (D, H) of vision widths: one for every step of the formulas in `configs`, the widest of each, and one above the fused.
SIZES = ((32, 64), (64, 256), (96, 384), (256, 1024), (384, 768))
EXPERTS, SLOTS = 16, 2
# float16 is bfloat16 to the compiler, but for conversions.
TYPE_SIZES = {torch.bfloat16: SIZES, torch.float16: SIZES[1:2], torch.float32: SIZES[1:]}
ITEMS = 16384


def launches(dtype, dim, hidden, experts=EXPERTS, slots=SLOTS):
    """Every launch of one size's forward and backward passes."""
    from moevision.kernels.triton import expert_ffn, film_ffn, grouped_conv, plan, quant_linear, route

    def empty(*shape, dtype=dtype):
        return torch.empty(shape, device="cuda", dtype=dtype)

    with FakeTensorMode(), common.recorded_launches() as recorded:
        x, dy, gate = empty(ITEMS, dim), empty(ITEMS, dim), empty(ITEMS, slots, dtype=torch.float32)
        index = empty(ITEMS, slots, dtype=torch.int64)
        router, probs = empty(experts, dim, dtype=torch.float32), empty(ITEMS, experts, dtype=torch.float32)
        for scale in (0.0, 0.1):
            route.route(x, router, slots, scale)
            route.route_backward(gate, probs, x, router, gate, index, probs, scale)
        order, offsets = plan.plan(index, experts)
        weights = (
            empty(experts, dim, hidden), empty(experts, hidden), empty(experts, hidden, dim), empty(experts, dim),
        )  # fmt: skip
        for activation, save in (("gelu", True), ("gelu", False), *([("silu", False)] if dim == 64 else [])):
            expert_ffn.expert_ffn(x, *weights, gate, order, offsets, activation, save)
        u = empty(ITEMS * slots, hidden)
        expert_ffn.expert_ffn_backward(dy, x, *weights, gate, order, offsets, u, "gelu")
        shared = empty(dim, hidden), empty(hidden), empty(hidden, dim), empty(dim)
        for site, width in (("input", dim), ("hidden", hidden)) if dim <= common.FUSED_WIDTH else ():
            film = empty(experts, width), empty(experts, width)
            for fuse, rows in (("activations", ITEMS), ("outputs", 0)):
                for save in (True, False) if rows else (False,):
                    film_ffn.film_ffn(x, *shared, *film, gate, index, site, fuse, "gelu", save)
                u = empty(rows, hidden)
                film_ffn.film_ffn_backward(dy, x, *shared, *film, gate, index, u, site, fuse, "gelu")
        windows, kernel, one = empty(256, dim, 10, 10), empty(experts, dim, 3, 3), empty(256, dtype=torch.int64)
        y = grouped_conv.grouped_conv(windows, kernel, empty(experts, dim), one)
        grouped_conv.grouped_conv_backward(y, windows, kernel, one)
        for bits, group in ((2, dim), (4, quantization.INT4_GROUP)):
            scale = empty(-(-dim // group), hidden, dtype=torch.float32)
            packed = empty(-(-dim * bits // 8), hidden, dtype=torch.uint8)
            quant_linear.quant_linear(x, packed, scale, scale, bits, group)
    return recorded


def cases():
    """(name, launch) of every kernel and packaged choice of blocks; equal ones once."""
    found = {}
    for dtype in TYPE_SIZES:
        for size in TYPE_SIZES[dtype]:
            for launch in launches(dtype, *size):
                signature = tuple(sorted((k, str(_type(v))) for k, v in launch.arguments.items()))
                fixed = tuple(sorted((k, str(v)) for k, v in {**launch.constants, **launch.options}.items()))
                key = common.kernel_name(launch.kernel), signature, fixed
                found.setdefault(key, (_name(launch, dtype), launch))
    assert len({name for name, _ in found.values()}) == len(found)
    return sorted(found.values(), key=lambda case: case[0])


def compile_for(launch, target):
    """(what the compiled kernel takes, seconds it took)."""
    kernel = launch.kernel
    types = {name: _type(launch.arguments[name]) for name in kernel.arg_names if name in launch.arguments}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    # Real launches see pointers that 16 divides; without saying so the compiled kernel is another one.
    attributes = {
        (kernel.arg_names.index(n),): [["tt.divisibility", 16]]
        for n, t in types.items()
        if t.startswith("*") or _divisible(launch.arguments[n])
    }
    source = ASTSource(kernel, signature, constexprs=launch.constants, attrs=attributes)
    start = time.perf_counter()
    compiled = triton.compile(source, target=target, options=launch.options)
    return _usage(compiled), time.perf_counter() - start


def _usage(compiled):
    if "cubin" in compiled.asm:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            command = [BINARIES / "cuobjdump", "-res-usage", file.name]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", text).groups())
        ptx = compiled.asm["ptx"]
        matrix = any(word in ptx for word in ("wgmma", "mma.sync", "tcgen05"))
        return {
            "registers": registers, "spill_bytes": stack, "shared_bytes": compiled.metadata.shared, "matrix": matrix,
        }  # fmt: skip
    code = compiled.asm["amdgcn"]
    count = {name: int(re.search(rf"\.{name}:\s+(\d+)", code).group(1)) for name in ("vgpr_count", "vgpr_spill_count")}
    return {
        "registers": count["vgpr_count"], "spill_bytes": 4 * count["vgpr_spill_count"],
        "shared_bytes": compiled.metadata.shared, "matrix": "v_mfma" in code,
    }  # fmt: skip


def _type(value):
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32"


def _divisible(value):
    return isinstance(value, int) and value % 16 == 0


def _name(launch, dtype):
    shown = {k: v for k, v in launch.constants.items() if not k.startswith("BLOCK_E")}
    blocks = " ".join(f"{k}={v}" for k, v in shown.items())
    pointers = ",".join(t[1:] for t in map(_type, launch.arguments.values()) if t.startswith("*"))
    warps = launch.options["num_warps"]
    return f"{common.kernel_name(launch.kernel)} {str(dtype)[6:]} {blocks} {warps} warps on {pointers}"


@functools.cache
def known_cases():
    """`cases()`, made once a process."""
    return cases()


def _compile(job):
    name, launch = known_cases()[job[0]]
    return name, job[1], *compile_for(launch, TARGETS[job[1]])


def measured():
    """({name: {target: what the kernel takes}}, seconds of the slowest compilation) of all cases, on all cores."""
    jobs = [(number, target) for number in range(len(known_cases())) for target in TARGETS]
    result, slowest = {}, 0.0
    # Not forked: torch has threads by now.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for name, target, usage, seconds in pool.map(_compile, jobs, chunksize=8):
            result.setdefault(name, {})[target] = usage
            slowest = max(slowest, seconds)
    return result, slowest


def main():
    """Write what every kernel takes to a file; by default to the budgets, from then on the most it may take."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=BUDGETS)
    out = parser.parse_args().out
    kernels, slowest = measured()
    result = {"triton": triton.__version__, "kernels": kernels}
    if out != BUDGETS:
        result["slowest_seconds"] = slowest
    out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
