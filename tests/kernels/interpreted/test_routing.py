"""`route` in Triton's interpreter: choices and counts exactly the specification's, gates and gradients close to it."""

import pytest
import torch

from moevision.kernels import bodies, cpu, reference, route
from moevision.kernels.triton import configs
from moevision.kernels.triton import route as route_kernels


def made(items, dim, experts, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(items, dim, generator=generator), torch.randn(experts, dim, generator=generator)
    return x.to(dtype).requires_grad_(), (w * dim**-0.5).requires_grad_()


@pytest.fixture(autouse=True)
def kernels_only(monkeypatch):
    """A kernel that hands over to the torch body fails the test."""

    def refuse(*_):
        raise AssertionError("the torch body was called")

    for name in ("route", "route_backward"):
        monkeypatch.setattr(cpu, name, refuse)


@pytest.mark.parametrize("scale", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("items", "dim", "experts", "k"), [(70, 24, 5, 2), (17, 48, 16, 4), (9, 3, 64, 64), (1, 1, 1, 1)]
)
def test_choices_gates_and_gradients_are_those_of_the_specification(items, dim, experts, k, dtype, scale):
    x, w = made(items, dim, experts, dtype)
    gate, index, counts, probs = route(x, w, k, scale)
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    expected_gate, expected_index, expected_counts, expected_probs = reference.route(*wide, k, scale)
    assert torch.equal(index, expected_index)
    assert torch.equal(counts, expected_counts)
    torch.testing.assert_close(gate, expected_gate.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(probs, expected_probs.float(), rtol=1e-5, atol=1e-6)
    dgate, dprobs = torch.randn_like(gate), torch.randn_like(probs)
    grads = torch.autograd.grad((gate, probs), (x, w), (dgate, dprobs))
    exact = torch.autograd.grad((expected_gate, expected_probs), wide, (dgate.double(), dprobs.double()))
    tolerance = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2**-6}
    for grad, right, kind in zip(grads, exact, (dtype, torch.float32), strict=True):
        assert (grad.double() - right).norm() <= tolerance[kind] * right.norm().clamp(min=1e-3)


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 1.0, 1.0, 1.0],
        [0.0, 2.0, 2.0, 1.0],
        [-torch.inf] * 4,
        [torch.nan, 1.0, torch.inf, 5.0],
        [-torch.inf, 0.0, -torch.inf, torch.inf],
        [torch.nan] * 4,
    ],
)
def test_ties_infinities_and_nan_are_ordered_as_in_the_specification(values):
    logits = torch.tensor([values, [0.0, 1.0, 2.0, 3.0]])
    for row in range(2):
        x, w = torch.ones(1, 1), logits[row].view(4, 1)
        _, index, counts, _ = route(x, w, 3)
        assert index[0].tolist() == reference.top_k(logits[row : row + 1], 3)[0].tolist()
        assert len(set(index[0].tolist())) == 3
        assert counts.sum() == 3


def test_nan_stays_in_its_row_and_views_are_read_as_they_are():
    x, w = (t.detach() for t in made(12, 6, 5))
    expected = route(x, w, 2)
    spoiled = torch.randn(12, 13)[:, ::2][:, :6]
    spoiled.copy_(x)
    spoiled[3] = torch.nan
    gate, index, counts, probs = route(spoiled, w, 2)
    healthy = torch.arange(12) != 3
    assert torch.equal(gate[healthy], expected[0][healthy])
    assert torch.equal(index[healthy], expected[1][healthy])
    assert probs[3].isnan().all()
    assert counts.sum() == 24
    assert ((index >= 0) & (index < 5)).all()


def test_no_items_give_empty_results():
    x, w = made(0, 6, 5)
    gate, index, counts, probs = route(x, w, 2)
    assert (gate.shape, index.shape, probs.shape, counts.tolist()) == ((0, 2), (0, 2), (0, 5), [0] * 5)
    dx, dw = torch.autograd.grad((gate.sum(), probs.sum()), (x, w))
    assert dx.shape == (0, 6)
    assert (dw == 0).all()


def test_the_most_experts_there_may_be_and_one_more():
    x, w = (t.detach() for t in made(5, 4, 257))
    x, w = x.double(), w.double()
    gate, index, counts, probs = route(x.float(), w[:256].float(), 3, 0.2)
    expected = reference.route(x, w[:256], 3, 0.2)
    assert torch.equal(index, expected[1])
    assert torch.equal(counts, expected[2])
    torch.testing.assert_close((gate, probs), (expected[0].float(), expected[3].float()))
    with pytest.raises(bodies.Unsupported, match="at most 256"):
        route_kernels.route(x.float(), w.float(), 3, 0.2)


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_gradients_without_memory_of_their_own_and_in_views_are_read_as_they_are(scale):
    x, w = made(21, 7, 5)
    gate, _, _, probs = route(x, w, 2, scale)
    dgate, dprobs = torch.randn(2, 21).T, torch.randn(1, 5).expand(21, 5)
    strided = torch.autograd.grad((gate, probs), (x, w), (dgate, dprobs), retain_graph=True)
    copied = torch.autograd.grad((gate, probs), (x, w), (dgate.contiguous(), dprobs.contiguous()))
    assert all(torch.equal(a, b) for a, b in zip(strided, copied, strict=True))


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_a_weight_gradient_summed_in_parts_is_that_of_the_specification(monkeypatch, scale):
    monkeypatch.setattr(configs, "moment_parts", lambda *_: 3)
    x, w = made(100, 5, 3)
    grads = []
    for leaves, body in (((x, w), route), (tuple(t.detach().double().requires_grad_() for t in (x, w)), None)):
        gate, _, _, probs = (body or reference.route)(*leaves, 2, scale)
        weight = torch.arange(300, dtype=gate.dtype).view(100, 3).sin()
        grads.append(torch.autograd.grad((gate[:, 0] * weight[:, 0]).sum() + (probs * weight).sum(), leaves))
    for grad, right in zip(*grads, strict=True):
        assert (grad.double() - right).norm() <= 2e-6 * right.norm()


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_a_nan_item_has_the_only_nan_gradient_of_items(scale):
    x, w = made(12, 6, 5)
    dprobs, grads = torch.randn(12, 5), []
    for spoil in (False, True):
        leaf = x.detach().clone()
        leaf[3] = torch.nan if spoil else leaf[3]
        leaf.requires_grad_()
        gate, _, _, probs = route(leaf, w, 2, scale)
        grads.append(torch.autograd.grad(gate[:, 0].sum() + (probs * dprobs).sum(), leaf)[0])
    healthy = torch.arange(12) != 3
    assert torch.equal(grads[0][healthy], grads[1][healthy])
    assert grads[1][3].isnan().all()


def test_calling_twice_is_bitwise_equal():
    x, w = made(70, 9, 6)
    runs = []
    for _ in range(2):
        gate, index, counts, probs = route(x, w, 2, 0.1)
        runs.append((gate, index, counts, probs, *torch.autograd.grad(gate[:, 0].sum() + probs[:, 1].sum(), (x, w))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
