"""The application of a prepared state as a list of device operations that can be played again: what a CUDA graph needs.

A trace by `make_fx` holds what was given to the device and nothing else, as a CUDA graph does: a host number that was read, or
that changed since, would be missing in it.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from heatbath.optim import KFAC, KLClip, MatchedRMS, NormClip, Policy
from heatbath.optim.options import check_generator
from heatbath.solvers import Cholesky, Eigen, NewtonSchulz
from tests.laws import batches, network, train
from tests.optim.test_no_sync import NoReads


def after_three_steps(solver, trust) -> tuple[nn.Module, KFAC]:
    model = network()
    policy = Policy(2, 2, 0, trust=trust)
    lr = torch.tensor(0.05, dtype=torch.float64)
    optimizer = KFAC(model, lr=lr, damping=0.1, weight_decay=0.1, solver=solver, policy=policy)
    train(model, optimizer, batches(3))
    return model, optimizer


@pytest.mark.parametrize("solver", [Cholesky(), NewtonSchulz(), Eigen()], ids=["c", "n", "e"])
@pytest.mark.parametrize("trust", [KLClip(), NormClip(0.1), MatchedRMS()], ids=["kl", "norm", "rms"])
def test_a_recorded_application_played_on_new_gradients_is_the_step_itself(solver, trust):
    """Bit by bit, while the learning rate changes; parameters, gradients, momentum and lr stay where they lie."""
    pairs = [after_three_steps(solver, trust) for _ in range(2)]
    played, stepped = (optimizer._apply for _, optimizer in pairs)
    for index, (x, y) in enumerate(batches(7)[3:]):
        for model, optimizer in pairs:
            optimizer.param_groups[0]["lr"].fill_(0.05 / (index + 1))
            optimizer.zero_grad(set_to_none=False)
            F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            if index == 0:
                played = make_fx(lambda: pairs[0][1]._apply())()  # which steps, once
            else:
                played()
            stepped()
    for p, q in zip(*(model.parameters() for model, _ in pairs), strict=True):
        assert torch.equal(p, q)


def test_a_learning_rate_on_the_device_is_not_read_and_steps_as_a_number_does():
    model = network()
    twin = copy.deepcopy(model)
    rates = torch.tensor(0.05, dtype=torch.float64), 0.05
    for net, lr in zip((model, twin), rates, strict=True):
        optimizer = KFAC(net, lr=lr, policy=Policy(2, 2, 0))  # one step captures, the next does not
        for x, y in batches(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            with NoReads():
                optimizer.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


class Elsewhere(nn.Module):
    """A model that says its parameters lie on a GPU."""

    def parameters(self, recurse=True):
        return iter([type("Parameter", (), {"device": torch.device("cuda:0")})()])


def test_a_generator_of_another_device_is_refused():
    with pytest.raises(ValueError, match=r"draws on cpu, the parameters lie on cuda:0: pass torch.Generator\('cuda:0'\)"):
        check_generator(torch.Generator(), Elsewhere())
    check_generator(None, Elsewhere())
    check_generator(torch.Generator(), nn.Linear(2, 2))
