"""The MoE layer's contracts (design section 4): one test each, over every bank, selector and scorer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from moevision.moe import (
    BalanceLoss,
    Context,
    ConvExperts,
    Dense,
    ExactMomentScorer,
    FFNExperts,
    FiLMExperts,
    LinearFiLMExperts,
    LinearScorer,
    LiteralUncertaintyScorer,
    MoELayer,
    NoisyTopK,
    PooledScorer,
    RepairedUncertaintyScorer,
    Router,
    SoftAll,
    Sorted,
    SparseFilterExperts,
    TopK,
    importance_loss,
    load_loss,
    switch_loss,
    z_loss,
)
from moevision.moe.experts import DenseFFN

DIM, HIDDEN, EXPERTS = 6, 10, 5
BANKS = {
    "ffn": lambda: FFNExperts(EXPERTS, DIM, HIDDEN),
    "film": lambda: FiLMExperts(EXPERTS, DIM, HIDDEN),
    "film hidden": lambda: FiLMExperts(EXPERTS, DIM, HIDDEN, site="hidden"),
    "film outputs": lambda: FiLMExperts(EXPERTS, DIM, HIDDEN, fuse="outputs"),
    "film linear": lambda: LinearFiLMExperts(EXPERTS, DIM, HIDDEN),
    "sparse filter": lambda: SparseFilterExperts(EXPERTS, DIM, 3, 2),
}
SPARSE = ("w_down", "b_down", "w_up", "b_up")
SELECTORS = {"top 1": lambda: TopK(1), "top 2": lambda: TopK(2), "top E": lambda: TopK(EXPERTS), "all": SoftAll}
SCORERS = {
    "linear": lambda: LinearScorer(DIM, EXPERTS),
    "exact": lambda: ExactMomentScorer(DIM, EXPERTS),
    "repaired": lambda: RepairedUncertaintyScorer(DIM, EXPERTS),
    "literal": lambda: LiteralUncertaintyScorer(DIM, EXPERTS),
}


def layer(bank="ffn", selector="top 2", scorer="exact", dispatcher=None, **options):
    torch.manual_seed(0)
    losses = [BalanceLoss("switch", switch_loss, 0.1), BalanceLoss("importance", importance_loss, 0.1)]
    router = Router(SCORERS[scorer](), SELECTORS[selector](), losses)
    return MoELayer("layer", router, BANKS[bank](), dispatcher, **options).double()


def items(count=12, seed=1):
    return torch.randn(count, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value_and_gradients(module, x):
    x = x.clone().requires_grad_()
    y = module(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()], allow_unused=True)]


@pytest.mark.parametrize("count", [0, 1, 12])
@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("bank", BANKS)
def test_sorted_equals_dense_forward_and_backward(bank, selector, count):
    fast, slow = layer(bank, selector, dispatcher=Sorted()), layer(bank, selector, dispatcher=Dense())
    for a, b in zip(value_and_gradients(fast, items(count)), value_and_gradients(slow, items(count)), strict=True):
        torch.testing.assert_close(torch.zeros_like(b) if a is None and b is not None else a, b, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("bank", BANKS)
def test_sorted_equals_dense_when_all_items_choose_one_expert(bank):
    fast, slow = layer(bank, "top 1", "linear", Sorted()), layer(bank, "top 1", "linear", Dense())
    for module in (fast, slow):
        with torch.no_grad():
            module.router.scorer.weight.zero_()
            module.router.scorer.weight[3] = 1.0
    x = items().abs()  # expert 3 wins everywhere, the other four stay empty
    context = Context()
    fast(x, context)
    assert context.records["layer"].routing.counts_E.tolist() == [0, 0, 0, 12, 0]
    for a, b in zip(value_and_gradients(fast, x), value_and_gradients(slow, x), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("bank", ["ffn", "film", "sparse filter"])
def test_permuting_experts_together_with_router_rows_changes_nothing(bank, scorer):
    module, x = layer(bank, scorer=scorer), items()
    before = module(x)
    order = torch.tensor([3, 0, 4, 1, 2])
    stacked = {"ffn": ("w1", "b1", "w2", "b2"), "film": ("gamma", "beta"), "sparse filter": SPARSE}[bank]
    with torch.no_grad():
        for parameter in (module.router.scorer.weight, *(getattr(module.experts, name) for name in stacked)):
            parameter.copy_(parameter[order])
    torch.testing.assert_close(module(x), before)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("bank", BANKS)
def test_one_item_alone_equals_the_same_item_in_a_batch(bank, scorer):
    module, x = layer(bank, scorer=scorer).eval(), items()
    together = module(x)
    alone = torch.cat([module(row[None]) for row in x])
    torch.testing.assert_close(alone, together)


@pytest.mark.parametrize("scorer", SCORERS)
def test_evaluation_is_bit_equal_from_call_to_call(scorer):
    module, x = layer(scorer=scorer).eval(), items()
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize("scorer", SCORERS)
def test_training_and_evaluation_route_alike(scorer):
    module, x = layer(scorer=scorer), items()
    assert torch.equal(module.train()(x), module.eval()(x))


def test_a_state_dict_holds_all_experts_stacked():
    state = layer("ffn").state_dict()
    assert state["experts.w1"].shape == (EXPERTS, DIM, HIDDEN)
    assert state["router.scorer.weight"].shape == (EXPERTS, DIM)


def test_checkpointing_a_layer_counts_its_losses_once():
    module, x = layer(), items().requires_grad_()
    plain, twice = Context(), Context()
    module(x, plain)
    y = checkpoint(module, x, twice, use_reentrant=False)
    y.sum().backward()
    assert list(twice.records) == ["layer"]
    torch.testing.assert_close(torch.as_tensor(twice.auxiliary_loss()), torch.as_tensor(plain.auxiliary_loss()))


def test_load_sums_to_the_slots_and_weights_to_one():
    context = Context()
    layer()(items(), context)
    routing = context.records["layer"].routing
    assert routing.counts_E.sum() == 12 * 2
    torch.testing.assert_close(routing.weight_NK.sum(1), torch.ones(12, dtype=torch.float64))


def test_a_shared_expert_is_added_for_every_item():
    torch.manual_seed(3)
    shared = DenseFFN(DIM, HIDDEN).double()
    x = items()
    torch.testing.assert_close(layer(shared=shared)(x), layer()(x) + shared(x))


def test_feature_maps_keep_their_shape():
    assert layer()(items(24).view(2, 3, 4, DIM)).shape == (2, 3, 4, DIM)


def test_an_allowed_expert_mask_keeps_each_modality_to_its_experts():
    torch.manual_seed(0)
    router = Router(LinearScorer(DIM, EXPERTS), TopK(3)).double()
    allowed = torch.tensor([[True, True, False, False, False], [False, False, True, True, True]])
    modality = torch.tensor([0, 1] * 6)
    routing = router(items(), allowed, Context(modality=modality))
    assert set(routing.index_NK[modality == 0].unique().tolist()) <= {-1, 0, 1}
    assert set(routing.index_NK[modality == 1].unique().tolist()) == {2, 3, 4}
    assert (routing.index_NK[modality == 0] == -1).sum() == 6
    torch.testing.assert_close(routing.weight_NK.sum(1), torch.ones(12, dtype=torch.float64))


def test_a_bias_speaks_for_an_expert_and_none_changes_nothing():
    torch.manual_seed(0)
    router = Router(LinearScorer(DIM, EXPERTS), TopK(2)).double()
    told = router(items(), bias_NE=torch.eye(EXPERTS, dtype=torch.float64)[2:3] * 100)
    assert (told.index_NK[:, 0] == 2).all()
    plain, zero = router(items()), router(items(), bias_NE=torch.zeros(1, EXPERTS, dtype=torch.float64))
    torch.testing.assert_close(zero.weight_NK, plain.weight_NK)
    assert torch.equal(zero.index_NK, plain.index_NK)


@pytest.mark.parametrize(("loss", "balanced"), [(switch_loss, 1.0), (importance_loss, 0.0), (load_loss, 0.0)])
def test_balance_losses_are_smallest_when_the_load_is_even(loss, balanced):
    even = Router(LinearScorer(EXPERTS, EXPERTS), TopK(1)).double()
    with torch.no_grad():
        even.scorer.weight.copy_(torch.eye(EXPERTS))
    one_each = even(torch.eye(EXPERTS, dtype=torch.float64) * 9)
    all_on_one = even(torch.eye(EXPERTS, dtype=torch.float64)[:1].expand(EXPERTS, -1) * 9)
    assert float(loss(one_each).detach()) == pytest.approx(balanced, abs=1e-3)
    assert loss(all_on_one) > loss(one_each) + 0.5


def test_z_loss_grows_as_the_router_becomes_unsure():
    torch.manual_seed(0)
    router = Router(LinearScorer(DIM, EXPERTS), TopK(1)).double()
    assert z_loss(router(items() * 0.01)) > z_loss(router(items() * 10))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.floats(0.05, 0.4), st.integers(0, 1000))
def test_exact_moments_are_those_of_many_dropout_samples(rate, seed):
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(2, 64, dtype=torch.float64, generator=generator) / 8 for _ in range(2))
    keep = (torch.rand(20_000, 64, generator=generator, dtype=torch.float64) >= rate) / (1 - rate)
    sampled = torch.einsum("nd,md,ed->mne", x, keep, w)
    exact_variance = rate / (1 - rate) * (x.square() @ w.square().T)
    torch.testing.assert_close(sampled.var(0), exact_variance, rtol=0.1, atol=1e-6)


def test_the_literal_router_is_signed_before_the_softmax_and_the_others_keep_the_linear_order():
    torch.manual_seed(0)
    x = torch.randn(64, DIM)
    literal = SCORERS["literal"]()(x)
    assert (literal < 0).float().mean() > 0.3
    scorer = ExactMomentScorer(DIM, EXPERTS)
    plain = x @ scorer.weight.T
    assert (scorer(x).argmax(1) == plain.argmax(1)).float().mean() > 0.9
    assert (scorer(x).softmax(1).amax(1) <= plain.softmax(1).amax(1) + 1e-6).float().mean() > 0.9


def test_convolution_experts_in_a_graph_give_what_they_give_elsewhere(monkeypatch):
    bank = ConvExperts(3, DIM, HIDDEN, 4)
    x_NCHW, index_N = torch.randn(6, DIM, 5, 7), torch.tensor([2, 0, -1, 1, 2, 3])
    wanted = bank(x_NCHW, index_N)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(bank(x_NCHW, index_N), wanted)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_convolution_experts_equal_the_dense_reference_for_any_windows_and_empty_ones(windows, height, width, seed):
    torch.manual_seed(seed)
    bank = ConvExperts(3, DIM, HIDDEN, 4).double()
    x = torch.randn(windows, DIM, height, width, dtype=torch.float64, requires_grad=True)
    index = torch.randint(-1, 4, (windows,))  # -1 and 3 name no expert
    y = bank(x, index)
    known = ((index >= 0) & (index < 3)).nonzero()[:, 0]
    expected = torch.zeros_like(y).index_put((known,), bank.all(x)[known, index[known]])
    torch.testing.assert_close(y, expected)
    if len(known):
        fast, slow = (torch.autograd.grad(t.square().sum(), [x, *bank.parameters()]) for t in (y, expected))
        for a, b in zip(fast, slow, strict=True):
            torch.testing.assert_close(a, b)


def test_a_single_expert_can_be_trained():
    bank = ConvExperts(1, DIM, HIDDEN, 4)
    bank(torch.randn(2, DIM, 5, 5), torch.zeros(2, dtype=torch.int64)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in bank.parameters())
    first, bias = bank.w1.grad.untyped_storage(), bank.b1.grad.untyped_storage()
    assert first.data_ptr() != bias.data_ptr()


def test_noisy_top_k_explores_in_training_and_is_plain_top_k_in_evaluation():
    logits = torch.zeros(400, EXPERTS)
    noisy = NoisyTopK(2)
    torch.manual_seed(0)
    assert (noisy.train()(logits).counts_E > 0).all()
    assert noisy.fused_k() is None
    for mine, plain in zip(vars(noisy.eval()(logits)).values(), vars(TopK(2)(logits)).values(), strict=True):
        assert mine is plain is None or torch.equal(mine, plain)
    assert noisy.fused_k() == 2


def test_a_pooled_scorer_starts_undecided_and_learns():
    torch.manual_seed(0)
    scorer = PooledScorer(DIM, 8, EXPERTS)
    x = torch.randn(7, DIM)
    assert not scorer(x).any()
    scorer(x)[:, 0].sum().backward()
    assert scorer.logits.weight.grad.abs().sum() > 0
    assert scorer.bfloat16()(x.bfloat16()).dtype == torch.float32
