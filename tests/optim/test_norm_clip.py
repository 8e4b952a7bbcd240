"""Steps of bounded length."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from heatbath.optim import KFAC, KLClip, NormClip, Unclipped
from tests.laws import batches, fresh, parameters_of
from tests.optim.test_precondition import without_fallback
from tests.zoo import PLAIN


@pytest.mark.parametrize("radius,clipped", [(1e-3, True), (1e3, False)])
def test_the_first_step_is_no_longer_than_the_radius_and_else_untouched(radius, clipped):
    """Without momentum lr·v is the step: exactly the radius where clipped, the unclipped step where not."""
    steps = []
    for trust in (NormClip(radius), Unclipped()):
        model = without_fallback()
        optimizer = KFAC(model, lr=0.5, momentum=0.0, policy=replace(PLAIN, trust=trust))
        x, y = batches(1)[0]
        before = parameters_of(model)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        steps.append(torch.cat([(p.detach() - q).flatten() for p, q in zip(model.parameters(), before, strict=True)]))
    bounded, free = steps
    assert bounded.norm().item() == pytest.approx(min(radius, free.norm().item()), rel=1e-6)
    torch.testing.assert_close(bounded / bounded.norm(), free / free.norm(), rtol=1e-6, atol=1e-9)
    assert (bounded.norm() < free.norm()) == clipped


def test_with_momentum_the_length_is_that_a_sustained_step_grows_to():
    rule, seen = NormClip(1.0), []

    class Spy:
        def __call__(self, predicted, length, /):
            seen.append((predicted, length()))
            return rule(predicted, length)

    model = without_fallback()
    optimizer = KFAC(model, lr=0.5, momentum=0.9, policy=replace(PLAIN, trust=Spy()))
    x, y = batches(1)[0]
    before = parameters_of(model)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    first = torch.cat([(p.detach() - q).flatten() for p, q in zip(model.parameters(), before, strict=True)]).norm()
    ((predicted, length),) = seen
    scale = min(1.0, 1.0 / length.item())
    assert length.item() == pytest.approx(10 * first.item() / scale, rel=1e-6)
    assert predicted > 0


def test_rules_that_need_no_length_do_not_compute_it():
    def length() -> torch.Tensor:
        raise AssertionError("not asked for")

    predicted = torch.rand((), generator=fresh())
    assert KLClip()(predicted, length) <= 1
    assert Unclipped()(predicted, length) == 1
    assert NormClip(1.0)(predicted, lambda: torch.zeros(())) == 1


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan")])
def test_a_radius_that_is_not_positive_is_refused(radius):
    with pytest.raises(ValueError, match=r"radius must be positive, got .*; pass trust=Unclipped\(\) for no clipping"):
        NormClip(radius)
