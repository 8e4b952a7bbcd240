"""Sums of rows and their scaling, by hand from per-example gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from heatbath.curvature import Reduction, Sharing
from tests.curvature.truth import capture, error, factors, fill, optimizer_for
from tests.laws import noise


def example_gradients(model: nn.Module, x: Tensor, target: Tensor, loss) -> Tensor:
    """Gradient of each example's own loss in [W b] of the model, one Linear, `[N, O·(I+1)]`, by vmap."""
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    one = grad(lambda p, row, wanted: loss(functional_call(model, p, (row[None],))[0], wanted))
    found = vmap(one, (None, 0, 0))(parameters, x, target)
    return torch.cat((found["weight"], found["bias"][..., None]), -1).flatten(1)


def test_the_trace_of_the_block_is_the_mean_squared_gradient_where_inputs_have_one_norm():
    """tr(B ⊗ A) = (Σ|γ|²/N)(Σ|a|²/N) = Σ|γ|²|a|²/N = Σ|∇_n|²/N for |a| = 1: no factor of N or N² is lost."""
    model, x, target = fill(nn.Linear(3, 4)), F.normalize(noise(6, 3), dim=1), torch.arange(6) % 4
    block = capture(model, lambda: F.cross_entropy(model(x), target))[""]
    hot = F.one_hot(target, 4).double()
    gradients = example_gradients(model, x, hot, lambda y, wanted: -(wanted * y.log_softmax(-1)).sum())
    assert block.trace().item() == pytest.approx(gradients.square().sum(1).mean().item(), rel=1e-12)


@pytest.mark.parametrize("copies", [1, 2, 5])
@pytest.mark.parametrize("reduction", Reduction, ids=lambda r: r.name)
def test_factors_do_not_know_the_size_of_the_batch(copies, reduction):
    """Each example `copies` times over, in one pass or in as many passes: the same factors (kfac-pytorch: off by N)."""
    model = fill(nn.Linear(3, 4))
    x, target = noise(6, 5, 3), (torch.arange(30) % 4).reshape(6, 5)

    def loss(rows: Tensor, wanted: Tensor, parts: int = 1) -> Tensor:
        terms = F.cross_entropy(model(rows).transpose(1, 2), wanted, reduction="none")
        if reduction is Reduction.SUM:
            return terms.sum()
        return (terms.mean() if reduction is Reduction.ROWS else terms.sum(1).mean()) / parts

    once = capture(model, lambda: loss(x, target), reduction=reduction)[""]
    many = capture(model, lambda: loss(x.repeat(copies, 1, 1), target.repeat(copies, 1)), reduction=reduction)[""]
    parts = capture(model, lambda: sum(loss(x, target, copies) for _ in range(copies)), reduction=reduction)[""]
    for other in (many, parts):
        assert error(other.left.dense(), once.left.dense()) < 1e-13
        assert error(other.right.dense(), once.right.dense()) < 1e-13


def test_the_factors_of_a_scaled_loss_scale_by_its_square():
    """The empirical Fisher is made of squared gradients; the exact one scales with the loss (see tests/optim)."""
    model, x, target = fill(nn.Linear(3, 4)), noise(6, 3), torch.arange(6) % 4
    one, three = (capture(model, lambda: c * F.cross_entropy(model(x), target))[""] for c in (1.0, 3.0))  # noqa: B023
    torch.testing.assert_close(three.left.dense(), 9 * one.left.dense(), rtol=1e-12, atol=0)
    assert torch.equal(three.right.dense(), one.right.dense())


