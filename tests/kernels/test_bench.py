"""`moevision bench kernels`: the variants compute the same, the clock is fair, the roofline is that worked out by hand.

No test looks at a duration.
"""

import gc
import json
import sys
import threading

import pytest
import torch
from typer.testing import CliRunner

from moevision.cli.bench import _moe_layer
from moevision.cli.main import app
from moevision.kernels import bench, bench_cases, bench_clock, bench_layers, bench_report, roofline
from moevision.kernels.bench_cases import PASSES, SKEWED_SIZE, Case, Variant
from moevision.kernels.roofline import Size

TINY = Size(48, 16, 32, 5, 2)
ODD = Size(30, 7, 13, 3, 2)
TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2}
CPU = torch.device("cpu")
TINY_EFFORT = bench_clock.Effort(budget_s=0.0, min_rounds=2, max_rounds=2, slow_rounds=1)
PEERS = ("transformers", "st_moe_pytorch", "mixture_of_experts")


@pytest.fixture
def tiny(monkeypatch):
    """The bench at sizes and efforts of milliseconds."""
    monkeypatch.setattr(bench_cases, "QUICK_SIZES", (TINY,))
    monkeypatch.setattr(bench_cases, "LAYER_SIZE", TINY)
    monkeypatch.setattr(bench, "QUICK", TINY_EFFORT)


@pytest.fixture
def no_peers(monkeypatch):
    """As if no other library were installed."""
    for name in PEERS:
        monkeypatch.setitem(sys.modules, name, None)


def build(case, build_layer=None):
    return bench_cases.build(case, device=CPU, seed=0, build_layer=build_layer)


def cases_of(op, size=TINY):
    sites, bits = [{"site": "input"}, {"site": "hidden"}], [{"bits": "2"}, {"bits": "4"}]
    options = {"film_ffn": sites, "quant_linear": bits}.get(op, [{}])
    passes = PASSES[:1] if op in ("plan", "quant_linear") else PASSES
    return [Case(op, size, one, dtype, options=o) for one in passes for dtype in TOLERANCE for o in options]


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12))


@pytest.mark.parametrize("op", ["expert_ffn", "film_ffn", "route", "plan", "grouped_conv", "quant_linear"])
def test_all_variants_compute_the_same_numbers_and_gradients(op):
    skewed = [Case(op, TINY, one, "fp32", "skewed") for one in PASSES] if op == "expert_ffn" else []
    for case in cases_of(op) + skewed:
        variants = build(case)
        expected = variants["ours"].runner(case.passes)()
        for name in set(variants) - {"dense", "ours"}:
            # ours_fp32 is told from ours by rounding alone
            for got, wanted in zip(variants[name].runner(case.passes)(), expected, strict=True):
                assert relative(got, wanted) < TOLERANCE[case.dtype], (case.title(), name)


def test_every_variant_of_a_pass_differentiates_the_input_all_weights_and_the_gate():
    for op, gradients in {"expert_ffn": 6, "film_ffn": 8, "route": 2, "grouped_conv": 3}.items():
        case = next(c for c in cases_of(op) if c.passes == "forward_backward")
        for name, variant in build(case).items():
            result = variant.runner(case.passes)()
            assert len(result) == (5 if name == "dense" else gradients)
            assert all(g is not None and g.shape == leaf.shape for g, leaf in zip(result, variant.leaves, strict=True))


def test_the_bound_is_one_ffn_on_n_times_k_contiguous_rows():
    dense = build(Case("expert_ffn", TINY, "forward", "fp32"))["dense"]
    assert [tuple(t.shape) for t in dense.leaves] == [(96, 16), (16, 32), (32,), (32, 16), (16,)]
    assert all(t.is_contiguous() and t.requires_grad for t in dense.leaves)
    assert dense.runner("forward")()[0].shape == (96, 16)


