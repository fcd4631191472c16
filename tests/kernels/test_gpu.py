"""The Triton kernels on a real GPU, at real sizes; skipped where there is none."""

import pytest
import torch

from moevision.kernels import expert_ffn, film_ffn, grouped_conv, ops, plan, quant_linear, reference, route
from moevision.kernels.quantization import quantize

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SIZES = [
    (4096, 64, 256, 16, 2),
    (5000, 48, 96, 8, 2),
    (3000, 96, 384, 16, 1),
    (2000, 256, 512, 4, 2),
    (777, 384, 96, 5, 2),
]


@pytest.fixture(autouse=True)
def triton_or_nothing(monkeypatch):
    monkeypatch.setenv("MOEVISION_BACKEND", "triton")


def relative_error(actual, expected):
    actual, expected = actual.detach().double(), expected.detach()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-9))


def made(dtype, *shapes):
    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))
    return [
        (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).to("cuda", dtype).requires_grad_()
        for shape in shapes
    ]


def check(call, specification, inputs, dtype):
    """Forward and gradients against float64 from the same rounded inputs."""
    wide = [t.detach().double().requires_grad_() for t in inputs]
    y, expected = call(*inputs), specification(*wide)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)
    assert relative_error(y, expected) <= TOLERANCE[dtype]
    grads = torch.autograd.grad(y, inputs, dy)
    for grad, exact in zip(grads, torch.autograd.grad(expected, wide, dy.double()), strict=True):
        assert relative_error(grad, exact) <= 2 * TOLERANCE[dtype]
    again = call(*inputs)
    assert torch.equal(y, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, torch.autograd.grad(again, inputs, dy), strict=True))


def routing(items, experts, slots):
    index = torch.rand(items, experts, generator=torch.Generator().manual_seed(1)).topk(slots, 1).indices
    index[: items // 8] = experts - 1
    index[items // 8 : items // 6] = -1
    return index.cuda()


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_expert_ffn_on_the_device(size, dtype):
    items, dim, hidden, experts, slots = size
    inputs = made(
        dtype, (items, dim), (experts, dim, hidden), (experts, hidden), (experts, hidden, dim), (experts, dim),
        (items, slots),
    )  # fmt: skip
    index = routing(items, experts, slots)
    order, offsets = plan(index, experts)
    assert torch.equal(order, reference.plan(index, experts)[0])
    check(lambda *t: expert_ffn(*t, order, offsets), lambda *t: reference.expert_ffn(*t, index, "gelu"), inputs, dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("site", ops.SITES)
@pytest.mark.parametrize("fuse", ops.FUSES)
def test_film_ffn_on_the_device(site, fuse, dtype):
    items, dim, hidden, experts, slots = SIZES[0]
    width = dim if site == "input" else hidden
    inputs = made(
        dtype, (items, dim), (dim, hidden), (hidden,), (hidden, dim), (dim,), (experts, width), (experts, width),
        (items, slots),
    )  # fmt: skip
    index = routing(items, experts, slots)
    check(
        lambda *t: film_ffn(*t, index, site=site, fuse=fuse),
        lambda *t: reference.film_ffn(*t, index, site, fuse, "gelu"), inputs, dtype,
    )  # fmt: skip


@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_route_on_the_device(scale):
    x, w = made(torch.float32, (5000, 96), (16, 96))
    gate, index, counts, probs = route(x, w, 4, scale)
    expected_gate, expected_index, _, expected_probs = reference.route(x.double(), w.double(), 4, scale)
    top = expected_probs.sort(1, descending=True).values
    clear = ((top[:, :4] - top[:, 1:5]) > 1e-5).all(1)
    assert torch.equal(index[clear], expected_index[clear])
    assert torch.equal(counts, torch.bincount(index.view(-1), minlength=16))
    torch.testing.assert_close(gate[clear], expected_gate[clear].float())
    torch.testing.assert_close(probs, expected_probs.float())


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_grouped_conv_on_the_device(dtype):
    index = torch.randint(-1, 4, (300,), generator=torch.Generator().manual_seed(0)).cuda()
    inputs = made(dtype, (300, 48, 12, 10), (4, 48, 3, 3), (4, 48))
    check(lambda *t: grouped_conv(*t, index), lambda *t: reference.grouped_conv(*t, index), inputs, dtype)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_quant_linear_on_the_device(bits, dtype):
    x, weight = (t.detach() for t in made(dtype, (1000, 130), (130, 70)))
    packed = quantize(weight, bits)
    expected = reference.quant_linear(x.double(), *packed)
    assert relative_error(quant_linear(x, *packed), expected) <= 2 * TOLERANCE[dtype]
