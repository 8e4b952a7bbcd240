"""The absolute size of blocks: B ⊗ A against the dense Gauss–Newton block, not only its direction.

Each network here is linear in its parameters and keeps positions apart, so K-FAC is exact and any other count of rows or of
loss terms shows as a factor.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.curvature import Categorical, EmpiricalFisher, ExactFisher, Gaussian, InputOnly, Reduction
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


# --- every layout of outputs × reduction × Fisher --------------------------------------------------------------------------

EXAMPLES, POSITIONS, CLASSES, WIDTH = 4, 7, 3, 5


class Turned(nn.Module):
    """A head of positions whose classes come second in the end, `[B, C, ...]`, as `nn.CrossEntropyLoss` wants it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).movedim(-1, 1)


class Parts(nn.Module):
    """A last layer that is no module, so that nothing but the likelihood tells classes from positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, WIDTH)
        self.head = nn.Parameter(torch.zeros(CLASSES, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) @ self.head.mT


def tokens(*shape: int) -> Tensor:
    return torch.randint(6, shape, generator=torch.Generator().manual_seed(0))


LAYOUTS = {  # model, input, dimension of the classes
    "B C": (nn.Linear(2, CLASSES), noise(EXAMPLES, 2), 1),
    "B T C": (nn.Linear(2, CLASSES), noise(EXAMPLES, POSITIONS, 2), -1),
    "B C T": (Turned(nn.Linear(2, CLASSES)), noise(EXAMPLES, POSITIONS, 2), 1),
    "B C T, convolution": (nn.Conv1d(2, CLASSES, 1), noise(EXAMPLES, 2, POSITIONS), 1),
    "B T C of tokens": (nn.Sequential(nn.Embedding(6, 2), nn.Linear(2, CLASSES)), tokens(EXAMPLES, POSITIONS), -1),
    "B C T of tokens": (Turned(nn.Embedding(6, 2), nn.Linear(2, CLASSES)), tokens(EXAMPLES, POSITIONS), 1),
    "B H W C": (nn.Linear(2, CLASSES), noise(EXAMPLES, 6, 6, 2), -1),
    "B C H W": (nn.Conv2d(2, CLASSES, 1), noise(EXAMPLES, 2, 6, 5), 1),
    "B C H W, enlarged": (nn.Sequential(nn.Conv2d(2, CLASSES, 1), nn.Upsample(scale_factor=2)), noise(EXAMPLES, 2, 6, 5), 1),
    "B C D H W": (nn.Conv3d(2, CLASSES, 1), noise(EXAMPLES, 2, 2, 6, 5), 1),
}


def rows_of(outputs: Tensor, dim: int) -> Tensor:
    """`[B, R, C]`."""
    moved = outputs.movedim(dim, -1)
    return moved.reshape(len(moved), -1, moved.shape[-1])


def summed(logits: Tensor, target: Tensor, dim: int, reduction: Reduction | None) -> Tensor:
    """Cross-entropy, joined as the reduction says."""
    rows = rows_of(logits, dim)
    total = F.cross_entropy(rows.flatten(0, 1), target.flatten(), reduction="sum")
    divisor = {Reduction.SUM: 1, Reduction.ROWS: target.numel()}.get(reduction, len(logits))
    return total / divisor


@pytest.mark.parametrize("kind", ["empirical", "observed", "exact"])
@pytest.mark.parametrize("reduction", [None, *Reduction], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_output_factor_has_its_absolute_size(layout, reduction, kind):
    """B of the last layer is (1/D) Σ γ γᵀ with γ = p − e_t, or (1/D) Σ (diag p − p pᵀ)."""
    model, x, dim = LAYOUTS[layout]
    fill(model)
    likelihood = Categorical(class_dim=dim)
    if kind != "empirical" and reduction is None:
        reduction = Reduction.EXAMPLES  # None stands for all terms of observed outputs
    fisher = {"empirical": lambda _: EmpiricalFisher(), "observed": EmpiricalFisher, "exact": ExactFisher}[kind](likelihood)
    optimizer = observer(model, fisher, reduction=reduction)
    outputs = model(x)
    rows = rows_of(outputs.detach(), dim)
    target = torch.arange(rows.shape[:2].numel()).reshape(rows.shape[:2]) % CLASSES
    seen = outputs if kind == "empirical" else optimizer.observe(outputs, target if dim == -1 and rows.ndim == 2 else None)
    summed(seen, target, dim, reduction).backward()
    site = next(name for name in factors(optimizer) if "Embedding" not in type(model.get_submodule(name)).__name__)
    found = next(s for s in optimizer.stacks if s.places[0].site.name == site).mean
    terms = target.numel() if reduction is Reduction.ROWS else EXAMPLES
    p = rows.softmax(-1)
    gamma = p - F.one_hot(target, CLASSES)
    if kind == "exact":
        truth = (torch.diag_embed(p) - p[..., :, None] * p[..., None, :]).sum((0, 1)) / terms
    else:
        truth = torch.einsum("brc,brd->cd", gamma, gamma) / terms
    if layout == "B C H W, enlarged" and kind != "exact":  # four positions of the outputs meet in a row
        grouped = gamma.reshape(EXAMPLES, 6, 2, 5, 2, CLASSES).sum((2, 4))
        truth = torch.einsum("bhwc,bhwd->cd", grouped, grouped) / terms
    assert error(found.left.dense()[0], truth) < ROUNDING


@pytest.mark.parametrize("fisher", [EmpiricalFisher, InputOnly])
def test_positions_that_nothing_tells_from_classes_are_refused_until_the_likelihood_says_it(fisher):
    x = noise(EXAMPLES, POSITIONS, 2)
    model = fill(Parts())
    optimizer = observer(model, fisher(), reduction=Reduction.ROWS)
    summed(model(x), torch.zeros(EXAMPLES, POSITIONS, dtype=torch.int64), -1, Reduction.ROWS).backward()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"Reduction.ROWS counts positions.*Categorical\(class_dim=1\)"):
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))
    for dim, terms in ((-1, EXAMPLES * POSITIONS), (1, EXAMPLES * CLASSES)):
        optimizer = observer(model, fisher(Categorical(class_dim=dim)), reduction=Reduction.ROWS)
        model.zero_grad()
        model(x).square().mean().backward()
        assert optimizer.capture.terms.popitem()[1] == (EXAMPLES, terms)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo's own
@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_that_returns_its_loss_counts_the_rows_of_its_head(compiled):
    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv1d(2, CLASSES, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.inner(x), y)

    model = fill(Scored())
    optimizer = observer(model, EmpiricalFisher(), reduction=Reduction.ROWS)
    torch._dynamo.reset()
    run = torch.compile(model, backend="aot_eager") if compiled else model
    run(noise(EXAMPLES, 2, POSITIONS), torch.zeros(EXAMPLES, POSITIONS, dtype=torch.int64)).backward()
    assert list(optimizer.capture.terms.values()) == [(EXAMPLES, EXAMPLES * POSITIONS)]
    torch._dynamo.reset()


@pytest.mark.parametrize("dim", [1, -1])
def test_observed_targets_count_ignored_terms_out_of_the_empirical_fisher(dim):
    """Half the tokens ignored: B is the mean over those that count, and twice that without `observe`."""
    model, target = fill(nn.Linear(2, CLASSES)), torch.arange(EXAMPLES * 6).reshape(EXAMPLES, 6) % CLASSES
    target[:, ::2] = -100
    x = noise(EXAMPLES, 6, 2)
    for observed in (True, False):
        optimizer = observer(model, EmpiricalFisher(Categorical(class_dim=dim)), reduction=Reduction.ROWS)
        outputs = model(x) if dim == -1 else model(x).mT
        if observed:
            optimizer.observe(outputs, target)
        F.cross_entropy(rows_of(outputs, dim).flatten(0, 1), target.flatten()).backward()
        gamma = (model(x).detach().softmax(-1) - F.one_hot(target.clamp_min(0), CLASSES))[target >= 0]
        share = 1 if observed else 2
        truth = share * gamma.mT @ gamma / len(gamma)
        assert optimizer.passes == {}
        if dim == -1 or observed:
            assert error(factors(optimizer)[""].left.dense()[0], truth) < ROUNDING
        optimizer.capture.detach()
        model.zero_grad()
