"""The operators as torch sees them: schema, fakes, gradients, compile, export, other devices without having one."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from moevision.kernels import expert_ffn, film_ffn, ops, plan, route

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


@pytest.mark.parametrize(
    "call",
    [
        lambda: route(torch.zeros(2, 3), torch.zeros(4, 3), 5),
        lambda: route(torch.zeros(2, 3), torch.zeros(4, 3), 0),
        lambda: route(torch.zeros(2, 3), torch.zeros(4, 2), 1),
        lambda: film_ffn(*film_arguments("input"), site="output"),
        lambda: film_ffn(*film_arguments("input"), site="hidden"),
        lambda: film_ffn(*film_arguments("input"), activation="tanh"),
    ],
)
def test_impossible_arguments_are_refused(call):
    with pytest.raises(ValueError, match="must be"):
        call()
