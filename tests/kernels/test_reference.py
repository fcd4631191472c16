"""The tuned CPU path against a dumb loop and against the readable specification, over hypothesis shapes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moevision.kernels import expert_ffn, film_ffn, grouped_conv, ops, plan, quant_linear, reference, route
from moevision.kernels.quantization import dequantize, quantize

# Error relative to a float64 result computed from the same rounded inputs.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 8e-3}


def dumb_expert_ffn(x, w1, b1, w2, b2, gate, index):
    y = torch.zeros_like(x)
    for n in range(x.shape[0]):
        for k in range(index.shape[1]):
            e = int(index[n, k])
            if e >= 0:
                y[n] += gate[n, k] * (torch.nn.functional.gelu(x[n] @ w1[e] + b1[e]) @ w2[e] + b2[e])
    return y


def dumb_film_outputs(x, w1, b1, w2, b2, gamma, beta, gate, index, site):
    y = torch.zeros_like(x)
    for n in range(x.shape[0]):
        for k in range(index.shape[1]):
            e = int(index[n, k])
            if e >= 0:
                u = (gamma[e] * x[n] + beta[e]) @ w1 + b1 if site == "input" else gamma[e] * (x[n] @ w1 + b1) + beta[e]
                y[n] += gate[n, k] * (torch.nn.functional.gelu(u) @ w2 + b2)
    return y


@st.composite
def problems(draw):
    experts = draw(st.sampled_from([1, 2, 5, 16]))
    items, k = draw(st.sampled_from([0, 1, 2, 15, 17, 63])), draw(st.integers(1, min(4, experts)))
    dim, hidden = draw(st.sampled_from([1, 3, 16, 24])), draw(st.sampled_from([8, 40]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    routing = draw(st.sampled_from(["random", "all to one", "half empty", "some slots empty"]))
    index = torch.stack([torch.randperm(experts, generator=generator)[:k] for _ in range(items)] or [torch.zeros(k)])
    index = index[:items].long()
    if routing == "all to one":
        index = torch.zeros_like(index)
    elif routing == "half empty":
        index = index // 2
    elif routing == "some slots empty":
        index = index.masked_fill(torch.rand(index.shape, generator=generator) < 0.4, -1)
    dtype = draw(st.sampled_from(list(TOLERANCE)))

    def make(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return make, index, items, dim, hidden, experts, dtype


def assert_close_to(actual, expected, eager, dtype):
    """Within the tolerance, or no worse than 1.5 times what plain torch loses in that dtype (cancellation)."""
    size = expected.norm().clamp(min=1e-6)
    error, eager_error = ((y.double() - expected).norm() / size for y in (actual, eager))
    assert error <= max(TOLERANCE[dtype], 1.5 * eager_error), (float(error), float(eager_error))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems())
def test_expert_ffn_equals_a_loop_over_items(problem):
    make, index, items, dim, hidden, experts, dtype = problem
    x, gate = make(items, dim), make(items, index.shape[1])
    weights = make(experts, dim, hidden), make(experts, hidden), make(experts, hidden, dim), make(experts, dim)
    y = expert_ffn(x, *weights, gate, *plan(index, experts))
    eager = reference.expert_ffn(x, *weights, gate, index, "gelu")
    assert_close_to(y, dumb_expert_ffn(*(t.double() for t in (x, *weights, gate)), index), eager, dtype)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(), st.sampled_from(ops.SITES), st.sampled_from(ops.FUSES))
def test_film_ffn_equals_its_specification(problem, site, fuse):
    make, index, items, dim, hidden, experts, dtype = problem
    width = dim if site == "input" else hidden
    shared = make(dim, hidden), make(hidden), make(hidden, dim), make(dim)
    x, film, gate = make(items, dim), (make(experts, width), make(experts, width)), make(items, index.shape[1])
    y = film_ffn(x, *shared, *film, gate, index, site=site, fuse=fuse)
    eager = reference.film_ffn(x, *shared, *film, gate, index, site, fuse, "gelu")
    arguments = [t.double() for t in (x, *shared, *film, gate)]
    assert_close_to(y, reference.film_ffn(*arguments, index, site, fuse, "gelu"), eager, dtype)
    if fuse == "outputs":
        assert_close_to(y, dumb_film_outputs(*arguments, index, site), eager, dtype)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(problems())
def test_route_equals_its_specification_and_gates_sum_to_one(problem):
    make, index, items, dim, _, experts, _ = problem
    x, w, k = make(items, dim), make(experts, dim), index.shape[1]
    gate, chosen, counts, probs = route(x, w, k, 0.1)
    expected_gate, expected_chosen, expected_counts, expected_probs = reference.route(x, w, k, 0.1)
    assert torch.equal(chosen, expected_chosen)
    assert torch.equal(counts, expected_counts)
    torch.testing.assert_close(gate, expected_gate)
    torch.testing.assert_close(probs, expected_probs)
    torch.testing.assert_close(gate.sum(1), torch.ones(items, dtype=gate.dtype))


def test_the_film_mix_collapses_to_two_small_products():
    # MoFME's identity: FFN(sum_e r_e (gamma_e x + beta_e)) = FFN((r Gamma) x + r Beta), one pass for any k.
    torch.manual_seed(0)
    x, gamma, beta = torch.randn(7, 6), torch.randn(5, 6), torch.randn(5, 6)
    shared = torch.randn(6, 9), torch.randn(9), torch.randn(9, 6), torch.randn(6)
    gate, index, _, _ = route(x, torch.randn(5, 6), 3)
    mixed = sum(gate[:, k : k + 1] * (gamma[index[:, k]] * x + beta[index[:, k]]) for k in range(3))
    expected = torch.nn.functional.gelu(mixed @ shared[0] + shared[1]) @ shared[2] + shared[3]
    torch.testing.assert_close(film_ffn(x, *shared, gamma, beta, gate, index), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 1.0], [-torch.inf] * 4])
def test_ties_go_to_the_lowest_expert_and_no_expert_is_chosen_twice(values):
    logits = torch.tensor([values])
    _, index, _, _ = route(torch.ones(1, 1), logits.T.nan_to_num(neginf=-1e30), 3)
    assert index.tolist() == reference.top_k(logits, 3).tolist()
    assert len(set(index[0].tolist())) == 3


def test_a_nan_row_stays_alone_and_is_routed_to_a_defined_expert():
    torch.manual_seed(0)
    x, w = torch.randn(4, 3), torch.randn(5, 3)
    x[2] = torch.nan
    gate, index, counts, _ = route(x, w, 2)
    assert index.min() >= 0
    assert index.max() < 5
    assert counts.sum() == 8
    healthy = torch.tensor([0, 1, 3])
    assert gate[healthy].isfinite().all()
    assert torch.equal(index[healthy], route(x[healthy], w, 2)[1])


def test_an_empty_expert_gets_zero_gradient_not_old_memory():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        w1, w2 = torch.randn(3, 4, 8, requires_grad=True), torch.randn(3, 8, 4, requires_grad=True)
        b1, b2 = torch.randn(3, 8, requires_grad=True), torch.randn(3, 4, requires_grad=True)
        index = torch.tensor([[0], [2], [2]])
        y = expert_ffn(torch.randn(3, 4), w1, b1, w2, b2, torch.ones(3, 1), *plan(index, 3))
        grads = torch.autograd.grad(y.square().sum(), (w1, b1, w2, b2))
    assert all((grad[1] == 0).all() for grad in grads)
    assert all((grad[2] != 0).any() for grad in grads)


def test_plan_sorts_slots_stably_with_empty_slots_last():
    order, offsets = plan(torch.tensor([[2, 0], [-1, 2], [0, -1]]), 4)
    assert order.tolist() == [1, 4, 0, 3, 2, 5]
    assert offsets.tolist() == [0, 2, 2, 4, 4]


def test_non_contiguous_inputs_give_the_same_result():
    torch.manual_seed(0)
    wide = torch.randn(6, 20)
    w1, b1, w2, b2 = torch.randn(3, 10, 8), torch.randn(3, 8), torch.randn(3, 8, 10), torch.randn(3, 10)
    index, gate = torch.tensor([[0, 1]]).expand(6, 2), torch.ones(1, 1).expand(6, 2)
    for x in (wide[:, ::2], torch.randn(10, 6).T, torch.randn(1, 10).expand(6, 10)):
        expected = expert_ffn(x.contiguous(), w1, b1, w2, b2, gate.contiguous(), *plan(index.contiguous(), 3))
        torch.testing.assert_close(expert_ffn(x, w1, b1, w2, b2, gate, *plan(index, 3)), expected)


def test_calling_twice_is_bitwise_equal():
    torch.manual_seed(0)
    x, w1, b1 = torch.randn(500, 24), torch.randn(8, 24, 48), torch.randn(8, 48)
    w2, b2, w = torch.randn(8, 48, 24), torch.randn(8, 24), torch.randn(8, 24)
    gate, index, _, _ = route(x, w, 2)
    first, second = (expert_ffn(x, w1, b1, w2, b2, gate, *plan(index, 8)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("windows", "channels", "size", "kernel"), [(9, 4, (7, 6), (3, 3)), (5, 1, (8, 3), (5, 1))])
def test_grouped_conv_equals_its_specification(dtype, windows, channels, size, kernel):
    generator = torch.Generator().manual_seed(0)
    shapes = (windows, channels, *size), (3, channels, *kernel), (3, channels)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    index = torch.randint(-1, 4, (windows,), generator=generator)
    expected = reference.grouped_conv(*(t.double() for t in tensors), index)
    eager = reference.grouped_conv(*tensors, index)
    assert_close_to(grouped_conv(*tensors, index), expected, eager, dtype)
    assert (expected[reference.is_empty(index, 3)] == 0).all()


@pytest.mark.parametrize(("bits", "limit"), [(2, 0.6), (4, 0.12)])
@pytest.mark.parametrize("width", [1, 3, 64, 130])
def test_packing_keeps_shape_and_most_of_the_weights(bits, limit, width):
    weight = torch.randn(width, 40, generator=torch.Generator().manual_seed(0))
    packed = quantize(weight, bits)
    restored = dequantize(*packed, width)
    assert packed.packed_PH.shape == (-(-width * bits // 8), 40)
    assert (restored - weight).norm() / weight.norm() < limit
    if bits == 2:
        assert torch.equal(restored.sign(), (weight / weight.abs().mean(0)).round().clamp(-1, 1))
        x = torch.randn(5, width)
        torch.testing.assert_close(quant_linear(x, *packed), x @ restored)


def test_any_index_outside_the_experts_is_an_empty_slot_whatever_its_gate():
    torch.manual_seed(0)
    weights = torch.randn(3, 4, 8), torch.randn(3, 8), torch.randn(3, 8, 4), torch.randn(3, 4)
    shared, film = (torch.randn(4, 8), torch.randn(8), torch.randn(8, 4), torch.randn(4)), torch.randn(2, 3, 4)
    x, gate, index = torch.randn(6, 4), torch.rand(6, 2), torch.randint(0, 3, (6, 2))
    index[2, 0] = -1
    for outside in (3, -7, 2**40, -(2**63)):
        strange, nan_gate = index.clone(), gate.clone()
        strange[2, 0], nan_gate[2, 0] = outside, torch.nan
        assert torch.equal(
            expert_ffn(x, *weights, nan_gate, *plan(strange, 3)), expert_ffn(x, *weights, gate, *plan(index, 3))
        )
        for fuse in ops.FUSES:
            strange_y = film_ffn(x, *shared, *film, nan_gate, strange, fuse=fuse)
            assert torch.equal(strange_y, film_ffn(x, *shared, *film, gate, index, fuse=fuse))


def test_a_nan_item_stays_alone_in_every_operator():
    torch.manual_seed(0)
    weights = torch.randn(3, 4, 8), torch.randn(3, 8), torch.randn(3, 8, 4), torch.randn(3, 4)
    shared, film = (torch.randn(4, 8), torch.randn(8), torch.randn(8, 4), torch.randn(4)), torch.randn(2, 3, 4)
    x, gate, index = torch.randn(6, 4), torch.rand(6, 2), torch.randint(0, 3, (6, 2))
    healthy = torch.arange(6) != 2
    calls = [lambda x: expert_ffn(x, *weights, gate, *plan(index, 3))]
    calls += [lambda x, fuse=fuse: film_ffn(x, *shared, *film, gate, index, fuse=fuse) for fuse in ops.FUSES]
    for call in calls:
        clean = call(x)
        spoiled = x.clone()
        spoiled[2] = torch.nan
        y = call(spoiled)
        assert y[2].isnan().all()
        assert torch.equal(y[healthy], clean[healthy])


@pytest.mark.parametrize("large", [False, True])
def test_the_next_call_does_not_change_an_earlier_result(large, monkeypatch):
    # The bodies keep their scratch memory from call to call; what they return must not lie in it.
    if not large:
        monkeypatch.setattr("moevision.kernels.cpu.workspace.LIMIT_BYTES", 256)
    torch.manual_seed(0)
    weights = torch.randn(3, 4, 8), torch.randn(3, 8), torch.randn(3, 8, 4), torch.randn(3, 4)
    gate, index = torch.rand(50, 1), torch.randint(0, 3, (50, 1))
    first = expert_ffn(torch.randn(50, 4), *weights, gate, *plan(index, 3))
    kept = first.clone()
    for items in (50, 7):
        expert_ffn(torch.randn(items, 4), *weights, gate[:items], *plan(index[:items], 3))
    assert torch.equal(first, kept)


def test_threads_do_not_share_scratch_memory():
    torch.manual_seed(0)
    weights = torch.randn(3, 16, 64), torch.randn(3, 64), torch.randn(3, 64, 16), torch.randn(3, 16)
    gate, index = torch.rand(400, 2), torch.randint(0, 3, (400, 2))
    inputs = [torch.randn(400, 16) for _ in range(4)]

    def run(x):
        return [expert_ffn(x, *weights, gate, *plan(index, 3)) for _ in range(20)]

    expected = [run(x)[0] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for right, results in zip(expected, pool.map(run, inputs), strict=True):
            assert all(torch.equal(y, right) for y in results)
