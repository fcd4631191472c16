"""The FiLM and convolution kernels against the specification in float64, in Triton's interpreter."""

import pytest
import torch

from moevision.kernels import cpu, film_ffn, grouped_conv, ops, reference
from moevision.kernels.triton import configs
from moevision.kernels.triton import film_ffn as film_kernels
from moevision.kernels.triton import grouped_conv as conv_kernels

# The interpreter truncates when it stores bfloat16.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 2**-7}
MODES = [(site, fuse) for site in ops.SITES for fuse in ops.FUSES]


def film_problem(site, dtype=torch.float32, items=20, dim=20, hidden=40, width=24, experts=5, k=2):
    """Leaf tensors, index and dy. Some slots are empty."""
    generator = torch.Generator().manual_seed(items + dim)

    def make(*shape, scale=1.0, shift=0.0, dtype=dtype):
        return (shift + scale * torch.randn(*shape, generator=generator)).to(dtype).requires_grad_()

    modulated = dim if site == "input" else hidden
    shared = make(dim, hidden, scale=dim**-0.5), make(hidden), make(hidden, width, scale=hidden**-0.5), make(width)
    film = make(experts, modulated, shift=1.0), make(experts, modulated)
    gate = torch.rand(items, k, generator=generator).requires_grad_()
    index = torch.randint(-1, experts + 1, (items, k), generator=generator)
    dy = torch.randn(items, width, generator=generator).to(dtype)
    return (make(items, dim), *shared, *film, gate), index, dy


def conv_problem(dtype=torch.float32, windows=5, channels=5, size=(7, 6), kernel=(3, 3), experts=3):
    """Leaf tensors, index and dy. The second window names no expert."""
    generator = torch.Generator().manual_seed(channels + kernel[0])

    def make(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    index = torch.randint(0, experts, (windows,), generator=generator)
    index[1:2] = experts
    dy = make(windows, channels, size[0] - kernel[0] + 1, size[1] - kernel[1] + 1).detach()
    return (make(windows, channels, *size), make(experts, channels, *kernel), make(experts, channels)), index, dy


def assert_equals_specification(operator, specification, inputs, dy):
    """Forward and all gradients, within the tolerance or what plain torch loses in that type (for y)."""
    dtype = dy.dtype
    wide = [t.detach().double().requires_grad_() for t in inputs]
    y, expected, eager = operator(*inputs), specification(*wide), specification(*(t.detach() for t in inputs))
    assert relative_error(y, expected) <= max(TOLERANCE[dtype], 1.5 * relative_error(eager, expected))
    grads, exact = torch.autograd.grad(y, inputs, dy), torch.autograd.grad(expected, wide, dy.double())
    for grad, right, leaf in zip(grads, exact, inputs, strict=True):
        assert (grad.dtype, grad.shape) == (leaf.dtype, leaf.shape)
        assert relative_error(grad, right) <= 2 * TOLERANCE[dtype]


def relative_error(actual, expected):
    actual, expected = actual.detach().double(), expected.detach()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-9))


@pytest.fixture
def kernels_only(monkeypatch):
    """A kernel that hands over to the torch body fails the test."""

    def refuse(*_):
        raise AssertionError("the torch body was called")

    for name in ("film_ffn", "film_ffn_backward", "grouped_conv", "grouped_conv_backward"):
        monkeypatch.setattr(cpu, name, refuse)


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize(("site", "fuse"), MODES)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_film_forward_and_gradients_are_those_of_the_specification(dtype, site, fuse):
    inputs, index, dy = film_problem(site, dtype)
    assert_equals_specification(
        lambda *t: film_ffn(*t, index, site=site, fuse=fuse),
        lambda *t: reference.film_ffn(*t, index, site, fuse, "gelu"),
        inputs, dy,
    )  # fmt: skip


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize(("site", "fuse"), MODES)
@pytest.mark.parametrize(
    "sizes",
    [
        {"items": 67, "dim": 3, "hidden": 5, "width": 1, "experts": 1, "k": 1},
        {"items": 3, "dim": 1, "hidden": 33, "width": 3, "experts": 20, "k": 3},
    ],
    ids=str,
)
def test_film_of_small_and_odd_sizes(sizes, site, fuse):
    inputs, index, dy = film_problem(site, **sizes)
    assert_equals_specification(
        lambda *t: film_ffn(*t, index, site=site, fuse=fuse, activation="silu"),
        lambda *t: reference.film_ffn(*t, index, site, fuse, "silu"),
        inputs, dy,
    )  # fmt: skip


