"""`plan` and `quant_linear` in Triton's interpreter."""

import pytest
import torch

from moevision.kernels import bodies, plan, quant_linear, reference
from moevision.kernels.quantization import INT4_GROUP, quantize
from moevision.kernels.triton import plan as plan_kernels


@pytest.mark.parametrize(
    ("items", "slots", "experts"), [(0, 2, 3), (1, 1, 1), (300, 2, 16), (700, 1, 5), (90, 4, 64), (9, 2, 256)]
)
@pytest.mark.parametrize("routing", ["random", "all to one", "all empty"])
def test_plan_is_the_stable_sort_of_the_specification(items, slots, experts, routing):
    index = torch.randint(-2, experts + 2, (items, slots), generator=torch.Generator().manual_seed(items))
    if routing != "random":
        index = torch.full_like(index, experts - 1 if routing == "all to one" else -(2**40))
    for actual, expected in zip(plan(index, experts), reference.plan(index, experts), strict=True):
        assert torch.equal(actual, expected)


def test_plan_of_strided_slots_is_that_of_copies_and_twice_the_same():
    index = torch.randint(-1, 6, (3, 400), generator=torch.Generator().manual_seed(0)).T[::2, :1]
    expected = reference.plan(index, 5)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(plan(index, 5), expected, strict=True))


def test_plan_leaves_more_experts_than_fit_to_others():
    with pytest.raises(bodies.Unsupported, match="at most 256"):
        plan_kernels.plan(torch.zeros(2, 2, dtype=torch.int64), 257)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("bits", "group"), [(2, None), (4, INT4_GROUP), (4, 24)])
@pytest.mark.parametrize("size", [(33, 70, 40), (1, 1, 1), (5, 130, 65)])
def test_quant_linear_is_the_product_with_the_unpacked_weights(dtype, bits, group, size, monkeypatch):
    items, width, outputs = size
    if group is not None:
        monkeypatch.setattr("moevision.kernels.quantization.INT4_GROUP", group)
    generator = torch.Generator().manual_seed(0)
    packed = quantize(torch.randn(width, outputs, generator=generator), bits)
    x = torch.randn(2 * items, width, generator=generator).to(dtype)[::2]
    expected = reference.quant_linear(x.double(), *packed)
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 2**-7}[dtype]
    # The specification in float64 does not round the weights; in a half type that is one rounding more.
    error = (quant_linear(x, *packed).double() - expected).norm() / expected.norm().clamp(min=1e-9)
    assert error <= 2 * tolerance


def test_rows_past_the_last_of_a_packed_weight_do_not_count_however_large_they_would_be():
    # 15 * 8192 is infinite in float16; no weight is, but what stands past the third row would be.
    packed = torch.full((2, 4), 0xFF, dtype=torch.uint8)
    scale, offset = torch.full((1, 4), 8192.0), torch.full((1, 4), 15.0)
    y = quant_linear(torch.ones(2, 3, dtype=torch.float16), packed, scale, offset, 4, 64)
    assert (y == 0).all()
