"""The operators as torch sees them: schema, fakes, gradients, compile, export, other devices without having one."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from moevision.kernels import expert_ffn, film_ffn, grouped_conv, ops, plan, quant_linear, route
from moevision.kernels.quantization import quantize

FILM_MODES = [(site, fuse) for site in ops.SITES for fuse in ops.FUSES]


def random(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()


def route_arguments(items=9, dim=5, experts=4):
    return random(items, dim), random(experts, dim)


def expert_arguments(items=9, dim=5, hidden=7, experts=4, k=2, index=None):
    if index is None:
        index = torch.stack([torch.randperm(experts)[:k] for _ in range(items)]) if items else torch.empty(0, k).long()
    order, offsets = plan(index, experts)
    weights = (
        random(experts, dim, hidden),
        random(experts, hidden),
        random(experts, hidden, dim),
        random(experts, dim),
    )
    return random(items, dim), *weights, random(items, k, seed=3), order, offsets


def film_arguments(site, items=9, dim=5, hidden=7, experts=4, k=2):
    width = dim if site == "input" else hidden
    index = torch.randint(-1, experts, (items, k), generator=torch.Generator().manual_seed(1))
    shared = (random(dim, hidden), random(hidden), random(hidden, dim), random(dim))
    return random(items, dim), *shared, random(experts, width), random(experts, width), random(items, k, seed=3), index


@pytest.mark.parametrize("items", [9, 0])
@pytest.mark.parametrize("variance_scale", [0.0, 0.3])
def test_route_passes_opcheck(items, variance_scale):
    opcheck(ops._route, (*route_arguments(items), 2, variance_scale))


@pytest.mark.parametrize("items", [9, 0])
def test_plan_passes_opcheck(items):
    opcheck(ops._plan, (torch.randint(-1, 4, (items, 2)), 4))


@pytest.mark.parametrize("items", [9, 0])
def test_expert_ffn_passes_opcheck(items):
    opcheck(ops._expert_ffn, (*expert_arguments(items), "gelu", True))


@pytest.mark.parametrize(("site", "fuse"), FILM_MODES)
@pytest.mark.parametrize("items", [9, 0])
def test_film_ffn_passes_opcheck(items, site, fuse):
    opcheck(ops._film_ffn, (*film_arguments(site, items), site, fuse, "gelu", True))


def conv_arguments(windows=6, channels=3, experts=4):
    index = torch.randint(-1, experts, (windows,), generator=torch.Generator().manual_seed(1))
    return random(windows, channels, 6, 5), random(experts, channels, 3, 2), random(experts, channels), index


@pytest.mark.parametrize("windows", [6, 0])
def test_grouped_conv_passes_opcheck(windows):
    opcheck(ops._grouped_conv, conv_arguments(windows))


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("items", [9, 0])
def test_quant_linear_passes_opcheck(items, bits):
    opcheck(ops._quant_linear, (random(items, 70).detach(), *quantize(random(70, 5), bits)))


def test_grouped_conv_gradients_are_those_of_finite_differences():
    *tensors, index = conv_arguments()
    assert torch.autograd.gradcheck(lambda *t: grouped_conv(*t, index), tensors)


@pytest.mark.parametrize("variance_scale", [0.0, 0.3])
def test_route_gradients_are_those_of_finite_differences(variance_scale):
    def differentiable(x, w):
        gate, _, _, probs = route(x, w, 2, variance_scale)
        return gate, probs

    assert torch.autograd.gradcheck(differentiable, route_arguments())


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_expert_ffn_gradients_are_those_of_finite_differences(activation):
    *tensors, order, offsets = expert_arguments(items=6)
    assert torch.autograd.gradcheck(lambda *t: expert_ffn(*t, order, offsets, activation), tensors)


@pytest.mark.parametrize(("site", "fuse"), FILM_MODES)
def test_film_ffn_gradients_are_those_of_finite_differences(site, fuse):
    *tensors, index = film_arguments(site, items=6)
    assert torch.autograd.gradcheck(lambda *t: film_ffn(*t, index, site=site, fuse=fuse), tensors)


def test_backward_twice_gives_the_same_gradient_twice():
    *tensors, order, offsets = expert_arguments()
    y = expert_ffn(*tensors, order, offsets).square().sum()
    first = torch.autograd.grad(y, tensors, retain_graph=True)
    second = torch.autograd.grad(y, tensors)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradient_of_a_sum_arrives_although_it_has_no_memory_of_its_own():
    # y.sum() sends a gradient of stride 0.
    *tensors, order, offsets = expert_arguments()
    expanded = torch.autograd.grad(expert_ffn(*tensors, order, offsets).sum(), tensors)
    y = expert_ffn(*tensors, order, offsets)
    real = torch.autograd.grad((y * torch.ones_like(y)).sum(), tensors)
    assert all(torch.equal(a, b) for a, b in zip(expanded, real, strict=True))


def layer(x, w, w1, b1, w2, b2):
    gate, index, _, _ = route(x, w, 2, 0.1)
    order, offsets = plan(index, w.shape[0])
    return expert_ffn(x, w1, b1, w2, b2, gate.to(x.dtype), order, offsets)


@pytest.mark.slow
def test_a_layer_compiles_without_graph_breaks_for_any_number_of_items():
    x, w1, b1, w2, b2, *_ = expert_arguments(items=12)
    w = random(4, 5)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for items in (12, 5):
        part = x[:items].detach().requires_grad_()
        loss, expected = (f(part, w, w1, b1, w2, b2).square().sum() for f in (compiled, layer))
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, part), torch.autograd.grad(expected, part))


@pytest.mark.slow
def test_a_layer_exports_with_a_dynamic_number_of_items():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            _, *weights, _, _, _ = expert_arguments()
            self.weights = torch.nn.ParameterList([random(4, 5), *weights])

        def forward(self, x):
            return layer(x, *self.weights)

    module = Layer().eval()
    items = torch.export.Dim("items", min=2, max=4096)
    exported = torch.export.export(module, (random(12, 5).detach(),), dynamic_shapes=({0: items},))
    x = random(33, 5).detach()
    torch.testing.assert_close(exported.module()(x), module(x))


def test_shapes_on_a_gpu_are_known_without_one():
    with FakeTensorMode():
        x = torch.empty(8, 16, device="cuda", dtype=torch.bfloat16)
        gate, index, counts, probs = route(x, torch.empty(4, 16, device="cuda"), 2)
        order, offsets = plan(index, 4)
        weights = [torch.empty(s, device="cuda", dtype=x.dtype) for s in ((4, 16, 32), (4, 32), (4, 32, 16), (4, 16))]
        y = expert_ffn(x, *weights, gate, order, offsets)
    assert (y.shape, y.dtype, y.device.type) == ((8, 16), torch.bfloat16, "cuda")
    assert (gate.dtype, probs.shape, counts.shape) == (torch.float32, (8, 4), (4,))


def expert_call(**changed):
    names = ("x_ND", "w1_EDH", "b1_EH", "w2_EHO", "b2_EO", "gate_NK", "order_R", "offsets_E1")
    arguments = dict(zip(names, expert_arguments(), strict=True))
    return expert_ffn(**{**arguments, **{name: change(arguments[name]) for name, change in changed.items()}})


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: route(torch.zeros(2, 3), torch.zeros(4, 3), 5), "k must"),
        (lambda: route(torch.zeros(2, 3), torch.zeros(4, 3), 0), "k must"),
        (lambda: route(torch.zeros(2, 3), torch.zeros(4, 2), 1), "w must"),
        (lambda: plan(torch.zeros(3, dtype=torch.int64), 2), "index must"),
        (lambda: plan(torch.zeros(3, 1, dtype=torch.int64), 0), "num_experts must"),
        (lambda: expert_call(w1_EDH=lambda t: t[:, :-1]), "w1 must"),
        (lambda: expert_call(b2_EO=lambda t: t[:-1]), "b2 must"),
        (lambda: expert_call(gate_NK=lambda t: t[:-1]), "gate must"),
        (lambda: expert_call(order_R=lambda t: t[:-1]), "order must"),
        (lambda: film_ffn(*film_arguments("input"), site="output"), "site must"),
        (lambda: film_ffn(*film_arguments("input"), site="hidden"), "gamma must"),
        (lambda: film_ffn(*film_arguments("input"), activation="tanh"), "activation must"),
        (lambda: grouped_conv(torch.zeros(1, 3, 2, 9), *conv_arguments()[1:]), "index must"),
        (lambda: grouped_conv(torch.zeros(6, 3, 2, 9), *conv_arguments()[1:]), "x must"),
        (lambda: quant_linear(torch.zeros(2, 71), *quantize(random(70, 5), 4)), "packed and scale must"),
        (lambda: quant_linear(torch.zeros(2, 70), *quantize(random(70, 5), 4)[:3], 3, 64), "bits must"),
        (lambda: quantize(torch.zeros(3, 3), 8), "bits must"),
    ],
)
def test_impossible_arguments_are_refused_by_name(call, named):
    with pytest.raises(ValueError, match=named):
        call()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: expert_call(w1_EDH=torch.Tensor.float), "w1 must be torch.float64 like x"),
        (lambda: expert_call(x_ND=torch.Tensor.int), "x must be of a float type"),
        (lambda: expert_call(order_R=torch.Tensor.float), "order must be int64"),
        (lambda: plan(torch.zeros(2, 2), 2), "index must be int64"),
        (lambda: quant_linear(torch.zeros(2, 4), torch.zeros(1, 3), *torch.ones(2, 1, 3), 2, 4), "packed uint8"),
    ],
)
def test_wrong_types_are_refused_by_name(call, named):
    with pytest.raises(TypeError, match=named):
        call()


def test_packed_weights_refuse_to_be_trained_through():
    packed = quantize(random(70, 5), 4)
    with pytest.raises(RuntimeError, match="inference only"):
        quant_linear(torch.zeros(2, 70, requires_grad=True), *packed)


def test_autocast_casts_as_for_a_linear_layer_and_the_router_stays_in_float32():
    *tensors, order, offsets = [t.float() if t.is_floating_point() else t for t in expert_arguments()]
    x, w = (t.detach().float() for t in route_arguments())
    with torch.no_grad():
        expected = expert_ffn(*(t.bfloat16() for t in tensors[:5]), tensors[5], order, offsets)
        routed = route(x, w, 2)
        with torch.autocast("cpu", torch.bfloat16):
            y = expert_ffn(*tensors, order, offsets)
            assert all(torch.equal(a, b) for a, b in zip(route(x, w, 2), routed, strict=True))
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