@pytest.mark.parametrize(("site", "fuse"), MODES)
@pytest.mark.parametrize(("items", "k"), [(0, 2), (3, 0)])
def test_film_without_items_or_slots(items, k, site, fuse):
    inputs, index, dy = film_problem(site, items=items, k=k)
    y = film_ffn(*inputs, index, site=site, fuse=fuse)
    torch.testing.assert_close(y, reference.film_ffn(*inputs, index, site, fuse, "gelu"))
    grads = torch.autograd.grad(y, inputs, dy)
    u = dy.new_zeros((0, inputs[1].shape[1]))
    exact = cpu.film_ffn_backward(dy, *(t.detach() for t in inputs), index, u, site, fuse, "gelu")
    for grad, right in zip(grads, exact, strict=True):
        torch.testing.assert_close(grad, right)


@pytest.mark.parametrize(("site", "fuse"), MODES)
def test_film_keeps_nan_in_its_row_and_ignores_empty_slots_whatever_their_gate(site, fuse):
    inputs, index, dy = film_problem(site, items=12)
    x, gate = inputs[0].detach(), inputs[-1].detach()
    clean = film_ffn(x, *inputs[1:-1], gate, index, site=site, fuse=fuse)
    gate = gate.masked_fill(reference.is_empty(index, 5), torch.nan).requires_grad_()
    dirty = film_ffn(x, *inputs[1:-1], gate, index, site=site, fuse=fuse)
    assert torch.equal(clean, dirty)
    dgate, dgamma = torch.autograd.grad(dirty, (gate, inputs[5]), dy)
    assert dgate.isfinite().all()
    assert dgamma.isfinite().all()
    assert (dgate[reference.is_empty(index, 5)] == 0).all()
    x[3] = torch.nan
    y = film_ffn(x, *inputs[1:-1], gate, index, site=site, fuse=fuse)
    healthy = torch.arange(12) != 3
    assert y[3].isnan().all()
    assert torch.equal(y[healthy], clean[healthy])


@pytest.mark.parametrize("site", ops.SITES)
def test_film_of_strided_views_is_that_of_copies(site):
    inputs, index, dy = film_problem(site, items=5)
    wide, tall = torch.randn(5, 60), inputs[1].detach().T.contiguous().T
    grads = []
    for first, stride, x in ((0, 2, wide[:, :40:2]), (7, 1, wide[:, 7:27])):
        wide[:, first : first + 20 * stride : stride] = inputs[0].detach()
        x.requires_grad_()
        y = film_ffn(x, tall, *inputs[2:], index, site=site)
        assert torch.equal(y, film_ffn(*inputs, index, site=site))
        grads.append(torch.autograd.grad(y, x, dy[:, :1].expand_as(y))[0])
    assert torch.equal(*grads)


@pytest.mark.parametrize(("site", "fuse"), MODES)
def test_what_film_saves_is_what_the_torch_body_saves(site, fuse):
    inputs, index, _ = film_problem(site, items=5)
    tensors = [t.detach() for t in inputs]
    for save in (True, False):
        y, u = film_kernels.film_ffn(*tensors, index, site, fuse, "gelu", save)
        right_y, right_u = cpu.film_ffn(*tensors, index, site, fuse, "gelu", save)
        torch.testing.assert_close((y, u), (right_y, right_u))