def test_reduce_averages_inputs_and_sums_gradients():
    model, x = fill(nn.Linear(3, 2)), noise(4, 5, 3)
    block = capture(model, lambda: model(x).sin().sum((1, 2)).mean(), sharing={"": Sharing.REDUCE})[""]
    y = model(x).detach()
    gamma = y.cos().sum(1)
    a = torch.cat((x.mean(1), torch.ones(4, 1, dtype=x.dtype)), 1)
    torch.testing.assert_close(block.left.dense()[0], gamma.mT @ gamma / 4, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(block.right.dense()[0], a.mT @ a / 4, rtol=1e-12, atol=1e-14)


def test_expand_and_reduce_agree_where_there_is_one_position():
    model, x = fill(nn.Linear(3, 2)), noise(6, 3)
    expand, reduce = (
        capture(model, lambda: model(x).sin().sum(1).mean(), sharing={"": how})[""] for how in (Sharing.EXPAND, Sharing.REDUCE)
    )
    assert error(reduce.dense(), expand.dense()) < 1e-13


@pytest.mark.parametrize("reduction", [Reduction.EXAMPLES, Reduction.ROWS])
def test_reduce_counts_the_terms_of_the_loss_and_not_its_own_rows(reduction):
    """Summed gradients of a mean over D terms: B = D Σ_n g_n g_nᵀ with D = N or N·S, whichever the loss averages over."""
    model, x = fill(nn.Linear(3, 2)), noise(4, 5, 3)
    terms = 4 if reduction is Reduction.EXAMPLES else 20
    block = capture(model, lambda: model(x).sin().sum() / terms, sharing={"": Sharing.REDUCE}, reduction=reduction)[""]
    gamma = model(x).detach().cos().sum(1)
    torch.testing.assert_close(block.left.dense()[0], gamma.mT @ gamma / terms, rtol=1e-12, atol=1e-14)


def test_reduce_is_refused_for_embeddings():
    table, tokens = fill(nn.Embedding(5, 3)), torch.tensor([[0, 1], [2, 3]])
    with pytest.raises(ValueError, match=r"reduce cannot average one-hot inputs; use Sharing\.EXPAND for embeddings"):
        capture(table, lambda: table(tokens).sum(), sharing={"": Sharing.REDUCE})


def test_padding_rows_of_a_bag_are_not_counted():
    """Bags of 3 and 1 words: four rows, not six."""
    bag = fill(nn.EmbeddingBag(5, 3, mode="sum"))
    words, offsets = torch.tensor([0, 1, 1, 4]), torch.tensor([0, 3])
    block = capture(bag, lambda: bag(words, offsets).sin().sum(1).mean())[""]
    counts = torch.tensor([1, 2, 0, 0, 1]).double()
    torch.testing.assert_close(block.right.dense()[0].diagonal(), counts / 4, rtol=1e-14, atol=0)


def test_a_smaller_last_batch_means_the_same_to_a_normalization_layer():
    """Averages of factors of batches of 8 and of 2 copies of the same examples are those of either."""
    norm, x = fill(nn.LayerNorm(3)), noise(2, 4, 3)
    weights = noise(4, 3, seed=3)
    optimizer = optimizer_for(norm)
    blocks = []
    for batch in (x, x.repeat(4, 1, 1), x):
        (norm(batch) * weights).sin().sum((1, 2)).mean().backward()
        blocks.append(factors(optimizer)[""].dense())
    assert error(blocks[1], blocks[0]) < 1e-12
    assert error(blocks[2], blocks[0]) < 1e-12


def test_a_layer_whose_rows_are_folded_into_the_batch_has_the_same_curvature():
    """[N, S, I] or [N·S, I] into one Linear is one network; the loss is a mean over N examples either way."""

    class Folded(nn.Module):
        def __init__(self, fold: bool) -> None:
            super().__init__()
            self.layer, self.fold = nn.Linear(3, 2), fold

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2]) if self.fold else self.layer(x)

    blocks = []
    for fold in (False, True):
        model, x = fill(Folded(fold)), noise(4, 5, 3)
        blocks.append(capture(model, lambda: model(x).sin().sum((1, 2)).mean())["layer"].dense())  # noqa: B023
    assert error(blocks[1], blocks[0]) < 1e-12