def test_the_forward_pass_keeps_no_graph():
    (y,) = build(Case("expert_ffn", TINY, "forward", "fp32"))["loop"].runner("forward")()
    assert y.grad_fn is None


def test_both_types_get_the_same_numbers_and_the_same_routing():
    wide, narrow = (bench_cases.draw_inputs(Case("expert_ffn", TINY, "forward", d), CPU, 3) for d in ("fp32", "bf16"))
    assert torch.equal(wide.x_ND.bfloat16(), narrow.x_ND)
    assert torch.equal(wide.index_NK, narrow.index_NK)
    assert torch.equal(wide.gate_NK, narrow.gate_NK)
    assert narrow.gate_NK.dtype == torch.float32


def test_skewed_routing_leaves_nine_experts_empty_and_fills_the_fullest_seven_times_the_mean():
    inputs = bench_cases.draw_inputs(Case("expert_ffn", SKEWED_SIZE, "forward", "fp32", "skewed"), CPU, 0)
    load = torch.bincount(inputs.index_NK.view(-1), minlength=16).double()
    assert int((load == 0).sum()) == 9
    assert 6.5 < float(load.max() / load.mean()) < 7.5


def test_the_cases_are_those_of_the_specification():
    cases = list(bench_cases.list_cases(quick=False, wanted=bench.OPS))
    expert = [c for c in cases if c.op == "expert_ffn"]
    assert len(expert) == 4 * 9
    assert sum(c.routing == "skewed" for c in expert) == 4
    assert {c.op for c in cases} == set(bench.OPS)
    assert {c.options["site"] for c in cases if c.op == "film_ffn"} == {"input", "hidden"}
    assert len({c.title() for c in cases}) == len(cases)


def test_variants_take_turns_and_each_runs_untimed_right_before_it_is_timed():
    seen = []
    runs = {name: lambda name=name: seen.append(name) for name in "abc"}
    effort = bench_clock.Effort(budget_s=0.0, min_rounds=3, max_rounds=9, slow_rounds=1)
    times = bench_clock.Clock(CPU, 1).time_all(runs, {"c"}, effort)
    assert "".join(seen) == "aabbc" + "bbaa" + "aabb"
    assert {name: times[name]["rounds"] for name in times} == {"a": 3, "b": 3, "c": 1}
    assert gc.isenabled()


def test_ratios_are_of_thread_time_with_one_thread_and_of_wall_time_with_more():
    assert bench_clock.Clock(CPU, 1).ratio_of == "cpu_ms"
    assert bench_clock.Clock(CPU, 2).ratio_of == "wall_ms"


def test_the_backward_pass_runs_in_the_measuring_thread():
    threads = []
    variant = build(Case("expert_ffn", TINY, "forward_backward", "fp32"))["ours"]
    for leaf in variant.leaves:
        leaf.register_hook(lambda _: threads.append(threading.get_ident()))
    variant.runner("forward_backward")()
    assert len(threads) == len(variant.leaves)
    assert set(threads) == {threading.get_ident()}


def test_a_variant_that_cannot_run_is_recorded_with_its_reason():
    def broken():
        raise NotImplementedError("no such\nkernel")

    ok = Variant(lambda: (torch.zeros(2),), ())
    runs, slow, skipped = bench._try(
        Case("plan", TINY, "forward", "fp32"), {"dense": ok, "bad": Variant(broken, ()), "peer": "not installed"}
    )
    assert (set(runs), slow) == ({"dense"}, set())
    assert skipped == {"bad": "NotImplementedError: no such kernel", "peer": "not installed"}


def test_widths_that_grouped_mm_refuses_do_not_stop_the_others():
    case = Case("expert_ffn", ODD, "forward", "fp32")
    runs, _, skipped = bench._try(case, build(case))
    assert {"dense", "ours", "loop", "pad_bmm"} <= set(runs)
    assert set(skipped) <= {"grouped_mm"}