@pytest.mark.parametrize("site", ops.SITES)
def test_film_above_the_fused_width_is_the_torch_body(site):
    inputs, index, _ = film_problem(site, items=3, dim=258, hidden=8)
    tensors = [t.detach() for t in inputs]
    expected = cpu.film_ffn(*tensors, index, site, "activations", "gelu", False)[0]
    assert torch.equal(film_ffn(*tensors, index, site=site), expected)


@pytest.mark.parametrize("weighted", [True, False])
def test_segment_sums_in_parts_add_up_and_experts_without_rows_get_zeros(monkeypatch, weighted):
    monkeypatch.setattr(configs, "segment_parts", lambda *_: 3)
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(-1, 60, (100, 2), generator=generator)
    gate = torch.rand(100, 2, generator=generator)
    gate[reference.is_empty(index, 70)] = torch.nan
    values = torch.randn(100 if weighted else 200, 70, generator=generator)
    total = conv_kernels.segment_sum(values, gate if weighted else None, index, 70)
    share = reference.dense_gate(gate if weighted else torch.ones(200, 1), index.view(len(values), -1), 70)
    torch.testing.assert_close(total, share.T @ values)
    assert (total[60:] == 0).all()


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize(
    ("dtype", "channels", "kernel"),
    [
        (torch.float32, 5, (3, 3)),
        (torch.float32, 3, (5, 1)),
        (torch.float16, 3, (3, 3)),
        (torch.bfloat16, 3, (3, 3)),
        (torch.float32, 1, (7, 6)),
    ],
)
def test_conv_forward_and_gradients_are_those_of_the_specification(dtype, channels, kernel):
    inputs, index, dy = conv_problem(dtype, channels=channels, kernel=kernel)
    assert_equals_specification(
        lambda *t: grouped_conv(*t, index), lambda *t: reference.grouped_conv(*t, index), inputs, dy
    )


def test_conv_of_many_positions_and_channels_is_that_of_the_torch_body(monkeypatch):
    # Several blocks of positions and of channels.
    monkeypatch.setattr(configs, "grouped_conv", lambda _: configs.Blocks(2, 0, 16, 4, 1))
    inputs, index, dy = conv_problem(windows=2, size=(9, 8))
    assert_equals_specification(
        lambda *t: grouped_conv(*t, index), lambda *t: reference.grouped_conv(*t, index), inputs, dy
    )


def test_conv_takes_any_strides():
    (x, w, b), index, dy = conv_problem(channels=3)
    turned = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    y, right = grouped_conv(turned, w, b, index), grouped_conv(x, w, b, index)
    assert torch.equal(y, right)
    grads = torch.autograd.grad(y, (turned, w, b), dy[:1, :1, :1, :1].expand_as(y))
    for grad, expected in zip(
        grads, torch.autograd.grad(right, (x, w, b), dy[:1, :1, :1, :1].expand_as(y)), strict=True
    ):
        assert torch.equal(grad, expected)


def test_conv_gives_zeros_for_an_empty_window_whatever_is_in_it_and_keeps_nan_in_its_window():
    (x, w, b), index, dy = conv_problem(channels=3)
    x, dy = x.detach(), dy.clone()
    clean = grouped_conv(x, w, b, index)
    x[1], dy[1] = torch.nan, torch.nan
    y = grouped_conv(x.requires_grad_(), w, b, index)
    assert torch.equal(y, clean)
    assert (y[1] == 0).all()
    dx, *rest = torch.autograd.grad(y, (x, w, b), dy)
    assert all(grad.isfinite().all() for grad in rest)
    assert (dx[1] == 0).all()
    x = x.detach().clone()
    x[2] = torch.nan
    y = grouped_conv(x, w, b, index)
    healthy = torch.arange(5) != 2
    assert y[2].isnan().all()
    assert torch.equal(y[healthy], clean[healthy])


def test_conv_without_windows():
    (x, w, b), index, dy = conv_problem(windows=0, channels=3)
    y = grouped_conv(x, w, b, index)
    assert y.shape == dy.shape
    dx, dw, db = torch.autograd.grad(y, (x, w, b), dy)
    assert dx.shape == x.shape
    assert (dw == 0).all()
    assert (db == 0).all()
