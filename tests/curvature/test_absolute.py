"""The absolute size of blocks: B ⊗ A against the dense Gauss–Newton block, not only its direction.

Each network here is linear in its parameters and keeps positions apart, so K-FAC is exact and any other count of rows or of
loss terms shows as a factor.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.curvature import Categorical, ExactFisher, Gaussian
from tests.curvature.test_fisher import observer
from tests.curvature.truth import capture, error, factors, fill, ggn_block, optimizer_for
from tests.laws import noise

ROUNDING = 1e-12


def mean_squared(outputs: Tensor) -> list[Tensor]:
    """Columns of the root of 2 I, the Hessian of one term (z − t)²."""
    size = outputs.shape[-1]
    return [2**0.5 * torch.eye(size, dtype=outputs.dtype)[c].expand_as(outputs) for c in range(size)]


# --- padding -----------------------------------------------------------------------------------------------------------

WORDS = torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0], [5, 4, 1, 0]])
BAGS = torch.tensor([[0, 1, 0], [3, 0, 0], [0, 0, 5], [0, 3, 0]])  # one word each: words of one bag mix in its output


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap over the bags of the dense Jacobian
@pytest.mark.parametrize(
    "table,ids",
    [
        (nn.Embedding(6, 4), WORDS),
        (nn.Embedding(6, 4, padding_idx=0), WORDS),
        (nn.EmbeddingBag(6, 4, padding_idx=0, mode="sum"), BAGS),
        (nn.EmbeddingBag(6, 4, padding_idx=0, mode="mean"), BAGS),
    ],
    ids=["no padding", "words", "bags summed", "bags averaged"],
)
def test_padding_leaves_the_block_of_a_table_its_size(table, ids):
    model = fill(nn.Sequential(table, nn.Linear(4, 3)))
    optimizer = observer(model, ExactFisher(Gaussian(2.0)))
    optimizer.observe(model(ids)).square().mean().backward()
    found = factors(optimizer)["0"].dense()[0]
    terms = model(ids).numel()
    assert error(found, ggn_block(model, "0", ids, mean_squared, terms)[0]) < ROUNDING


def test_padding_differs_from_batch_to_batch_without_a_trace():
    """Two micro-batches with different shares of padding are one batch."""
    found = []
    for batches in ([WORDS], [WORDS[:1], WORDS[1:]]):
        model = fill(nn.Sequential(nn.Embedding(6, 4, padding_idx=0), nn.Linear(4, 3)))
        optimizer = observer(model, ExactFisher(Gaussian(2.0)))
        for ids in batches:
            optimizer.observe(model(ids)).square().mean().backward()
        found.append(factors(optimizer)["0"].dense())
    assert error(found[0], found[1]) < ROUNDING


# --- hooks that were there before ----------------------------------------------------------------------------------------


class Tripled(nn.Module):
    """What a hook that multiplies by three makes of a layer, written as a module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.inner(x)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("first", [True, False], ids=["hook first", "optimizer first"])
def test_a_hook_that_changes_an_output_is_a_layer_behind_it(first, compiled):
    x, y = noise(7, 3), noise(7, 2, seed=1)
    hooked = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    wrapped = fill(nn.Sequential(Tripled(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)))
    if first:
        hooked[0].register_forward_hook(lambda module, args, output: 3 * output)
    optimizer = optimizer_for(hooked)
    if not first:
        hooked[0].register_forward_hook(lambda module, args, output: 3 * output)
    torch._dynamo.reset()
    run = torch.compile(hooked, backend="aot_eager") if compiled else hooked
    F.mse_loss(run(x), y).backward()
    found = factors(optimizer)
    truth = capture(wrapped, lambda: F.mse_loss(wrapped(x), y))
    assert error(found["0"].dense(), truth["0.inner"].dense()) < ROUNDING
    assert error(found["2"].dense(), truth["2"].dense()) < ROUNDING
    torch._dynamo.reset()


# --- attention -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_weights_of_each_head_change_no_gradient(batch_first, use_weights):
    """Whether weights are returned by head or averaged, Σ g aᵀ is the gradient."""
    for average in (True, False):
        layer = fill(nn.MultiheadAttention(4, 2, batch_first=batch_first))
        optimizer = optimizer_for(layer)
        gradients: dict[str, Tensor] = {}

        def note(site, pass_number, rows, kept=gradients) -> None:
            for i, row in enumerate(rows):
                sums = torch.einsum("pbso,pbsi->poi", row.outputs, row.inputs)
                kept[str(i)] = kept.get(str(i), 0) + sums

        sink = type("Sink", (), {"note": lambda self, *told: note(*told)})()
        optimizer.capture.connect(sink.note)
        x = noise(3, 5, 4)
        output, weights = layer(x, x, x, average_attn_weights=average)
        loss = output.sin().sum() + (weights.square().sum() if use_weights else 0)
        loss.backward()
        inner = gradients["0"]
        truth = torch.cat((layer.in_proj_weight.grad, layer.in_proj_bias.grad[:, None]), 1).reshape(inner.shape)
        assert error(inner, truth) < ROUNDING
        last = torch.cat((layer.out_proj.weight.grad, layer.out_proj.bias.grad[:, None]), 1)
        assert error(gradients["1"][0], last) < ROUNDING


# --- classes that are ignored ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignore_index", [-100, 255])
def test_weighted_classes_may_ignore_an_index_beyond_them(ignore_index):
    """Segmentation's usual 255: the block is that of the terms that count, weighted by the class of the target."""
    model, x = fill(nn.Linear(3, 4)), noise(6, 3)
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    target = torch.tensor([0, ignore_index, 3, 2, ignore_index, 1])
    optimizer = observer(model, ExactFisher(Categorical(weight=weight, ignore_index=ignore_index)))
    loss = F.cross_entropy(optimizer.observe(model(x), target), target, weight=weight, ignore_index=ignore_index)
    loss.backward()
    kept = target != ignore_index
    of_target = weight[target[kept]]
    p = model(x[kept]).detach().softmax(-1)
    hessian = of_target[:, None, None] * (torch.diag_embed(p) - p[:, :, None] * p[:, None, :])
    left = hessian.sum(0) / of_target.sum()
    every = torch.cat((x, torch.ones(6, 1, dtype=x.dtype)), 1)
    found = factors(optimizer)[""]
    assert error(found.left.dense()[0], left) < ROUNDING
    assert error(found.right.dense()[0], every.mT @ every / 6) < ROUNDING