def test_missing_libraries_and_a_missing_layer_are_recorded(no_peers):
    variants = build(Case("layer", TINY, "forward", "fp32"))
    assert variants["ours"].startswith("no layer given")
    assert {variants[name] for name in bench_layers.PEERS} == {f"not installed: {name}" for name in PEERS}


@pytest.mark.parametrize("passes", PASSES)
def test_whole_layers_of_other_libraries_run_at_our_sizes(passes):
    case = Case("layer", Size(64, 16, 48, 4, 2), passes, "fp32")
    runs, _, skipped = bench._try(case, build(case, _moe_layer))
    assert {"dense", "ours"} <= set(runs)
    assert all(reason.startswith("not installed") for reason in skipped.values())


def test_bench_kernels_leaves_the_threads_alone_and_refuses_what_it_does_not_know(tiny):
    before = torch.get_num_threads()
    result = bench.bench_kernels(quick=True, wanted=["plan"], threads=before + 1)
    assert torch.get_num_threads() == before
    assert (result["machine"]["threads"], result["settings"]["ratio_of"]) == (before + 1, "wall_ms")
    with pytest.raises(ValueError, match="no operator nonsense"):
        bench.bench_kernels(wanted=["nonsense"])
    with pytest.raises(ValueError, match="not on meta"):
        bench.bench_kernels(device=torch.device("meta"))


def test_quick_run_through_the_command_line_writes_every_key_and_one_line_a_case(tiny, no_peers, tmp_path):
    files = {"--json": tmp_path / "b.json", "--markdown": tmp_path / "b.md", "--plot": tmp_path / "deep" / "b.png"}
    options = [text for option, path in files.items() for text in (option, str(path))]
    done = CliRunner().invoke(app, ["bench", "kernels", "--quick", *options])
    assert done.exit_code == 0, done.output
    result = json.loads(files["--json"].read_text())
    assert {case["op"] for case in result["cases"]} == set(bench.OPS)
    assert len(done.stdout.splitlines()) == len(result["cases"])
    assert "transformers" in done.stderr
    assert {"cpu", "threads", "torch", "features"} <= set(result["machine"])
    for case in result["cases"]:
        assert {"op", "pass", "dtype", "size", "ratio_to_dense", "variants", "roofline_h100_us"} <= set(case)
        assert set(case["size"]) == {"N", "D", "H", "E", "K", "routing"}
        assert case["pass"] in PASSES
        assert case["ratio_to_dense"] == case["variants"]["ours"]["ratio_to_dense"] > 0
        assert {"cpu_ms", "wall_ms", "ratio_to_dense"} <= set(case["variants"]["dense"])
        assert ("ratio_to_fp32" in case) == (case["dtype"] == "bf16")
    assert "| N, D, H, E, K | ours |" in files["--markdown"].read_text()
    assert "not installed: transformers" in files["--markdown"].read_text()
    assert files["--plot"].read_bytes().startswith(b"\x89PNG")


def test_one_operator_can_be_chosen_and_wrong_options_are_refused_before_measuring(tiny):
    done = CliRunner().invoke(app, ["bench", "kernels", "--quick", "--op", "plan", "--quiet"])
    assert (done.exit_code, done.output) == (0, "")
    for wrong in (["--op", "nonsense"], ["--plot", "b.txt"], ["--threads", "0"]):
        assert CliRunner().invoke(app, ["bench", "kernels", *wrong]).exit_code == 2


