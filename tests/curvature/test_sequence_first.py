"""Sequence-first models: with `Policy(batch_dim=1)` everything is as in the same model with examples first."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.curvature import Categorical, ExactFisher, Reduction, Sharing
from heatbath.optim import KFAC, Policy, QuadraticModel
from heatbath.solvers import Eigen
from tests.curvature.truth import fill
from tests.laws import fresh
from tests.zoo import PLAIN

EXAMPLES, POSITIONS, CLASSES = 8, 5, 6  # enough for factors whose eigenvectors are unique


class Tagger(nn.Module):
    """Tokens to classes, position by position but for attention; a summary of each example joins in, without positions."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.table, self.norm, self.first = nn.Embedding(6, 4), nn.LayerNorm(4), nn.Linear(4, 4)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=batch_first)
        self.summary, self.last = nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.time = 1 if batch_first else 0

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.first(self.norm(self.table(tokens))).tanh()
        h = h + self.attend(h, h, h)[0]
        return self.last(h + self.summary(h.mean(self.time)).unsqueeze(self.time))


def trained(batch_first: bool, policy: Policy, *, compiled: bool = False, solver=None) -> KFAC:
    """Two steps on the same tokens, either way round."""
    model = fill(Tagger(batch_first))
    optimizer = KFAC(model, lr=0.1, damping=0.1, solver=solver, policy=policy)
    forward = torch.compile(model, backend="aot_eager") if compiled else model
    for seed in range(2):
        tokens = torch.randint(6, (EXAMPLES, POSITIONS), generator=fresh(seed))
        classes = torch.randint(CLASSES, (EXAMPLES, POSITIONS), generator=fresh(10 + seed))
        if not batch_first:
            tokens, classes = tokens.T.contiguous(), classes.T.contiguous()
        outputs = optimizer.observe(forward(tokens), classes)
        loss = F.cross_entropy(outputs.flatten(0, 1), classes.flatten(), reduction="sum")
        divisor = {Reduction.ROWS: tokens.numel(), Reduction.SUM: 1, Reduction.EXAMPLES: EXAMPLES, None: tokens.numel()}
        optimizer.zero_grad()
        (loss / divisor[policy.reduction]).backward()
        optimizer.step()
    return optimizer


POLICIES = {
    "examples": replace(PLAIN, reduction=Reduction.EXAMPLES),
    "rows": replace(PLAIN, reduction=Reduction.ROWS),
    "sum": replace(PLAIN, reduction=Reduction.SUM),
    "reduce": replace(PLAIN, reduction=Reduction.ROWS, sharing={"first": Sharing.REDUCE, "last": Sharing.REDUCE}),
    "exact": replace(PLAIN, fisher=ExactFisher(Categorical(class_dim=-1))),
    "quadratic": replace(PLAIN, quadratic=QuadraticModel(Categorical(class_dim=-1))),
    "corrected": replace(PLAIN, reduction=Reduction.ROWS, corrected=True),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo's own
@pytest.mark.parametrize(
    "name,compiled", [*((name, False) for name in POLICIES), pytest.param("examples", True, marks=pytest.mark.slow)]
)
def test_a_sequence_first_model_is_treated_as_its_batch_first_twin(name, compiled):
    policy = POLICIES[name]
    solver = Eigen() if policy.corrected else None
    truth = trained(True, policy, solver=solver)
    found = trained(False, replace(policy, batch_dim=1), compiled=compiled, solver=solver)  # warnings are errors here
    for one, two in zip(truth.stacks, found.stacks, strict=True):
        assert one.names == two.names
        torch.testing.assert_close(two.mean.left.dense(), one.mean.left.dense(), rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(two.mean.right.dense(), one.mean.right.dense(), rtol=1e-10, atol=1e-13)
    for p, q in zip(truth.model.parameters(), found.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_model_that_is_the_other_way_round_is_noticed(batch_first):
    """By its attention, which knows better."""
    wrong = int(batch_first)
    way = "batch" if batch_first else "sequence"
    with pytest.warns(UserWarning, match=rf"attend sees .* say Policy\(batch_dim={1 - wrong}\) if the model is {way}-first"):
        trained(batch_first, replace(POLICIES["examples"], batch_dim=wrong))


def test_the_batch_dimension_is_checked():
    with pytest.raises(ValueError, match="batch_dim must be 0, or 1 for sequence-first models, got 2"):
        Policy(batch_dim=2)
