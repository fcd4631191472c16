"""The expert kernels against the specification in float64, in Triton's interpreter."""

import pytest
import torch

from moevision.kernels import bodies, expert_ffn, reference
from moevision.kernels.reference import plan

# The interpreter truncates when it stores bfloat16.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 2**-7}


def problem(dtype, items, dim, hidden, width, experts, k, routing="random"):
    generator = torch.Generator().manual_seed(items + dim)

    def make(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=generator)).to(dtype).requires_grad_()

    index = torch.rand(items, experts, generator=generator).topk(k, 1).indices
    if routing == "one expert":
        index = torch.full_like(index, experts - 1)
    elif routing == "empty slots":
        index = index.masked_fill(torch.rand(index.shape, generator=generator) < 0.4, -1)
    x, gate = make(items, dim), torch.rand(items, k, generator=generator).requires_grad_()
    weights = (
        make(experts, dim, hidden, scale=dim**-0.5), make(experts, hidden), make(experts, hidden, width, scale=0.2),
        make(experts, width),
    )  # fmt: skip
    return x, weights, gate, index, torch.randn(items, width, generator=generator).to(dtype)


def relative_error(actual, expected):
    actual, expected = actual.detach().double(), expected.detach()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-9))


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    ("items", "dim", "hidden", "width", "experts", "k", "routing", "activation"),
    [
        (70, 24, 40, 24, 5, 2, "random", "gelu"),
        (33, 3, 8, 5, 2, 1, "one expert", "silu"),
        (17, 48, 33, 48, 16, 4, "empty slots", "gelu"),
        (1, 1, 1, 1, 1, 1, "random", "gelu"),
    ],
)
def test_forward_and_gradients_are_those_of_the_specification(
    dtype, items, dim, hidden, width, experts, k, routing, activation
):
    x, weights, gate, index, dy = problem(dtype, items, dim, hidden, width, experts, k, routing)
    inputs = (x, *weights, gate)
    y = expert_ffn(x, *weights, gate, *plan(index, experts), activation)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    expected = reference.expert_ffn(*wide, index, activation)
    eager = reference.expert_ffn(*(t.detach() for t in inputs), index, activation)
    assert relative_error(y, expected) <= max(TOLERANCE[dtype], 1.5 * relative_error(eager, expected.detach()))
    grads = torch.autograd.grad(y, inputs, dy)
    for grad, exact in zip(grads, torch.autograd.grad(expected, wide, dy.double()), strict=True):
        assert relative_error(grad, exact) <= 2 * TOLERANCE[dtype]


def test_above_the_fused_width_two_grouped_products_give_the_same():
    x, weights, gate, index, dy = problem(torch.float32, 9, 258, 20, 8, 3, 2)
    inputs = (x, *weights, gate)
    y = expert_ffn(x, *weights, gate, *plan(index, 3))
    wide = [t.detach().double().requires_grad_() for t in inputs]
    expected = reference.expert_ffn(*wide, index, "gelu")
    assert relative_error(y, expected) <= 1e-6
    grads = torch.autograd.grad(y, inputs, dy)
    for grad, exact in zip(grads, torch.autograd.grad(expected, wide, dy.double()), strict=True):
        assert relative_error(grad, exact) <= 2e-6


def test_weight_gradients_split_over_rows_add_up(monkeypatch):
    from moevision.kernels.triton import configs

    monkeypatch.setattr(configs, "row_splits", lambda *_: 3)
    x, weights, gate, index, dy = problem(torch.float32, 100, 8, 16, 8, 2, 1)
    y = expert_ffn(x, *weights, gate, *plan(index, 2))
    wide = [t.detach().double().requires_grad_() for t in weights]
    expected = reference.expert_ffn(x.double(), *wide, gate.double(), index, "gelu")
    exact = torch.autograd.grad(expected, wide, dy.double())
    for grad, right in zip(torch.autograd.grad(y, weights, dy), exact, strict=True):
        assert relative_error(grad, right) <= 2e-6


def test_nan_stays_in_its_row_and_an_empty_slot_does_not_count_whatever_its_gate():
    x, weights, gate, index, _ = problem(torch.float32, 12, 6, 8, 6, 3, 2)
    index[5, 1] = -1
    with torch.no_grad():
        clean = expert_ffn(x, *weights, gate, *plan(index, 3))
        x[3], gate[5, 1] = torch.nan, torch.nan
        y = expert_ffn(x, *weights, gate, *plan(index, 3))
    healthy = torch.arange(12) != 3
    assert y[3].isnan().all()
    assert torch.equal(y[healthy], clean[healthy])


def test_strided_views_and_no_items_at_all_work():
    x, weights, gate, index, _ = problem(torch.float32, 10, 6, 8, 6, 3, 2)
    order, offsets = plan(index, 3)
    with torch.no_grad():
        expected = expert_ffn(x, *weights, gate, order, offsets)
        wide = torch.randn(10, 20)
        wide[:, :12:2] = x
        assert torch.equal(expert_ffn(wide[:, :12:2], *weights, gate, order, offsets), expected)
        wide[:, 4:10] = x
        assert torch.equal(expert_ffn(wide[:, 4:10], *weights, gate, order, offsets), expected)
        empty = torch.empty(0, 2, dtype=torch.int64)
        assert expert_ffn(x[:0], *weights, gate[:0], *plan(empty, 3)).shape == (0, 6)


def test_the_kernels_are_what_ran():
    assert bodies._backend() == "interpret"
    assert bodies._obstacle("interpret", torch.zeros(1)) is None