def test_reports_show_what_could_not_run():
    case = {
        "op": "film_ffn",
        "pass": "forward",
        "dtype": "bf16",
        "size": {**TINY.letters(), "routing": "skewed"},
        "options": {"site": "input"},
        "ratio_to_dense": 0.5,
        "ratio_to_fp32": None,
        "roofline_h100_us": 1.25,
        "variants": {"dense": {"ratio_to_dense": 1.0}, "ours": {"ratio_to_dense": 0.5}, "peer": {"skipped": "why"}},
    }
    machine = {"matmul_gflops": {"fp32": 80.0}, "cpu": "c", "device": "cpu", "torch": "2", "copy_gb_per_s": 9.0}
    result = {"machine": machine, "settings": {"ratio_of": "cpu_ms", "threads": 1}, "cases": [case]}
    (name, line), *_ = bench_report.lines(result).items()
    assert name == "film_ffn site=input forward bf16 48, 16, 32, 5, 2 skewed:"
    assert line == "ours 0.50  peer -  fp32/bf16 -"
    text = bench_report.markdown(result)
    assert "| 48, 16, 32, 5, 2 skewed | 0.50 | - | - | 1.25 |" in text
    assert text.endswith("- film_ffn site=input, peer, bf16: why\n")


# N, D, H, E, K and microseconds on an H100: two kernels, fused, FiLM, router. From the project's kernel notes, by hand.
ROOFLINE_US = [
    (Size(16384, 48, 96, 8, 2), 7.1, 3.3, 1.0, 0.5),
    (Size(65536, 64, 256, 16, 2), 57.9, 17.8, 5.3, 2.8),
    (Size(65536, 96, 384, 16, 2), 87, 27, 9.8, 4.1),
    (Size(16384, 192, 768, 16, 2), 46, 19.5, 9.8, 2.0),
    (Size(65536, 192, 768, 64, 2), 184, 78, 39, 7.8),
    (Size(4096, 192, 768, 64, 1), 16.9, 13.1, 2.4, 0.5),
]


@pytest.mark.parametrize(("size", "two", "fused", "film", "router"), ROOFLINE_US)
def test_roofline_agrees_with_the_figures_worked_out_by_hand(size, two, fused, film, router):
    expected = {"expert_ffn_two_kernels": two, "expert_ffn": fused, "film_ffn_hidden": film, "route": router}
    for operator, microseconds in expected.items():
        assert roofline.bound_s(operator, size) * 1e6 == pytest.approx(microseconds, rel=0.02, abs=0.06), operator


def test_roofline_counts_flops_and_bytes_as_the_formulas_say():
    size = Size(10, 4, 6, 3, 2)
    assert roofline.flops("expert_ffn", size) == 4 * 20 * 4 * 6
    assert roofline.traffic_bytes("expert_ffn", size) == 6 * 20 * 4 + 2 * 10 * 4 + 4 * 3 * 4 * 6
    assert roofline.traffic_bytes("expert_ffn_two_kernels", size) == 480 + 80 + 288 + 4 * 20 * 6
    assert roofline.flops("film_ffn_input", size) == 4 * 10 * 4 * 6
    assert roofline.traffic_bytes("film_ffn_input", size) == 4 * 10 * 4 + 4 * 4 * 6 + 4 * 3 * 4 + 8 * 20
    assert roofline.flops("route", size) == 2 * 10 * 4 * 3
    assert roofline.traffic_bytes("route", size) == 2 * 10 * 4 + 2 * 4 * 3 + 8 * 20
    assert roofline.traffic_bytes("expert_ffn", size, dtype="fp32") == 2 * roofline.traffic_bytes("expert_ffn", size)
    assert roofline.flops("expert_ffn", size, backward=True) == 2.5 * roofline.flops("expert_ffn", size)


def test_the_fused_ffn_moves_at_most_035_of_the_bytes_of_two_kernels():
    assert roofline.traffic_ratio(Size(65536, 64, 256, 16, 2)) <= 0.35


def test_roofline_refuses_operators_without_a_formula():
    assert not roofline.has_formula("plan")
    with pytest.raises(ValueError, match="no formula for 'plan'"):
        roofline.flops("plan", TINY)


def test_measured_rates_come_from_the_given_clock():
    peak = roofline.measured_peak(CPU, lambda run: 0.5 if run() is not None else 0.0)
    assert peak.bytes_per_s == 2 * 4 * 16 * 2**20 / 0.5
    assert set(peak.flops_per_s) == {"fp32", "bf16"}
